import functools
import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from kexue.losses import (
    ZLPRLoss,
    combination_softmax_loss,
    fit_temperature,
    pairwise_logsumexp_loss,
    sparse_zlpr_loss,
    zlpr_loss,
    zlpr_predict,
    zlpr_proba,
)

HARD = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
INDICES = torch.tensor([[3, 0, -100, -1, -100, -100], [-100] * 6, [5, 4, 3, 2, 1, 0], [5, -100, 5, -100, -100, -1]])


def random_scores(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scores():
    return random_scores(4, 6)


def by_hand(s, t, h=0.0):
    """The formula as it stands, one sample and one class at a time."""
    out = []
    for row, labels in zip(s, t, strict=True):
        negative = sum((1 - y) * x.exp() for x, y in zip(row, labels, strict=True)) + torch.tensor(h).double().exp()
        positive = sum(y * (-x).exp() for x, y in zip(row, labels, strict=True)) + torch.tensor(-h).double().exp()
        out.append(negative.log() + positive.log())
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_hard_labels_give_the_formula(scores, dtype):
    for h in (0.0, 0.7):
        loss = zlpr_loss(scores, HARD.to(dtype), threshold=h, reduction="none")
        assert torch.allclose(loss, by_hand(scores, HARD, h), atol=1e-12)
    assert torch.allclose(zlpr_loss(scores, HARD.to(dtype)), by_hand(scores, HARD).mean(), atol=1e-12)


def test_a_threshold_is_a_shift_of_the_scores(scores):
    h = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    moved = zlpr_loss(scores - h[:, None], HARD, reduction="none")
    assert torch.allclose(zlpr_loss(scores, HARD, threshold=h, reduction="none"), moved, atol=1e-12)
    assert torch.allclose(sparse_zlpr_loss(scores, INDICES, threshold=h, reduction="none"), moved, atol=1e-12)
    learnt = torch.nn.Parameter(torch.tensor(0.5))
    ZLPRLoss(threshold=learnt)(scores, HARD).backward()
    assert learnt.grad.abs() > 0


def test_one_class_is_binary_cross_entropy_and_more_classes_are_below_it(scores):
    one, label = scores[:, :1], HARD[:, :1].double()
    expected = binary_cross_entropy_with_logits(one, label)
    assert torch.allclose(zlpr_loss(one, label), expected, atol=1e-12)
    total = binary_cross_entropy_with_logits(scores, HARD.double(), reduction="none").sum(1)
    ours = zlpr_loss(scores, HARD, reduction="none")
    assert (ours < total).all()
    # one positive and one negative: nothing is dropped from the product
    pair = zlpr_loss(scores[:, :2], HARD[[0], :2].expand(4, 2), reduction="none")
    expected = binary_cross_entropy_with_logits(
        scores[:, :2], HARD[[0], :2].expand(4, 2).double(), reduction="none"
    ).sum(1)
    assert torch.allclose(pair, expected, atol=1e-12)


def test_soft_labels_are_read_back_by_the_sigmoid_of_twice_the_score():
    t = torch.tensor([[0.1, 0.5, 0.8, 0.999]], dtype=torch.float64)
    s = (0.5 * torch.logit(t)).requires_grad_()
    zlpr_loss(s, t).backward()
    assert s.grad.abs().max() < 1e-12  # the optimum
    assert torch.allclose(zlpr_proba(s.detach()), t, atol=1e-12)
    assert torch.allclose(zlpr_proba(s.detach(), temperature=2.0), torch.sigmoid(s.detach()), atol=1e-12)
    elsewhere = torch.logit(t).requires_grad_()  # the readout of binary cross-entropy is not the optimum
    zlpr_loss(elsewhere, t).backward()
    assert elsewhere.grad.abs().max() > 1e-2


def test_the_gradient_is_bounded_on_each_side_whatever_the_imbalance():
    s = random_scores(1, 1000).requires_grad_()
    t = torch.zeros(1, 1000, dtype=torch.bool)
    t[0, :3] = True
    zlpr_loss(s, t).backward()
    assert -1 < s.grad[0, :3].sum() < 0 < s.grad[0, 3:].sum() < 1


def test_smoothing_and_weights_stand_where_the_formula_has_them(scores):
    smooth = HARD * 0.8 + 0.1
    assert torch.allclose(
        zlpr_loss(scores, HARD, label_smoothing=0.2, reduction="none"), by_hand(scores, smooth), atol=1e-12
    )
    w = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0])
    negative = 1 + (w * (1 - HARD) * scores.exp()).sum(1)
    positive = 1 + (w * HARD * (-scores).exp()).sum(1)
    expected = negative.log() + positive.log()
    assert torch.allclose(zlpr_loss(scores, HARD, weight=w, reduction="none"), expected, atol=1e-12)
    assert torch.allclose(
        zlpr_loss(scores, HARD.bool(), weight=torch.ones(6)), by_hand(scores, HARD).mean(), atol=1e-12
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_sparse_equals_dense_in_value_and_gradient(scores, reduction):
    dense, sparse = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    a = zlpr_loss(dense, HARD, reduction=reduction)
    b = sparse_zlpr_loss(sparse, INDICES, reduction=reduction)
    assert torch.allclose(a, b, atol=1e-12)
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)
    ((a * weights).sum() if reduction == "none" else a).backward()
    ((b * weights).sum() if reduction == "none" else b).backward()
    assert torch.allclose(dense.grad, sparse.grad, atol=1e-12)


