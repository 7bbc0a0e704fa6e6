"""Orthogonal maps that take one unit vector to another, as products of reflections.

Source: kexue.fm/archives/8453. H_v = I - 2 v v' is the reflection along a unit vector v; with the bisector
s = (a + b)/|a + b| and the difference w = (a - b)/|a - b| the article's three closed forms are

    rotation     I + 2 b a' - (a + b)(a + b)'/(1 + a'b)  =  H_s H_a
    householder  I - (a - b)(a - b)'/(1 - a'b)           =  H_w
    symmetric    (a + b)(a + b)'/(1 + a'b) - I           = -H_s

Differences: the article divides by 1 + a'b or 1 - a'b, which loses orthogonality near the singular point; a normalised
s or w does not. Where a + b (or a - b) vanishes, a fixed unit vector orthogonal to a takes its place.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np

Kind = Literal["rotation", "householder", "symmetric"]
_KINDS = ("rotation", "householder", "symmetric")
_UNIT_TOLERANCE = 1e-4


class RotationOperator:
    """T = sign H_k ... H_1 in O(d) memory, H_i the reflection along the i-th unit vector; batches in front.

    `apply` costs O(d) per vector, `matrix` O(d^2). Made by `rotation_between(..., as_operator=True)`.

    Attributes:
        reflections: unit vectors (..., d), the first acts first.
        sign: 1 or -1.
    """

    def __init__(self, reflections: tuple[Any, ...], sign: int = 1) -> None:
        self.reflections = reflections
        self.sign = sign

    def apply(self, X: Any) -> Any:
        """Map rows: x -> T x for every row x, that is X @ T'.

        Args:
            X: (..., n, d), the batch in front as in the operator's; a single operator also takes (d,).

        Returns:
            As `X`, in its own dtype and on its device.

        Raises:
            ValueError: the last axis is not d.
        """
        d = self.reflections[0].shape[-1]
        X = X if hasattr(X, "shape") else np.asarray(X, dtype=float)
        if X.shape[-1] != d:
            raise ValueError(f"expected vectors of {d} dimensions, got an array of shape {tuple(X.shape)}")
        for v in self.reflections:
            v = _cast_like(v if v.ndim == 1 else v[..., None, :], X)  # noqa: PLW2901 - the same vector, fit to X
            X = X - 2 * (X * v).sum(-1)[..., None] * v
        return X if self.sign > 0 else -X

    @property
    def T(self) -> RotationOperator:  # noqa: N802 - the name arrays have
        """The transpose, which is the inverse."""
        return RotationOperator(self.reflections[::-1], self.sign)

    def matrix(self) -> Any:
        """T as (..., d, d), for columns: T @ a = b. For rows use X @ T.mT."""
        v = self.reflections[0]
        xp = _namespace(v)
        identity = xp.zeros_like(v[..., None] * v[..., None, :]) + _eye(v)
        return xp.swapaxes(self.apply(identity), -1, -2)


def rotation_between(
    a: Any, b: Any, *, kind: Kind = "rotation", normalize: bool = True, as_operator: bool = False
) -> Any:
    """Return an orthogonal T with T a = b, for columns.

    Source: kexue.fm/archives/8453; formulas at the top of `kexue.similarity.rotation`. All three agree with each other
    on the plane of a and b only:

    - ``"rotation"``: turns that plane and fixes everything orthogonal to it; det 1, trace d - 2 + 2 a'b.
    - ``"householder"``: swaps a and b, fixes everything orthogonal to a - b; symmetric, det -1, trace d - 2.
    - ``"symmetric"``: swaps a and b, flips everything orthogonal to a + b, so it is far from I even where a = b;
      symmetric, det (-1)^(d-1), trace 2 - d.

    Args:
        a: (..., d), numpy or torch; a batch of vectors gives a batch of maps.
        b: (..., d), broadcast against `a`.
        kind: which of the three.
        normalize: use the directions of `a` and `b`; False requires unit vectors (to 1e-4).
        as_operator: return a `RotationOperator` instead of a matrix.

    Returns:
        (..., d, d) of the inputs' kind, device and dtype (integers become float64), differentiable in torch; or the
        operator. Computed in float64. At b = -a the plane to turn in, and at b = a the mirror of ``"householder"``,
        is arbitrary: a fixed choice is made.

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
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    dtype_of = a if hasattr(a, "dtype") else b if hasattr(b, "dtype") else np.empty(0)
    a, b = _as_float64(a), _as_float64(b)
    if _namespace(a) is not _namespace(b):
        raise TypeError(f"a and b must be of one kind, got {type(a).__name__} and {type(b).__name__}")
    xp = _namespace(a)
    if a.ndim < 1 or b.ndim < 1 or a.shape[-1] != b.shape[-1] or a.shape[-1] < 1:
        raise ValueError(f"a and b must be (..., d) of one d >= 1, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = xp.broadcast_arrays(a, b) if xp is np else xp.broadcast_tensors(a, b)
    a, b = _unit(a, "a", normalize), _unit(b, "b", normalize)
    sign = 1
    if kind == "rotation":
        reflections: tuple[Any, ...] = (a, _direction(a + b, a, kind))
    elif kind == "householder":
        reflections = (_direction(a - b, a, kind),)
    else:
        reflections, sign = (_direction(a + b, a, kind),), -1
    operator = RotationOperator(tuple(_restore(v, dtype_of) for v in reflections), sign)
    if as_operator:
        return operator
    return _restore(RotationOperator(reflections, sign).matrix(), dtype_of)


def align_mean(embeddings: Any, target: Any) -> Any:
    """Turn a whole set of vectors so that its mean points along `target`; all inner products stay.

    Args:
        embeddings: (n, d), numpy or torch.
        target: (d,), any length but 0.

    Returns:
        (n, d), the kind, device and dtype of `embeddings`.

    Raises:
        ValueError: the mean is zero, so it has no direction; or see `rotation_between`.

    Example:
        >>> import numpy as np
        >>> x = align_mean(np.array([[1.0, 2.0], [3.0, 4.0]]), [1.0, 0.0])
        >>> bool(abs(x.mean(axis=0)[1]) < 1e-12)
        True
    """
    mean = embeddings.mean(0) if hasattr(embeddings, "mean") else np.asarray(embeddings, dtype=float).mean(0)
    if _namespace(mean) is not np:
        target = sys.modules["torch"].as_tensor(target, dtype=mean.dtype, device=mean.device)
    return rotation_between(mean, target, as_operator=True).apply(embeddings)


def _namespace(x: Any) -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, torch.Tensor) else np


