"""The loss of each stage against the same loss computed by hand, whole and in chunks."""

import math

import pytest
import torch
from torch.nn import functional

from kexue.losses import cosent_loss
from kexue.text import PairCollator
from kexue.text.training.tasks import Classify, SentenceTask, contrast, distill, hinge, order, square

PAIRS = [("怎么退货", "如何申请退货呢"), ("今天天气好", "天气不错"), ("我要买手机", "手机哪里买")]


@pytest.fixture
def batch(tokenizer):
    return PairCollator(tokenizer, p_noise=0)(PAIRS)


def alone(model, text):
    ids = torch.from_numpy(model.tokenizer.encode([text]).ids)[None].long()
    return model(ids).vectors[0]


def writing_by_hand(model, pairs):
    """Sum and number of the losses of all tokens to write, each row by itself, each token from its past."""
    total, count = 0.0, 0
    for first, second in [row for a, b in pairs for row in ((a, b), (b, a))]:
        a, b = (model.tokenizer.encode([text]).ids.tolist() for text in (first, second))
        ids = torch.tensor([a + b[1:]])
        segments = torch.tensor([[0] * len(a) + [1] * (len(b) - 1)])
        for place in range(len(a), ids.shape[1]):
            states = model(ids[:, :place], segments[:, :place]).states
            total -= model.score_tokens(states[0, -1]).log_softmax(0)[ids[0, place]].item()
            count += 1
    return total, count


def test_pretraining_is_contrast_and_writing(make_model, batch):
    model = make_model()
    loss, parts = SentenceTask(model, contrast).training_step(batch)
    with torch.no_grad():
        vectors = [functional.normalize(alone(model, text), dim=0) for pair in PAIRS for text in pair]
        losses = []
        for i in range(6):
            scores = {j: 20 * float(vectors[i] @ vectors[j]) for j in range(6) if j != i}
            partner = i + 1 if i % 2 == 0 else i - 1
            losses.append(math.log(sum(math.exp(score) for score in scores.values())) - scores[partner])
        total, count = writing_by_hand(model, PAIRS)
    assert parts["contrast"].item() == pytest.approx(sum(losses) / 6, rel=1e-4)
    assert parts["writing"].item() == pytest.approx(total / count, rel=1e-4)
    assert loss.item() == pytest.approx(sum(losses) / 6 + total / count, rel=1e-4)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 100])  # 3 splits a pair
def test_chunks_give_the_gradient_of_the_whole_batch(make_model, batch, chunk_size):
    whole, chunked = make_model(), make_model()
    loss = SentenceTask(whole, contrast).training_step(batch).loss
    loss.backward()
    result = SentenceTask(chunked, contrast, chunk_size=chunk_size).training_step(batch)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert set(result.parts) == {"contrast", "writing"}
    for (name, one), other in zip(whole.named_parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_chunks_in_half_precision_come_near_the_whole_batch(make_model, batch):
    gradients = []
    for chunk_size in (None, 4):
        model = make_model()
        with torch.autocast("cpu", torch.bfloat16):
            loss = SentenceTask(model, contrast, chunk_size=chunk_size).training_step(batch).loss
        loss.backward()
        gradients.append(torch.cat([one.grad.flatten() for one in model.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert gradients[0].norm() == pytest.approx(gradients[1].norm().item(), rel=0.02)


def test_chunks_train_a_head_too(make_model, batch):
    gradients = []
    for chunk_size in (None, 2):
        torch.manual_seed(0)
        task = SentenceTask(make_model(), Classify(32), chunk_size=chunk_size)
        rows = {**batch, "segment_ids": torch.zeros_like(batch["segment_ids"])}
        rows |= {"labels": torch.tensor([1.0, 0.0, 2.0]), "tasks": torch.tensor([0, 0, 1])}
        task.training_step(rows).loss.backward()
        gradients.append(task.objective.head.head.linear.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_distillation_is_the_error_of_all_cosines_and_of_vectors(make_model, batch):
    model = make_model()
    targets = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    loss, parts = SentenceTask(model, distill).training_step({**batch, "targets": targets})
    with torch.no_grad():
        vectors = torch.stack([alone(model, text) for pair in PAIRS for text in pair])
        errors = [
            (torch.cosine_similarity(vectors[i], vectors[j], 0) - torch.cosine_similarity(targets[i], targets[j], 0))
            ** 2
            for i in range(6)
            for j in range(6)
        ]
        away = [1 - torch.cosine_similarity(vectors[i], targets[i], 0) for i in range(6)]
    assert parts["similarities"].item() == pytest.approx(100 / 36 * sum(errors).item(), rel=1e-4)
    assert parts["vectors"].item() == pytest.approx(10 / 6 * sum(away).item(), rel=1e-4)
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-5)
    assert "writing" in parts


def test_without_second_texts_nothing_is_written(make_model, batch):
    rows = {**batch, "segment_ids": torch.zeros_like(batch["segment_ids"])}
    assert set(SentenceTask(make_model(), contrast).training_step(rows).parts) == {"contrast"}


def test_losses_on_labelled_pairs():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(8, 5, generator=generator)
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0])
    cosines = [torch.cosine_similarity(vectors[2 * i], vectors[2 * i + 1], 0).item() for i in range(4)]
    rows = {"labels": labels}
    assert square(vectors, rows)["mse"].item() == pytest.approx(
        sum((c - 1) ** 2 if y else c**2 for c, y in zip(cosines, labels, strict=True)) / 4, rel=1e-5
    )
    assert hinge(vectors, rows)["hinge"].item() == pytest.approx(
        sum(max(0.9 - c, 0) if y else max(c - 0.1, 0) for c, y in zip(cosines, labels, strict=True)) / 4, rel=1e-5
    )
    wanted = cosent_loss(torch.tensor(cosines), labels, method="pairwise")
    assert order(vectors, rows)["cosent"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_classes_of_one_task_compete_with_each_other_only():
    torch.manual_seed(0)
    objective = Classify(3)
    vectors = torch.randn(4, 3)
    rows = {"labels": torch.tensor([1.0, 2.0]), "tasks": torch.tensor([0, 1])}
    u, v = vectors[::2], vectors[1::2]
    scores = torch.cat((u, v, (u - v).abs()), 1) @ objective.head.head.linear.weight.T
    wanted = -(scores[0, :2].log_softmax(0)[1] + scores[1, 2:].log_softmax(0)[2]) / 2
    assert objective(vectors, rows)["classes"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_an_odd_batch_is_refused(make_model, batch):
    with pytest.raises(ValueError, match="rows 2i and 2i \\+ 1 are partners"):
        SentenceTask(make_model(), contrast).training_step({name: rows[:5] for name, rows in batch.items()})
