"""Gradients through a quantisation z -> q: straight-through, and the rotation trick.

    z_q = sg[G] z + sg[q - G z],  with sg the stopped gradient: the value is q, the gradient is G'g.

Straight-through takes G = I; the rotation trick takes the scaled rotation with G z = q.

Source: kexue.fm/archives/10489; Fifty et al. 2024, arXiv:2410.06424.
Differences: the rotation is the product of two reflections, orthogonal also where z and q are nearly opposite. The
article's rule for the gradient lacks a transpose; it is G'g.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kexue._tensors import as_floats, direction_and_length


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """Return the value q, exactly, with the gradient of z: z + sg[q - z]; q receives none. Shapes (..., d)."""
    _check_pair(z, q)
    return q.detach().to(z.dtype) + (z - z.detach())  # eq. 2: z_q


def rotate_to(z: Tensor, q: Tensor) -> Tensor:
    """Return the value q, exactly, with the gradient of the scaled rotation from z to q; q receives none.

    z_q = sg[G] z + sg[q - G z],  G = (||q|| / ||z||) H_w H_u,  H_v = I - 2 v v',
    with u along z and w along z/||z|| + q/||q||, so that G z = q to rounding, whatever the angle, and the gradient is
    G'g. No matrix is formed: two dot products per row. Where z or q is 0 there is no rotation, and the row is
    `straight_through`; where they are opposite up to rounding, G is a reflection. The gradient is scaled by
    ||q|| / ||z|| too: with codes much shorter than z almost none of it reaches the encoder.

    Source: kexue.fm/archives/10489.

    Args:
        z, q: (..., d) floats of the same shape. Half precision is computed in float32.

    Raises:
        ValueError: shapes that differ. TypeError: not floats.
    """
    _check_pair(z, q)
    row = as_floats(z, "z")
    start, goal = row.detach(), as_floats(q, "q").detach().to(row.dtype)
    (u, length), (v, goal_length) = direction_and_length(start), direction_and_length(goal)
    movable = (length > 0) & (goal_length > 0)
    w = _bisector(u, v)
    turned = row - 2 * u * (u * row).sum(-1, keepdim=True)  # H_u z
    turned = turned - 2 * w * (w * turned).sum(-1, keepdim=True)  # eq. 5: R z, with R = H_w H_u
    scale = goal_length / length.masked_fill(~movable, 1.0)
    turned = torch.where(movable, scale * turned, row).to(z.dtype)  # eq. 6: G = (||q|| / ||z||) R
    return straight_through(turned, q)  # eq. 4


def _bisector(u: Tensor, v: Tensor) -> Tensor:
    """Return the direction of u + v for unit vectors u and v; 0 where they are opposite up to rounding.

    u + v is orthogonal to v - u. Where u and v are nearly opposite u + v is small, and its rounding error along v - u
    is removed.
    """
    across = v - u
    w = u + v
    w = w - across * ((across * w).sum(-1, keepdim=True) / across.square().sum(-1, keepdim=True).clamp(min=1.0))
    size = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    rounding = 8 * torch.finfo(w.dtype).eps
    return torch.where(size > rounding, w / size.clamp(min=rounding), 0.0)


def _check_pair(z: Tensor, q: Tensor) -> None:
    """Raise ValueError unless z and q have the same shape with an axis, TypeError unless both hold floats."""
    if z.shape != q.shape or z.ndim < 1:
        raise ValueError(f"expected z and q of the same shape (..., d), got {tuple(z.shape)} and {tuple(q.shape)}")
    if not (z.is_floating_point() and q.is_floating_point()):
        raise TypeError(f"z and q must be tensors of floats, got {z.dtype} and {q.dtype}")
