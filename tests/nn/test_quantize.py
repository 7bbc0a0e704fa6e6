import copy
import math

import numpy as np
import pytest
import torch
from _linear_maps import randn
from torch import nn

from kexue.nn import VectorQuantizer, nearest_code, rotate_to, straight_through

KINDS = ["plain", "linear", "diagonal"]
GRADIENTS = ["straight_through", "rotation", "none"]


def quantizer(*arguments, seed=0, **options):
    torch.manual_seed(seed)
    return VectorQuantizer(*arguments, **options)


# nearest codes


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_the_nearest_code_is_that_of_brute_force(distance):
    z, codes = randn(3, 700, 5), randn(900, 5, seed=1)  # several chunks
    if distance == "l2":
        expected = (z[:, :, None] - codes).square().sum(-1).argmin(-1)
    else:
        expected = torch.cosine_similarity(z[:, :, None], codes, dim=-1).argmax(-1)
    assert torch.equal(nearest_code(z, codes, distance=distance), expected)


def test_a_far_common_offset_costs_no_precision():
    z, codes = randn(500, 8), randn(64, 8, seed=1)
    expected = nearest_code(z, codes)
    # 1000 + x is rounded to 6e-5: rows nearly half-way between two codes may go either way, no others
    moved = nearest_code((z + 1000).float(), (codes + 1000).float())
    assert (moved == expected).float().mean() > 0.995


def test_ties_go_to_the_lowest_number_and_no_rows_to_none():
    codes = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[0.0, 1.0], [0.5, 0.5]]), codes).tolist() == [1, 1]
    assert nearest_code(torch.empty(0, 2), codes).shape == (0,)
    assert nearest_code(torch.ones(2), codes).shape == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype):
    z, codes = randn(300, 64, dtype=dtype), randn(512, 64, seed=1, dtype=dtype)
    assert torch.equal(nearest_code(z, codes), nearest_code(z.float(), codes.float()))


# gradients


def test_gradients_of_the_losses():
    q = quantizer(3, 6, parametrization="linear").double()
    z = randn(5, 3).requires_grad_()
    # the codes chosen do not change under gradcheck's steps of 1e-6
    assert torch.autograd.gradcheck(lambda x: q(x).commitment_loss, z)
    assert torch.autograd.gradgradcheck(lambda x: q(x).commitment_loss, z)

    def of_the_map(weight):
        return torch.func.functional_call(q, {"map.weight": weight}, (z.detach(),)).codebook_loss

    assert torch.autograd.gradcheck(of_the_map, q.map.weight)


# the layer


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_statistics_are_their_formulas(kind):
    q = quantizer(4, 7, parametrization=kind, codebook_weight=0.5, commitment_weight=2.0).double()
    if kind != "plain":
        nn.init.normal_(q.map.weight)
    codes = {"linear": lambda: q.codes @ q.map.weight.T, "diagonal": lambda: q.codes * q.map.weight}
    codebook = codes.get(kind, lambda: q.codes)()
    torch.testing.assert_close(q.codebook, codebook)
    z = randn(2, 9, 4)
    out = q(z)
    expected = codebook[torch.cdist(z, codebook[None]).argmin(-1)]
    torch.testing.assert_close(out.quantized, expected)
    squares = (z - expected).square().mean()
    torch.testing.assert_close(out.codebook_loss, squares)
    torch.testing.assert_close(out.commitment_loss, squares)
    torch.testing.assert_close(out.loss, 2.5 * squares)
    p = np.bincount(out.indices.flatten().numpy(), minlength=7) / 18
    assert out.usage.item() == pytest.approx((p > 0).mean())
    assert out.perplexity.item() == pytest.approx(np.exp(-sum(x * np.log(x) for x in p if x)), rel=1e-5)


