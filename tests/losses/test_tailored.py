import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import cross_entropy

from kexue.losses import GammaWarmup, TaiLrLoss, tailr_loss

LABELS = torch.tensor([0, 2, -100, 3, 1, 2])
GAMMAS = [0.0, 1e-7, 0.1, 0.5, 0.9, 1.0]


@pytest.fixture
def scores():
    return 2 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_hand(s, y, gamma, floor=0.0):
    """Value and gradient of the weighted form: a constant weight, and softmax minus one-hot for the slope of -log p."""
    values, slopes = torch.zeros(len(y), dtype=s.dtype), torch.zeros_like(s)
    for i, label in enumerate(y.tolist()):
        if label == -100:
            continue
        p = s[i].exp() / s[i].exp().sum()
        w = max(float(p[label] / (gamma + (1 - gamma) * p[label])), floor)
        values[i] = -w * p[label].log()
        slopes[i] = w * p
        slopes[i, label] -= w
    return values, slopes


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_value_and_gradient_are_those_of_the_formula(gamma, floor, scores):
    values, slopes = by_hand(scores, LABELS, gamma, floor)
    s = scores.clone().requires_grad_()
    loss = tailr_loss(s, LABELS, gamma, min_weight=floor, reduction="none")
    assert torch.allclose(loss, values, atol=1e-12)
    loss.sum().backward()
    assert torch.allclose(s.grad, slopes, atol=1e-12)
    assert torch.allclose(tailr_loss(scores, LABELS, gamma, min_weight=floor), values.sum() / 5, atol=1e-12)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_integrated_form_has_the_same_gradient_and_a_bound(gamma, scores):
    p = scores.softmax(-1)[torch.arange(6), LABELS.clamp(min=0)]
    expected = 1 - p if gamma == 1 else -torch.log(gamma + (1 - gamma) * p) / (1 - gamma)
    s = scores.clone().requires_grad_()
    loss = tailr_loss(s, LABELS, gamma, form="integrated", reduction="none")
    assert torch.allclose(loss, expected * (LABELS != -100), atol=1e-12)
    loss.sum().backward()
    assert torch.allclose(s.grad, by_hand(scores, LABELS, gamma)[1], atol=1e-12)
    if 0 < gamma < 1:
        worst = tailr_loss(torch.tensor([[1e4, -1e4]]), torch.tensor([1]), gamma, form="integrated")
        assert worst.item() == pytest.approx(-math.log(gamma) / (1 - gamma), rel=1e-6)


def test_the_integrated_form_is_precise_near_gamma_1():
    s, y = torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([0])
    for gamma in (0.999, 0.999999, 1.0):
        exact = tailr_loss(s.double(), y, gamma, form="integrated")
        assert tailr_loss(s, y, gamma, form="integrated").item() == pytest.approx(exact.item(), rel=3e-7)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.2},
        {"weight": torch.tensor([1.0, 2.0, 0.0, 0.5])},
        {"label_smoothing": 0.1, "weight": torch.tensor([1.0, 2.0, 3.0, 0.5])},
    ],
)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gamma_0_is_torch_s_cross_entropy(options, reduction, scores):
    options = {k: v.double() if k == "weight" else v for k, v in options.items()} | {"reduction": reduction}
    for form in ("weighted", "integrated"):
        ours = tailr_loss(scores, LABELS, 0.0, form=form, **options)
        assert torch.allclose(ours, cross_entropy(scores, LABELS, **options), atol=1e-12)
    maps, labels = scores.reshape(2, 4, 3), torch.tensor([[0, 1, -100], [3, 2, 2]])
    ours = tailr_loss(maps, labels, 0.0, **options)
    assert torch.allclose(ours, cross_entropy(maps, labels, **options), atol=1e-12)
    ours = tailr_loss(scores[0], labels[0, 1], 0.0, **options)
    assert torch.allclose(ours, cross_entropy(scores[0], labels[0, 1], **options), atol=1e-12)


def test_smoothing_is_not_weighed_by_the_belief(scores):
    uniform = -scores.log_softmax(-1).mean(-1) * (LABELS != -100)
    expected = 0.8 * by_hand(scores, LABELS, 0.5)[0] + 0.2 * uniform
    assert torch.allclose(tailr_loss(scores, LABELS, 0.5, label_smoothing=0.2, reduction="none"), expected, atol=1e-12)


def test_gamma_may_be_a_tensor(scores):
    for gamma in GAMMAS:
        for form in ("weighted", "integrated"):
            a = tailr_loss(scores, LABELS, gamma, form=form)
            b = tailr_loss(scores, LABELS, torch.tensor(gamma, dtype=torch.float64), form=form)
            assert torch.equal(a, b)


