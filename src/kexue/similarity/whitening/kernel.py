"""The linear map of a whitening, from moments: one symmetric eigenproblem for each beta; gamma and k need no other.

Source: kexue.fm/archives/9079. Directions without variance are cut, not divided by zero.
"""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.similarity._vectors import RESIDUE
from kexue.similarity.whitening.statistics import Moments


class Kernel(NamedTuple):
    """Affine map y = x @ kernel + bias, with the spectrum it comes from; see `whitening_kernel`.

    Attributes:
        kernel: (d, k), float64: the first k columns of U Lambda^(-gamma/2).
        bias: (k,), float64: -beta mean @ kernel.
        eigenvalues: (k,), float64, descending: mean square of each coordinate about beta mean, before scaling.
        rank: number of directions whose eigenvalue exceeds `rcond` times the largest, and the rounding of equal rows,
            about (2e-15 |mean|)^2.
    """

    kernel: Array
    bias: Array
    eigenvalues: Array
    rank: int


class Spectrum(NamedTuple):
    """All eigenvalues and eigenvectors of a second moment."""

    values: Array  # (d,), descending, >= 0
    vectors: Array  # (d, d), columns, the entry of largest magnitude positive


def whitening_kernel(
    moments: Moments,
    *,
    n_components: int | None = None,
    beta: float = 1.0,
    gamma: float = 1.0,
    eps: float = 0.0,
    rcond: float = 1e-10,
    ddof: int = 0,
) -> Kernel:
    """Compute the linear map from moments: one symmetric eigenproblem, no pass over data.

    Sigma_beta = (scatter + n (1 - beta)^2 mu' mu) / (n - ddof) = U Lambda U',
    kernel = U (Lambda + eps)^(-gamma/2) [:, :k],  bias = -beta mu @ kernel.

    Source: kexue.fm/archives/9079, eq. 2: beta multiplies the mean in the shift and in the second moment. At
    beta = gamma = 1 it is the map of kexue.fm/archives/8321; at (1, 0) principal components; at (0, 0) a rotation,
    which keeps inner products at k = d.

    Args:
        moments: from `moments` or `merge_moments`.
        n_components: k in [1, d]; None keeps d. With gamma > 0 at most `rank` columns are kept, with a warning.
        beta: share of the mean to remove; any real number, normally in [0, 1].
        gamma: share of the anisotropy to remove; outside [0, 1] allowed, with a warning.
        eps: >= 0, added to every eigenvalue (a ridge, in squared units of the data).
        rcond: >= 0; eigenvalues up to rcond times the largest count as zero.
        ddof: divisor n - ddof of the moments; scales y by a constant, so cosines do not change.

    Returns:
        Kernel(kernel (d, k), bias (k,), eigenvalues (k,), rank).

    Raises:
        ValueError: a parameter outside its range, n <= ddof, no variance at all and gamma > 0, or a gamma whose powers
            of the eigenvalues overflow float64.

    Cost: O(d^3) once for each beta.

    Example:
        >>> from kexue.similarity import moments
        >>> stats = moments([[3.0, 1.0], [3.0, -1.0], [-3.0, 1.0], [-3.0, -1.0]])
        >>> result = whitening_kernel(stats)
        >>> result.eigenvalues.tolist(), result.kernel.round(3).tolist(), result.rank
        ([9.0, 1.0], [[0.333, 0.0], [0.0, 1.0]], 2)
    """
    check_parameters(n_components, beta, gamma, eps, rcond, ddof)
    spectrum = second_moment_spectrum(moments, beta, ddof)
    return scale_spectrum(moments, spectrum, n_components, beta, gamma, eps, rcond, stacklevel=3)


def second_moment_spectrum(moments: Moments, beta: float, ddof: int) -> Spectrum:
    """Compute eigenvalues and eigenvectors of the second moment about beta mu, descending, signs fixed."""
    n, mean, scatter = moments
    if n <= ddof:
        raise ValueError(f"n_samples={n:g} does not exceed ddof={ddof}; the covariance needs more rows or ddof=0.")
    shift = (1.0 - beta) * mean
    second = (scatter + n * np.multiply.outer(shift, shift)) / (n - ddof)  # eq. 2 (9079): Sigma about beta mu
    values, vectors = np.linalg.eigh(second)  # eq. 5 (8069): Sigma = U Lambda U'
    values = np.maximum(values[::-1], 0.0)
    vectors = vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)
    return Spectrum(values, np.ascontiguousarray(vectors * signs))


