"""Entropic optimal transport: a differentiable approximation of `emd`, for batches on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kexue._arrays import raise_no_values, reread
from kexue._optional import import_optional

if TYPE_CHECKING:
    from torch import Tensor

_CHECK_EVERY = 10  # iterations between two checks of the marginals: each check waits for the device
_MASS_TOLERANCE = 1e-4  # relative difference between the sums of p and q


class SinkhornResult(NamedTuple):
    """A batch of entropic plans.

    Attributes:
        distance: (B,), sum of plan x cost, without the entropy.
        plan: (B, m, n); columns sum to q exactly, rows to p within `tol` where `converged`.
        n_iter: number of iterations run.
        converged: whether the row sums of every problem of the batch are within `tol`.
    """

    distance: Tensor
    plan: Tensor
    n_iter: int
    converged: bool


def sinkhorn(
    p: Any,
    q: Any,
    cost: Any,
    *,
    reg: float = 0.1,
    n_iter: int = 200,
    tol: float = 1e-6,
    mask_p: Any = None,
    mask_q: Any = None,
) -> SinkhornResult:
    """Compute entropic optimal transport by Sinkhorn's iteration on logarithms.

    min over plans P of sum P_ij D_ij + reg KL(P | p q'); P_ij = p_i q_j exp((f_i + g_j - D_ij)/reg), where in turn

        f_i = -reg log sum_j q_j exp((g_j - D_ij)/reg),     g_j = -reg log sum_i p_i exp((f_i - D_ij)/reg).

    Source: Cuturi 2013, arXiv:1306.0895; the exact problem: kexue.fm/archives/7388, eq. 2. As reg goes to 0 the
    distance falls to that of `emd`, in more and more iterations (about max D / reg); as reg grows it rises to
    `product_upper_bound`. Once converged it is never below `emd`.

    Args:
        p: (B, m) or (m,), >= 0. Like `q` and `cost` a tensor, or anything `torch.as_tensor` reads; batches broadcast,
            and gradients flow into all three.
        q: (B, n) or (n,), >= 0, of the same sums.
        cost: (B, m, n) or (m, n), of any sign.
        reg: > 0, in the unit of the cost.
        n_iter: largest number of iterations, >= 1.
        tol: stop once the errors of the row sums of every problem sum to at most this.
        mask_p: (B, m) bool, True = keep; a masked position carries no mass, whatever `p` and `cost` hold there.
        mask_q: (B, n), likewise.

    Returns:
        `SinkhornResult`; without a batch axis its distance is a scalar and its plan (m, n). Device and dtype of the
        inputs, half precision computed in float32.

    Raises:
        ValueError: shapes that do not fit, reg or n_iter out of range, masses negative, not finite, without sum or of
            different sums (to 1e-4, relative); a mask that is not bool.
        MissingDependencyError: torch is not installed.

    Example:
        >>> result = sinkhorn([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], reg=0.05)
        >>> round(float(result.distance), 6), result.converged
        (0.0, True)

    Cost: O(B m n) time an iteration; memory O(B m n), times the iterations where gradients are asked for.
    """
    torch = import_optional("torch")
    if not reg > 0:
        raise ValueError(f"reg must be > 0, got {reg!r}; for no entropy at all use emd")
    if isinstance(n_iter, bool) or not isinstance(n_iter, int) or n_iter < 1:
        raise ValueError(f"n_iter must be a whole number >= 1, got {n_iter!r}")
    p, q, D = _read_problem(p, q, cost, mask_p, mask_q)
    log_p, log_q = _log_masses(p), _log_masses(q)
    scaled = D / reg
    f, g, steps, converged = _iterate(p, log_p, log_q, scaled, n_iter, tol)
    plan = torch.exp(f[..., :, None] + g[..., None, :] - scaled + log_p[..., :, None] + log_q[..., None, :])
    if not converged:
        converged = bool(((plan.sum(-1) - p).detach().abs().sum(-1) <= tol).all())
    return SinkhornResult((plan * D).sum((-2, -1)), plan, steps, converged)


def _iterate(p: Any, log_p: Any, log_q: Any, scaled: Any, n_iter: int, tol: float) -> tuple[Any, Any, int, bool]:
    """Return the potentials f and g in units of reg, the number of iterations, and whether the row sums converged."""
    torch = import_optional("torch")
    f = torch.zeros_like(p + scaled[..., 0])
    g = torch.zeros_like(log_q + scaled[..., 0, :])
    for step in range(1, n_iter + 1):
        previous = f
        f = -torch.logsumexp((g + log_q)[..., None, :] - scaled, dim=-1)
        if step > 1 and step % _CHECK_EVERY == 1:
            # The plan of (previous, g) has row sums p_i exp(previous_i - f_i), and its columns are exact.
            error = (p * torch.expm1(previous - f).abs()).sum(-1)
            if bool((error.detach() <= tol).all()):
                return previous, g, step - 1, True
        g = -torch.logsumexp((f + log_p)[..., :, None] - scaled, dim=-2)
    return f, g, n_iter, False


def _read_problem(p: Any, q: Any, cost: Any, mask_p: Any, mask_q: Any) -> tuple[Any, Any, Any]:
    """Return masses and cost as tensors of one dtype and device, zero where masked; ValueError unless they fit."""
    torch = import_optional("torch")
    p, q, D = (_as_float_tensor(value, name) for value, name in ((p, "p"), (q, "q"), (cost, "cost")))
    dtype = torch.promote_types(torch.promote_types(p.dtype, q.dtype), D.dtype)
    p, q, D = (value.to(device=D.device, dtype=dtype) for value in (p, q, D))
    if D.ndim < 2 or p.shape[-1:] != D.shape[-2:-1] or q.shape[-1:] != D.shape[-1:]:
        raise ValueError(
            f"p (..., m), q (..., n) and cost (..., m, n) must fit, got {tuple(p.shape)}, {tuple(q.shape)} and "
            f"{tuple(D.shape)}"
        )
    p, D = _apply_mask(p, D, mask_p, "mask_p", -1)
    q, D = _apply_mask(q, D, mask_q, "mask_q", -2)
    if not torch.compiler.is_compiling():
        _check_values(p, q, D)
    return p, q, D


def _as_float_tensor(x: Any, name: str) -> Any:
    """Return `x` as a tensor; half precision becomes float32, whole numbers the default dtype."""
    torch = import_optional("torch")
    if not isinstance(x, torch.Tensor):
        x = np.asarray(reread(x)) if not isinstance(x, list | tuple) else x
        if isinstance(x, np.ndarray):  # torch reads no longdouble and no negative strides
            x = np.ascontiguousarray(x, dtype=np.float64 if x.dtype.itemsize > 8 else x.dtype)
        x = torch.as_tensor(x)
    raise_no_values(x, name)
    if not x.dtype.is_floating_point:
        return x.to(torch.get_default_dtype())
    return x.float() if x.element_size() < 4 else x


def _apply_mask(mass: Any, D: Any, mask: Any, name: str, axis: int) -> tuple[Any, Any]:
    """Return mass and cost with zeros where the mask is False."""
    if mask is None:
        return mass, D
    torch = import_optional("torch")
    mask = torch.as_tensor(mask, device=D.device)
    if mask.dtype != torch.bool or mask.shape[-1:] != mass.shape[-1:]:
        raise ValueError(
            f"{name} must be bool, True = keep, of shape {tuple(mass.shape)}, got {mask.dtype} {tuple(mask.shape)}"
        )
    zero = mass.new_zeros(())
    return torch.where(mask, mass, zero), torch.where(mask.unsqueeze(axis), D, zero)


def _log_masses(mass: Any) -> Any:
    """Return log of masses: -inf at 0, with gradient 0."""
    torch = import_optional("torch")
    some = mass > 0
    return torch.where(some, torch.log(torch.where(some, mass, torch.ones_like(mass))), -torch.inf)


def _check_values(p: Any, q: Any, D: Any) -> None:
    """Raise ValueError unless masses are finite, >= 0 and of the same sum > 0, and the cost is finite."""
    for name, mass in (("p", p), ("q", q)):
        bad = mass.detach()[~((mass >= 0) & (mass < float("inf")))]
        if bad.numel():
            raise ValueError(f"{name} must hold finite masses >= 0, got {float(bad[0])}")
    if not bool(D.isfinite().all()):
        raise ValueError("cost must be finite; leave positions out by mask_p and mask_q")
    here, there = p.detach().sum(-1), q.detach().sum(-1)
    if not bool((here > 0).all() & (there > 0).all()):
        raise ValueError("every p and q needs a sum > 0: a problem of the batch has no mass left. Leave it out.")
    if bool(((here - there).abs() > _MASS_TOLERANCE * here).any()):
        worst = (here - there).abs().max()
        raise ValueError(
            f"p and q must have the same sum, the sums differ by {float(worst):.3g}. Normalise both to sum 1."
        )
