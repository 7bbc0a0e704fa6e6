import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from kexue.optim import Adafactor

SHAPES = [(130, 150), (129, 2, 128), (3, 4), (5, 1), (7,), ()]
DEFAULTS = {
    "lr": 1e-3, "beta1": 0.0, "beta2": None, "decay_power": 0.8, "eps": (1e-30, 1e-3), "clip_threshold": 1.0,
    "scale_parameter": True, "relative_step_scale": 0.05, "min_dim_size_to_factor": 128, "factor_dims": "largest",
    "weight_decay": 0.0, "warmup_init": False, "maximize": False,
}  # fmt: skip


def reference(x, gradients, **options):
    """One parameter in numpy, one line a line of the paper; the state is as large as the parameter."""
    o = DEFAULTS | options
    order = sorted(range(x.ndim), key=lambda d: -x.shape[d]) if o["factor_dims"] == "largest" else range(x.ndim)[::-1]
    pair = tuple(order)[:2]
    factored = len(pair) == 2 and min(x.shape[d] for d in pair) >= o["min_dim_size_to_factor"]
    R = C = V = M = np.zeros_like(x)
    for t, gradient in enumerate(gradients, start=1):
        g = -gradient if o["maximize"] else gradient
        b = 1 - t ** -o["decay_power"] if o["beta2"] is None else o["beta2"]
        squares = g**2 + o["eps"][0]
        if factored:
            R = b * R + (1 - b) * squares.mean(axis=pair[0], keepdims=True)
            C = b * C + (1 - b) * squares.mean(axis=pair[1], keepdims=True)
            V = R * C / R.mean(axis=pair[1], keepdims=True)
        else:
            V = b * V + (1 - b) * squares
        u = g / np.sqrt(V)
        if o["clip_threshold"] is not None:
            u = u / max(1, np.sqrt(np.mean(u**2)) / o["clip_threshold"])
        if o["beta1"]:
            u = M = o["beta1"] * M + (1 - o["beta1"]) * u
        rate = o["lr"]
        if rate is None:
            rate = min(1e-6 * t if o["warmup_init"] else 1e-2, 1 / np.sqrt(t))
            rate *= 1 if o["scale_parameter"] else o["relative_step_scale"]
        size = max(o["eps"][1], np.sqrt(np.mean(x**2))) if o["scale_parameter"] else 1
        x = x - rate * o["weight_decay"] * x - rate * size * u
    return x


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(shape, steps=4, make=Adafactor, start=None, **options):
    p = nn.Parameter(normal(*shape, seed=9) if start is None else start.clone())
    optimizer = make([p], **options)
    for step in range(steps):
        p.grad = normal(*shape, seed=step).to(p.dtype) * (1 + step)
        optimizer.step()
    return p, optimizer


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.1, "beta1": 0.9, "weight_decay": 0.3},
        {"lr": None, "weight_decay": 0.3},
        {"lr": None, "scale_parameter": False, "warmup_init": True, "maximize": True, "beta1": 0.5},
        {"lr": 0.1, "beta2": 0.99, "clip_threshold": None},
        {"lr": 0.1, "clip_threshold": 0.3, "decay_power": 0.5, "min_dim_size_to_factor": 0, "factor_dims": "last"},
        {"lr": 0.1, "eps": (0.5, 5.0), "min_dim_size_to_factor": 3},
    ],
    ids=str,
)
def test_the_algorithm_line_by_line(shape, options, foreach):
    p, _ = run(shape, foreach=foreach, **options)
    gradients = [normal(*shape, seed=step).numpy() * (1 + step) for step in range(4)]
    expected = reference(normal(*shape, seed=9).numpy(), gradients, **options)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_of_rows_make_no_difference(monkeypatch, threads):
    whole, _ = run((300, 130), beta1=0.5, lr=0.1)
    monkeypatch.setattr("kexue.optim.adafactor._CELLS", 7 * 130)  # the last block is short
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    blocks, _ = run((300, 130), beta1=0.5, lr=0.1)
    torch.testing.assert_close(blocks, whole, rtol=1e-13, atol=1e-14)


# peers


