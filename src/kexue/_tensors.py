"""What every file that works on torch tensors shares: when numbers may be looked at, full precision, directions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch._C import _functorch
from torch._subclasses.fake_tensor import FakeTensor

SHORTEST = 1e-12  # a vector no longer than this has no direction: what would be divided by is rounding or nothing


def may_read(*tensors: Tensor) -> bool:
    """Whether code may look at the numbers in these tensors, as checks of values do.

    Not while torch.compile, torch.export or torch.jit.trace records, not under vmap, not on the meta device or of fake
    tensors, and not while a CUDA graph is captured.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    return all(_has_numbers(x) for x in tensors)


def _has_numbers(x: Tensor) -> bool:
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            return False
        x = _functorch.get_unwrapped(x)
    if x.is_meta or isinstance(x, FakeTensor):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def is_transformed() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) or forward-mode differentiation is at work, in eager."""
    if torch.compiler.is_compiling():
        return False
    return _functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0


def forward_levels() -> int:
    """How many transforms by forward-mode differentiation (jvp, jacfwd) stand inside one another."""
    stack = _functorch.get_interpreter_stack() or []
    return sum(one.key() == _functorch.TransformType.Jvp for one in stack)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off on the device of `x`, where that knows autocast."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def recordable() -> AbstractContextManager[object]:
    """Inference mode left, where it is on: what is made in it could take no part in training afterwards."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return nullcontext()
    return torch.inference_mode(False)


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x / |x| along `dim`; a vector of length 1e-12 or less has no direction, and gives 0 with gradient 0."""
    there = torch.linalg.vector_norm(x.detach(), dim=dim, keepdim=True) > SHORTEST
    safe = torch.where(there, x, 1.0)
    return torch.where(there, safe / torch.linalg.vector_norm(safe, dim=dim, keepdim=True), 0.0)


def direction_and_length(x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """x / |x| and |x| (axis kept) along `dim` for numbers of any size; 0 and 0 for zeros. For constants: no gradient.

    Squares of x are never formed, so that nothing overflows or vanishes on the way.
    """
    size = x.abs().amax(dim, keepdim=True)
    scaled = x / torch.where(size > 0, size, 1.0)
    length: Tensor = torch.linalg.vector_norm(scaled, dim=dim, keepdim=True)
    return scaled / length.clamp(min=1.0), size * length


def spread_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    """The mask expanded to `shape`; TypeError unless it is bool, ValueError unless it broadcasts to that shape."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True = keep, got {mask.dtype}; use mask.bool()")
    try:
        return mask.expand(shape)
    except RuntimeError:
        raise ValueError(f"mask must broadcast to {tuple(shape)}, got {tuple(mask.shape)}") from None
