"""Spectral normalisation: a layer that computes with coef * W / sigma(W) in place of its weight W.

With W_bar = W / sigma(W), a gradient G of W_bar becomes (G - <G, W_bar> u v') / sigma for W. The division is part of
the forward pass and not a projection after the optimizer's step, which gave worse samples in the article.

Source: kexue.fm/archives/6051, section "谱归一化" (spectral normalisation; no equation number);
Miyato et al. 2018, arXiv:1802.05957.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kexue._tensors import SHORTEST, at_least_float32, evaluating
from kexue.nn.spectral import (
    CONVOLUTIONS,
    WARM_UP,
    LinearMap,
    Matrix,
    Mode,
    check_mode,
    convolution_map,
    power_iteration,
    random_unit,
)


def apply_spectral_normalization(
    module: nn.Module,
    *,
    n_iter: int = 1,
    mode: Mode = "reshape",
    coef: float = 1.0,
    input_shape: Sequence[int] | None = None,
) -> nn.Module:
    """Make every linear and convolutional layer compute with coef * W / sigma(W); changes `module` and returns it.

    Every forward pass in training runs `n_iter` rounds of power iteration; in evaluation nothing changes.

    Args:
        module: one layer or a network; its Linear and Conv1d/2d/3d layers are normalised.
        n_iter: rounds a forward pass, >= 1.
        mode: norm of the convolutions, see `spectral_norm_value`. "operator" needs `input_shape`.
        coef: norm of each layer afterwards, > 0.
        input_shape: of the network's input, without batch. The network runs once on zeros, which shows the size of
            every layer's input.

    Raises:
        ValueError: no such layer, one that is normalised already, a number out of range.
        NotSupported: "operator" for a convolution with padding other than zeros.
    """
    if n_iter < 1 or not coef > 0:
        raise ValueError(f"expected n_iter >= 1 and coef > 0, got {n_iter=}, {coef=}")
    check_mode(mode)
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, *CONVOLUTIONS))]
    if not layers:
        raise ValueError(f"{type(module).__name__} has no Linear or Conv1d/2d/3d to normalise")
    if any(_is_normalized(layer) for layer in layers):
        raise ValueError("a layer is normalised already; call remove_spectral_normalization first")
    maps: dict[nn.Module, LinearMap] = {layer: Matrix() for layer in layers}
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
        stages["weight"].register_load_state_dict_pre_hook(_add_missing_vectors)
    return module


def remove_spectral_normalization(module: nn.Module) -> nn.Module:
    """Undo `apply_spectral_normalization`, leaving the normalised weights as plain parameters; returns `module`.

    Raises:
        ValueError: no layer of it is normalised.
    """
    layers = [layer for layer in module.modules() if _is_normalized(layer)]
    if not layers:
        raise ValueError(f"no layer of {type(module).__name__} was normalised by apply_spectral_normalization")
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module


class _SpectralNormalization(nn.Module):
    """The parametrisation W -> coef * W / sigma(W), differentiated through sigma.

    Attributes:
        u: buffer, the left singular vector, in float32 or wider, that each training forward pass improves.
    """

    u: Tensor

    def __init__(self, weight: Tensor, layer: LinearMap, n_iter: int, coef: float) -> None:
        super().__init__()
        self.layer, self.n_iter, self.coef = layer, n_iter, coef
        self.register_buffer("u", self.compute_u(weight))

    def compute_u(self, weight: Tensor) -> Tensor:
        """Return the vector u of `weight` after some rounds from a fixed random start, the same on every rank."""
        weight = at_least_float32(weight.detach())
        start = random_unit(self.layer.output_shape(weight), weight, 0)
        return power_iteration(weight, self.layer, start, WARM_UP).u

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _SpectralNormalization:
        """Move or convert the module as torch does, but leave u in float32: in half precision it would not change."""
        before = self.u
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.u.is_floating_point() and self.u.dtype.itemsize < 4:
            self.u = before.to(self.u.device)
        return self

    def forward(self, weight: Tensor) -> Tensor:
        """Return coef * weight / sigma(weight), in the weight's dtype."""
        wide = at_least_float32(weight)
        # A copy: the buffer moves at the next forward pass, which may come before this one's backward pass.
        norm = power_iteration(wide, self.layer, self.u.to(wide, copy=True), self.n_iter if self.training else 0)
        if self.training:
            self.u.copy_(norm.u)
        # A weight of zeros stays as it is: its gradient is bounded, and it can leave zero.
        sigma = torch.where(norm.sigma > SHORTEST, norm.sigma, 1.0)
        return (self.coef * wide / sigma).to(weight.dtype)  # section "谱归一化": w / |w|_2


def _add_missing_vectors(stages: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Add u to a state dict that holds a weight without it; the current u belongs to another weight.

    A hook of the `ParametrizationList`, because one parametrization of the list gets only its own part of the state.
    """
    weight = state.get(f"{prefix}original")
    if not isinstance(weight, Tensor) or weight.shape != stages.original.shape:
        return
    for number, stage in enumerate(stages):
        if isinstance(stage, _SpectralNormalization) and f"{prefix}{number}.u" not in state:
            state[f"{prefix}{number}.u"] = stage.compute_u(weight)


def _is_normalized(layer: nn.Module) -> bool:
    """Return whether `apply_spectral_normalization` has changed this layer."""
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    stages: Any = layer.parametrizations
    return any(isinstance(stage, _SpectralNormalization) for stage in stages["weight"])


def _convolution_maps(
    module: nn.Module, layers: Sequence[Any], input_shape: Sequence[int]
) -> dict[nn.Module, LinearMap]:
    """Return the map of each convolution at the size of its input when `module` reads one input of zeros."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def record_shape(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        shapes[layer] = tuple(inputs[0].shape[1:])

    handles = [layer.register_forward_pre_hook(record_shape) for layer in layers]
    try:
        with evaluating(module), torch.no_grad():
            module(layers[0].weight.new_zeros((1, *input_shape)))
    finally:
        for handle in handles:
            handle.remove()
    missing = [layer for layer in layers if layer not in shapes]
    if missing:
        raise ValueError(f"{missing[0]} did not run in a forward pass, so the size of its input is not known")
    return {layer: convolution_map(layer, shapes[layer]) for layer in layers}