def test_each_term_moves_its_own_side():
    q = quantizer(4, 7).double()
    z = randn(9, 4).requires_grad_()
    out = q(z)
    (to_codes,) = torch.autograd.grad(out.codebook_loss, q.codes, retain_graph=True)
    expected = torch.zeros(7, 4, dtype=torch.float64)
    expected.index_add_(0, out.indices, 2 * (out.quantized - z).detach() / 36)
    torch.testing.assert_close(to_codes, expected)
    (to_rows,) = torch.autograd.grad(out.commitment_loss, z, retain_graph=True)
    torch.testing.assert_close(to_rows, 2 * (z - out.quantized).detach() / 36)
    assert torch.autograd.grad(out.codebook_loss, z, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(out.commitment_loss, q.codes, allow_unused=True) == (None,)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_where_the_gradient_of_what_follows_goes(gradient):
    q = quantizer(4, 7, gradient=gradient).double()
    z, g = randn(9, 4).requires_grad_(), randn(9, 4, seed=1)
    out = q(z).quantized
    to_rows, to_codes = torch.autograd.grad(out, (z, q.codes), g, allow_unused=True)
    if gradient == "none":
        assert to_rows is None
        torch.testing.assert_close(to_codes.sum(0), g.sum(0))
    else:
        assert to_codes is None
        other = z.detach().requires_grad_()
        way = rotate_to if gradient == "rotation" else straight_through
        way(other, out.detach()).backward(g)
        torch.testing.assert_close(to_rows, other.grad)


def test_every_code_moves_with_the_linear_map_and_only_chosen_ones_without():
    z = randn(3, 4, dtype=torch.float32)
    for kind, moved in (("plain", False), ("linear", True), ("diagonal", True)):
        q = quantizer(4, 50, parametrization=kind)
        before = q.codebook.detach().clone()
        out = q(z)
        out.loss.backward()
        torch.optim.SGD(q.parameters(), 0.1).step()
        still = torch.ones(50, dtype=torch.bool)
        still[out.indices] = False
        assert (q.codebook != before).any(1)[still].all() == moved
        assert isinstance(q.codes, nn.Parameter) == (kind == "plain")
    assert isinstance(quantizer(4, 5, parametrization="linear", train_codebook=True).codes, nn.Parameter)
    assert not list(quantizer(4, 5, train_codebook=False).parameters())


@pytest.mark.parametrize("kind", [*KINDS, "module"])
def test_folding_keeps_the_output_and_loads_into_a_plain_one(kind):
    own = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    q = quantizer(4, 7, parametrization=own if kind == "module" else kind)
    if kind in ("linear", "diagonal"):
        nn.init.normal_(q.map.weight)
    z = randn(9, 4, dtype=torch.float32)
    before = q(z)
    assert q.fold_() is q
    torch.testing.assert_close(q(z), before)
    plain = quantizer(4, 7, seed=1)
    plain.load_state_dict(q.state_dict())
    torch.testing.assert_close(plain(z), before)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_masked_rows_do_not_exist(gradient):
    q = quantizer(4, 7, gradient=gradient).double()
    z, mask = randn(2, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    z[~mask] = torch.nan  # whatever it holds
    z.requires_grad_()
    out, alone = q(z, mask=mask), q(z[mask])
    torch.testing.assert_close(out[2:], alone[2:])
    torch.testing.assert_close(out.quantized[mask], alone.quantized)
    assert torch.equal(out.indices[mask], alone.indices)
    assert (out.indices[~mask] == -1).all()
    assert (out.quantized[~mask] == 0).all()
    assert torch.equal(q.decode(out.indices), out.quantized)
    (out.loss + out.quantized.sum()).backward()
    assert z.grad.isfinite().all()
    assert (z.grad[~mask] == 0).all()


def test_nothing_kept_is_an_exact_zero_with_a_graph():
    q = quantizer(4, 7, parametrization="linear", gradient="rotation")
    z = randn(3, 4, dtype=torch.float32).requires_grad_()
    out = q(z, mask=torch.zeros(3, dtype=torch.bool))
    assert out.loss.item() == 0
    assert out.usage.item() == 0
    out.loss.backward()
    assert (z.grad == 0).all()
    assert (q.map.weight.grad == 0).all()
    empty = q(torch.empty(0, 4))
    assert empty.loss.item() == 0
    assert empty.quantized.shape == (0, 4)


def test_channel_first_is_the_same_on_moved_axes():
    last, first = quantizer(4, 7), quantizer(4, 7, channel_first=True)
    z, mask = randn(2, 3, 5, 4, dtype=torch.float32), randn(2, 3, 5, seed=1) > 0
    a, b = last(z, mask=mask), first(z.movedim(-1, 1), mask=mask)
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.quantized, b.quantized.movedim(1, -1))
    assert torch.equal(first.decode(b.indices), b.quantized)


@pytest.mark.parametrize("kind", KINDS)
def test_kmeans_finds_separate_clouds_once_and_not_in_eval(kind):
    centres = 10 * torch.eye(6, 4, dtype=torch.float32)
    centres[4], centres[5] = -10.0, 10.0
    z = centres.repeat_interleave(50, 0) + 0.01 * randn(300, 4, dtype=torch.float32)
    best = np.inf
    for seed in range(8):  # Lloyd's rounds end in the nearest minimum: one of eight starts finds the clouds
        q = quantizer(4, 6, parametrization=kind, init="kmeans", seed=seed)
        random = q.codes.detach().clone()
        q.eval()(z)
        assert torch.equal(q.codes, random)
        best = min(best, q.train()(z).codebook_loss.item())
        started = q.codebook.detach().clone()
        q(z + 5)
        assert torch.equal(q.codebook, started)
    assert best < 2e-4  # 0.01 ** 2
    again = quantizer(4, 6, parametrization=kind, init="kmeans", seed=9)
    again.load_state_dict(q.state_dict())
    again(z + 5)
    assert torch.equal(again.codebook, q.codebook)
    copy.deepcopy(again)


@pytest.mark.parametrize(("kind", "gradient"), list(zip(KINDS, GRADIENTS, strict=True)))
def test_compiles_in_one_graph(kind, gradient):
    torch._dynamo.reset()
    q = quantizer(4, 7, parametrization=kind, gradient=gradient)
    z, mask = randn(2, 9, 4, dtype=torch.float32), randn(2, 9, seed=1) > 0
    compiled = torch.compile(q, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z, mask=mask), q(z, mask=mask))
    torch.testing.assert_close(compiled(z), q(z))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_half_precision(dtype, gradient):
    q = quantizer(64, 100, parametrization="linear", gradient=gradient)
    z = torch.cat([randn(8, 64), torch.full((1, 64), 6e4), torch.full((1, 64), -1e4), torch.zeros(1, 64)])
    z = z.to(dtype).requires_grad_()
    reference = q(z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = q(z)
    assert out.quantized.dtype == dtype
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, reference.loss)
    assert torch.equal(out.indices, reference.indices)
    # a loss of 1e9 scaled as a user of half precision scales it
    (1e-6 * out.loss + out.quantized.float().sum()).backward()
    assert z.grad is None or z.grad.isfinite().all()
    assert q.map.weight.grad.isfinite().all()


