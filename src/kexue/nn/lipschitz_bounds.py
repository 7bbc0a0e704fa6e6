"""Bounds of a network's Lipschitz constant: an upper one, and a lower one that a search finds.

|f(x) - f(y)| <= C |x - y| in the Euclidean norm. The constant of a chain is at most the product of its layers', that
of a sum at most the sum. The product is rarely reached: the two bounds may lie orders of magnitude apart.

Source: kexue.fm/archives/6051. Compare: Sedghi et al. 2019, arXiv:1805.10408, for convolutions in the Fourier domain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kexue._tensors import as_generator, at_least_float32, outside_inference_mode
from kexue.errors import NotSupported
from kexue.nn.spectral import CONVOLUTIONS, Convolution, convolution_map

_STEEPEST_SLOPE: dict[type[nn.Module], float] = {
    nn.Identity: 1.0, nn.Flatten: 1.0, nn.Unflatten: 1.0, nn.ReLU: 1.0, nn.Hardtanh: 1.0, nn.ReLU6: 1.0, nn.Tanh: 1.0,
    nn.Softsign: 1.0, nn.LogSigmoid: 1.0, nn.Sigmoid: 0.25, nn.Hardsigmoid: 0.16667, nn.Hardswish: 1.5,
    nn.GELU: 1.1290, nn.SiLU: 1.0999, nn.Mish: 1.0885, nn.SELU: 1.7581,
}  # fmt: skip
_SMOOTH_THRESHOLD = 20.0  # of Softplus: from here on, the jump at the threshold is below 3e-9
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


def lipschitz_upper_bound(module: nn.Module, input_shape: Sequence[int]) -> float:
    """Return a constant that no pair of inputs exceeds: the product of the layers' constants, in the Euclidean norm.

    Linear layers count with their exact norm; a convolution with the largest singular value of its kernel's Fourier
    transform on a torus large enough for the padded image, which is at least its operator norm. Dropout and batch
    normalisation count as they work in the present mode (training or evaluation).

    A module of your own needs a method `lipschitz_upper_bound(input_shape) -> float`: a residual block
    x + f(x), for example, returns ``1 + lipschitz_upper_bound(self.f, input_shape)``.

    Args:
        module: Sequential of Linear, Conv1d/2d/3d with zero padding, BatchNorm in eval mode, Dropout, the usual
            activations, Flatten, and average or maximum pooling whose windows do not overlap.
        input_shape: shape of one input, without batch.

    Raises:
        NotSupported: a layer without a finite or known constant (layer normalisation, attention, batch statistics), or
            a subclass with a `forward` of its own.
    """
    lists = [part for part in module.modules() if isinstance(part, parametrize.ParametrizationList)]
    moving = {stage for part in lists for stage in part.modules() if stage.training}
    try:
        for stage in moving:  # spectral normalisation takes a step whenever a weight is read in training
            stage.training = False
        with torch.no_grad():
            return _bound_module(module, tuple(input_shape))[0]
    finally:
        for stage in moving:
            stage.training = True


def _bound_module(module: nn.Module, shape: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
    """Return the constant of a module, and the shape of its output."""
    if _computes_as(module, nn.Sequential):
        product = 1.0
        for layer in module.children():
            factor, shape = _bound_module(layer, shape)
            product *= factor
        return product, shape
    factor = _bound_layer(module, shape)
    if _computes_as(module, *_DROPOUTS):
        return factor, shape  # without drawing a random number
    floats = (x for x in (*module.parameters(), *module.buffers()) if x.is_floating_point())
    like = next(floats, torch.zeros(()))
    return factor, tuple(module(like.new_zeros((1, *shape))).shape[1:])


def _computes_as(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether the module has the `forward` of one of these classes, not one that a subclass defines."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _bound_layer(module: Any, shape: tuple[int, ...]) -> float:
    """Return the constant of a module that is not a Sequential.

    Raises:
        NotSupported: no constant is known.
    """
    method = getattr(module, "lipschitz_upper_bound", None)
    if method is not None:
        return float(method(shape))
    bound = next((slope for kind, slope in _STEEPEST_SLOPE.items() if _computes_as(module, kind)), None)
    if bound is not None:
        return bound
    if _computes_as(module, nn.Linear):
        bound = float(torch.linalg.matrix_norm(module.weight.double(), 2))  # eq. 7
    elif _computes_as(module, *CONVOLUTIONS):
        bound = _bound_convolution(at_least_float32(module.weight), convolution_map(module, shape))
    elif _computes_as(module, *_DROPOUTS):
        bound = 1 / (1 - module.p) if module.training and module.p < 1 else 1.0
    elif _computes_as(module, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        bound = _bound_batch_norm(module)
    elif _computes_as(module, *_MAX_POOLS, *_AVERAGE_POOLS):
        bound = _bound_pooling(module, len(shape) - 1)
    else:
        bound = _bound_activation(module)
    if bound is None:
        raise NotSupported(
            f"no Lipschitz constant is known for {module}.",
            remedy="Give its class a method lipschitz_upper_bound(input_shape); batch normalisation needs eval().",
        )
    return bound


def _bound_activation(module: Any) -> float | None:
    """Return the steepest slope of an activation with parameters; None for other modules."""
    if _computes_as(module, nn.LeakyReLU):
        return max(1.0, abs(float(module.negative_slope)))
    if _computes_as(module, nn.ELU):
        return max(1.0, abs(float(module.alpha)))
    if _computes_as(module, nn.CELU) and module.alpha > 0:
        return 1.0
    if _computes_as(module, nn.PReLU):
        return max(1.0, float(module.weight.abs().max()))
    if _computes_as(module, nn.Softplus) and module.beta > 0 and module.threshold >= _SMOOTH_THRESHOLD:
        return 1.0
    return None


def _bound_batch_norm(module: Any) -> float | None:
    """Return the largest |weight| / deviation of a batch normalisation in eval mode; None with batch statistics."""
    if module.training or module.running_var is None:
        return None
    variance = module.running_var.double() + module.eps
    scale = torch.ones_like(variance) if module.weight is None else module.weight.double().abs()
    return float((scale / variance.sqrt()).max())


def _bound_pooling(module: Any, dimensions: int) -> float | None:
    """Return the constant of pooling that reads no number twice, otherwise None.

    An average of n numbers divided by d has sqrt(n) / d.
    """
    window, stride = (_per_axis(value, dimensions) for value in (module.kernel_size, module.stride))
    dilation = _per_axis(getattr(module, "dilation", 1), dimensions)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True)]
    if getattr(module, "return_indices", False) or any(s < r for s, r in zip(stride, reach, strict=True)):
        return None
    divisor = getattr(module, "divisor_override", None)
    return math.sqrt(math.prod(window)) / abs(divisor) if divisor else 1.0


def _per_axis(value: int | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    """Return one number for each axis, from one number or a tuple of them."""
    return (value,) * dimensions if isinstance(value, int) else tuple(value)


def _bound_convolution(weight: Tensor, layer: Convolution) -> float:
    """Return the norm of the circular convolution on a torus that holds the padded image, by Fourier transform.

    Zero padding and strides remove rows and columns of that map, which cannot raise its norm.
    """
    dimensions = weight.ndim - 2
    dilation = _per_axis(layer.dilation, dimensions)
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    torus = [n + r for n, r in zip(layer.input_shape[1:], reach, strict=True)]
    dilated = weight.new_zeros((*weight.shape[:2], *(r + 1 for r in reach)))
    positions: Any = (..., *(slice(None, None, d) for d in dilation))
    dilated[positions] = weight
    spectrum = torch.fft.fftn(dilated.double(), s=torus, dim=tuple(range(2, 2 + dimensions))).flatten(2)
    blocks = spectrum.permute(2, 0, 1).unflatten(1, (layer.groups, -1))  # (frequency, group, out, in)
    return float(torch.linalg.matrix_norm(blocks, 2).max())


def empirical_lipschitz(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    n: int = 256,
    eps: float = 1e-3,
    generator: torch.Generator | int | None = None,
) -> float:
    """Return the largest |f(x + d) - f(x)| / |d| found: a lower bound of the constant.

    From `n` rows of `x`, steps of length `eps` start in random directions; five rounds of power iteration on the
    Jacobian turn each towards the direction of the largest stretch.

    Args:
        f: (batch, ...) -> (batch, ...), row by row.
        x: (rows, ...).
        n: rows drawn from x with replacement, >= 1.
        eps: length of a step, > 0.

    Returns:
        float; rounding adds about 1e-7 |f| / eps in float32.
    """
    if n < 1 or not eps > 0 or len(x) == 0:
        raise ValueError(f"expected n >= 1, eps > 0 and rows in x, got {n=}, {eps=}, {len(x)} rows")
    generator = as_generator(generator, x.device)
    with outside_inference_mode():
        return _search_steepest(f, x, n, eps, generator)


def _search_steepest(f: Callable[[Tensor], Tensor], x: Tensor, n: int, eps: float, generator: torch.Generator) -> float:
    """Return the largest stretch met by steps from `n` random rows."""
    rows = x.detach()[torch.randint(len(x), (n,), generator=generator, device=x.device)]
    step = torch.randn(rows.shape, generator=generator, dtype=rows.dtype, device=rows.device)
    best = 0.0
    for _ in range(6):
        step = eps * step / _row_norms(step).clamp(min=torch.finfo(step.dtype).tiny)
        with torch.enable_grad():
            start = rows.clone().requires_grad_()
            value = f(start)
            with torch.no_grad():
                change = f(rows + step) - value
                best = max(best, float((_row_norms(change).flatten() / _row_norms(step).flatten()).max()))  # eq. 3
            [step] = torch.autograd.grad(value, start, change / eps)
        step = step + 1e-6 * eps  # a row without any slope keeps a direction
    return best if math.isfinite(best) else math.inf


def _row_norms(x: Tensor) -> Tensor:
    """Return the norm of each row, (n, 1, ...) for (n, ...)."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.reshape(-1, *(1,) * (x.ndim - 1))
