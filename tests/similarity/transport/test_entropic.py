import numpy as np
import pytest

from kexue.similarity import emd, product_upper_bound, sinkhorn

torch = pytest.importorskip("torch")


def batch(size=3, m=5, n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p, q, cost = (torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in
                  ((size, m), (size, n), (size, m, n)))  # fmt: skip
    return p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True), cost


def test_marginals_and_form_of_the_plan():
    p, q, cost = batch()
    result = sinkhorn(p, q, cost, reg=0.1, n_iter=2000, tol=1e-10)
    assert result.converged
    assert result.n_iter < 2000
    torch.testing.assert_close(result.plan.sum(-1), p, atol=1e-9, rtol=0)
    torch.testing.assert_close(result.plan.sum(-2), q, atol=1e-12, rtol=0)
    torch.testing.assert_close(result.distance, (result.plan * cost).sum((-2, -1)))
    # P_ij = a_i b_j exp(-D_ij / reg): what is left of log P after the cost has rank one, doubly centred it is 0.
    rest = torch.log(result.plan) + cost / 0.1
    rest = rest - rest.mean(-1, keepdim=True)
    torch.testing.assert_close(rest - rest.mean(-2, keepdim=True), torch.zeros_like(rest), atol=1e-10, rtol=0)


def test_limits_in_reg():
    p, q, cost = batch()
    exact = [emd(*arguments) for arguments in zip(p, q, cost, strict=True)]
    cheap = sinkhorn(p, q, cost, reg=2e-3, n_iter=20_000, tol=1e-9)
    # The entropy of the plan is at most log(m n): the distance is off by less than reg log(20).
    for got, want in zip(cheap.distance.tolist(), exact, strict=True):
        assert want - 1e-8 <= got <= want + 2e-3 * np.log(20)
    loose = sinkhorn(p, q, cost, reg=1e5)
    for got, arguments in zip(loose.distance.tolist(), zip(p, q, cost, strict=True), strict=True):
        assert got == pytest.approx(product_upper_bound(*arguments), abs=1e-4)  # cost / reg is what is left
    curve = [float(sinkhorn(p[0], q[0], cost[0], reg=reg, n_iter=5000).distance) for reg in (0.01, 0.1, 1.0, 10.0)]
    assert curve == sorted(curve)


def test_agrees_with_pot():
    ot = pytest.importorskip("ot")
    p, q, cost = batch()
    ours = sinkhorn(p, q, cost, reg=0.05, n_iter=5000, tol=1e-12).plan
    for i in range(len(p)):
        theirs = ot.sinkhorn(p[i].numpy(), q[i].numpy(), cost[i].numpy(), 0.05, stopThr=1e-13, numItermax=10_000)
        np.testing.assert_allclose(ours[i].numpy(), theirs, atol=1e-10)


def test_tiny_reg_neither_overflows_nor_underflows():
    p, q, cost = (value.float() for value in batch())
    result = sinkhorn(p, q, 100 * cost, reg=1e-3, n_iter=50)
    assert result.plan.isfinite().all()
    assert not result.converged
    assert result.n_iter == 50


def test_masks_are_padding():
    p, q, cost = batch(size=2, m=5, n=4)
    junk_p = torch.cat([p, torch.full((2, 3), 7.0, dtype=p.dtype)], dim=1)
    junk_q = torch.cat([q, torch.full((2, 2), torch.nan, dtype=q.dtype)], dim=1)
    padded = torch.full((2, 8, 6), torch.nan, dtype=p.dtype)
    padded[:, :5, :4] = cost
    mask_p, mask_q = (torch.arange(k) < kept for k, kept in ((8, 5), (6, 4)))
    padded.requires_grad_()
    got = sinkhorn(junk_p, junk_q, padded, mask_p=mask_p.expand(2, -1), mask_q=mask_q.expand(2, -1))
    want = sinkhorn(p, q, cost)
    torch.testing.assert_close(got.distance, want.distance)
    torch.testing.assert_close(got.plan[:, :5, :4], want.plan)
    assert (got.plan[:, 5:] == 0).all()
    assert (got.plan[:, :, 4:] == 0).all()
    got.distance.sum().backward()
    assert (padded.grad[:, 5:] == 0).all()
    assert padded.grad[:, :5, :4].isfinite().all()


