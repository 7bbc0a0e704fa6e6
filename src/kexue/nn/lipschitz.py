"""How much a layer can stretch: spectral norms, penalties on them, spectral normalisation, gradient penalty.

A map is Lipschitz with constant C when |f(x) - f(y)| <= C |x - y|. For a linear map W the best C is the largest
singular value sigma(W) = |W|_2 <= |W|_F, found by power iteration; its gradient is u v', u and v the singular vectors.

    v <- W'u / |W'u|,   u <- Wv / |Wv|,   sigma = u'Wv;   an error shrinks by (sigma_2 / sigma_1)^2 a round.

Two norms of a convolution: ``"reshape"`` flattens the kernel to (out, in * positions), which is cheap and is what most
code calls its spectral norm; ``"operator"`` is the true one, of the map between images of a given size. The true one is
at most sqrt(positions) times the first.

Source: kexue.fm/archives/6051. Compare: Miyato et al. 2018, arXiv:1802.05957; Gulrajani et al. 2017, arXiv:1704.00028.
Difference: the article starts the iteration from ones, which can be orthogonal to u; here the start is random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional, grad
from torch.nn.utils import parametrize

from kexue._tensors import (
    SHORTEST,
    as_generator,
    at_least_float32,
    direction_and_length,
    outside_inference_mode,
    without_autocast,
)
from kexue.errors import NotSupported

Mode = Literal["reshape", "operator"]
Filter = Callable[[str, nn.Parameter], bool]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WARM_UP = 15  # rounds before the first estimate that is kept for later steps


class SpectralNorm(NamedTuple):
    """`sigma`, differentiable in the weight, and the singular vectors `u` (output side) and `v` (input side)."""

    sigma: Tensor
    u: Tensor
    v: Tensor


@dataclass(frozen=True)
class _Matrix:
    """The weight as a matrix of `weight.shape[0]` rows."""

    def start(self, weight: Tensor) -> tuple[int, ...]:
        return (weight.shape[0],)

    def apply(self, weight: Tensor, v: Tensor) -> Tensor:
        return weight.reshape(weight.shape[0], -1) @ v

    def transpose(self, weight: Tensor, u: Tensor) -> Tensor:
        return u @ weight.reshape(weight.shape[0], -1)


@dataclass(frozen=True)
class Convolution:
    """The weight as the map between images that it defines; `input_shape` is (channels, *size)."""

    input_shape: tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1

    def start(self, weight: Tensor) -> tuple[int, ...]:
        """Shape of an output image."""
        return tuple(self.apply(weight, weight.new_zeros(self.input_shape)).shape)

    def apply(self, weight: Tensor, v: Tensor) -> Tensor:
        """The convolution."""
        convolve: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[weight.ndim - 3]
        image: Tensor = convolve(v[None], weight, None, self.stride, self.padding, self.dilation, self.groups)
        return image[0]

    def transpose(self, weight: Tensor, u: Tensor) -> Tensor:
        """Its adjoint."""
        adjoint: Any = (grad.conv1d_input, grad.conv2d_input, grad.conv3d_input)[weight.ndim - 3]
        options = (self.stride, self.padding, self.dilation, self.groups)
        image: Tensor = adjoint((1, *self.input_shape), weight, u[None], *options)
        return image[0]


_Map = _Matrix | Convolution


def spectral_norm_value(
    weight: Tensor,
    *,
    mode: Mode = "reshape",
    input_shape: Sequence[int] | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    n_iter: int = 5,
    u: Tensor | None = None,
    generator: torch.Generator | int | None = None,
) -> SpectralNorm:
    """Largest singular value by power iteration, a lower bound that grows with `n_iter`.

    Args:
        weight: (out, ...) for "reshape"; for "operator" the kernel (out, in, *window) of a convolution.
        mode: which of the two norms; see the top of this file.
        input_shape: (in, *size) of the images, no batch; "operator" needs it, with `stride` and zero `padding`.
        n_iter: rounds, >= 1.
        u: a start, for example the `u` of an earlier call; None draws one from `generator`.

    Returns:
        sigma: scalar with d sigma / d weight = u v'; 0 for a weight of zeros. u: (out,) or an output image's shape;
        v: (in * window,) or (in, *size). All in float32 for half precision.

    Raises:
        ValueError, TypeError: shapes that do not fit, n_iter < 1.
    """
    if mode not in {"reshape", "operator"}:
        raise ValueError(f'mode must be "reshape" or "operator", got {mode!r}')
    if weight.ndim < 1 or not weight.is_floating_point():
        raise TypeError(f"weight must be a tensor of floats with an axis, got {tuple(weight.shape)} of {weight.dtype}")
    if weight.numel() == 0:
        raise ValueError(f"weight must have entries, got {tuple(weight.shape)}")
    if n_iter < 1:
        raise ValueError(f"n_iter must be >= 1, got {n_iter}")
    layer: _Map = _Matrix()
    if mode == "operator":
        if not 3 <= weight.ndim <= 5 or input_shape is None or len(input_shape) != weight.ndim - 1:
            got = f"weight {tuple(weight.shape)}, input_shape {input_shape}"
            raise ValueError(f'"operator" needs a kernel (out, in, *window) and input_shape (in, *size), got {got}')
        if input_shape[0] != weight.shape[1]:
            raise ValueError(f"the kernel reads {weight.shape[1]} channels, input_shape says {input_shape[0]}")
        layer = Convolution(tuple(input_shape), stride, padding)
    weight = at_least_float32(weight)
    if u is None:
        u = _random_start(layer.start(weight), weight, generator)
    elif tuple(u.shape) != layer.start(weight):
        raise ValueError(f"u must have the shape {layer.start(weight)}, got {tuple(u.shape)}")
    return _power(weight, layer, u.to(weight), n_iter)


def _power(weight: Tensor, layer: _Map, u: Tensor, n_iter: int) -> SpectralNorm:
    """`n_iter` rounds from `u`; none: only v is found. Never in half precision; u and v may be kept for training."""
    with without_autocast(weight):
        with outside_inference_mode(), torch.no_grad():
            fixed, u = weight.detach(), u.detach()  # which forward-mode derivatives respect, unlike no_grad
            v = _unit(layer.transpose(fixed, u), 0.0)
            for turn in range(n_iter):
                v = _unit(layer.transpose(fixed, u), 0.0) if turn else v
                u = _unit(layer.apply(fixed, v), u)  # a weight of zeros keeps the old direction
        return SpectralNorm((u * layer.apply(weight, v)).sum(), u, v)


def _unit(x: Tensor, otherwise: Tensor | float) -> Tensor:
    unit, norm = direction_and_length(x.flatten())
    return torch.where(norm > 0, unit, otherwise if isinstance(otherwise, float) else otherwise.flatten()).view_as(x)


def _random_start(shape: Sequence[int], like: Tensor, generator: torch.Generator | int | None) -> Tensor:
    made = None if like.is_meta else as_generator(generator, like.device)
    with outside_inference_mode():
        return _unit(torch.randn(tuple(shape), generator=made, dtype=like.dtype, device=like.device), 0.0)


def spectral_penalty(module: nn.Module, coef: float, *, filter: Filter | None = None, n_iter: int = 1) -> Tensor:
    """Spectral regularisation, coef * sum of sigma(W)^2 over the weights: add it to the loss.

    Kernels count in the "reshape" sense. The vectors u stay with the module, in float32 or wider and outside its
    state_dict, so that one round a step follows the slowly moving weights; the first call does some more.

    Args:
        coef: >= 0. n_iter: rounds a call, >= 1.
        filter: `filter(name, parameter)` says which parameters count; None takes those with two axes or more.

    Raises:
        ValueError: nothing to count, or a number out of range.
    """
    if n_iter < 1:
        raise ValueError(f"n_iter must be >= 1, got {n_iter}")
    total: Tensor | None = None
    layer = _Matrix()
    for owner, name, parameter in _weights(module, coef, filter):
        weight, key = at_least_float32(parameter), f"_spectral_u_{name}"
        kept: Tensor | None = owner.__dict__.get(key)
        if kept is None or kept.shape != layer.start(weight):
            start = _random_start(layer.start(weight), weight, 0)
            kept = _power(weight.detach(), layer, start, _WARM_UP).u
        norm = _power(weight, layer, kept.to(weight), n_iter)
        owner.__dict__[key] = norm.u
        square = norm.sigma.square()
        total = square if total is None else total + square
    return coef * _some(total)


def frobenius_penalty(module: nn.Module, coef: float, *, filter: Filter | None = None) -> Tensor:
    """Weight decay as a loss, coef * sum of |W|_F^2, which bounds what `spectral_penalty` computes from above."""
    total: Tensor | None = None
    for _, _, parameter in _weights(module, coef, filter):
        square = at_least_float32(parameter).square().sum()
        total = square if total is None else total + square
    return coef * _some(total)


def _weights(module: nn.Module, coef: float, filter: Filter | None) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    if not coef >= 0:
        raise ValueError(f"coef must be >= 0, got {coef}")
    owners = dict(module.named_modules())
    for full, parameter in module.named_parameters():
        if parameter.ndim >= 2 if filter is None else filter(full, parameter):
            path, _, name = full.rpartition(".")
            yield owners[path], name, parameter


def _some(total: Tensor | None) -> Tensor:
    if total is None:
        raise ValueError(
            "the module has no weight to penalise: no parameter with two axes, or none that filter lets by"
        )
    return total


class _SpectralNormalization(nn.Module):
    """The parametrisation W -> coef * W / sigma(W), differentiated through sigma."""

    u: Tensor

    def __init__(self, weight: Tensor, layer: _Map, n_iter: int, coef: float) -> None:
        super().__init__()
        self.layer, self.n_iter, self.coef = layer, n_iter, coef
        self.register_buffer("u", self._warmed_up(weight))

    def _warmed_up(self, weight: Tensor) -> Tensor:
        weight = at_least_float32(weight.detach())
        start = _random_start(self.layer.start(weight), weight, 0)  # the same on every rank
        return _power(weight, self.layer, start, _WARM_UP).u

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _SpectralNormalization:
        kept = self.u
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.u.is_floating_point() and self.u.dtype.itemsize < 4:  # in half precision it would stand still
            self.u = kept.to(self.u.device)
        return self

    def forward(self, weight: Tensor) -> Tensor:
        wide = at_least_float32(weight)
        # A copy: the buffer moves at the next forward pass, which may come before this one's backward pass.
        norm = _power(wide, self.layer, self.u.to(wide, copy=True), self.n_iter if self.training else 0)
        if self.training:
            self.u.copy_(norm.u)
        # A weight of zeros is left as it is: its gradient stays bounded, and it can leave zero.
        return (self.coef * wide / torch.where(norm.sigma > SHORTEST, norm.sigma, 1.0)).to(weight.dtype)


def _warm_up_what_is_loaded(stages: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A weight that is loaded without its vector u gets one: the old one belongs to another weight.

    A hook of what holds the weight and its stages, for a stage is shown no more of the state than its own part.
    """
    weight = state.get(f"{prefix}original")
    if not isinstance(weight, Tensor) or weight.shape != stages.original.shape:
        return
    for number, stage in enumerate(stages):
        if isinstance(stage, _SpectralNormalization) and f"{prefix}{number}.u" not in state:
            state[f"{prefix}{number}.u"] = stage._warmed_up(weight)


