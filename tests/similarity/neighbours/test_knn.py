import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from kexue.similarity.neighbours.knn import nearest_neighbours
from kexue.similarity.neighbours.selection import k_smallest


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("chunk", [7, 4096])
@pytest.mark.parametrize("with_queries", [False, True])
def test_nearest_is_brute_force(chunk, with_queries, brute_force_neighbours):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(60, 5)) + 1000.0  # far from the origin: the expansion must not cancel
    queries = generator.normal(size=(11, 5)) + 1000.0 if with_queries else None
    found, distances = nearest_neighbours(X, 4, queries=queries, chunk=chunk)
    expected = brute_force_neighbours(X, 4, queries)
    np.testing.assert_array_equal(found, expected)
    asked = X if queries is None else queries
    np.testing.assert_allclose(distances, np.take_along_axis(cdist(asked, X), expected, axis=1), rtol=1e-9)


def spread(kind, scale):
    generator = np.random.default_rng(10)
    X = generator.normal(size=(70, 4))
    if kind == "one far row":
        X[7] = 1e6
    elif kind == "two far clouds":
        X[30:] += 1e7
    elif kind == "every size":
        return X * 10.0 ** generator.integers(-150, 150, size=(70, 1))
    elif kind == "a line":
        X = np.array([[0.0], [1.0], [3.0], [4.5], [1e7], [1e7 + 2]])
    return X * scale


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1.0, 1e150, 1e290])
@pytest.mark.parametrize("kind", ["one cloud", "one far row", "two far clouds", "a line", "every size"])
@pytest.mark.parametrize("with_queries", [False, True])
def test_neighbours_are_exact_at_every_scale(kind, scale, cosine, with_queries):
    X = spread(kind, scale)
    if cosine:
        X = X[np.abs(X).max(axis=1) > 0]
    asked = X[:5] if with_queries else X
    wide, wanted = X.astype(np.longdouble), asked.astype(np.longdouble)
    if cosine:
        wide, wanted = (x / np.sqrt((x**2).sum(axis=1, keepdims=True)) for x in (wide, wanted))
    distances = np.sqrt(((wanted[:, None] - wide) ** 2).sum(axis=-1))
    if not with_queries:
        np.fill_diagonal(distances, np.inf)
    places, lengths = nearest_neighbours(X, 2, queries=asked if with_queries else None, cosine=cosine)
    expected = np.sort(distances, axis=1)[:, :2]
    # By distance, not by index: ties may be drawn. Normalising costs a few eps of the length 1.
    absolute = 2e-15 if cosine else 0
    np.testing.assert_allclose(np.take_along_axis(distances, places, axis=1), expected, rtol=1e-14, atol=absolute)
    np.testing.assert_allclose(lengths, expected, rtol=1e-14, atol=absolute)


def test_cosine_neighbours_are_those_of_the_cosine():
    X = np.random.default_rng(1).normal(size=(50, 4)) * np.arange(1, 51)[:, None]
    cosines = unit(X) @ unit(X).T
    np.fill_diagonal(cosines, -np.inf)
    found, distances = nearest_neighbours(X, 3, cosine=True)
    np.testing.assert_array_equal(found, np.argsort(-cosines, axis=1)[:, :3])
    np.testing.assert_allclose(1 - distances**2 / 2, -np.sort(-cosines, axis=1)[:, :3], atol=1e-12)


def test_approximate_neighbours_are_mostly_the_exact_ones():
    pytest.importorskip("faiss")
    X = np.random.default_rng(2).normal(size=(3000, 16))
    exact, approx = nearest_neighbours(X, 10)[0], nearest_neighbours(X, 10, backend="approx")[0]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, approx, strict=True)])
    assert recall > 0.5  # unstructured data, the worst case of an inverted file
    assert (approx != np.arange(3000)[:, None]).all()
    doubled = np.repeat(X[:300], 3, axis=0)
    assert (nearest_neighbours(doubled, 5, backend="approx")[0] != np.arange(900)[:, None]).all()


def test_ties_at_the_last_place_are_drawn():
    # Of four rows at one distance from the query one comes each time, all of them about as often.
    X = np.array([[0.0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]]) * 0.1
    values = np.hstack([np.zeros((1, 1)), np.full((1, 4), 0.1)])
    for draw in (
        lambda seed: nearest_neighbours(X, 2, queries=X[:1], generator=seed)[0][0],
        lambda seed: k_smallest(values, 2, np.random.default_rng(seed))[0],
        lambda seed: k_smallest(values + np.array([0, 0, 1e-9, 0, 1e-9]), 2, np.random.default_rng(seed), tie=1e-8)[0],
    ):
        seen = np.bincount(np.ravel([draw(seed) for seed in range(300)]), minlength=5)
        assert seen[0] == 300
        assert stats.chisquare(seen[1:]).pvalue > 1e-3


def test_distances_that_leave_float64_are_named():
    with pytest.raises(ValueError, match="overflow float64"):
        nearest_neighbours(np.array([[1e308], [-1e308]]), 1)
