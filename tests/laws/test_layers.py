"""What every layer keeps: its dtype, and its sense under the transforms of torch. A new one joins by one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import kexue.nn as layers
from kexue.algebra import solve_cubic, solve_quartic

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
DTYPES = [torch.float64, torch.bfloat16, torch.float16]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(*shape: int) -> Tensor:
    return torch.randint(10, shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Layer:
    """`make()` gives a module or a function; `x` is what it reads, floats (batch, ...) or integers."""

    make: Callable[[], Callable[..., object]]
    x: Tensor
    smooth: bool = True  # whether the gradient is that of the value
    by_sample: bool = True  # whether a sample has a result of its own


def transformer(position: str, norm: str = "post") -> Callable[[], nn.Module]:
    config = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "position": position, "norm": norm}
    return lambda: layers.Transformer(layers.TransformerConfig(10, **config))


def attending(**options: object) -> Callable[[Tensor], Tensor]:
    def attend(x: Tensor) -> Tensor:
        q, k, v = x.unflatten(-1, (3, 2, 4)).movedim(-3, 0).transpose(-3, -2)
        return layers.urpe_attention(q, k, v, **options)

    return attend


class Gated(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.gate, self.bias = layers.ToeplitzGate(2, 4, **options), layers.T5Bias(2, num_buckets=8, max_distance=9)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[-2], device=x.device)
        return attending(gate=self.gate, bias=self.bias(places, places))(x)


def ladder() -> nn.Module:
    backbone = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    return layers.LadderSideNetwork(backbone, taps=[1, 2, 3], width=8, causal=False)


def normalised(mode: str = "reshape") -> nn.Module:
    net = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(32, 2))
    return layers.apply_spectral_normalization(net, mode=mode, input_shape=(4, 8)).eval()


TOKENS, HEADS = randn(3, 4, 8), randn(3, 5, 24)
LAYERS = {
    "attention_weights": Layer(lambda: layers.attention_weights, randn(3, 4, 5)),
    "attention_weights l2": Layer(lambda: lambda x: layers.attention_weights(x, normalize="l2"), randn(3, 4, 5)),
    "attention_weights none": Layer(lambda: lambda x: layers.attention_weights(x, normalize="none"), randn(3, 4, 5)),
    "attention_weights relu2": Layer(lambda: lambda x: layers.attention_weights(x, normalize="relu2"), randn(3, 4, 5)),
    "urpe_attention": Layer(attending, HEADS),
    "urpe_attention gated": Layer(Gated, HEADS),
    "urpe_attention in buckets": Layer(lambda: Gated(buckets=6), HEADS),
    "apply_rotary": Layer(lambda: lambda x: torch.stack(layers.apply_rotary(x[:, None], 2 * x[:, None])), TOKENS),
    "SinusoidalPositions": Layer(lambda: layers.SinusoidalPositions(8), ids(3, 4)),
    "LearnedPositions": Layer(lambda: layers.LearnedPositions(10, 8), ids(3, 4)),
    "T5Bias": Layer(lambda: At(layers.T5Bias(2)), ids(4)),
    "ToeplitzGate": Layer(lambda: At(layers.ToeplitzGate(2, 20, clip=False)), ids(4)),
    "DGCNN": Layer(lambda: layers.DGCNN(8, dilations=(1, 2)).eval(), TOKENS),
    "GlobalPointer": Layer(lambda: Finite(layers.GlobalPointer(8, 2, head_dim=4)), TOKENS),
    "GlobalPointer efficient": Layer(lambda: Finite(layers.GlobalPointer(8, 2, head_dim=4, efficient=True)), TOKENS),
    "LadderBlock": Layer(lambda: layers.LadderBlock(8, causal=True), TOKENS),
    "LadderSideNetwork": Layer(ladder, TOKENS, smooth=False),  # nothing flows through the backbone
    **{
        f"Transformer {position}": Layer(transformer(position), ids(3, 4))
        for position in ("rotary", "sinusoidal", "t5", "learned", "none")
    },
    "Transformer pre": Layer(transformer("rotary", "pre"), ids(3, 4)),
    **{
        f"perturb_max {noise}": Layer(lambda noise=noise: lambda x: layers.perturb_max(x, noise, nodes=16), randn(3, 4))
        for noise in ("gumbel", "normal", "logistic", "exponential", "cauchy", "uniform")
    },
    "perturb_max in chunks": Layer(lambda: lambda x: layers.perturb_max(x, "normal", nodes=16, chunk=5), randn(3, 4)),
    "log_perturb_max": Layer(lambda: lambda x: layers.log_perturb_max(x, "normal", nodes=16), randn(3, 4)),
    "rotate_to": Layer(lambda: lambda x: layers.rotate_to(x, x.detach().flip(-1)), TOKENS, smooth=False),
    "straight_through": Layer(lambda: lambda x: layers.straight_through(x, x.detach().round()), TOKENS, smooth=False),
    **{
        f"VectorQuantizer {kind} {gradient}": Layer(
            lambda kind=kind, gradient=gradient: layers.VectorQuantizer(8, 5, parametrization=kind, gradient=gradient),
            TOKENS, smooth=False, by_sample=False,
        )
        for kind in ("plain", "linear", "diagonal")
        for gradient in ("straight_through", "rotation")
    },
    "spectral normalisation": Layer(normalised, randn(3, 4, 8)),
    "spectral normalisation of images": Layer(lambda: normalised("operator"), randn(3, 4, 8)),
    "spectral_norm_value": Layer(
        lambda: lambda x: layers.spectral_norm_value(x, u=x.new_ones(3), n_iter=60).sigma, randn(3, 2), by_sample=False
    ),
}  # fmt: skip


class At(nn.Module):
    """A table of offsets, at the same places for queries and keys."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x, x)


