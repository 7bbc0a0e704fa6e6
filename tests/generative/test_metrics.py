"""Distances between sets: closed forms, peers, brute force, degenerate sets."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from kexue.generative import (
    Manifold,
    eight_gaussians,
    frechet_distance,
    nearest_train_ratio,
    precision_recall,
    sliced_wasserstein,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_with(mean: torch.Tensor, covariance: torch.Tensor, n: int = 50, seed: int = 0) -> torch.Tensor:
    """Rows whose mean and covariance are exactly these."""
    x = randn(n, len(mean), seed=seed)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return x @ torch.linalg.cholesky(covariance).T + mean


def covariance(d: int, seed: int) -> torch.Tensor:
    a = randn(d, d, seed=seed)
    return a @ a.T + 0.1 * torch.eye(d, dtype=torch.float64)


def by_peers(a: torch.Tensor, b: torch.Tensor) -> float:
    """The usual formula, with scipy's root of a matrix."""
    x, y = a.numpy(), b.numpy()
    c, d = np.cov(x.T), np.cov(y.T)
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(gap + np.trace(c + d - 2 * np.real(sqrtm(c @ d))))


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    d = 6
    m, n = randn(d, seed=1), randn(d, seed=2)
    c = covariance(d, 3)
    a = rows_with(m, c)
    assert frechet_distance(a, rows_with(n, c, 70, 5)) == pytest.approx(float((m - n).square().sum()), rel=1e-9)
    # covariances that commute: the sum of (sqrt(x) - sqrt(y))^2
    x, y = torch.rand(d, dtype=torch.float64) + 0.1, torch.rand(d, dtype=torch.float64) + 0.1
    commuting = frechet_distance(rows_with(m, torch.diag(x)), rows_with(m, torch.diag(y), seed=4))
    assert commuting == pytest.approx(float((x.sqrt() - y.sqrt()).square().sum()), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_frechet_distance_is_that_of_peers(seed: int) -> None:
    a, b = randn(200, 16, seed=seed) @ randn(16, 16, seed=9), randn(90, 16, seed=seed + 20) + 1
    assert frechet_distance(a, b) == pytest.approx(by_peers(a, b), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    turn = torch.linalg.qr(randn(16, 16, seed=8)).Q
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-10)


@pytest.mark.filterwarnings("ignore:.*do not determine")
@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1.0, 1e9])
@pytest.mark.parametrize("shape", [(500, 32), (10, 32)])
def test_equal_sets_have_distance_exactly_zero(scale: float, shape: tuple[int, int]) -> None:
    x = randn(*shape) * scale + scale
    assert frechet_distance(x, x.clone()) == 0
    assert frechet_distance(x, x.flip(0)) <= 1e-25 * scale**2 * 32
    assert frechet_distance(x.float(), x.float()) == 0


def test_constant_samples_have_a_finite_distance() -> None:
    a = rows_with(randn(4), covariance(4, 1))
    constant = torch.full((30, 4), 0.3, dtype=torch.float64)
    wanted = float((a.mean(0) - 0.3).square().sum() + torch.cov(a.T).trace())
    assert frechet_distance(a, constant) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(constant, constant + 1) == pytest.approx(4)


def test_few_rows_are_warned_about_and_still_right() -> None:
    a, b = randn(10, 16), randn(12, 16, seed=1)
    with pytest.warns(UserWarning, match="rows do not determine a covariance in 16 dimensions"):
        got = frechet_distance(a, b)
    c, d = torch.cov(a.T), torch.cov(b.T)
    eigenvalues = torch.linalg.eigvals(c @ d).real.clamp(min=0)
    gap = (a.mean(0) - b.mean(0)).square().sum()
    assert got == pytest.approx(float(gap + c.trace() + d.trace() - 2 * eigenvalues.sqrt().sum()), rel=1e-5)


def test_frechet_distance_falls_with_more_samples() -> None:
    values = [frechet_distance(randn(n, 8), randn(n, 8, seed=1)) for n in (50, 500, 5000)]
    assert values[0] > 3 * values[1] > 9 * values[2] > 0


def test_sliced_wasserstein_of_a_shift_and_a_stretch() -> None:
    a = randn(400, 3)
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    many = sliced_wasserstein(a, a + shift, directions=5000)
    assert many == pytest.approx(math.sqrt(float(shift.square().sum()) / 3), rel=0.04)
    line = randn(200, 1)
    assert sliced_wasserstein(line, 3 * line) == pytest.approx(2 * float(line.square().mean().sqrt()))
    assert sliced_wasserstein(a, a[torch.randperm(400)]) == 0
    assert sliced_wasserstein(a, a + shift) == sliced_wasserstein(a, a + shift)


