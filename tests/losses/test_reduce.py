import pytest
import torch

from kexue.losses import am_softmax_loss, arcface_loss, margin_loss, nmway_loss, tailr_loss
from kexue.losses._reduce import check_reduction, full_precision, masked_logsumexp, reduce
from kexue.nn import perturb_max_cross_entropy


def test_reductions_count_only_what_is_kept():
    values = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    kept = torch.tensor([True, False, True])
    assert reduce(values, kept, "none").tolist() == [1.0, 0.0, 6.0]
    assert reduce(values, kept, "sum").item() == 7.0
    assert reduce(values, kept, "mean").item() == 3.5
    assert reduce(values, None, "mean").item() == 3.0


def test_nothing_kept_is_an_exact_zero_with_a_graph():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = reduce(values, torch.zeros(2, dtype=torch.bool), "mean")
    loss.backward()
    assert loss.item() == 0.0
    assert values.grad.tolist() == [0.0, 0.0]
    assert reduce(torch.ones(0), None, "mean").item() == 0.0


def test_wrong_reduction_and_dtype_are_named():
    with pytest.raises(ValueError, match="'average'"):
        check_reduction("average")
    with pytest.raises(TypeError, match="floats"):
        full_precision(torch.zeros(3, dtype=torch.int64))
    assert full_precision(torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.float32
    assert full_precision(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64


def test_masked_logsumexp_is_logsumexp_of_the_kept_and_safe_without_any():
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    keep = torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 5])
    value = masked_logsumexp(x, keep)
    expected = torch.stack([x[0].exp().sum().log(), x[1, [0, 2]].exp().sum().log()])
    assert torch.allclose(value[:2], expected, atol=1e-12)
    assert value[2].item() == -torch.inf
    value.exp().sum().backward()
    assert torch.allclose(x.grad, x.detach().exp() * keep, atol=1e-12)


LABELS = torch.tensor([1, 2, -100, 0])
SHARES = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.4, 0.6]])
WITH_A_ROW_LEFT_OUT = {
    "nmway": lambda s: nmway_loss(s, LABELS),
    "nmway centered": lambda s: nmway_loss(s, LABELS, form="centered"),
    "nmway soft": lambda s: nmway_loss(s, SHARES),
    "nmway soft centered": lambda s: nmway_loss(s, SHARES, form="centered"),
    "tailr": lambda s: tailr_loss(s, LABELS, 0.3, label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 3.0])),
    "tailr integrated": lambda s: tailr_loss(s, LABELS, 0.3, form="integrated"),
    "am-softmax": lambda s: am_softmax_loss(s, LABELS),
    "arcface": lambda s: arcface_loss(s, LABELS),
    "margin": lambda s: margin_loss(s, LABELS),
    "perturbed maximum": lambda s: perturb_max_cross_entropy(s, LABELS, "normal"),
}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 7.0])
@pytest.mark.parametrize("name", WITH_A_ROW_LEFT_OUT)
def test_a_row_that_is_left_out_may_hold_anything(name, bad):
    """A gradient of 0 times NaN would be NaN: the row is emptied before anything is computed."""
    loss = WITH_A_ROW_LEFT_OUT[name]
    scores = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.func.grad(loss)(scores)
    scores[2] = bad
    scores.requires_grad_()
    loss(scores).backward()
    torch.testing.assert_close(scores.grad, expected)
    assert not scores.grad[2].any()
