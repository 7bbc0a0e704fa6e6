import math

import pytest
import torch
from torch.nn import functional

from kexue.losses import (
    AdaptiveMarginSchedule,
    AMSoftmaxLoss,
    ArcFaceLoss,
    am_softmax_loss,
    arcface_loss,
    estimate_class_diameter,
    margin_loss,
)

LOSSES = [am_softmax_loss, arcface_loss, margin_loss]
LABELS = torch.tensor([0, 2, 1, 2])


def cosines(seed=0, rows=4, classes=3, dtype=torch.float64):
    return (2 * torch.rand(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1) * 0.95


def brute(change, scores, labels, scale):
    """log(1 + sum of exp) written out with Python floats; `change` puts the margin on the class's own score."""
    losses = []
    for row, y in zip(scores.tolist(), labels.tolist(), strict=True):
        own = change(row[y])
        losses.append(math.log1p(sum(math.exp(scale * (s - own)) for i, s in enumerate(row) if i != y)))
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_each_loss_is_its_formula(scale):
    c = cosines()
    expected = brute(lambda x: x - 0.35, c, LABELS, scale)
    torch.testing.assert_close(am_softmax_loss(c, LABELS, scale=scale, reduction="none"), expected)
    expected = brute(lambda x: math.cos(math.acos(x) + 0.5), c.clamp(-0.8), LABELS, scale)
    torch.testing.assert_close(arcface_loss(c.clamp(-0.8), LABELS, scale=scale, reduction="none"), expected)
    d = (1 - c).sqrt()
    expected = brute(lambda x: x - 0.35, -d, LABELS, scale)  # a distance is a negative score; the margin adds to it
    torch.testing.assert_close(margin_loss(d, LABELS, scale=scale, reduction="none"), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_without_margin_it_is_scaled_softmax(loss):
    c = cosines()
    scores = -c.abs() if loss is margin_loss else c
    plain = functional.cross_entropy(30 * scores, LABELS)
    torch.testing.assert_close(loss(c.abs() if loss is margin_loss else c, LABELS, margin=0.0), plain)


def test_beyond_the_far_pole_arcface_goes_on_falling():
    angles = torch.linspace(1e-3, math.pi - 1e-3, 500, dtype=torch.float64)
    c = torch.stack([angles.cos(), torch.zeros(500, dtype=torch.float64)], dim=1)
    losses = arcface_loss(c, torch.zeros(500, dtype=torch.int64), margin=0.5, scale=5.0, reduction="none")
    assert (losses.diff() > 0).all()
    beyond = angles > math.pi - 0.5
    own = c[beyond, 0] - 0.5 * math.sin(0.5)
    expected = torch.log1p(torch.exp(-5.0 * own))
    torch.testing.assert_close(losses[beyond], expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_reductions_and_ignored_rows(loss):
    values = cosines().abs()
    labels = torch.tensor([0, -100, 1, -100])
    each = loss(values, labels, reduction="none")
    assert each.shape == (4,)
    assert (each[[1, 3]] == 0).all()
    alone = loss(values[[0, 2]], labels[[0, 2]], reduction="none")
    torch.testing.assert_close(loss(values, labels), alone.mean())
    torch.testing.assert_close(loss(values, labels, reduction="sum"), alone.sum())
    with_graph = values.clone().requires_grad_()
    nothing = loss(with_graph, torch.full((4,), -100))
    nothing.backward()
    assert nothing.item() == 0
    assert (with_graph.grad == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients(loss):
    values = cosines().abs().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: loss(c, LABELS, scale=5.0), values)
    assert torch.autograd.gradgradcheck(lambda c: loss(c, LABELS, scale=5.0), values)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_at_the_poles_and_in_half_precision(loss, dtype):
    values = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 1.0]], dtype=dtype)
    values = (values.abs() if loss is margin_loss else values).requires_grad_()
    result = loss(values, torch.tensor([0, 0]), scale=1e4)
    result.backward()
    assert result.dtype == torch.float32
    assert result.isfinite()
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_compiles_in_one_graph(loss):
    values = cosines().abs()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(values, LABELS), loss(values, LABELS))