def scale_spectrum(
    moments: Moments,
    spectrum: Spectrum,
    n_components: int | None,
    beta: float,
    gamma: float,
    eps: float,
    rcond: float,
    *,
    stacklevel: int = 4,
) -> Kernel:
    """Compute the kernel from a spectrum: the first k columns, at most the rank where gamma > 0, scaled by
    Lambda^(-gamma/2).
    """
    values, vectors = spectrum
    k = _count_components(n_components, values.shape[0])
    if not 0.0 <= gamma <= 1.0:
        warnings.warn(
            f"gamma={gamma:g} lies outside [0, 1]: above 1 weak directions outweigh strong ones, "
            "below 0 the anisotropy grows.",
            stacklevel=stacklevel,
        )
    ridged = values + eps
    rank = numerical_rank(ridged, moments.mean, rcond)
    if gamma > 0 and k > rank:
        if rank == 0:
            raise ValueError(
                f"n_samples={moments.n:g} row(s) show no variance, so there is nothing to whiten. "
                "Fit on more distinct rows, or use gamma=0."
            )
        warnings.warn(
            f"kept {rank} of {k} components: the second moment of {moments.n:g} rows has rank {rank} "
            f"(eigenvalues above rcond={rcond:g} of the largest). Set n_components <= {rank}, or eps > 0.",
            stacklevel=stacklevel,
        )
        k = rank
    kernel = vectors[:, :k]  # eq. 3 (9079): gamma = 0 leaves U, so nothing is divided and nothing need be cut
    if gamma != 0:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            kernel = kernel * ridged[:k] ** (-gamma / 2)  # eq. 2, 4 (9079); at gamma = 1 eq. 6 (8069)
        if not np.isfinite(kernel).all():
            raise ValueError(
                f"with gamma={gamma:g} the eigenvalues {ridged[k - 1]:.3g} to {ridged[0]:.3g} leave the range of "
                "float64. Choose a gamma nearer to [0, 1], or rescale the vectors."
            )
    kernel = np.ascontiguousarray(kernel)
    return Kernel(kernel, -beta * (moments.mean @ kernel), values[:k].copy(), rank)


def numerical_rank(values: Array, mean: Array, rcond: float) -> int:
    """Count the eigenvalues, descending, above `rcond` times the largest and above the rounding of equal rows.

    Equal rows differ from their computed mean by up to a few eps |mean|: squares of that size are rounding, not
    variance.
    """
    noise = RESIDUE * float(np.linalg.norm(mean))
    return int(np.count_nonzero(values > max(rcond * values[0], noise**2)))


def _count_components(n_components: int | None, d: int) -> int:
    """Return k, checked against the dimension d of the vectors."""
    k = d if n_components is None else int(n_components)
    if k > d:
        raise ValueError(
            f"n_components={k} exceeds the {d} dimensions of the vectors. Choose 1 <= n_components <= {d}."
        )
    return k


def check_parameters(
    n_components: Any, beta: Any, gamma: Any, eps: Any, rcond: Any, ddof: Any, d: int | None = None
) -> None:
    """Raise on a parameter of the wrong type or range; `d` is the dimension where it is known."""
    if n_components is not None:
        if isinstance(n_components, bool) or not isinstance(n_components, Integral):
            raise TypeError(f"n_components must be an int or None, got {n_components!r}.")
        if int(n_components) < 1 or (d is not None and int(n_components) > d):
            raise ValueError(
                f"n_components={n_components} must lie in [1, {d or 'd'}], the number of dimensions of the vectors."
            )
    for name, value in (("beta", beta), ("gamma", gamma), ("eps", eps), ("rcond", rcond), ("ddof", ddof)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a real number, got {value!r}.")
        if not np.isfinite(float(value)):
            raise ValueError(f"{name} must be finite, got {value!r}.")
        if name in ("eps", "rcond", "ddof") and value < 0:
            raise ValueError(f"{name} must be >= 0, got {value!r}.")