def test_sliced_wasserstein_is_that_of_pot() -> None:
    ot = pytest.importorskip("ot")
    a, b = randn(150, 5), randn(150, 5, seed=1) * 2
    u = torch.randn(5, 64, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    u = u / u.norm(dim=0)
    wanted = ot.sliced_wasserstein_distance(a.numpy(), b.numpy(), projections=u.numpy())
    assert sliced_wasserstein(a, b, directions=64, generator=7) == pytest.approx(float(wanted), rel=1e-9)


def brute_force(real: torch.Tensor, fake: torch.Tensor, k: int) -> Manifold:
    x, y = real.numpy(), fake.numpy()

    def radius(points: np.ndarray, i: int) -> float:
        others = [np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i]
        return float(sorted(others)[k - 1])

    rx, ry = [radius(x, i) for i in range(len(x))], [radius(y, j) for j in range(len(y))]
    d = [[np.linalg.norm(p - q) for q in y] for p in x]
    pairs = [[d[i][j] <= rx[i] for j in range(len(y))] for i in range(len(x))]
    return Manifold(
        precision=float(np.mean([any(row[j] for row in pairs) for j in range(len(y))])),
        recall=float(np.mean([any(d[i][j] <= ry[j] for j in range(len(y))) for i in range(len(x))])),
        density=float(np.sum(pairs)) / (k * len(y)),
        coverage=float(np.mean([any(row) for row in pairs])),
    )


@pytest.mark.parametrize(("k", "shift", "m"), [(1, 0.5, 20), (3, 0.0, 33), (5, 1.5, 40)])
def test_precision_and_recall_are_those_of_brute_force(k: int, shift: float, m: int) -> None:
    real, fake = randn(30, 2), randn(m, 2, seed=1) + shift
    got, wanted = precision_recall(real, fake, k=k), brute_force(real, fake, k)
    assert got == pytest.approx(wanted)
    assert wanted.precision > 0
    assert wanted.coverage < 1


def test_blocks_do_not_change_precision_and_recall() -> None:
    real, fake = randn(1100, 4), randn(700, 4, seed=1) * 1.5
    first = precision_recall(real, fake)
    order = torch.randperm(1100, generator=torch.Generator().manual_seed(2))
    assert precision_recall(real[order], fake.flip(0)) == pytest.approx(first)


def test_a_ring_with_modes_missing_or_blurred() -> None:
    ring = eight_gaussians()
    x = ring.sample(1600, generator=0)
    x, y = x[:800], x[800:]
    good = precision_recall(x, y)
    assert min(good.precision, good.recall, good.coverage) > 0.9
    assert abs(good.density - 1) < 0.1
    half = precision_recall(x, y[y[:, 1] > 0.9])  # three of eight modes
    assert half.precision > 0.9
    assert 0.3 < half.recall < 0.45
    assert 0.3 < half.coverage < 0.45
    blurred = precision_recall(x, 2 * randn(800, 2).float())
    assert blurred.precision < 0.5
    assert blurred.density < 0.3


@pytest.mark.parametrize("fake", [torch.zeros(40, 3), torch.full((40, 3), 9.0)])
def test_constant_samples_have_finite_measures(fake: torch.Tensor) -> None:
    inside = float(fake.max() == 0)
    got = precision_recall(randn(200, 3), fake)
    assert got.precision == inside
    assert got.recall == 0
    assert math.isfinite(got.density)
    assert precision_recall(fake, fake) == Manifold(1, 1, 8, 1)  # 40 neighbourhoods of radius 0 hold it, k = 5


def test_copies_have_ratio_zero_and_test_images_one() -> None:
    train, test = randn(600, 2, 5), randn(100, 2, 5, seed=1)
    assert nearest_train_ratio(train[:50], train, test) == 0
    assert nearest_train_ratio(test, train, test) == 1
    nearest = torch.cdist(test.flatten(1), train.flatten(1)).amin(1)
    wanted = float(torch.cdist(2 * test.flatten(1), train.flatten(1)).amin(1).quantile(0.5) / nearest.quantile(0.5))
    assert nearest_train_ratio(2 * test, train, test) == pytest.approx(wanted)
    assert nearest_train_ratio(test, train, train) == math.inf
    assert nearest_train_ratio(train, train, train) == 1


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 1e5), (1e-30, 0.0), (1e30, 0.0)])
def test_the_nearest_item_is_found_at_any_scale(scale: float, offset: float) -> None:
    samples, train, test = (randn(n, 6, seed=n) * scale + offset for n in (300, 1000, 200))
    near, usual = (
        float(torch.linalg.vector_norm(x[:, None] - train, dim=-1).amin(1).quantile(0.5)) for x in (samples, test)
    )
    assert nearest_train_ratio(samples, train, test) == pytest.approx(near / usual, rel=1e-3)


def test_bad_input_is_refused() -> None:
    x = randn(20, 3)
    for bad in (x.numpy(), [[1.0, 2.0]], x.to(torch.complex64)):
        for measure in (frechet_distance, sliced_wasserstein, precision_recall):
            with pytest.raises(TypeError, match=r"must be a tensor of real numbers, got .*torch\.from_numpy"):
                measure(bad, x)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"k must be a whole number >= 1, got 2\.0"):
        precision_recall(x, x, k=2.0)  # type: ignore[arg-type]
    nan = x.clone()
    nan[4, 1] = math.nan
    with pytest.raises(ValueError, match="features_b has NaN or infinity in 1 of 20 rows"):
        frechet_distance(x, nan)
    with pytest.raises(ValueError, match="got 3 and 2"):
        frechet_distance(x, x[:, :2])
    with pytest.raises(ValueError, match="at least 2 rows"):
        frechet_distance(x, x[:1])
    with pytest.raises(ValueError, match="same size"):
        sliced_wasserstein(x, x[:10])
    with pytest.raises(ValueError, match="directions must be a whole number >= 1, got 0"):
        sliced_wasserstein(x, x, directions=0)
    with pytest.raises(ValueError, match="k must be"):
        precision_recall(x, x, k=20)
    with pytest.raises(ValueError, match="n >= 1"):
        precision_recall(x[:0], x)
