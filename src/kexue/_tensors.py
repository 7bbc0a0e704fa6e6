"""Functions shared by every file that works on torch tensors.

Its sections, in this order: when values can be read, evaluation mode, precision, directions, masks, labels, reductions,
generators.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._subclasses.fake_tensor import FakeTensor

_ON_PRECISION = ("dtype", "scalar type", "Input type")  # in torch's errors on tensors of different precisions
SHORTEST = 1e-12  # a vector of this length or less has no direction: dividing by the length would amplify rounding

Reduction = Literal["none", "mean", "sum"]


def may_read(*tensors: Tensor) -> bool:
    """Return whether the values of these tensors can be read now, as a check of values needs.

    False while torch.compile, torch.export or torch.jit.trace records, under vmap, on the meta device, for fake
    tensors, and while a CUDA graph is captured.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    for x in tensors:  # noqa: SIM110 - samplers ask several times a step, and a loop is faster
        if not _has_values(x):
            return False
    return True


def _has_values(x: Tensor) -> bool:
    """Return whether one tensor holds values that can be read now."""
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            return False
        x = _functorch.get_unwrapped(x)
    if x.is_meta or isinstance(x, FakeTensor):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def is_transformed() -> bool:
    """Return whether torch.func (grad, vmap, jvp, ...) or forward-mode differentiation is active, in eager mode."""
    if torch.compiler.is_compiling():
        return False
    return _functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0


def forward_levels() -> int:
    """Number of nested transforms by forward-mode differentiation (jvp, jacfwd)."""
    stack = _functorch.get_interpreter_stack() or []
    return sum(one.key() == _functorch.TransformType.Jvp for one in stack)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Context with autocast switched off on the device of `x`; does nothing where the device has no autocast."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def outside_inference_mode() -> AbstractContextManager[object]:
    """Context with inference mode switched off, for tensors that later take part in training."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return nullcontext()
    return torch.inference_mode(False)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the `with`, put a module into evaluation mode; afterwards each of its parts has its former mode again."""
    modes = {part: part.training for part in module.modules()}
    if not any(modes.values()):
        yield
        return
    try:
        module.eval()
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def float32_or_wider(dtype: torch.dtype) -> torch.dtype:
    """The dtype of numbers computed from this one: float32 for half precision; float64 and complex ones unchanged."""
    return torch.promote_types(dtype, torch.float32)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float32, float64 and complex numbers unchanged."""
    if x.dtype in {torch.float32, torch.float64}:  # nearly always, and without a call of torch
        return x
    return x.to(float32_or_wider(x.dtype))


def as_floats(x: Tensor, name: str = "scores") -> Tensor:
    """`at_least_float32`; TypeError unless `x` is a tensor of floats.

    Autocast leaves elementwise functions in the dtype of their input; only matrix products need `without_autocast`.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floats, got {getattr(x, 'dtype', type(x).__name__)}")
    return at_least_float32(x)


def is_finite(x: Tensor) -> bool:
    """Return whether no value is NaN or infinite; a finite sum, which costs less, tells it."""
    return math.isfinite(x.sum(dtype=float32_or_wider(x.dtype)).item()) or bool(x.isfinite().all())


def explaining_precision(module: object, x: Tensor, name: str = "x") -> AbstractContextManager[object]:
    """Context in which a module that cannot take the precision of `x` raises a TypeError that says what to do."""
    return nullcontext() if torch.compiler.is_compiling() else _explaining_precision(module, x, name)


@contextmanager
def _explaining_precision(module: object, x: Tensor, name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        parameters = module.parameters() if isinstance(module, nn.Module) else ()
        weights = {p.dtype for p in parameters if p.is_floating_point()}
        half = all(dtype.itemsize < 4 for dtype in weights)
        if not weights or (x.dtype in weights and not half) or not any(said in str(error) for said in _ON_PRECISION):
            raise
        own = ", ".join(sorted(map(str, weights)))
        remedy = f"use {name}.to({own}), or .to({x.dtype}) of the model"
        if half:
            remedy = (
                "use .float() of the model, with torch.autocast for speed: likelihoods, differential equations and "
                "flows are computed in float32 at least"
            )
        raise TypeError(f"the weights are {own}, got {name} of {x.dtype}; {remedy}") from error


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x / |x| along `dim`; 0 with gradient 0 for a vector of length 1e-12 or less, which has no direction."""
    long = torch.linalg.vector_norm(x.detach(), dim=dim, keepdim=True) > SHORTEST
    safe = torch.where(long, x, 1.0)
    return torch.where(long, safe / torch.linalg.vector_norm(safe, dim=dim, keepdim=True), 0.0)


def direction_and_length(x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """x / |x| and |x| (axis kept) along `dim` for values of any size; 0 and 0 for zeros. For constants: no gradient.

    Squares of x are never formed, so that nothing overflows or underflows.
    """
    size = x.abs().amax(dim, keepdim=True)
    scaled = x / torch.where(size > 0, size, 1.0)
    length: Tensor = torch.linalg.vector_norm(scaled, dim=dim, keepdim=True)
    return scaled / length.clamp(min=1.0), size * length


def check_mask(mask: Tensor, shape: torch.Size) -> None:
    """TypeError unless the mask is bool, ValueError unless it has this shape."""
    _check_bool(mask)
    if mask.shape != shape:
        raise ValueError(f"expected mask {tuple(shape)}, got {tuple(mask.shape)}")


def _check_bool(mask: Tensor) -> None:
    """TypeError unless the mask is bool."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True = keep, got {mask.dtype}; use mask.bool()")