def test_mistakes_are_named():
    q = quantizer(4, 7)
    for bad in (
        {"dim": 0}, {"num_codes": 0}, {"commitment_weight": -1.0}, {"gradient": "ste"}, {"distance": "l1"},
        {"init": "zeros"}, {"parametrization": "diag"}, {"parametrization": nn.Identity(), "init": "kmeans"},
    ):  # fmt: skip
        options = {"dim": 4, "num_codes": 7} | bad
        with pytest.raises(ValueError):
            VectorQuantizer(options.pop("dim"), options.pop("num_codes"), **options)
    with pytest.raises(ValueError, match=r"expected z \(..., 4\), got \(2, 3\)"):
        q(torch.ones(2, 3))
    with pytest.raises(TypeError, match="int64"):
        q(torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="mask must be bool"):
        q(torch.ones(2, 4), mask=torch.ones(2))
    with pytest.raises(ValueError, match=r"expected mask \(2,\), got \(4,\)"):
        q(torch.ones(2, 4), mask=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="got 0 to 7"):
        q.decode(torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="at least num_codes = 7 rows, got 3"):
        q.start_from(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(7, 4\)"):
        nearest_code(torch.ones(2, 3), torch.ones(7, 4))
    with pytest.raises(ValueError, match="the same shape"):
        rotate_to(torch.ones(2, 3), torch.ones(3))


def test_the_default_loss_is_the_codebooks_and_a_quarter_of_the_encoders():
    q = VectorQuantizer(3, 4)
    z = torch.randn(6, 3, requires_grad=True)
    out = q(z)
    assert out.codebook_loss == out.commitment_loss
    torch.testing.assert_close(out.loss, 1.25 * out.codebook_loss)
    out.loss.backward()
    codes = q.codes.detach()[out.indices]
    torch.testing.assert_close(z.grad, 0.25 * 2 * (z.detach() - codes) / z.numel())
    chosen = torch.zeros(4, 3).index_add(0, out.indices, 2 * (codes - z.detach()) / z.numel())
    torch.testing.assert_close(q.codes.grad, chosen)


SPREAD = torch.tensor([[10.0, 10.0], [20.0, 20.0], [30.0, 30.0]])


def is_clustered(q):
    return sorted(q.codes.detach()[:, 0].round().tolist()) == [10, 20, 30]


def test_loading_forgets_k_means_only_where_codes_are_loaded():
    def fresh():
        return VectorQuantizer(2, 3, init="kmeans")

    trained, untrained = fresh(), fresh()
    trained(SPREAD)
    state = trained.state_dict()
    for made in (fresh(), VectorQuantizer(2, 3)):  # with codes: they stay
        made.load_state_dict(state)
        made(SPREAD + 50)
        assert is_clustered(made)
    older = fresh()
    older.load_state_dict({"codes": state["codes"]})  # as it was saved before the flag was part of it
    older(SPREAD + 50)
    assert is_clustered(older)
    for partial in (untrained.state_dict(), {}, {"started": torch.tensor(True)}):  # without, or with random ones
        made = fresh()
        made.load_state_dict(partial, strict=False)
        made(SPREAD)
        assert is_clustered(made)
        assert made.state_dict()["started"]
    assert "started" not in VectorQuantizer(2, 3).state_dict()


def test_autocast_and_the_default_dtype_change_no_code():
    torch.manual_seed(0)
    q, z = VectorQuantizer(4, 8, parametrization="linear"), torch.randn(5, 4)
    torch.nn.init.normal_(q.map.weight)
    expected = q(z)
    for default in (torch.float64, torch.bfloat16, torch.float16):
        torch.set_default_dtype(default)
        try:
            out, born = q(z), VectorQuantizer(4, 8)(z)
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
        assert born.loss.isfinite()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = q(z)
        assert torch.equal(q.decode(out.indices), out.quantized)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


def test_the_nearest_code_by_cosine_of_short_and_long_codes():
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    z = torch.tensor([[1.0, 0.1], [0.1, 1.0], [-1.0, 0.3]])
    for size in (1e-30, 1e-13, 1e30):
        scaled = codes * torch.tensor([[size], [1.0], [1 / size]])
        assert nearest_code(z, scaled, distance="cosine").tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-37, 1e-20, 1.0, 1e20, 1e37])
@pytest.mark.parametrize("far", [None, 1e6])
def test_the_nearest_code_is_so_at_every_scale_and_beside_a_far_code(dtype, size, far):
    """Squares of such numbers leave float32, and a mean drawn away by one code cancels the others."""
    z, codes = randn(60, 4, dtype=dtype), randn(9, 4, seed=1, dtype=dtype)
    if far is not None:
        codes[4] = far
    size *= 1.0 if far is None else 1e-7
    z, codes = z * size, codes * size
    expected = (z.double()[:, None] / size - codes.double() / size).norm(dim=-1).argmin(1)
    assert torch.equal(nearest_code(z, codes), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_kmeans_refuses_rows_that_are_no_numbers(bad):
    quantizer, z = VectorQuantizer(4, 3, init="kmeans"), randn(20, 4, dtype=torch.float32)
    z[7, 2] = bad
    with pytest.raises(ValueError, match="finite rows"):
        quantizer(z)
    mask = torch.arange(20) != 7
    assert quantizer(z, mask=mask).loss.isfinite()
    assert quantizer.codes.isfinite().all()
