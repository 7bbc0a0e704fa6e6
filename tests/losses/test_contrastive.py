import math

import pytest
import torch
from torch.nn import functional

from kexue.losses import (
    FlatNCELoss,
    InfoNCELoss,
    contrastive_diagnostics,
    flat_nce,
    info_nce,
    pair_contrastive_loss,
)

LOSSES = [info_nce, flat_nce]


def scores(seed=0, rows=4, columns=6, dtype=torch.float64):
    return 3 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)


LABELS = torch.tensor([5, 0, 3, 1])


def ratios(s, labels, mask=None):
    """xi by Python's exact sum."""
    found = []
    for i, (row, y) in enumerate(zip(s.tolist(), labels.tolist(), strict=True)):
        kept = [j for j in range(len(row)) if j != y and (mask is None or mask[i, j])]
        found.append(math.fsum(math.exp(row[j] - row[y]) for j in kept))
    return torch.tensor(found, dtype=torch.float64)


def test_both_are_functions_of_xi():
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) > 0.4
    for m in (None, mask):
        xi = ratios(scores(), LABELS, m)
        torch.testing.assert_close(info_nce(scores(), LABELS, mask=m, reduction="none"), torch.log1p(xi))
        torch.testing.assert_close(flat_nce(scores(), LABELS, mask=m, reduction="none"), torch.log(xi))
    torch.testing.assert_close(info_nce(scores(), LABELS), functional.cross_entropy(scores(), LABELS))
    torch.testing.assert_close(info_nce(scores()), functional.cross_entropy(scores(), torch.arange(4)))  # the diagonal


def test_gradient_is_that_of_xi_over_its_constant():
    s = scores().requires_grad_()
    (flat,) = torch.autograd.grad(flat_nce(s, LABELS, reduction="sum"), s)
    own = s.gather(1, LABELS[:, None])
    xi = ((s - own).exp() * (1 - functional.one_hot(LABELS, 6))).sum(dim=1)
    (article,) = torch.autograd.grad((xi / xi.detach()).sum(), s)
    torch.testing.assert_close(flat, article, rtol=0, atol=1e-12)
    assert torch.allclose(flat.gather(1, LABELS[:, None]), torch.tensor(-1.0, dtype=torch.float64))
    (info,) = torch.autograd.grad(info_nce(s, LABELS, reduction="sum"), s)
    torch.testing.assert_close(info, (xi / (1 + xi))[:, None] * flat, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gap", [15.0, 17.0, 20.0, 60.0, 80.0])
def test_infonce_is_exact_where_cross_entropy_rounds_to_zero(gap):
    s = torch.tensor([[gap, 0.0, 0.0]]).requires_grad_()
    loss = info_nce(s, torch.tensor([0]))
    loss.backward()
    xi = 2 * math.exp(-gap)
    assert loss.item() == pytest.approx(math.log1p(xi), rel=1e-5, abs=1e-45)
    expected = torch.tensor([[-xi, xi / 2, xi / 2]]) / (1 + xi)
    torch.testing.assert_close(s.grad, expected, rtol=1e-4, atol=1e-45)
    if gap > 17.5:
        plain = s.detach().clone().requires_grad_()
        functional.cross_entropy(plain, torch.tensor([0])).backward()
        assert plain.grad[0, 0] == 0  # what rounding does to the usual form


def test_infonce_is_exact_where_the_positive_trails():
    trailing = info_nce(torch.tensor([[-21.0, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert trailing.item() == pytest.approx(21 + math.exp(-21), rel=1e-14)  # softplus would stop at 21


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss):
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) > 0.4
    s = scores().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, LABELS, mask=mask), s)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, LABELS, mask=mask), s)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_without_negatives_are_dropped(loss):
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1] = False
    mask[2] = functional.one_hot(LABELS[2], 6).bool()  # nothing but the positive, whose entry is not read
    s = scores()
    s[0, 1:4] = -torch.inf  # masked by the caller
    s.requires_grad_()
    each = loss(s, LABELS, mask=mask, reduction="none")
    assert (each[[1, 2]] == 0).all()
    torch.testing.assert_close(loss(s, LABELS, mask=mask), each[[0, 3]].mean())
    loss(s, LABELS, mask=mask).backward()
    assert s.grad.isfinite().all()
    assert (s.grad[[1, 2]] == 0).all()
    assert s.grad[3].abs().sum() > 0
    empty = loss(s, LABELS, mask=torch.zeros_like(mask))
    empty.backward()
    assert empty.item() == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_at_extreme_scores(loss, dtype):
    s = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0]], dtype=dtype).requires_grad_()
    value = loss(s, torch.tensor([0, 0, 1]))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_shifts_and_order_do_not_matter(loss):
    s = scores()
    torch.testing.assert_close(loss(s + torch.arange(4.0)[:, None], LABELS), loss(s, LABELS))
    order = torch.tensor([3, 0, 2, 1])
    torch.testing.assert_close(loss(s[order], LABELS[order]), loss(s, LABELS))