def expand_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    """The mask expanded to `shape`; TypeError unless it is bool, ValueError unless it broadcasts to that shape."""
    _check_bool(mask)
    try:
        return mask.expand(shape)
    except RuntimeError:
        raise ValueError(f"mask must broadcast to {tuple(shape)}, got {tuple(mask.shape)}") from None


def clear_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return x (B, T, d) with zeros where the mask (B, T) is False; ValueError for a mask that is not bool (B, T)."""
    if mask is None:
        return x
    if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
        raise ValueError(f"mask must be bool {tuple(x.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
    return x.masked_fill(~mask[..., None], 0.0)


def fill_masked(scores: Tensor, keep: Tensor, dim: int = -1) -> Tensor:
    """Scores with -inf where `keep` (bool, same shape) is False, as softmax and logsumexp along `dim` need them.

    A row with nothing kept becomes zeros: of a row of -inf alone both have gradient NaN, which a later mask does not
    remove.
    """
    empty = ~keep.any(dim, keepdim=True)
    return scores.masked_fill(~(keep | empty), -torch.inf).masked_fill(empty, 0.0)


def masked_logsumexp(scores: Tensor, keep: Tensor, dim: int = -1) -> Tensor:
    """log sum exp over the entries where `keep` (bool, same shape) is True; -inf with gradient 0 where there is none.

    Entries of -inf count as not kept.
    """
    keep = keep & (scores != -torch.inf)
    return fill_masked(scores, keep, dim).logsumexp(dim).masked_fill(~keep.any(dim), -torch.inf)


def as_class_numbers(labels: Tensor, name: str = "labels") -> Tensor:
    """Class numbers of any integer dtype as int64; TypeError for floats, bools and complex numbers."""
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        got = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"{name} must be a tensor of integer class numbers, got {got}")
    return labels.long()


def check_range(labels: Tensor, classes: int | Tensor, ignore_index: int | None, name: str = "labels") -> None:
    """ValueError for a class number that is neither in [0, classes) nor `ignore_index`, where values can be read.

    `classes` may differ from label to label.
    """
    if not may_read(labels):
        return
    wrong = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        wrong = wrong & (labels != ignore_index)
    if bool(wrong.any()):
        first = tuple(wrong.nonzero()[0].tolist())
        size = classes if isinstance(classes, int) else int(classes[first])
        other = "" if ignore_index is None else f" or be {ignore_index}"
        where = f" in row {first[0]}" if len(first) == 1 else f" at {first}"
        raise ValueError(f"{name} must lie in [0, {size}){other}, got {int(labels[first])}{where if first else ''}")


def check_classes(labels: Tensor, n: int, classes: int, name: str = "labels") -> Tensor:
    """Class numbers (n,) in [0, classes) of n items as int64; TypeError or ValueError for others, or for another n."""
    numbers = as_class_numbers(labels, name)
    if numbers.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one class for each item, got {tuple(numbers.shape)}")
    check_range(numbers, classes, None, name)
    return numbers


def check_reduction(reduction: str) -> None:
    """ValueError unless `reduction` is one of the three names."""
    if reduction not in {"none", "mean", "sum"}:
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def reduce(values: Tensor, kept: Tensor | None, reduction: str) -> Tensor:
    """Apply "none", "mean" or "sum" to one value per sample.

    Args:
        values: any shape, one value per sample; finite also where `kept` is False, otherwise its gradient is not.
        kept: bool, same shape; None keeps all. Samples that are not kept count 0, and the mean is over the kept ones;
            with none kept it is an exact 0 with gradient 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
    """
    check_reduction(reduction)
    if kept is not None:
        values = values.masked_fill(~kept, 0.0)
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    return total / (kept.sum().clamp(min=1) if kept is not None else max(values.numel(), 1))


def as_generator(generator: torch.Generator | int | None, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`: the given one, one with the given seed, or for None one seeded by the system.

    Raises:
        ValueError: a generator of another kind of device, or a seed that does not fit in 64 bits.
        TypeError: anything else, a bool included.
    """
    if isinstance(generator, torch.Generator):
        if generator.device.type != torch.device(device).type:
            raise ValueError(
                f"the generator is on {generator.device}, the tensors are on {device}: make a generator on {device}"
            )
        return generator
    made = torch.Generator(device=device)
    if generator is None:
        made.seed()
    elif isinstance(generator, int) and not isinstance(generator, bool):
        if not -(2**63) <= generator < 2**64:
            raise ValueError(f"a seed must be in [-2^63, 2^64), got {generator}")
        made.manual_seed(generator)
    else:
        raise TypeError(f"generator must be a torch.Generator, an int or None, got {type(generator).__name__}")
    return made