def test_gradients_by_differences(scores):
    for gamma in GAMMAS:  # the weighted form's value is not its gradient's integral: only this form can be checked
        s = scores.clone().requires_grad_()

        def loss(x, g=gamma):
            return tailr_loss(x, LABELS, g, form="integrated", label_smoothing=0.1)

        assert gradcheck(loss, s)
        assert gradgradcheck(loss, s)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", ["weighted", "integrated"])
def test_extremes_stay_finite(dtype, form):
    for gamma in GAMMAS:
        s = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
        loss = tailr_loss(s, torch.tensor([1, 1, 0]), gamma, form=form)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert s.grad.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"form": "integrated"}, {"weight": torch.ones(4, dtype=torch.float64)},
                                     {"label_smoothing": 0.1}])  # fmt: skip
def test_everything_ignored_is_an_exact_zero(options, scores):
    s = scores.clone().requires_grad_()
    loss = tailr_loss(s, torch.full((6,), -100), 0.5, **options)
    loss.backward()
    assert loss.item() == 0
    assert s.grad.abs().max() == 0


@pytest.mark.parametrize("form", ["weighted", "integrated"])
def test_compiled_without_a_break(form, scores):
    module = TaiLrLoss(0.3, form=form, label_smoothing=0.1, weight=torch.arange(1.0, 5.0).double())
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for gamma in (0.3, 0.4, 0.5):
        module.gamma = gamma
        a, b = scores.clone().requires_grad_(), scores.clone().requires_grad_()
        loss = tailr_loss(a, LABELS, gamma, form=form, label_smoothing=0.1, weight=module.weight)
        loss.backward()
        ours = compiled(b, LABELS)
        ours.backward()
        assert torch.allclose(ours, loss, atol=1e-12)
        assert torch.allclose(a.grad, b.grad, atol=1e-12)


def test_module_and_warmup(scores):
    loss = TaiLrLoss(0.5, min_weight=0.2, ignore_index=3, reduction="sum")
    labels = LABELS.abs() % 4
    assert torch.equal(
        loss(scores, labels), tailr_loss(scores, labels, 0.5, min_weight=0.2, ignore_index=3, reduction="sum")
    )
    warmup = GammaWarmup(loss, start=0.1, end=0.7, steps=3)
    seen = [loss.gamma]
    for _ in range(5):
        warmup.step()
        seen.append(loss.gamma)
    assert seen == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.7, 0.7], abs=1e-12)
    assert loss.gamma == 0.7
    assert "gamma=0.7" in repr(loss)


def _set_gamma(value):
    TaiLrLoss(0.1).gamma = value


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: tailr_loss(s, LABELS, 1.5), ValueError, "got 1.5"),
        (lambda s: tailr_loss(s, LABELS, torch.ones(2)), ValueError, r"\(2,\)"),
        (lambda s: tailr_loss(s, LABELS, torch.tensor(-1.0)), ValueError, "got -1.0"),
        (lambda s: tailr_loss(s, LABELS, 0.1, min_weight=1), ValueError, "got 1"),
        (lambda s: tailr_loss(s, LABELS, 0.1, min_weight=0.2, form="integrated"), ValueError, "'weighted'"),
        (lambda s: tailr_loss(s, LABELS, 0.1, form="other"), ValueError, "'other'"),
        (lambda s: tailr_loss(s, LABELS, 0.1, label_smoothing=2), ValueError, "got 2"),
        (lambda s: tailr_loss(s, LABELS, 0.1, weight=torch.ones(3)), ValueError, r"\(4,\)"),
        (lambda s: tailr_loss(s, LABELS, 0.1, reduction="all"), ValueError, "'all'"),
        (lambda s: tailr_loss(s, LABELS[:5], 0.1), ValueError, r"\(6,\) for scores \(6, 4\), got \(5,\)"),
        (lambda s: tailr_loss(s, LABELS + 2, 0.1), ValueError, r"\[0, 4\) or be -100, got 4"),
        (lambda s: tailr_loss(s, LABELS.float(), 0.1), TypeError, "float32"),
        (lambda s: tailr_loss(s.long(), LABELS, 0.1), TypeError, "integer class numbers|floats"),
        (lambda s: tailr_loss(s[0, 0], LABELS, 0.1), ValueError, "a number"),
        (lambda s: _set_gamma(2), ValueError, "got 2"),
        (lambda s: GammaWarmup(TaiLrLoss(0.1), end=1.0, steps=0), ValueError, "got 0"),
    ],
)
def test_mistakes_are_named(call, error, words, scores):
    with pytest.raises(error, match=words):
        call(scores)