@pytest.mark.parametrize("head", [AMSoftmaxLoss, ArcFaceLoss])
def test_heads_compare_directions(head):
    loss = head(3, 5)
    with torch.no_grad():
        loss.weight.mul_(7.0)  # lengths play no part
    embeddings = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    by_pairs = functional.cosine_similarity(embeddings[:, None], loss.weight[None], dim=2)
    torch.testing.assert_close(loss.cosines(embeddings), by_pairs)
    of = am_softmax_loss if head is AMSoftmaxLoss else arcface_loss
    torch.testing.assert_close(loss(3 * embeddings, LABELS), of(by_pairs, LABELS, margin=loss.margin))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(embeddings, LABELS), of(by_pairs, LABELS, margin=loss.margin))
    loss(embeddings, LABELS).backward()
    assert loss.weight.grad.abs().sum() > 0
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(embeddings, LABELS), loss(embeddings, LABELS))
    assert "margin" in repr(loss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: am_softmax_loss(30 * cosines(), LABELS), r"cosines must lie in \[-1, 1\]"),
        (lambda: am_softmax_loss(cosines(), LABELS[:2]), r"\(4, 3\) and \(2,\)"),
        (lambda: am_softmax_loss(cosines(), LABELS + 1), r"\[0, 3\)"),
        (lambda: am_softmax_loss(cosines(), LABELS, margin=-0.1), "-0.1"),
        (lambda: arcface_loss(cosines(), LABELS, margin=4.0), r"\[0, pi\)"),
        (lambda: arcface_loss(cosines(), LABELS, margin=-0.1), r"\[0, pi\), got -0.1"),
        (lambda: margin_loss(cosines().abs(), LABELS, margin=-0.1), ">= 0, got -0.1"),
        (lambda: margin_loss(cosines(), LABELS), "distances must be >= 0"),
        (lambda: am_softmax_loss(cosines(), LABELS, scale=0.0), "scale must be > 0"),
        (lambda: am_softmax_loss(cosines(), LABELS, reduction="avg"), "avg"),
        (lambda: AMSoftmaxLoss(1, 5), "num_classes >= 2"),
        (lambda: AMSoftmaxLoss(3, 5)(torch.zeros(4, 6), LABELS), r"\(B, 5\)"),
        (lambda: estimate_class_diameter(torch.ones(2, 3), torch.tensor([0, 5]), torch.ones(2, 3)), r"\[0, 2\)"),
        (lambda: AdaptiveMarginSchedule(AMSoftmaxLoss(2, 3), every=0), "every must be >= 1"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(TypeError, match="integer class numbers"):
        am_softmax_loss(cosines(), LABELS.float())


def test_diameter_is_twice_the_mean_distance():
    weight = torch.eye(2)
    embeddings = torch.tensor([[2.0, 0.0], [3.0, 3.0], [0.0, 1.0], [5.0, 5.0]])
    labels = torch.tensor([0, 0, 1, -100])
    expected = 2 * (0 + math.sqrt(1 - math.sqrt(0.5)) + 0) / 3
    assert estimate_class_diameter(embeddings, labels, weight) == pytest.approx(expected, abs=1e-12)
    expected = 2 * (1 + math.sqrt(4 + 9) + 0) / 3
    assert estimate_class_diameter(embeddings, labels, weight, metric="euclidean") == pytest.approx(expected)


def test_the_schedule_measures_every_so_often():
    loss = AMSoftmaxLoss(3, 2, margin=0.0)
    with torch.no_grad():
        loss.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    angle = torch.tensor(0.2)
    near = torch.stack([angle.cos(), angle.sin()])[None]
    schedule = AdaptiveMarginSchedule(loss, every=2)
    assert schedule.step(near, torch.tensor([0])) == 0.0
    margin = schedule.step(near, torch.tensor([0]))
    assert margin == pytest.approx(8 * (1 - math.cos(0.2)), rel=1e-5)  # 2 m^2 with m = 2 sqrt(1 - cos)
    assert loss.margin == margin
    schedule.step(near, torch.tensor([2]))
    assert schedule.step(near, torch.tensor([2])) == 1.5  # C / (C - 1): more than that cannot be reached


def test_margin_between_cosines_follows_from_the_margin_between_distances():
    # on the border d_i = d_y + m of the metric form, at distance m / 2 from the own centre
    m = 0.4
    own, other = m / 2, m / 2 + m
    assert (1 - own**2) - (1 - other**2) == pytest.approx(2 * m**2)