def test_masked_classes_are_as_if_absent(scores):
    mask = torch.tensor([True, True, False, True, False, True])
    short = zlpr_loss(scores[:, mask], HARD[:, mask], reduction="none")
    infinite = scores.masked_fill(~mask, -torch.inf)
    for labels in (HARD, HARD.bool()):
        assert torch.allclose(zlpr_loss(scores, labels, mask=mask, reduction="none"), short, atol=1e-12)
        assert torch.allclose(zlpr_loss(infinite, labels, reduction="none"), short, atol=1e-12)
    assert torch.allclose(sparse_zlpr_loss(scores, INDICES, mask=mask, reduction="none"), short, atol=1e-12)
    assert torch.allclose(sparse_zlpr_loss(infinite, INDICES, reduction="none"), short, atol=1e-12)


def losses():
    """Every loss on (4, 6) scores, with labels it takes."""
    two = torch.tensor([[1, 0, 0, 1, 0, 0]]).expand(4, 6)
    return {
        "hard": lambda s, **o: zlpr_loss(s, HARD.bool(), **o),
        "soft": lambda s, **o: zlpr_loss(s, HARD * 0.9, **o),
        "sparse": lambda s, **o: sparse_zlpr_loss(s, INDICES, **o),
        "pairwise": lambda s, **o: pairwise_logsumexp_loss(s, HARD, **o),
        "sets": lambda s, **o: combination_softmax_loss(s, two, k=2, **o),
        "sets up to 4": lambda s, **o: combination_softmax_loss(s, two, k=4, pad_score=0.5, **o),
    }


@pytest.mark.parametrize("name", losses())
def test_gradients_are_right_to_second_order(name, scores):
    loss = losses()[name]
    mask = torch.tensor([True, True, True, True, False, True])
    for options in ({}, {"mask": mask}):
        if name == "pairwise":
            scores = scores[[0, 0, 0, 3]]  # rows 1 and 2 of the labels are constant: one side is empty
        s = scores.clone().requires_grad_()
        assert gradcheck(lambda x, o=options: loss(x, **o), s)
        assert gradgradcheck(lambda x, o=options: loss(x, **o), s)
    threshold = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    if name in {"hard", "sparse"}:
        assert gradcheck(lambda h: loss(scores, threshold=h), threshold)


@pytest.mark.parametrize("name", losses())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extremes_stay_finite(name, dtype):
    largest = 1e4 if dtype == torch.float16 else 1e30 if name in {"hard", "soft"} else 1e4
    for sign in (1, -1):
        s = torch.full((4, 6), sign * largest, dtype=dtype)
        s[:, ::2] *= -1
        s.requires_grad_()
        loss = losses()[name](s)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert s.grad.isfinite().all()


