import numpy as np
import pytest

from kexue.similarity import (
    product_upper_bound,
    relaxed_wmd,
    relaxed_wrd,
    wcd,
    word_movers_distance,
    word_rotators_distance,
    wrd_centroid_bound,
)
from kexue.similarity.transport.problems import wmd_problem, wrd_problem

ROUNDING = 1e-9  # far above the 1e-15 that float64 leaves, far below any real violation


def pairs(count):
    """Random pairs and every degenerate kind: duplicates, zero vectors, one token, opposite tokens, few dimensions."""
    generator = np.random.default_rng(0)
    for number in range(count):
        d = int(generator.integers(1, 7))
        x, y = (generator.normal(size=(int(generator.integers(1, 8)), d)) for _ in range(2))
        if number % 5 == 1:
            y = np.concatenate([x, x[:1], y])
        elif number % 5 == 2:
            x[generator.integers(len(x))] = 0
        elif number % 5 == 3:
            x, y = x[:1], -2 * x[:1]
        elif number % 5 == 4:
            y = x[generator.permutation(len(x))]
        yield x, y


def test_no_bound_crosses_the_exact_distance():
    for x, y in pairs(1500):
        wmd, wrd = word_movers_distance(x, y), word_rotators_distance(x, y)
        assert max(wcd(x, y), relaxed_wmd(x, y)) <= wmd + ROUNDING
        assert max(wrd_centroid_bound(x, y), relaxed_wrd(x, y)) <= wrd + ROUNDING
        for problem, exact in ((wmd_problem(x, y), wmd), (wrd_problem(x, y), wrd)):
            if not isinstance(problem, float):
                assert exact <= product_upper_bound(*problem[:3]) + ROUNDING


def test_each_bound_is_reached_somewhere():
    """A bound of 0 would pass the test above."""
    generator = np.random.default_rng(1)
    x = generator.normal(size=(5, 3))
    shift = np.array([10.0, 0, 0])
    assert wcd(x, x + shift) == pytest.approx(word_movers_distance(x, x + shift), abs=1e-12)
    one = generator.normal(size=(1, 3))
    assert relaxed_wmd(x, one) == pytest.approx(word_movers_distance(x, one), abs=1e-12)
    assert relaxed_wrd(x, one) == pytest.approx(word_rotators_distance(x, one), abs=1e-12)
    two = generator.normal(size=(1, 3))
    assert wrd_centroid_bound(one, two) == pytest.approx(word_rotators_distance(one, two), abs=1e-12)


def test_formulas():
    x, y = np.random.default_rng(2).normal(size=(2, 4, 3))
    p, q = np.array([1.0, 2, 3, 4]) / 10, np.array([4.0, 3, 2, 1]) / 10
    expected = np.linalg.norm((x.T * p).sum(1) - (y.T * q).sum(1))
    assert wcd(x, y, weights_x=[1, 2, 3, 4], weights_y=q) == pytest.approx(expected)
    assert wcd(x, y, weights_x=p, weights_y=q, scale="rms") == pytest.approx(expected / np.sqrt(3))
    cost = np.linalg.norm(x[:, None] - y, axis=2)
    both = max((p * cost.min(1)).sum(), (q * cost.min(0)).sum())
    assert relaxed_wmd(x, y, weights_x=p, weights_y=q) == pytest.approx(both)
    assert relaxed_wmd(x, y, weights_x=p, weights_y=q, scale="rms") == pytest.approx(both / np.sqrt(3))
    lengths_x, lengths_y = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    difference = x.sum(0) / lengths_x.sum() - y.sum(0) / lengths_y.sum()
    assert wrd_centroid_bound(x, y) == pytest.approx(difference @ difference / 2)
    angle = 1 - (x / lengths_x[:, None]) @ (y / lengths_y[:, None]).T
    both = max(lengths_x @ angle.min(1) / lengths_x.sum(), lengths_y @ angle.min(0) / lengths_y.sum())
    assert relaxed_wrd(x, y) == pytest.approx(both)


@pytest.mark.parametrize("bound", [wcd, relaxed_wmd, wrd_centroid_bound, relaxed_wrd])
def test_bounds_treat_the_empty_and_the_bad_as_the_distances_do(bound):
    x = np.random.default_rng(0).normal(size=(3, 2))
    assert bound(x, np.empty((0, 2))) == bound([], x) == np.inf
    with pytest.raises(ValueError, match="Leave empty texts out"):
        bound(x, np.empty((0, 2)), on_empty="raise")
    with pytest.raises(ValueError, match="the same dimension"):
        bound(x, x[:, :1])
    with pytest.raises(ValueError, match="on_empty must be"):
        bound(x, x, on_empty="zero")
