"""Penalties on the Lipschitz constant of a network: spectral, Frobenius, gradient penalty; and weight clipping.

Source: kexue.fm/archives/6051. Compare: Gulrajani et al. 2017, arXiv:1704.00028, for the gradient penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from kexue._tensors import as_generator, at_least_float32, outside_inference_mode
from kexue.nn.spectral import WARM_UP, Matrix, power_iteration, random_unit

Filter = Callable[[str, nn.Parameter], bool]


def spectral_penalty(module: nn.Module, coef: float, *, filter: Filter | None = None, n_iter: int = 1) -> Tensor:
    """Compute the spectral regularisation coef * sum of sigma(W)^2 over the weights, to add to the loss.

    Kernels count in the "reshape" sense of `spectral_norm_value`. The singular vectors u are stored on the module, in
    float32 or wider and outside its state_dict, so that one round a step follows the slowly moving weights; the first
    call runs 15.

    Args:
        coef: weight of the penalty, >= 0.
        filter: `filter(name, parameter)` says which parameters count; None counts those with two axes or more.
        n_iter: rounds of power iteration a call, >= 1.

    Raises:
        ValueError: no parameter that counts, or a number out of range.
    """
    if n_iter < 1:
        raise ValueError(f"n_iter must be >= 1, got {n_iter}")
    squares = []
    layer = Matrix()
    for owner, name, parameter in _select_weights(module, coef, filter):
        weight, key = at_least_float32(parameter), f"_spectral_u_{name}"
        u: Tensor | None = owner.__dict__.get(key)
        if u is None or u.shape != layer.output_shape(weight):
            start = random_unit(layer.output_shape(weight), weight, 0)
            u = power_iteration(weight.detach(), layer, start, WARM_UP).u
        norm = power_iteration(weight, layer, u.to(weight), n_iter)
        owner.__dict__[key] = norm.u
        squares.append(norm.sigma.square())
    return coef * _sum_up(squares)  # eq. 16


def frobenius_penalty(module: nn.Module, coef: float, *, filter: Filter | None = None) -> Tensor:
    """Compute weight decay as a loss, coef * sum of |W|_F^2: an upper bound of `spectral_penalty`."""
    squares = [at_least_float32(weight).square().sum() for _, _, weight in _select_weights(module, coef, filter)]
    return coef * _sum_up(squares)  # eq. 11, 12


def _select_weights(
    module: nn.Module, coef: float, filter: Filter | None
) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield the parameters that count, each with the module that owns it and its name there."""
    if not coef >= 0:
        raise ValueError(f"coef must be >= 0, got {coef}")
    owners = dict(module.named_modules())
    for full, parameter in module.named_parameters():
        if parameter.ndim >= 2 if filter is None else filter(full, parameter):
            path, _, name = full.rpartition(".")
            yield owners[path], name, parameter


def _sum_up(squares: Sequence[Tensor]) -> Tensor:
    """Return the sum of one tensor or more."""
    if not squares:
        raise ValueError(
            "the module has no weight to penalise: no parameter with two axes, or none that filter accepts"
        )
    total = squares[0]
    for square in squares[1:]:
        total = total + square
    return total


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
    """Compute the mean of (|grad f(x)| - center)^2 at points between real and fake samples, for WGAN-GP.

    x = e * real + (1 - e) * fake with one e ~ U[0, 1] a sample. The penalty acts on these segments only. Multiply it by
    a weight. Batch normalisation in `f` mixes the samples and makes the penalty meaningless.

    Args:
        f: critic, (batch, ...) -> one value a sample.
        real, fake: (batch, ...), of the same shape; they get no gradient.
        one_sided: penalise only norms above `center`, as the author prefers.
        center: norm without penalty.
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
    create_graph = torch.is_grad_enabled()
    with outside_inference_mode(), torch.enable_grad():
        x = torch.lerp(fake.detach(), real.detach(), mix).requires_grad_()  # eq. 21
        [gradient] = torch.autograd.grad(f(x).sum(), x, create_graph=create_graph)
    axes = range(1, real.ndim) if norm_dims is None else [norm_dims] if isinstance(norm_dims, int) else norm_dims
    norm = torch.sqrt(at_least_float32(gradient).square().sum(tuple(axes)) + 1e-12)  # finite gradient at zero
    excess = norm - center
    return ((excess.relu() if one_sided else excess) ** 2).sum() / max(norm.numel(), 1)  # eq. 20, 19


def clip_weights_(module: nn.Module, bound: float) -> nn.Module:
    """Clamp every parameter to [-bound, bound], the first Lipschitz constraint of WGAN; returns `module`."""
    if not bound > 0:
        raise ValueError(f"bound must be > 0, got {bound}")
    with torch.no_grad():
        # Section "谱归一化" (spectral normalisation), which describes clipping first.
        for parameter in module.parameters():
            parameter.clamp_(-bound, bound)
    return module