@pytest.mark.parametrize("name", losses())
def test_samples_without_classes_count_nothing(name, scores):
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1] = False
    kept = losses()[name](scores, reduction="none", mask=mask)
    assert kept[1] == 0
    assert torch.allclose(losses()[name](scores, mask=mask), kept.sum() / 3, atol=1e-12)
    s = scores.clone().requires_grad_()
    nothing = losses()[name](s, mask=torch.zeros(6, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0
    assert s.grad.abs().max() == 0


TWO = torch.tensor([[1, 0, 0, 1, 0, 0]]).expand(4, 6)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (zlpr_loss, HARD),
        (zlpr_loss, HARD * 0.9),
        (sparse_zlpr_loss, INDICES),
        (pairwise_logsumexp_loss, HARD),
        (combination_softmax_loss, TWO),
        (functools.partial(combination_softmax_loss, k=4, pad_score=0.5), TWO),
    ],
)
def test_scores_may_have_any_leading_shape(loss, labels, scores):
    """One sample (C,), a batch (B, C) and batches of batches (..., C) hold the same samples, one value each."""
    flat = loss(scores, labels, reduction="none")
    torch.testing.assert_close(
        torch.stack([loss(s, y, reduction="none") for s, y in zip(scores, labels, strict=True)]), flat
    )
    for shape in ((2, 2), (2, 1, 2)):
        grid = loss(scores.reshape(*shape, 6), labels.reshape(*shape, -1), reduction="none")
        torch.testing.assert_close(grid, flat.reshape(shape))
        torch.testing.assert_close(loss(scores.reshape(*shape, 6), labels.reshape(*shape, -1)), flat.mean())


@pytest.mark.parametrize("name", losses())
def test_a_sample_whose_scores_are_all_masked_is_left_out_of_the_mean(name, scores):
    """Scores of -inf leave a sample without classes as a mask does: it adds 0 and does not count."""
    loss, rows = losses()[name], torch.tensor([True, False, True, True])
    gone = scores.masked_fill(~rows[:, None], -torch.inf).requires_grad_()
    values = loss(gone, reduction="none")
    assert values[1] == 0
    torch.testing.assert_close(loss(gone), values[rows].mean())
    torch.testing.assert_close(loss(gone), loss(scores, mask=rows[:, None]))
    loss(gone).backward()
    assert (gone.grad[1] == 0).all()
    assert gone.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch, tracing a Function
@pytest.mark.parametrize("name", losses())
def test_compiled_without_a_break(name, scores):
    compiled = torch.compile(losses()[name], fullgraph=True, backend="aot_eager")
    a, b = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    losses()[name](a).backward()
    loss = compiled(b)
    loss.backward()
    assert torch.allclose(loss, losses()[name](scores), atol=1e-12)
    assert torch.allclose(a.grad, b.grad, atol=1e-12)


