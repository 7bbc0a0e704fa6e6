"""Spectral norm of a weight: its largest singular value, by power iteration.

A map f is Lipschitz with constant C when |f(x) - f(y)| <= C |x - y|. For a linear map W the smallest such C is the
largest singular value sigma(W) = |W|_2 <= |W|_F. Power iteration repeats

    v <- W'u / |W'u|,   u <- Wv / |Wv|,   sigma = u'Wv;

each round shrinks the error by (sigma_2 / sigma_1)^2, and d sigma / dW = u v'.

A convolution has two norms: ``"reshape"`` flattens the kernel to (out, in * positions), which is cheap and is what most
code calls its spectral norm; ``"operator"`` is the exact one, of the map between images of a given size. The exact norm
is at most sqrt(positions) times the first.

Source: kexue.fm/archives/6051. Compare: Miyato et al. 2018, arXiv:1802.05957.
Difference: the article starts the iteration from ones, which can be orthogonal to u; here the start is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional, grad

from kexue._tensors import (
    as_generator,
    at_least_float32,
    direction_and_length,
    outside_inference_mode,
    without_autocast,
)
from kexue.errors import NotSupported

Mode = Literal["reshape", "operator"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WARM_UP = 15  # rounds before the first estimate that is stored for later steps


class SpectralNorm(NamedTuple):
    """`sigma`, differentiable in the weight, and the singular vectors `u` (output side) and `v` (input side)."""

    sigma: Tensor
    u: Tensor
    v: Tensor


@dataclass(frozen=True)
class Matrix:
    """The weight as a matrix of `weight.shape[0]` rows."""

    def output_shape(self, weight: Tensor) -> tuple[int, ...]:
        """Return the shape of u."""
        return (weight.shape[0],)

    def apply(self, weight: Tensor, v: Tensor) -> Tensor:
        """Return W v."""
        return weight.reshape(weight.shape[0], -1) @ v

    def transpose(self, weight: Tensor, u: Tensor) -> Tensor:
        """Return W' u."""
        return u @ weight.reshape(weight.shape[0], -1)


@dataclass(frozen=True)
class Convolution:
    """The weight as the kernel of a convolution on images of shape `input_shape`, (channels, *size)."""

    input_shape: tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1

    def output_shape(self, weight: Tensor) -> tuple[int, ...]:
        """Return the shape of an output image."""
        return tuple(self.apply(weight, weight.new_zeros(self.input_shape)).shape)

    def apply(self, weight: Tensor, v: Tensor) -> Tensor:
        """Return the convolution of the image v."""
        convolve: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[weight.ndim - 3]
        image: Tensor = convolve(v[None], weight, None, self.stride, self.padding, self.dilation, self.groups)
        return image[0]

    def transpose(self, weight: Tensor, u: Tensor) -> Tensor:
        """Return the adjoint of the convolution, applied to the output image u."""
        adjoint: Any = (grad.conv1d_input, grad.conv2d_input, grad.conv3d_input)[weight.ndim - 3]
        options = (self.stride, self.padding, self.dilation, self.groups)
        image: Tensor = adjoint((1, *self.input_shape), weight, u[None], *options)
        return image[0]


LinearMap = Matrix | Convolution