def test_lengths_differ_within_a_batch():
    p, q, cost = batch(size=2, m=5, n=5)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    p = torch.where(mask, p, 0)
    p = p / p.sum(-1, keepdim=True)
    together = sinkhorn(p, q, cost, mask_p=mask, tol=1e-12, n_iter=3000).distance
    alone = sinkhorn(p[1, :2], q[1], cost[1, :2], tol=1e-12, n_iter=3000).distance
    torch.testing.assert_close(together[1], alone)
    assert alone.ndim == 0


def test_gradients():
    p, q, cost = batch(size=2, m=3, n=3)
    cost.requires_grad_()
    assert torch.autograd.gradcheck(lambda D: sinkhorn(p, q, D, reg=0.5, n_iter=20, tol=0.0).distance, (cost,))
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(
        lambda z: sinkhorn(z.softmax(-1), q, cost.detach(), reg=0.5, n_iter=20, tol=0.0).distance, (logits,)
    )


def test_zero_masses_give_finite_gradients():
    p, q, cost = batch(size=1)
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]], dtype=p.dtype, requires_grad=True)
    cost.requires_grad_()
    sinkhorn(p, q, cost).distance.sum().backward()
    assert p.grad.isfinite().all()
    assert cost.grad.isfinite().all()
    assert (cost.grad[:, 2:] == 0).all()


def test_dtypes_and_broadcasting():
    p, q, cost = batch()
    half = sinkhorn(p.half(), q.half(), cost.half())
    assert half.distance.dtype == torch.float32
    torch.testing.assert_close(half.distance.double(), sinkhorn(p, q, cost).distance, atol=2e-3, rtol=0)  # half's eps
    shared = sinkhorn(p[0], q[0], cost)
    torch.testing.assert_close(shared.distance[1], sinkhorn(p[0], q[0], cost[1]).distance, atol=1e-5, rtol=0)
    assert shared.plan.shape == cost.shape
    assert isinstance(sinkhorn(p[0].numpy(), q[0].numpy(), cost[0].numpy()).plan, torch.Tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reg": 0.0}, "reg must be > 0"),
        ({"n_iter": 0}, "n_iter must be"),
        ({"p": torch.tensor([0.5, 0.6])}, "differ by"),
        ({"p": torch.tensor([-0.5, 1.5])}, "masses >= 0, got -0.5"),
        ({"p": torch.tensor([0.0, 0.0])}, "sum > 0"),
        ({"p": torch.tensor([1.0])}, "must fit"),
        ({"cost": torch.tensor([[0.0, torch.nan], [1.0, 0.0]])}, "cost must be finite"),
        ({"mask_p": torch.tensor([1, 0])}, "mask_p must be bool"),
        ({"mask_q": torch.tensor([True])}, "mask_q must be bool"),
        ({"mask_q": torch.tensor([False, False])}, "sum > 0"),
    ],
)
def test_bad_input(change, message):
    good = {"p": torch.tensor([0.5, 0.5]), "q": torch.tensor([0.5, 0.5]), "cost": torch.tensor([[0.0, 1], [1, 0]])}
    with pytest.raises(ValueError, match=message):
        sinkhorn(**(good | change))


def test_kinds_of_numpy_are_read_and_meta_is_refused():
    p, q, cost = np.array([0.25, 0.75]), np.array([0.5, 0.5]), np.array([[0.0, 1.0], [2.0, 0.0]])
    expected = float(sinkhorn(p.tolist(), q.tolist(), torch.tensor(cost)).distance)
    for convert in (lambda x: x.astype(np.longdouble), lambda x: x[::-1].copy()[::-1], np.asfortranarray):
        assert float(sinkhorn(*map(convert, (p, q, cost))).distance) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="q is on the meta device"):
        sinkhorn(p, torch.ones(2, device="meta"), cost)