def trajectories(ours, theirs, scale=1.0):
    """Both over all shapes and 30 steps in float64, the gradient depending on where they stand."""
    mine, other = ([nn.Parameter(normal(*shape, seed=9)) for shape in SHAPES] for _ in range(2))
    first, second = ours(mine), theirs(other)
    for step in range(30):
        for params, optimizer in ((mine, first), (other, second)):
            for p in params:
                p.grad = scale * (p.detach() + normal(*p.shape, seed=step))
            optimizer.step()
    for p, q in zip(mine, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


LAST = {"factor_dims": "last", "min_dim_size_to_factor": 0}


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_torch_below_its_cap_on_the_rate(decay):
    trajectories(
        lambda params: Adafactor(params, lr=1e-2, weight_decay=decay, **LAST),
        lambda params: torch.optim.Adafactor(params, lr=1e-2, eps=(1e-30, 1e-3), weight_decay=decay),
    )


def test_torch_caps_the_rate_and_we_do_not():
    """torch takes min(lr, 1 / sqrt(t)); a scheduler gives ours the same."""

    def capped(params):
        optimizer = Adafactor(params, lr=0.5, **LAST)
        optimizer.register_step_pre_hook(
            lambda o, *_: o.param_groups[0].update(lr=min(0.5, (1 + count(o)) ** -0.5)),
        )
        return optimizer

    def count(optimizer):
        return next((int(state["step"]) for state in optimizer.state.values()), 0)

    trajectories(capped, lambda params: torch.optim.Adafactor(params, lr=0.5, eps=(1e-30, 1e-3)))


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_transformers(relative, warmup):
    peer = pytest.importorskip("transformers.optimization")
    if not hasattr(peer, "Adafactor"):
        pytest.skip("this version of transformers has no Adafactor")
    options = {"lr": None, "warmup_init": warmup} if relative else {"lr": 1e-2, "scale_parameter": warmup}
    trajectories(
        lambda params: Adafactor(params, **options, **LAST),
        lambda params: peer.Adafactor(params, relative_step=relative, **options),
    )


@pytest.mark.parametrize("relative", [False, True])
def test_pytorch_optimizer(relative):
    """At its defaults it also averages the scaled update in bfloat16, and decay follows the scaled rate."""
    peer = pytest.importorskip("pytorch_optimizer")
    trajectories(
        lambda params: Adafactor(params, lr=None if relative else 1e-2, **LAST),
        lambda params: peer.AdaFactor(params, lr=1e-2, betas=(None, 0.999), relative_step=relative, foreach=False),
    )


# what is special


def test_the_factors_are_the_nearest_matrix_of_rank_one():
    """No neighbour of row means x column means / mean is nearer in generalised Kullback-Leibler divergence."""
    V = normal(5, 6).square().numpy()
    R, C = V.mean(1, keepdims=True), V.mean(0, keepdims=True)

    def divergence(r, c):
        return float((V * np.log(V / (r * c)) - V + r * c).sum())

    best = divergence(R / R.mean(), C)
    generator = np.random.default_rng(0)
    for _ in range(200):
        r, c = (x * np.exp(0.01 * generator.normal(size=x.shape)) for x in (R / R.mean(), C))
        assert divergence(r, c) > best


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 4), foreach=st.booleans())
def test_squares_of_rank_one_give_signs(seed, steps, foreach):
    """Where g^2 = r c' at every step alike, R C / mean(R) is g^2 itself and u is the sign of g, of RMS 1."""
    r, c, signs = (normal(*shape, seed=seed + i) for i, shape in enumerate([(130, 1), (1, 140), (130, 140)]))
    g = r.exp() * c.exp() * signs.sign()
    p = nn.Parameter(normal(130, 140, seed=1))
    optimizer = Adafactor([p], lr=0.1, foreach=foreach)
    for _ in range(steps):
        before = p.detach().clone()
        p.grad = g.clone()
        optimizer.step()
        torch.testing.assert_close((before - p.detach()) / (0.1 * before.square().mean().sqrt()), g.sign())


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("eps", [1e-30, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_zero_give_zero(dtype, eps, foreach):
    """R C is 1e-60 there, which float32 does not hold; one row alone without gradient is the harder case."""
    p = nn.Parameter(torch.ones(128, 130, dtype=dtype))
    v = nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = Adafactor([p, v], lr=0.5, eps=(eps, 1e-3), foreach=foreach)
    for scale in (0.0, 1.0, 0.0, 1e4):
        p.grad, v.grad = torch.full_like(p, scale), torch.full_like(v, scale)
        p.grad[5], v.grad[1] = 0, 0
        optimizer.step()
        assert torch.isfinite(p).all()
        assert torch.isfinite(v).all()
    assert torch.equal(p[5], torch.ones_like(p[5]))
    assert v[1] == 1


@pytest.mark.parametrize(
    ("shape", "options", "shapes"),
    [
        ((256, 128, 3, 3), {}, [(256, 1, 3, 3), (1, 128, 3, 3)]),
        ((256, 128, 3, 3), {"factor_dims": "last", "min_dim_size_to_factor": 0}, [(256, 128, 3, 1), (256, 128, 1, 3)]),
        ((256, 128, 3, 3), {"factor_dims": "last"}, [(256, 128, 3, 3)]),
        ((3, 200, 150), {}, [(3, 200, 1), (3, 1, 150)]),
        ((130, 130, 130), {}, [(130, 1, 130), (1, 130, 130)]),  # of equals the first two
        ((127, 4000), {}, [(127, 4000)]),
        ((4000,), {"min_dim_size_to_factor": 0}, [(4000,)]),
    ],
)
def test_which_dimensions_are_factored(shape, options, shapes):
    _, optimizer = run(shape, steps=1, start=torch.ones(shape), **options)
    state = next(iter(optimizer.state.values()))
    assert [tuple(value.shape) for name, value in state.items() if name != "step"] == shapes


def state_bytes(optimizer):
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())


def test_the_memory_is_rows_and_columns():
    p, optimizer = run((768, 3072), steps=1, start=torch.ones(768, 3072))
    adam = torch.optim.Adam([p])
    adam.step()
    assert state_bytes(optimizer) == 4 * (768 + 3072 + 1)
    assert state_bytes(optimizer) < 0.001 * state_bytes(adam)


def test_closed_form_of_the_first_step():
    """At t = 1 only the gradient counts: a vector moves by lr RMS(p) in every number, whatever the gradient's size."""
    p = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    p.grad = torch.tensor([1e-6, -1e6], dtype=torch.float64)
    Adafactor([p], lr=0.1).step()
    size = 12.5**0.5
    torch.testing.assert_close(p.detach(), torch.tensor([3 - 0.1 * size, 4 + 0.1 * size], dtype=torch.float64))
