"""Grid of whitening settings, and the cosines of labelled pairs under each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.similarity.whitening.kernel import Spectrum, numerical_rank, second_moment_spectrum
from kexue.similarity.whitening.statistics import Moments

_SAFE_SHARE = 0.9  # share of the mean square length that the safe setting keeps
_RCOND = 1e-10


class Setting(NamedTuple):
    """Parameters of one whitening, and the share `kept` of the mean square length about beta mean.

    `name` is "raw" for the vectors without whitening, else empty.
    """

    beta: float
    gamma: float
    k: int
    kept: float
    name: str = ""


class Grid(NamedTuple):
    """Candidates for beta, gamma and the number of dimensions, each ascending."""

    betas: list[float]
    gammas: list[float]
    ks: list[int]


def read_grid(betas: Sequence[float], gammas: Sequence[float], ks: Sequence[int] | None, d: int) -> Grid:
    """Return the candidates; `ks` = None means d, d/2, d/4, ... down to 8. ValueError on a value out of range."""
    return Grid(_read_candidates(betas, "betas"), _read_candidates(gammas, "gammas"), _read_dimensions(ks, d))


def _read_candidates(values: Sequence[float], name: str) -> list[float]:
    """Return distinct finite numbers, ascending."""
    candidates = sorted({float(value) for value in values})
    if not candidates or not np.isfinite(candidates).all():
        raise ValueError(f"{name} must hold at least one number, all finite, got {tuple(values)}.")
    return candidates


def _read_dimensions(ks: Sequence[int] | None, d: int) -> list[int]:
    """Return distinct numbers of dimensions in [1, d], ascending."""
    if ks is None:
        halves = [d >> i for i in range(d.bit_length()) if d >> i >= 8]
        return sorted(halves or [d])
    candidates = sorted({int(k) for k in ks})
    if not candidates or candidates[0] < 1 or candidates[-1] > d:
        raise ValueError(f"ks must lie in [1, {d}], the number of dimensions, got {tuple(ks)}.")
    return candidates


def grid_cosines(stats: Moments, left: Array, right: Array, grid: Grid) -> Iterator[tuple[Setting, Array]]:
    """Yield each setting with the cosines of all pairs under it: three matrix products for each beta and gamma.

    In the eigenbasis <y, y'> = sum over j <= k of lambda_j^-gamma p_j q_j, so all k share the products p q, p p, q q.
    """
    for beta in grid.betas:
        values, vectors = spectrum = second_moment_spectrum(stats, beta, 0)
        rank = numerical_rank(values, stats.mean, _RCOND)
        p, q = ((side - beta * stats.mean) @ vectors for side in (left, right))  # eq. 4 (9079), part 1
        products = p * q, p * p, q * q
        for gamma in grid.gammas:
            ks = sorted({k if gamma <= 0 else min(k, rank) for k in grid.ks if gamma <= 0 or rank > 0})
            if not ks:
                continue
            columns = np.arange(len(values))[:, None] < np.array(ks)
            weights = _eigenvalue_weights(values, gamma, rank)
            dot, pp, qq = (product @ (weights[:, None] * columns) for product in products)
            size = np.sqrt(pp * qq)
            cosine = np.divide(dot, size, out=np.zeros_like(dot), where=size > 0)
            for column, k in enumerate(ks):
                yield Setting(beta, gamma, k, kept_share(spectrum, k)), np.clip(cosine[:, column], -1.0, 1.0)


def _eigenvalue_weights(values: Array, gamma: float, rank: int) -> Array:
    """Return lambda^-gamma (d,), zero beyond the rank where gamma > 0; all ones at gamma = 0."""
    if gamma == 0:
        return np.ones_like(values)
    weights = np.zeros_like(values)
    used = slice(None) if gamma < 0 else slice(rank)
    weights[used] = values[used] ** -gamma  # eq. 4 (9079), part 2, squared
    return weights


def kept_share(spectrum: Spectrum, k: int) -> float:
    """Return the share of the mean square length that the first k dimensions keep."""
    total = float(spectrum.values.sum())
    return float(spectrum.values[:k].sum()) / total if total > 0 else 1.0


def best_setting(settings: list[Setting], scores: Array) -> int:
    """Return the index of the best score; of equal ones the most dimensions, then the smallest |gamma| and |beta|.

    Index 0, the raw vectors, is never returned.
    """
    if not np.isfinite(scores[1:]).any():
        raise ValueError("no setting has a score: the metric is undefined on these pairs. Check that labels vary.")
    worth = [round(float(score), 12) if math.isfinite(score) else -math.inf for score in scores]
    order = [(-worth[index], -each.k, abs(each.gamma), abs(each.beta), index) for index, each in enumerate(settings)]
    return min(order[1:])[-1]


def safe_setting(settings: list[Setting]) -> int:
    """Return the index of the smallest |gamma| and |beta| with the fewest dimensions that keep 90 % of the length.

    The raw vectors come last.
    """

    def order(index: int) -> tuple[float, ...]:
        each = settings[index]
        short = each.kept < _SAFE_SHARE
        return each.name == "raw", abs(each.gamma), abs(each.beta), short, -each.k if short else each.k

    return min(range(len(settings)), key=order)