def views(rows=5, seed=2):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, 7, generator=g, dtype=torch.float64).unbind()


@pytest.mark.parametrize("kind", [InfoNCELoss, FlatNCELoss])
def test_two_views_by_hand(kind):
    a, b = views()
    of = torch.log1p if kind is InfoNCELoss else torch.log
    cos = functional.cosine_similarity(a[:, None], b[None], dim=2) / 0.2
    torch.testing.assert_close(kind(0.2, symmetric=False)(a, b), of(ratios(cos, torch.arange(5))).mean())
    both = torch.cat([a, b])
    found = []
    for i in range(10):
        partner = (i + 5) % 10
        cos = (functional.cosine_similarity(both[i], both, dim=1) / 0.2).tolist()
        found.append(math.fsum(math.exp(cos[j] - cos[partner]) for j in range(10) if j not in (i, partner)))
    expected = of(torch.tensor(found, dtype=torch.float64))
    torch.testing.assert_close(kind(0.2, reduction="none")(a, b), expected)
    torch.testing.assert_close(kind(0.2)(a, b), kind(0.2)(b, 3 * a))


def test_flat_can_report_infonce():
    a, b = (x.clone().requires_grad_() for x in views())
    shown = FlatNCELoss(0.1, report="infonce")(a, b)
    torch.testing.assert_close(shown, InfoNCELoss(0.1)(a, b))
    (reported,) = torch.autograd.grad(shown, a)
    (flat,) = torch.autograd.grad(FlatNCELoss(0.1)(a, b), a)
    torch.testing.assert_close(reported, flat)


def test_modules_ignore_autocast_and_compile():
    a, b = (x.float() for x in views())
    for loss in (InfoNCELoss(), FlatNCELoss(report="infonce")):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(loss(a, b), loss(a.double(), b.double()).float())
        compiled = torch.compile(loss, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(a, b), loss(a, b))
        assert "temperature=0.1" in repr(loss)


def test_neighbouring_rows_are_partners():
    a, b = views()
    rows = torch.stack([a, b], dim=1).flatten(0, 1)
    torch.testing.assert_close(pair_contrastive_loss(rows, scale=5.0), InfoNCELoss(0.2)(a, b))
    assert pair_contrastive_loss(rows[:2]).item() == 0  # one pair has no negative


def test_diagnostics_by_hand():
    s = torch.tensor([[0.0, -20.0, -20.0], [0.0, 0.0, -torch.inf], [0.0, math.log(2.0), math.log(1.0)]])
    found = contrastive_diagnostics(s, torch.zeros(3, dtype=torch.int64))
    xi = torch.tensor([2 * math.exp(-20), 1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(
        found["xi_quantiles"], xi.quantile(torch.linspace(0, 1, 5).double()), rtol=1e-6, atol=1e-12
    )
    assert found["share_below_eps"].item() == pytest.approx(1 / 3)
    assert found["effective_sample_size"].item() == pytest.approx((2 + 1 + 1 / (4 / 9 + 1 / 9)) / 3)
    factors = xi / (1 + xi)
    assert found["gradient_snr"].item() == pytest.approx((factors.mean() / factors.std(correction=0)).item())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: flat_nce(scores()[0]), ValueError, r"\(6,\)"),
        (lambda: info_nce(scores().T), ValueError, r"K >= B, got \(6, 4\)"),
        (lambda: info_nce(scores(), LABELS + 1), ValueError, r"\[0, 6\), got 6"),
        (lambda: info_nce(scores(), LABELS[:2]), ValueError, r"\(4,\)"),
        (lambda: info_nce(scores(), LABELS.float()), TypeError, "integer class numbers|floats"),
        (lambda: info_nce(scores().long(), LABELS), TypeError, "integer class numbers|floats"),
        (lambda: info_nce(scores(), mask=torch.ones(4, 6)), TypeError, "bool"),
        (lambda: info_nce(scores(), mask=torch.ones(4, 5).bool()), ValueError, r"\(4, 6\)"),
        (lambda: info_nce(scores(), reduction="avg"), ValueError, "avg"),
        (lambda: FlatNCELoss(0.0), ValueError, "temperature must be > 0"),
        (lambda: FlatNCELoss(report="both"), ValueError, "both"),
        (lambda: FlatNCELoss()(torch.ones(2, 3), torch.ones(3, 3)), ValueError, r"\(2, 3\) and \(3, 3\)"),
        (lambda: pair_contrastive_loss(torch.ones(3, 2)), ValueError, r"\(3, 2\)"),
        (lambda: pair_contrastive_loss(torch.ones(4, 2), scale=-1.0), ValueError, "scale"),
        (lambda: contrastive_diagnostics(scores(), mask=torch.zeros(4, 6).bool()), ValueError, "no row"),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