def _as_float64(x: Any) -> Any:
    return np.asarray(x, dtype=np.float64) if _namespace(x) is np else x.double()


def _cast_like(v: Any, x: Any) -> Any:
    xp = _namespace(x)
    if xp is np:
        return np.asarray(v, dtype=x.dtype if x.dtype.kind == "f" else np.float64)
    return v.to(dtype=x.dtype, device=x.device)


def _restore(x: Any, dtype_of: Any) -> Any:
    """Back to the caller's floating dtype."""
    if _namespace(x) is np:
        return x.astype(dtype_of.dtype) if dtype_of.dtype.kind == "f" else x
    return x.to(dtype_of.dtype) if dtype_of.is_floating_point() else x


def _eye(v: Any) -> Any:
    xp, d = _namespace(v), v.shape[-1]
    return np.eye(d, dtype=v.dtype) if xp is np else xp.eye(d, dtype=v.dtype, device=v.device)


def _length(x: Any) -> Any:
    """Euclidean length along the last axis, kept; scaled so that nothing over- or underflows."""
    xp = _namespace(x)
    scale = xp.abs(x).max(-1, keepdims=True) if xp is np else x.abs().amax(-1, keepdim=True).detach()
    scale = xp.where(scale > 0, scale, xp.ones_like(scale))
    return scale * xp.sqrt(((x / scale) ** 2).sum(-1))[..., None]


def _unit(x: Any, name: str, normalize: bool) -> Any:
    xp = _namespace(x)
    length = _length(x)
    bad = ~(xp.isfinite(length) & (length > 0))
    if bool(bad.any()):
        raise ValueError(f"{name} holds a zero or non-finite vector, which has no direction: {x[bad[..., 0]]!s:.200}")
    if not normalize and bool((abs(length - 1) > _UNIT_TOLERANCE).any()):
        worst = float(abs(length - 1).max())
        raise ValueError(f"{name} must hold unit vectors with normalize=False, a length is off by {worst:.3g}")
    return x / length


def _direction(x: Any, a: Any, kind: str) -> Any:
    """x / |x|; where x vanishes, the unit vector orthogonal to `a` nearest to the axis that a leans on least."""
    xp = _namespace(x)
    vanishes = (x == 0).all(-1)[..., None]
    if not bool(vanishes.any()):
        return x / _length(x)
    if x.shape[-1] == 1:
        where = "b = a" if kind == "householder" else "b = -a"
        raise ValueError(f"in one dimension no {kind} takes a to b at {where}; d must be at least 2")
    axis = _eye(a)[xp.abs(a).argmin(-1)]
    orthogonal = axis - a * (a * axis).sum(-1)[..., None]
    safe = xp.where(vanishes, orthogonal, x)
    return safe / _length(safe)