def test_autocast_changes_nothing():
    s = random_scores(4, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(zlpr_loss(s, HARD), zlpr_loss(s.float(), HARD))


def test_pairwise_is_the_double_sum_and_softmax_for_one_positive(scores):
    one = torch.tensor([2, 0, 5, 1])
    assert torch.allclose(pairwise_logsumexp_loss(scores, one_hot(one, 6)), cross_entropy(scores, one), atol=1e-12)
    expected = []
    for s, t in zip(scores, HARD, strict=True):
        wishes = [(2 * (n + 0.3 - p)).exp() for n in s[t == 0] for p in s[t == 1]]
        expected.append(torch.log1p(torch.stack(wishes).sum()) if wishes else torch.zeros((), dtype=torch.float64))
    ours = pairwise_logsumexp_loss(scores, HARD, scale=2.0, margin=0.3, reduction="none")
    assert torch.allclose(ours, torch.stack(expected), atol=1e-12)


def test_combination_softmax_is_a_softmax_over_sets(scores):
    for k in (1, 2, 3):
        labels = torch.zeros(4, 6, dtype=torch.int64)
        labels[:, 2 : 2 + k] = 1
        sets = torch.stack([scores[:, list(c)].sum(1) for c in itertools.combinations(range(6), k)], 1)
        expected = sets.logsumexp(1) - (scores * labels).sum(1)
        assert torch.allclose(combination_softmax_loss(scores, labels, k=k, reduction="none"), expected, atol=1e-12)
        assert torch.allclose(combination_softmax_loss(scores, labels, reduction="none"), expected, atol=1e-12)
    one = one_hot(torch.tensor([2, 0, 5, 1]), 6)
    assert torch.allclose(combination_softmax_loss(scores, one), cross_entropy(scores, one.argmax(1)), atol=1e-12)
    # sets of up to three are sets of exactly three once three copies of the padding class may be drawn
    labels, h = HARD[[0, 1, 3]], 0.4
    sizes = [(m, c) for m in range(4) for c in itertools.combinations(range(6), m)]
    rows = scores[[0, 1, 3]]
    sets = torch.stack([rows[:, list(c)].sum(1) + (3 - m) * h for m, c in sizes], 1)
    expected = sets.logsumexp(1) - (rows * labels).sum(1) - (3 - labels.sum(1)) * h
    ours = combination_softmax_loss(rows, labels, k=3, pad_score=h, reduction="none")
    assert torch.allclose(ours, expected, atol=1e-12)


def test_predict_and_temperature():
    s = torch.tensor([[1.0, 0.0, -1.0], [0.2, 3.0, 0.6]])
    assert zlpr_predict(s).tolist() == [[True, False, False], [True, True, True]]
    assert zlpr_predict(s, torch.tensor([0.0, 0.5])).tolist() == [[True, False, False], [False, True, True]]
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(20000, generator=g, dtype=torch.float64)
    labels = torch.rand(20000, generator=g) < torch.sigmoid(2 * scores / 1.7)
    assert fit_temperature(scores, labels) == pytest.approx(1.7, abs=0.08)  # three standard errors
    assert fit_temperature(scores, torch.sigmoid(2 * scores / 0.3)) == pytest.approx(0.3, rel=1e-9)
    with pytest.raises(ValueError, match="rise with the labels"):
        fit_temperature(scores, scores < 0)
    with pytest.raises(ValueError, match="not separate them perfectly"):
        fit_temperature(scores, scores > 0)


def test_the_module_is_the_function(scores):
    assert torch.equal(ZLPRLoss(reduction="sum")(scores, HARD), zlpr_loss(scores, HARD, reduction="sum"))
    smooth = ZLPRLoss(label_smoothing=0.1, threshold=torch.tensor(0.25))
    assert "threshold" in smooth.state_dict()
    assert torch.equal(smooth(scores, HARD), zlpr_loss(scores, HARD, label_smoothing=0.1, threshold=0.25))
    mask = torch.arange(6) > 1
    assert torch.equal(ZLPRLoss(sparse=True)(scores, INDICES, mask), sparse_zlpr_loss(scores, INDICES, mask=mask))


def test_another_padding_and_no_labels_at_all(scores):
    padded = INDICES.masked_fill(INDICES < 0, 99)
    assert torch.equal(sparse_zlpr_loss(scores, padded, ignore_index=99), sparse_zlpr_loss(scores, INDICES))
    none = sparse_zlpr_loss(scores, torch.zeros(4, 0, dtype=torch.int64))
    assert torch.allclose(none, scores.exp().sum(1).log1p().mean(), atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: zlpr_loss(s, HARD[:, :5]), ValueError, r"\(4, 6\), got \(4, 5\)"),
        (lambda s: zlpr_loss(s, HARD * 2), ValueError, r"\[0, 1\], got 0 ... 2"),
        (lambda s: zlpr_loss(s.long(), HARD), TypeError, "integer class numbers|floats"),
        (lambda s: zlpr_loss(s, HARD, mask=HARD), TypeError, "bool"),
        (lambda s: zlpr_loss(s, HARD, mask=HARD[:, :3].bool()), ValueError, "broadcast"),
        (lambda s: zlpr_loss(s, HARD, label_smoothing=1.5), ValueError, "1.5"),
        (lambda s: zlpr_loss(s, HARD, weight=-torch.ones(6)), ValueError, "-1.0"),
        (lambda s: zlpr_loss(s, HARD, weight=torch.ones(5)), ValueError, r"\(5,\)"),
        (lambda s: zlpr_loss(s, HARD, threshold=torch.zeros(3)), ValueError, r"\(3,\)"),
        (lambda s: zlpr_loss(s, HARD, reduction="average"), ValueError, "average"),
        (lambda s: sparse_zlpr_loss(s, INDICES + 3), ValueError, "got 6"),
        (lambda s: sparse_zlpr_loss(s, INDICES.float()), TypeError, "float32"),
        (lambda s: sparse_zlpr_loss(s, INDICES[:2]), ValueError, r"\(2, 6\)"),
        (lambda s: pairwise_logsumexp_loss(s, HARD * 0.5), ValueError, "soft"),
        (lambda s: pairwise_logsumexp_loss(s, HARD, scale=0), ValueError, "got 0"),
        (lambda s: combination_softmax_loss(s, HARD, k=2), ValueError, "k = 2 positives, got 0"),
        (lambda s: combination_softmax_loss(s, HARD, k=7), ValueError, "got 7"),
        (lambda s: combination_softmax_loss(s, HARD, pad_score=0.0), ValueError, "got None"),
        (lambda s: zlpr_proba(s, temperature=0), ValueError, "got 0"),
        (lambda s: ZLPRLoss(sparse=True, label_smoothing=0.1), ValueError, "sparse"),
    ],
)
def test_mistakes_are_named(call, error, words, scores):
    with pytest.raises(error, match=words):
        call(scores)
