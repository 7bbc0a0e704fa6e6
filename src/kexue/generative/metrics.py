"""Distances between samples and data: Fréchet, sliced Wasserstein, precision and recall, nearness to training data."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from kexue._counts import check_count
from kexue._tensors import as_generator

_BLOCK = 512  # rows of a block of distances


class Manifold(NamedTuple):
    """How samples lie among real items, by neighbourhoods: balls around an item up to its k-th nearest neighbour.

    Attributes:
        precision: share of the samples in a neighbourhood of a real item: how many look real, in [0, 1].
        recall: share of the real items in a neighbourhood of a sample: how much of the variety is there, in [0, 1].
        density: real neighbourhoods that hold a sample, on average, divided by k; about 1 for real items, may be
            larger. One outlier among the real items changes it less than precision.
        coverage: share of the real items with a sample in their neighbourhood, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return the Fréchet distance of two sets of features, each taken as a Gaussian.

    FD = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), computed in float64; 0 for equal sets. Finite samples make
    it too large, the more the fewer they are: compare numbers of the same n only.

    Args:
        features_a: (n, d).
        features_b: (m, d).

    Raises:
        ValueError: fewer than 2 rows, another d, NaN or infinity.

    Warns:
        UserWarning: a set has no more rows than dimensions, so that its covariance lacks directions.

    Example:
        >>> a = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(a, a + torch.tensor([3.0, 4.0])), 4)
        25.0
    """
    sets = [_as_rows(features_a, "features_a"), _as_rows(features_b, "features_b")]
    _check_same_width(*sets)
    d = sets[0].shape[1]
    for x in sets:
        if len(x) < 2:
            raise ValueError(f"at least 2 rows are expected for a covariance, got {len(x)}")
        if len(x) <= d:
            warnings.warn(
                f"{len(x)} rows do not determine a covariance in {d} dimensions; the distance is much too large. "
                "Use more samples.",
                UserWarning,
                stacklevel=2,
            )
    means = [x.mean(0) for x in sets]
    # C = R^T R, and tr (C_a C_b)^(1/2) is the sum of the singular values of R_a R_b^T: without squaring
    roots = [
        torch.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r").R for x, mean in zip(sets, means, strict=True)
    ]
    variances = sum(float(root.square().sum()) for root in roots)
    spread = variances - 2 * float(torch.linalg.svdvals(roots[0] @ roots[1].T).sum())
    if spread <= 16 * d * torch.finfo(torch.float64).eps * variances:
        spread = 0.0  # rounding
    return float((means[0] - means[1]).square().sum()) + spread


def sliced_wasserstein(
    a: Tensor, b: Tensor, *, directions: int = 256, generator: torch.Generator | int | None = 0
) -> float:
    """Return the sliced Wasserstein-2 distance of two sets of the same size.

    SW2 = (mean over directions u of W2(a u, b u)^2)^(1/2), where W2 on a line matches the sorted numbers. It needs no
    features and no covariance.

    Args:
        a: (n, *shape), such as images.
        b: (n, *shape).
        directions: random unit vectors, >= 1.
        generator: of the directions; a seed gives the same ones every time.

    Raises:
        ValueError: sets of different sizes or shapes, none, NaN or infinity.

    Example:
        >>> a = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> round(sliced_wasserstein(a, a + 3), 4)
        3.0
    """
    a, b = _as_rows(a, "a"), _as_rows(b, "b")
    _check_same_width(a, b)
    if len(a) != len(b):
        raise ValueError(f"two sets of the same size are expected, got {len(a)} and {len(b)}; use the first rows")
    directions = check_count(directions, "directions", 1)
    draw = as_generator(generator, a.device)
    u = torch.randn(a.shape[1], directions, generator=draw, device=a.device, dtype=torch.float64)
    u = u / torch.linalg.vector_norm(u, dim=0)
    gaps = (a @ u).sort(dim=0).values - (b @ u).sort(dim=0).values
    return math.sqrt(float(gaps.square().mean()))


def precision_recall(features_real: Tensor, features_fake: Tensor, *, k: int = 5) -> Manifold:
    """Return precision, recall, density and coverage of samples; see `Manifold`.

    Args:
        features_real: (n, d); the measures depend on n, so compare numbers of the same n only.
        features_fake: (m, d).
        k: neighbours that make a neighbourhood, >= 1 and less than n and m; an item is not its own neighbour.

    Raises:
        ValueError: k out of range, another d, NaN or infinity.

    Example:
        >>> real = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> precision_recall(real, real)
        Manifold(precision=1.0, recall=1.0, density=1.2, coverage=1.0)
    """
    real, fake = _as_rows(features_real, "features_real"), _as_rows(features_fake, "features_fake")
    _check_same_width(real, fake)
    if check_count(k, "k", 1) >= min(len(real), len(fake)):
        raise ValueError(f"k must be less than the {len(real)} real and {len(fake)} fake rows, got {k}")
    radius_real, radius_fake = _radii(real, k), _radii(fake, k)
    hits = torch.zeros(len(fake), device=fake.device)
    recalled = covered = 0
    for start in range(0, len(real), _BLOCK):
        distances = _distances(real[start : start + _BLOCK], fake)
        inside = distances <= radius_real[start : start + _BLOCK, None]
        hits += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((distances <= radius_fake).any(1).sum())
    return Manifold(
        precision=float((hits > 0).double().mean()),
        recall=recalled / len(real),
        density=float(hits.double().mean()) / k,
        coverage=covered / len(real),
    )


def nearest_train_ratio(samples: Tensor, train: Tensor, test: Tensor) -> float:
    """Return how far samples are from the training data, compared with test data: much below 1 they are copies.

    The median distance from a sample to the nearest training item, divided by that from a test item. Below 0.7 the
    model repeats training items.

    Args:
        samples: (n, *shape).
        train: (m, *shape).
        test: (k, *shape).

    Returns:
        The ratio, >= 0; infinite where at least half of the test items, but not of the samples, are training items, and
        1 where both are.

    Raises:
        ValueError: an empty set, other shapes, NaN or infinity.
    """
    rows = [_as_rows(samples, "samples"), _as_rows(train, "train"), _as_rows(test, "test")]
    _check_same_width(rows[0], rows[1])
    _check_same_width(rows[2], rows[1])
    near, usual = (float(_distance_to_nearest(x, rows[1]).quantile(0.5)) for x in (rows[0], rows[2]))
    if usual == 0:
        return 1.0 if near == 0 else math.inf
    return near / usual


def _as_rows(x: Tensor, name: str) -> Tensor:
    """Return items as float64 rows (n, d); TypeError for no tensor, ValueError for no item, NaN or infinity."""
    if not isinstance(x, Tensor) or x.is_complex():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a tensor of real numbers, got {got}; of an array: torch.from_numpy")
    if x.ndim < 2 or not x.numel():
        raise ValueError(f"{name} must be (n >= 1, d >= 1), got {tuple(x.shape)}")
    rows = x.detach().flatten(1).double()
    finite = rows.isfinite().all(1)
    if not bool(finite.all()):
        raise ValueError(f"{name} has NaN or infinity in {int((~finite).sum())} of {len(rows)} rows")
    return rows


def _check_same_width(a: Tensor, b: Tensor) -> None:
    """Raise a ValueError unless rows have the same number of values."""
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"rows with the same number of values are expected, got {a.shape[1]} and {b.shape[1]}")


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances (n, m), exactly 0 between equal rows."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(x: Tensor, k: int) -> Tensor:
    """Return the distance of every row to its k-th nearest other row."""
    return torch.cat([_distances(block, x).kthvalue(k + 1, dim=1).values for block in torch.split(x, _BLOCK)])


def _distance_to_nearest(x: Tensor, items: Tensor) -> Tensor:
    """Return the distance of every row to the nearest item, which is found in float32 and measured in float64."""
    centre = items.mean(0)  # distances in float32 are exact to a part of the length of rows, which should be small
    scale = float((items - centre).abs().max()) or 1.0
    near_zero = ((items - centre) / scale).float()
    nearest = [torch.cdist(((block - centre) / scale).float(), near_zero).argmin(1) for block in torch.split(x, _BLOCK)]
    distances: Tensor = torch.linalg.vector_norm(x - items[torch.cat(nearest)], dim=1)
    return distances
