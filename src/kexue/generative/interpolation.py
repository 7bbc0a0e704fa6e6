"""Points between two latents."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kexue._counts import check_counts
from kexue._tensors import direction_and_length


def interpolate(
    z1: Tensor, z2: Tensor, n: int, *, method: Literal["circular", "slerp", "linear"] = "circular"
) -> Tensor:
    """Return `n` latents from `z1` to `z2`, both included, (n, *shape).

    With w from 0 to 1 in equal steps:

    - ``circular``: cos(pi w / 2) z1 + sin(pi w / 2) z2. Of two independent standard normal latents every point is
      standard normal, too, so the model has seen its like.
    - ``slerp``: along the great circle between the directions; the length changes linearly.
    - ``linear``: (1 - w) z1 + w z2; half way the length of normal latents has shrunk by sqrt(2).

    Args:
        z1: first latent, any shape.
        z2: last latent, of the same shape.
        n: number of points, >= 2.
        method: ``"circular"``, ``"slerp"`` or ``"linear"``.

    Source: kexue.fm/archives/9181 (circular).

    Example:
        >>> interpolate(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 3)[1]
        tensor([0.7071, 0.7071])
    """
    if z1.shape != z2.shape or not z1.is_floating_point():
        raise ValueError(f"two latents of one shape, of floats, are expected, got {tuple(z1.shape)}, {tuple(z2.shape)}")
    check_counts(2, n=n)
    w = torch.linspace(0, 1, n, dtype=z1.dtype, device=z1.device).reshape(n, *[1] * z1.ndim)
    if method == "circular":
        angle = w * (torch.pi / 2)
        path = torch.cos(angle) * z1 + torch.sin(angle) * z2  # section "Between latents"
    elif method == "linear":
        path = (1 - w) * z1 + w * z2
    elif method == "slerp":
        path = _slerp(z1.flatten(), z2.flatten(), w.flatten()).reshape(n, *z1.shape)
    else:
        raise ValueError(f"method must be 'circular', 'slerp' or 'linear', got {method!r}")
    path[0], path[-1] = z1, z2  # cos(pi / 2) is not 0 in floating point
    return path


def _slerp(z1: Tensor, z2: Tensor, w: Tensor) -> Tensor:
    """Return points (n, d) on the arc between two directions, at lengths between theirs."""
    (u1, r1), (u2, r2) = direction_and_length(z1), direction_and_length(z2)
    along = torch.dot(u1, u2).clamp(-1, 1)
    across = u2 - along * u1
    side, size = direction_and_length(across)
    if float(size) <= 8 * torch.finfo(z1.dtype).eps:
        if float(along) < 0:
            raise ValueError("slerp between opposite latents has no unique path; use method='linear'")
        side = torch.zeros_like(u1)
    angle = (torch.atan2(size, along) * w)[:, None]
    return (torch.cos(angle) * u1 + torch.sin(angle) * side) * torch.lerp(r1, r2, w[:, None])