def apply_spectral_normalization(
    module: nn.Module,
    *,
    n_iter: int = 1,
    mode: Mode = "reshape",
    coef: float = 1.0,
    input_shape: Sequence[int] | None = None,
) -> nn.Module:
    """Make every linear and convolutional layer compute with coef * W / sigma(W); changes `module` and returns it.

    The division is part of the forward pass, gradient included, and not a projection after the step, with which the
    article saw worse samples. Training forwards do `n_iter` rounds each; evaluation changes nothing.

    Args:
        module: one layer or a network; Linear and Conv1d/2d/3d inside it are taken.
        n_iter: rounds a forward pass, >= 1. coef: > 0, the norm each layer gets.
        mode: norm of the convolutions. "operator" needs `input_shape`, of the network's input without batch, and
            runs the network once on zeros to learn every layer's own.

    Raises:
        ValueError: no such layer, one that is normalised already, a number out of range.
        NotSupported: "operator" for a convolution with padding other than zeros.
    """
    if n_iter < 1 or not coef > 0:
        raise ValueError(f"expected n_iter >= 1 and coef > 0, got {n_iter=}, {coef=}")
    if mode not in {"reshape", "operator"}:
        raise ValueError(f'mode must be "reshape" or "operator", got {mode!r}')
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, *CONVOLUTIONS))]
    if not layers:
        raise ValueError(f"{type(module).__name__} has no Linear or Conv1d/2d/3d to normalise")
    if any(_normalized(layer) for layer in layers):
        raise ValueError("a layer is normalised already; call remove_spectral_normalization first")
    maps: dict[nn.Module, _Map] = {layer: _Matrix() for layer in layers}
    convolutions = [layer for layer in layers if isinstance(layer, CONVOLUTIONS)]
    if mode == "operator" and convolutions:
        if input_shape is None:
            raise ValueError('mode="operator" needs input_shape, the shape of one input without batch')
        maps |= _convolution_maps(module, convolutions, input_shape)
    for layer in layers:
        parametrize.register_parametrization(
            layer, "weight", _SpectralNormalization(layer.weight, maps[layer], n_iter, coef)
        )
        stages: Any = layer.parametrizations
        stages["weight"].register_load_state_dict_pre_hook(_warm_up_what_is_loaded)
    return module