class Finite(nn.Module):
    """Scores with zeros in the place of -inf."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        scores = self.layer(x)
        return scores.masked_fill(scores == -torch.inf, 0.0)


def built(layer: Layer) -> Callable[..., object]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = layer.make()
    if isinstance(made, nn.Module):
        made.eval()
        with torch.no_grad():
            made(layer.x.to(torch.get_default_dtype()) if layer.x.is_floating_point() else layer.x)  # lazy ones settle
    return made


def only(out: object) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def every(keep: Callable[[Layer], bool] = lambda _: True):
    kept = [pytest.param(layer, id=name) for name, layer in LAYERS.items() if keep(layer)]
    return pytest.mark.parametrize("layer", kept)


@every()
def test_float64_is_computed_in_float64(layer, widths):
    run = built(layer)
    run = run.double() if isinstance(run, nn.Module) else run
    with widths:
        out = only(run(layer.x.clone()))
    assert out.dtype == torch.float64
    counted = {"aten.ones_like.default", "aten.zeros.default", "aten.index_add.default", "aten.sum.default",
               "aten.clamp.default", "aten.div.Tensor", "aten.special_entr.default", "aten.exp.default",
               "aten._to_copy.default", "aten.mean.default", "aten.log.default", "aten.mul.Tensor"}  # fmt: skip
    # The usage of codes and the buckets of offsets are counts, taken in float32.
    is_count = "VectorQuantizer" in type(run).__name__ or "T5" in str(run) or "buckets" in str(layer.make)
    assert widths.narrow <= (counted if is_count or isinstance(run, Gated) else set())


@every()
@pytest.mark.parametrize("default", DTYPES)
def test_it_is_born_and_runs_in_any_default_dtype(layer, default):
    torch.set_default_dtype(default)
    try:
        run = built(layer)
        x = layer.x.to(default) if layer.x.is_floating_point() else layer.x
        out = only(run(x))
    finally:
        torch.set_default_dtype(torch.float32)
    assert out.isfinite().all()
    if default == torch.float64:
        assert out.dtype == torch.float64


@every()
@pytest.mark.parametrize("default", DTYPES)
def test_the_default_dtype_of_later_changes_nothing(layer, default):
    run = built(layer)
    x = layer.x.float() if layer.x.is_floating_point() else layer.x
    expected = only(run(x))
    torch.set_default_dtype(default)
    try:
        out = only(run(x))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(out, expected)
    assert out.dtype == expected.dtype


@every()
def test_on_the_meta_device_shapes_come_out(layer):
    run = built(layer)
    x = layer.x.float() if layer.x.is_floating_point() else layer.x
    expected = only(run(x))
    run = copy.deepcopy(run).to("meta") if isinstance(run, nn.Module) else run
    out = only(run(x.to("meta")))
    assert (out.shape, out.dtype, out.device.type) == (expected.shape, expected.dtype, "meta")


@every()
def test_the_first_call_may_be_made_in_inference_mode(layer):
    run = layer.make()
    x = layer.x.float() if layer.x.is_floating_point() else layer.x
    run = run.train() if isinstance(run, nn.Module) else run
    with torch.inference_mode():
        run(x)
    with torch.no_grad():
        run(x)
    x = x.clone().requires_grad_() if x.is_floating_point() else x
    out = only(run(x))
    if out.requires_grad:
        out.sum().backward()
    grads = [p.grad for p in run.parameters() if p.grad is not None] if isinstance(run, nn.Module) else [x.grad]
    assert all(grad.isfinite().all() for grad in grads)


@every(lambda layer: layer.x.is_floating_point())
def test_transforms_of_torch_func_agree_with_autograd(layer):
    run = built(layer)
    run = run.double() if isinstance(run, nn.Module) else run
    factors = randn(*only(run(layer.x)).shape, seed=5)

    def f(x):
        return (only(run(x)) * factors).sum()

    x, step = layer.x.clone().requires_grad_(), randn(*layer.x.shape, seed=9)
    value = f(x)
    right = None
    if value.requires_grad:
        [right] = torch.autograd.grad(value, x, allow_unused=True)
    right = torch.zeros_like(layer.x) if right is None else right
    x = layer.x
    torch.testing.assert_close(torch.func.grad(f)(x), right)
    torch.testing.assert_close(torch.func.jacrev(f)(x), right)
    torch.testing.assert_close(torch.func.vjp(f, x)[1](torch.tensor(1.0, dtype=x.dtype))[0], right)
    if layer.smooth:
        torch.testing.assert_close(torch.func.jvp(f, (x,), (step,))[1], (right * step).sum())
        torch.testing.assert_close(torch.func.jacfwd(f)(x), right)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the one that has a second derivative
            hessian = torch.autograd.functional.hessian(f, x)
        torch.testing.assert_close(torch.func.hessian(f)(x), hessian, rtol=1e-6, atol=1e-9)


@every(lambda layer: layer.by_sample and layer.x.dim() > 1)
def test_vmap_is_a_loop(layer):
    run = built(layer)
    run = run.double() if isinstance(run, nn.Module) else run
    loop = torch.cat([only(run(x[None])) for x in layer.x])
    out = torch.func.vmap(lambda x: only(run(x[None])))(layer.x).flatten(0, 1)
    torch.testing.assert_close(out, loop)


@every()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_and_leaves_float32_functions_alone(layer, dtype):
    run = built(layer)
    x = layer.x.float() if layer.x.is_floating_point() else layer.x
    expected = only(run(x))
    with torch.autocast("cpu", dtype=dtype):
        out = only(run(x))
    assert out.isfinite().all()
    if not isinstance(run, nn.Module) and "attend" not in run.__name__:
        torch.testing.assert_close(out, expected)
    torch.testing.assert_close(out.float(), expected.float(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("solve", "n"), [(solve_cubic, 3), (solve_quartic, 4)])
def test_roots_under_the_transforms_of_torch_func(solve, n):
    c = randn(6, n + 1)

    def f(c):
        return (solve(c).abs() ** 2).sum()

    [right] = torch.autograd.grad(f(x := c.clone().requires_grad_()), x)
    torch.testing.assert_close(torch.func.grad(f)(c), right)
    torch.testing.assert_close(torch.func.jacrev(f)(c), right)
    torch.testing.assert_close(torch.func.jacfwd(f)(c), right)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(f))(c), right)
    torch.testing.assert_close(torch.func.vmap(solve, in_dims=1, out_dims=1)(c.T), solve(c).T)
    torch.testing.assert_close(torch.func.hessian(f)(c[0]), torch.autograd.functional.hessian(f, c[0]))
    assert solve(c.to("meta")).shape == (6, n)
    with pytest.raises(Exception, match=r"torch\.func\.hessian"):
        torch.func.jacfwd(torch.func.jacfwd(f))(c[0])
