"""Orthogonal maps that take one unit vector to another, as products of reflections.

Source: kexue.fm/archives/8453, eq. 3 and 4: b = Q R Q' a in the plane of a and b, where R is a rotation or a
reflection. H_v = I - 2 v v' is the reflection along a unit vector v; with the bisector s = (a + b)/|a + b| and the
difference w = (a - b)/|a - b| the article's three closed forms are

    rotation     I + 2 b a' - (a + b)(a + b)'/(1 + a'b)  =  H_s H_a
    householder  I - (a - b)(a - b)'/(1 - a'b)           =  H_w
    symmetric    (a + b)(a + b)'/(1 + a'b) - I           = -H_s

Differences: the article divides by 1 + a'b or 1 - a'b, which loses orthogonality near the singular point; a normalised
s or w does not. There a + b (or a - b) is mostly rounding, so its direction is wrong; with t the angle from a to b and
u the unit vector orthogonal to a in their plane,

    s = cos(t/2) a + sin(t/2) u        w = sin(t/2) a - cos(t/2) u

are exact up to rounding. Where b is a multiple of a, up to rounding, a fixed unit vector orthogonal to a serves as u.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np

from kexue._arrays import is_tensor, raise_no_values
from kexue.similarity._choices import check_choice
from kexue.similarity._vectors import RESIDUE

Kind = Literal["rotation", "householder", "symmetric"]
_KINDS = ("rotation", "householder", "symmetric")
_UNIT_TOLERANCE = 1e-4
_CLOSE = -0.5  # cosine of a and b (of a and -b for w) below which s (or w) is computed from the angle


class RotationOperator:
    """Orthogonal map T = sign H_k ... H_1 in O(d) memory, H_i the reflection along the i-th unit vector.

    `apply` costs O(d) per vector, `matrix` O(d^2). `rotation_between(..., as_operator=True)` returns one.

    Attributes:
        reflections: unit vectors (..., d), batch axes first; the first reflection acts first.
        sign: 1 or -1.
    """

    def __init__(self, reflections: tuple[Any, ...], sign: int = 1) -> None:
        self.reflections = reflections
        self.sign = sign

    def apply(self, X: Any) -> Any:
        """Map rows: x -> T x for every row x, that is X @ T'.

        Args:
            X: (..., n, d), batch axes first, as in the operator; a single operator also takes (d,).

        Returns:
            As `X`, of its dtype and on its device; half precision is computed in float32, integers become float64.

        Raises:
            ValueError: the last axis is not d.
        """
        d = self.reflections[0].shape[-1]
        X = X if hasattr(X, "shape") else np.asarray(X, dtype=float)
        if X.shape[-1:] != (d,):
            raise ValueError(f"expected vectors of {d} dimensions, got an array of shape {tuple(X.shape)}")
        Y = _as_wide_floats(X, "X")
        for v in self.reflections:
            v = _cast_like(v if v.ndim == 1 else v[..., None, :], Y)  # noqa: PLW2901 - the same vector in the dtype of X
            Y = Y - 2 * (Y * v).sum(-1)[..., None] * v  # H_v y = y - 2 v (v'y)
        return _restore(Y if self.sign > 0 else -Y, X)

    @property
    def T(self) -> RotationOperator:  # noqa: N802 - the name arrays have
        """The transpose, which is the inverse."""
        return RotationOperator(self.reflections[::-1], self.sign)

    def matrix(self) -> Any:
        """Return T as (..., d, d), for columns: T @ a = b. For rows use X @ T.mT."""
        v = self.reflections[0]
        xp = _namespace(v)
        identity = xp.zeros_like(v[..., None] * v[..., None, :]) + _eye(v)
        return xp.swapaxes(self.apply(identity), -1, -2)


def rotation_between(
    a: Any, b: Any, *, kind: Kind = "rotation", normalize: bool = True, as_operator: bool = False
) -> Any:
    """Return an orthogonal matrix T with T a = b, for columns.

    Source: kexue.fm/archives/8453; formulas at the top of `kexue.similarity.rotation`. The three kinds agree on `a`
    only:

    - ``"rotation"``: rotates in the plane of a and b, fixes everything orthogonal to it; det 1, trace d - 2 + 2 a'b.
    - ``"householder"``: swaps a and b, fixes everything orthogonal to a - b; symmetric, det -1, trace d - 2.
    - ``"symmetric"``: swaps a and b, flips everything orthogonal to a + b, so it is far from I even where a = b;
      symmetric, det (-1)^(d-1), trace 2 - d.

    Args:
        a: (..., d), numpy or torch; a batch of vectors gives a batch of maps.
        b: (..., d), broadcast against `a`.
        kind: one of the three above.
        normalize: use the directions of `a` and `b`; False requires unit vectors (to 1e-4).
        as_operator: return a `RotationOperator` instead of a matrix.

    Returns:
        (..., d, d) of the kind, device and dtype of the inputs (integers become float64), differentiable in torch; or
        the operator. Computed in float64. At b = -a the plane of the rotation, and at b = a the mirror of
        ``"householder"``, is not determined: a fixed choice is made.

    Raises:
        ValueError: an unknown kind, shapes that do not fit, a zero or non-finite vector, or d = 1 where no such map
            exists (``"rotation"`` and ``"symmetric"`` at b = -a, ``"householder"`` at b = a).

    Example:
        >>> import numpy as np
        >>> T = rotation_between([1.0, 0.0], [0.0, 2.0])
        >>> np.round(T @ [1.0, 0.0], 12).tolist()
        [0.0, 1.0]

    Cost: O(d) for the operator, O(d^2) for the matrix.
    """
    check_choice("kind", kind, _KINDS)
    dtype_of = a if hasattr(a, "dtype") else b if hasattr(b, "dtype") else np.empty(0)
    a, b = _as_float64(a, "a"), _as_float64(b, "b")
    if _namespace(a) is not _namespace(b):
        raise TypeError(f"a and b must be of the same kind, got {type(a).__name__} and {type(b).__name__}")
    xp = _namespace(a)
    if a.ndim < 1 or b.ndim < 1 or a.shape[-1] != b.shape[-1] or a.shape[-1] < 1:
        raise ValueError(f"a and b must be (..., d) of the same d >= 1, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = xp.broadcast_arrays(a, b) if xp is np else xp.broadcast_tensors(a, b)
    a, b = _unit(a, "a", normalize), _unit(b, "b", normalize)
    bisector = _bisector(a, b, kind)
    # eq. 4 (8453): two reflections are the rotation R, one is the mirror; in closed form H_s H_a, H_w and -H_s
    reflections, sign = ((a, bisector) if kind == "rotation" else (bisector,)), (-1 if kind == "symmetric" else 1)
    operator = RotationOperator(tuple(_restore(v, dtype_of) for v in reflections), sign)
    if as_operator:
        return operator
    return _restore(RotationOperator(reflections, sign).matrix(), dtype_of)


def align_mean(embeddings: Any, target: Any) -> Any:
    """Rotate a set of vectors so that its mean points along `target`; all inner products are kept.

    Args:
        embeddings: (n, d), numpy or torch.
        target: (d,), of any length > 0.

    Returns:
        (n, d), the kind, device and dtype of `embeddings`.

    Raises:
        ValueError: no rows, or a mean that is zero up to rounding and so has no direction; see `rotation_between`.

    Example:
        >>> import numpy as np
        >>> x = align_mean(np.array([[1.0, 2.0], [3.0, 4.0]]), [1.0, 0.0])
        >>> bool(abs(x.mean(axis=0)[1]) < 1e-12)
        True
    """
    embeddings = embeddings if hasattr(embeddings, "shape") else np.asarray(embeddings, dtype=float)
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(f"embeddings must be (n, d) with n >= 1, got shape {tuple(embeddings.shape)}")
    rows = _as_float64(embeddings, "embeddings")
    mean = rows.mean(0)
    if bool(_length(mean)[0] <= 8 * _epsilon(embeddings) * _length(rows).mean()):
        raise ValueError("the mean of the embeddings is zero up to rounding, so it has no direction to rotate")
    if _namespace(mean) is not np:
        target = sys.modules["torch"].as_tensor(target, dtype=mean.dtype, device=mean.device)
    return rotation_between(mean, target, as_operator=True).apply(embeddings)


def _namespace(x: Any) -> Any:
    """Return the library of an array: torch or numpy."""
    return sys.modules["torch"] if is_tensor(x) else np


def _as_float64(x: Any, name: str) -> Any:
    """Return `x` in float64, a tensor with its gradient; ValueError unless real and finite."""
    if _namespace(x) is not np:
        raise_no_values(x, name)
    x = x if hasattr(x, "dtype") else np.asarray(x)
    if "complex" in str(x.dtype):
        raise ValueError(f"{name} must hold real numbers, got {x.dtype}")
    with np.errstate(over="ignore"):  # a longdouble may become infinite, which is refused below
        x = np.asarray(x, dtype=np.float64) if _namespace(x) is np else x.double()
    if not bool(_namespace(x).isfinite(x).all()):
        raise ValueError(f"{name} must be finite, got a vector with NaN or infinity, which has no direction")
    return x


def _epsilon(x: Any) -> float:
    """Return the distance from 1 to the next number of the dtype; that of float64 for integers."""
    if _namespace(x) is np:
        return float(np.finfo(x.dtype if x.dtype.kind == "f" else np.float64).eps)
    torch = sys.modules["torch"]
    return float(torch.finfo(x.dtype if x.dtype.is_floating_point else torch.float64).eps)


def _as_wide_floats(x: Any, name: str) -> Any:
    """Return `x` in float32 or better: float32 for shorter floats, float64 for integers."""
    if _namespace(x) is np:
        return (
            x.astype(np.float32 if x.dtype == np.float16 else np.float64)
            if x.dtype.itemsize < 4 or x.dtype.kind != "f"
            else x
        )
    raise_no_values(x, name)
    if not x.dtype.is_floating_point:
        return x.double()
    return x.float() if x.element_size() < 4 else x


def _cast_like(v: Any, x: Any) -> Any:
    """Return a reflection in the library, dtype and device of `x`."""
    if _namespace(x) is np:
        return np.asarray(v if _namespace(v) is np else v.detach().cpu(), dtype=x.dtype)
    return sys.modules["torch"].as_tensor(v, dtype=x.dtype, device=x.device)


def _restore(x: Any, dtype_of: Any) -> Any:
    """Return `x` in the floating dtype of `dtype_of`; unchanged where that holds integers."""
    if _namespace(x) is np:
        return x.astype(dtype_of.dtype) if dtype_of.dtype.kind == "f" else x
    return x.to(dtype_of.dtype) if dtype_of.is_floating_point() else x


def _eye(v: Any) -> Any:
    """Return the identity matrix (d, d) in the library, dtype and device of `v`."""
    xp, d = _namespace(v), v.shape[-1]
    return np.eye(d, dtype=v.dtype) if xp is np else xp.eye(d, dtype=v.dtype, device=v.device)


def _length(x: Any) -> Any:
    """Return the Euclidean length along the last axis, which is kept; squares neither over- nor underflow."""
    xp = _namespace(x)
    scale = xp.abs(x).max(-1, keepdims=True) if xp is np else x.abs().amax(-1, keepdim=True).detach()
    scale = xp.where(scale > 0, scale, xp.ones_like(scale))
    return scale * xp.sqrt(((x / scale) ** 2).sum(-1))[..., None]


def _unit(x: Any, name: str, normalize: bool) -> Any:
    """Return unit vectors; ValueError for a vector without direction, and for other lengths without `normalize`."""
    xp = _namespace(x)
    length = _length(x)
    bad = ~(xp.isfinite(length) & (length > 0))
    if bool(bad.any()):
        raise ValueError(f"{name} holds a zero or non-finite vector, which has no direction: {x[bad[..., 0]]!s:.200}")
    if not normalize and bool((abs(length - 1) > _UNIT_TOLERANCE).any()):
        worst = float(abs(length - 1).max())
        raise ValueError(f"{name} must hold unit vectors with normalize=False, a length is off by {worst:.3g}")
    return x / length


def _bisector(a: Any, b: Any, kind: str) -> Any:
    """Return the unit vector along a + b, or along a - b for ``"householder"``; (..., d) for unit vectors a and b."""
    xp, towards = _namespace(a), -1.0 if kind == "householder" else 1.0
    cosine = (a * b).sum(-1)[..., None]
    close = towards * cosine < _CLOSE
    if not bool(close.any()):
        x = a + towards * b
        return x / _length(x)
    across = b - cosine * a
    across = across - a * (across * a).sum(-1)[..., None]  # removes the rounding of the first product
    vanishes = (_length(xp.where(close, across, a)) <= RESIDUE) & close
    if a.shape[-1] == 1 and bool(vanishes.any()):
        where = "b = a" if kind == "householder" else "b = -a"
        raise ValueError(f"in one dimension no {kind} takes a to b at {where}; d must be at least 2")
    # Each branch gets harmless vectors where the other one is used: torch adds the gradients of both.
    x = xp.where(close, a, a + towards * b)
    if a.shape[-1] == 1:
        return x / _length(x)
    orthogonal = _orthogonal(a)
    safe = xp.where(vanishes | ~close, orthogonal, across)
    sine = xp.where(vanishes | ~close, xp.zeros_like(cosine), _length(safe))
    half = xp.arctan2(sine, cosine) / 2
    along, beside = (xp.cos(half), xp.sin(half)) if towards > 0 else (xp.sin(half), -xp.cos(half))
    return xp.where(close, along * a + beside * safe / _length(safe), x / _length(x))


def _orthogonal(a: Any) -> Any:
    """Return the unit vector orthogonal to `a` that is nearest to the axis of its smallest entry."""
    xp = _namespace(a)
    axis = _eye(a)[xp.abs(a).argmin(-1)]
    x = axis - a * (a * axis).sum(-1)[..., None]
    return x / _length(x)