def remove_spectral_normalization(module: nn.Module) -> nn.Module:
    """Undo `apply_spectral_normalization`, leaving the normalised weights as plain parameters; returns `module`.

    Raises:
        ValueError: no layer of it is normalised.
    """
    layers = [layer for layer in module.modules() if _normalized(layer)]
    if not layers:
        raise ValueError(f"no layer of {type(module).__name__} was normalised by apply_spectral_normalization")
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module


def _normalized(layer: nn.Module) -> bool:
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    stages: Any = layer.parametrizations
    return any(isinstance(stage, _SpectralNormalization) for stage in stages["weight"])


def _convolution_maps(module: nn.Module, layers: Sequence[Any], input_shape: Sequence[int]) -> dict[nn.Module, _Map]:
    """The map of each convolution at the size of image it meets when `module` reads one input of zeros."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        shapes[layer] = tuple(inputs[0].shape[1:])

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.no_grad():
            module(layers[0].weight.new_zeros((1, *input_shape)))
    finally:
        for handle in handles:
            handle.remove()
        for part, training in modes.items():
            part.training = training
    missed = [layer for layer in layers if layer not in shapes]
    if missed:
        raise ValueError(f"{missed[0]} did not run in a forward pass, so the size of its input is not known")
    return {layer: convolution_map(layer, shapes[layer]) for layer in layers}


def convolution_map(layer: Any, input_shape: tuple[int, ...]) -> Convolution:
    """What a layer computes on images of this shape; NotSupported for padding other than zeros."""
    if layer.padding_mode != "zeros":
        raise NotSupported(
            f"the operator norm of a convolution with {layer.padding_mode} padding is not computed here."
        )
    padding = layer.padding
    if padding == "valid":
        padding = 0
    elif padding == "same":
        excess = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(each % 2 for each in excess):
            raise NotSupported('padding="same" with an even window is lopsided; pad explicitly.')
        padding = tuple(each // 2 for each in excess)
    return Convolution(input_shape, layer.stride, padding, layer.dilation, layer.groups)


def gradient_penalty(
    f: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    *,
    one_sided: bool = False,
    center: float = 1.0,
    norm_dims: int | Sequence[int] | None = None,
    generator: torch.Generator | int | None = None,
) -> Tensor:
    """Mean of (|grad f(x)| - center)^2 at points x between real and fake samples, for WGAN-GP; multiply by a weight.

    x = e * real + (1 - e) * fake with e ~ U[0, 1], one a sample. The penalty acts on these segments only; a batch
    normalisation in `f` mixes the samples and makes it meaningless.

    Args:
        f: critic, (batch, ...) -> one value a sample. real, fake: (batch, ...), the same shape; taken as constants.
        one_sided: penalise norms above `center` only, which the author prefers.
        norm_dims: axes of the norm; None takes all but the first.

    Returns:
        scalar that backpropagates into `f`, float32 for half precision; 0 for a batch without samples.

    Raises:
        ValueError: shapes that differ.
    """
    if real.shape != fake.shape or real.ndim < 2:
        raise ValueError(
            f"real and fake must share a shape (batch, ...), got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    mix = torch.rand(
        (len(real),) + (1,) * (real.ndim - 1),
        generator=None if real.is_meta else as_generator(generator, real.device),
        dtype=real.dtype,
        device=real.device,
    )
    learns = torch.is_grad_enabled()
    with outside_inference_mode(), torch.enable_grad():
        x = torch.lerp(fake.detach(), real.detach(), mix).requires_grad_()
        [gradient] = torch.autograd.grad(f(x).sum(), x, create_graph=learns)
    axes = range(1, real.ndim) if norm_dims is None else [norm_dims] if isinstance(norm_dims, int) else norm_dims
    norm = torch.sqrt(at_least_float32(gradient).square().sum(tuple(axes)) + 1e-12)  # finite gradient at zero
    excess = norm - center
    return ((excess.relu() if one_sided else excess) ** 2).sum() / max(norm.numel(), 1)


def clip_weights_(module: nn.Module, bound: float) -> nn.Module:
    """Clamp every parameter to [-bound, bound], the first and crudest Lipschitz constraint; returns `module`."""
    if not bound > 0:
        raise ValueError(f"bound must be > 0, got {bound}")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.clamp_(-bound, bound)
    return module