def convolution_map(layer: Any, input_shape: tuple[int, ...]) -> Convolution:
    """Return the linear map of a Conv1d, Conv2d or Conv3d on images of `input_shape`.

    Raises:
        NotSupported: padding other than zeros, or one that is not symmetric.
    """
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
            raise NotSupported('padding="same" with an even window is not symmetric; pad explicitly.')
        padding = tuple(each // 2 for each in excess)
    return Convolution(input_shape, layer.stride, padding, layer.dilation, layer.groups)


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
    """Compute the largest singular value by power iteration: a lower bound that grows with `n_iter`.

    Args:
        weight: (out, ...) for "reshape"; for "operator" the kernel (out, in, *window) of a convolution.
        mode: which of the two norms of a convolution; see the module's docstring.
        input_shape: (in, *size) of the images, without batch; required by "operator", as are `stride` and zero
            `padding`.
        n_iter: rounds, >= 1.
        u: start vector, for example the `u` of an earlier call; None draws one from `generator`.

    Returns:
        sigma: scalar with d sigma / d weight = u v'; 0 for a weight of zeros. u: (out,) or an output image's shape;
        v: (in * window,) or (in, *size). All in float32 for half precision.

    Raises:
        ValueError, TypeError: shapes that do not fit, n_iter < 1.
    """
    check_mode(mode)
    if weight.ndim < 1 or not weight.is_floating_point():
        raise TypeError(f"weight must be a tensor of floats with an axis, got {tuple(weight.shape)} of {weight.dtype}")
    if weight.numel() == 0:
        raise ValueError(f"weight must have entries, got {tuple(weight.shape)}")
    if n_iter < 1:
        raise ValueError(f"n_iter must be >= 1, got {n_iter}")
    layer: LinearMap = Matrix()
    if mode == "operator":
        if not 3 <= weight.ndim <= 5 or input_shape is None or len(input_shape) != weight.ndim - 1:
            got = f"weight {tuple(weight.shape)}, input_shape {input_shape}"
            raise ValueError(f'"operator" needs a kernel (out, in, *window) and input_shape (in, *size), got {got}')
        if input_shape[0] != weight.shape[1]:
            raise ValueError(f"the kernel reads {weight.shape[1]} channels, input_shape says {input_shape[0]}")
        layer = Convolution(tuple(input_shape), stride, padding)
    weight = at_least_float32(weight)
    if u is None:
        u = random_unit(layer.output_shape(weight), weight, generator)
    elif tuple(u.shape) != layer.output_shape(weight):
        raise ValueError(f"u must have the shape {layer.output_shape(weight)}, got {tuple(u.shape)}")
    return power_iteration(weight, layer, u.to(weight), n_iter)


def check_mode(mode: str) -> None:
    """Raise ValueError unless `mode` names one of the two norms of a convolution."""
    if mode not in {"reshape", "operator"}:
        raise ValueError(f'mode must be "reshape" or "operator", got {mode!r}')


def power_iteration(weight: Tensor, layer: LinearMap, u: Tensor, n_iter: int) -> SpectralNorm:
    """Run `n_iter` rounds from `u`, of the weight's dtype; 0 rounds leave `u` as it is and compute `v` from it.

    Autocast is switched off, and u and v may be stored for training also under inference mode.
    """
    with without_autocast(weight):
        with outside_inference_mode(), torch.no_grad():
            fixed, u = weight.detach(), u.detach()  # which forward-mode derivatives respect, unlike no_grad
            v = _normalize(layer.transpose(fixed, u), 0.0)
            for turn in range(n_iter):
                v = _normalize(layer.transpose(fixed, u), 0.0) if turn else v  # eq. 15
                u = _normalize(layer.apply(fixed, v), u)  # eq. 15; a weight of zeros keeps the old direction
        return SpectralNorm((u * layer.apply(weight, v)).sum(), u, v)  # eq. 15: sigma = u'Wv


def _normalize(x: Tensor, otherwise: Tensor | float) -> Tensor:
    """Return x / |x| over all axes, or `otherwise` where x is 0."""
    unit, norm = direction_and_length(x.flatten())
    return torch.where(norm > 0, unit, otherwise if isinstance(otherwise, float) else otherwise.flatten()).view_as(x)


def random_unit(shape: Sequence[int], like: Tensor, generator: torch.Generator | int | None) -> Tensor:
    """Draw a tensor of norm 1 with a uniform direction, in the dtype and on the device of `like`."""
    made = None if like.is_meta else as_generator(generator, like.device)
    with outside_inference_mode():
        return _normalize(torch.randn(tuple(shape), generator=made, dtype=like.dtype, device=like.device), 0.0)
