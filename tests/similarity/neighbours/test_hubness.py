import numpy as np
import pytest
from scipy import special, stats
from scipy.spatial.distance import cdist

from kexue.errors import InfeasibleError, NotFittedError, NotSupported
from kexue.similarity.neighbours.hubness import (
    HubnessReducer,
    HubSampler,
    ball_to_cube_ratio,
    hubness_report,
    k_occurrence,
)
from kexue.similarity.neighbours.knn import nearest, smallest

METHODS = ("csls", "center", "nicdm", "local_scaling", "mutual_proximity")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def brute_force_neighbours(X, k, queries=None):
    distances = cdist(X if queries is None else queries, X)
    if queries is None:
        np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1)[:, :k]


# --- neighbours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [7, 4096])
@pytest.mark.parametrize("with_queries", [False, True])
def test_nearest_is_brute_force(chunk, with_queries):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(60, 5)) + 1000.0  # far from the origin: the expansion must not cancel
    queries = generator.normal(size=(11, 5)) + 1000.0 if with_queries else None
    found, distances = nearest(X, 4, queries=queries, chunk=chunk)
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
    places, lengths = nearest(X, 2, queries=asked if with_queries else None, cosine=cosine)
    expected = np.sort(distances, axis=1)[:, :2]
    # By distance, not by index: ties may be drawn. Normalising costs a few eps of the length 1.
    absolute = 2e-15 if cosine else 0
    np.testing.assert_allclose(np.take_along_axis(distances, places, axis=1), expected, rtol=1e-14, atol=absolute)
    np.testing.assert_allclose(lengths, expected, rtol=1e-14, atol=absolute)


def test_one_far_row_changes_no_counts():
    X = np.random.default_rng(11).normal(size=(200, 5))
    far = np.vstack([X, np.full((1, 5), 1e6)])
    near, with_far = (k_occurrence(rows, 4) for rows in (X, far))
    # The far row is nobody's neighbour; it only adds its own four.
    assert with_far[-1] == 0
    assert (with_far[:-1] - near).sum() == 4
    assert (with_far[:-1] >= near).all()
    assert hubness_report(far, 4).max <= near.max() + 1


def test_cosine_neighbours_are_those_of_the_cosine():
    X = np.random.default_rng(1).normal(size=(50, 4)) * np.arange(1, 51)[:, None]
    cosines = unit(X) @ unit(X).T
    np.fill_diagonal(cosines, -np.inf)
    found, distances = nearest(X, 3, cosine=True)
    np.testing.assert_array_equal(found, np.argsort(-cosines, axis=1)[:, :3])
    np.testing.assert_allclose(1 - distances**2 / 2, -np.sort(-cosines, axis=1)[:, :3], atol=1e-12)


def test_approximate_neighbours_are_mostly_the_exact_ones():
    pytest.importorskip("faiss")
    X = np.random.default_rng(2).normal(size=(3000, 16))
    exact, approx = nearest(X, 10)[0], nearest(X, 10, backend="approx")[0]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, approx, strict=True)])
    assert recall > 0.5  # unstructured data, the worst case of an inverted file
    assert (approx != np.arange(3000)[:, None]).all()
    doubled = np.repeat(X[:300], 3, axis=0)
    assert (nearest(doubled, 5, backend="approx")[0] != np.arange(900)[:, None]).all()


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_k_occurrence_counts_by_hand(metric):
    X = np.random.default_rng(3).normal(size=(40, 6))
    neighbours = brute_force_neighbours(X if metric == "euclidean" else unit(X), 5)
    counts = k_occurrence(X, 5, metric=metric)
    np.testing.assert_array_equal(counts, np.bincount(neighbours.ravel(), minlength=40))
    assert counts.sum() == 40 * 5
    assert counts.dtype == np.int64


def test_query_counts_add_over_shards():
    X, Q = np.random.default_rng(4).normal(size=(2, 30, 3))
    whole = k_occurrence(X, 4, queries=Q)
    parts = k_occurrence(X, 4, queries=Q[:13]) + k_occurrence(X, 4, queries=Q[13:])
    np.testing.assert_array_equal(whole, parts)
    assert whole.sum() == 30 * 4


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("backend", ["exact", "approx"])
def test_equal_rows_count_alike_whatever_their_place(metric, backend):
    if backend == "approx":
        pytest.importorskip("faiss")
    X = np.ones((200, 3))
    if metric == "cosine":  # one direction, lengths whose division leaves different last digits
        X = np.array([[0.1, 0.7, -0.3]]) * np.arange(1, 201)[:, None] if backend == "exact" else X
    times = 40
    counts = np.array([k_occurrence(X, 5, metric=metric, backend=backend, generator=s) for s in range(times)])
    assert (counts.sum(axis=1) == 1000).all()
    # Each count is binomial(199, 5/199): the mean of a row over 40 runs is 5 with a deviation of 0.35, that of a
    # quarter of the rows 0.05. The bounds are 6 deviations.
    assert np.abs(counts.mean(axis=0) - 5).max() < 2.1
    assert np.abs(counts.reshape(times, 4, 50).mean(axis=(0, 2)) - 5).max() < 0.3
    np.testing.assert_array_equal(counts[0], k_occurrence(X, 5, metric=metric, backend=backend, generator=0))


def test_ties_at_the_last_place_are_drawn():
    # Of four rows at one distance from the query one comes each time, all of them about as often.
    X = np.array([[0.0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]]) * 0.1
    values = np.hstack([np.zeros((1, 1)), np.full((1, 4), 0.1)])
    for draw in (
        lambda seed: nearest(X, 2, queries=X[:1], generator=seed)[0][0],
        lambda seed: smallest(values, 2, np.random.default_rng(seed))[0],
        lambda seed: smallest(values + np.array([0, 0, 1e-9, 0, 1e-9]), 2, np.random.default_rng(seed), tie=1e-8)[0],
    ):
        seen = np.bincount(np.ravel([draw(seed) for seed in range(300)]), minlength=5)
        assert seen[0] == 300
        assert stats.chisquare(seen[1:]).pvalue > 1e-3


def test_skewness_grows_with_dimension_and_not_on_the_sphere():
    generator = np.random.default_rng(5)
    skewness = {d: hubness_report(generator.normal(size=(1000, d)), 10).k_skewness for d in (1, 10, 100)}
    # Means over seeds are -0.14, 0.91 and 5; a single hub moves the last by more than one.
    assert skewness[1] < 0.5
    assert 0.5 < skewness[10] < 2.0
    assert skewness[100] > 2.5
    sphere = hubness_report(unit(generator.normal(size=(1000, 100))), 10).k_skewness
    assert abs(sphere) < 0.6
    shifted = generator.normal(size=(1000, 100)) + 1
    assert hubness_report(shifted, 10, metric="cosine").k_skewness > 1.5
    assert hubness_report(shifted - shifted.mean(axis=0), 10, metric="cosine").k_skewness < 0.6


# --- measures --------------------------------------------------------------------------------------------------------


def test_measures_by_their_definitions():
    counts = np.array([0, 0, 1, 2, 2, 3, 30, 2])
    n, total, mean = 8, 40, 5.0
    report = hubness_report(counts, 5)
    assert report.k_skewness == pytest.approx(((counts - mean) ** 3).mean() / counts.std() ** 3)
    assert report.robinhood == pytest.approx(np.abs(counts - mean).sum() / 2 / total)
    assert report.gini == pytest.approx(np.abs(counts[:, None] - counts).sum() / (2 * n * total))
    assert report.atkinson == pytest.approx(1 - np.sqrt(counts).mean() ** 2 / mean)
    assert report.antihub_occurrence == 2 / 8
    assert report.hub_occurrence == 30 / 40
    assert report.max == 30
    assert report.top20_share == 33 / 40  # the 2 most frequent of 8
    assert report.top[:2] == [(6, 30), (5, 3)]


def test_one_neighbour_by_hand():
    # On the line 0, 1, 2.1, 9: nearest of each are 1, 0, 1, 2.1.
    counts = k_occurrence(np.array([[0.0], [1.0], [2.1], [9.0]]), 1)
    assert counts.tolist() == [1, 2, 1, 0]
    report = hubness_report(counts, 1)
    assert (report.k, report.max, report.antihub_occurrence, report.hub_occurrence) == (1, 2, 0.25, 0.5)
    assert HubnessReducer("csls", k=1).fit([[1.0, 0.0], [1.0, 1.0]]).local_ == pytest.approx(0.5**0.5)
    assert HubSampler(2, n=40, k=1, threshold=1).sample(5, generator=0).latents.shape == (5, 2)


def test_equal_counts_are_no_hubness():
    report = hubness_report(np.full(50, 7), 7)
    assert report[2:6] == (0.0, 0.0, pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))


@pytest.mark.parametrize("n", range(1, 8))
def test_ball_to_cube_ratio(n):
    # V(n) = 2 pi / n V(n - 2), V(0) = 1, V(1) = 2.
    volume = [1.0, 2.0]
    for i in range(2, n + 1):
        volume.append(2 * np.pi / i * volume[i - 2])
    assert ball_to_cube_ratio(n) == pytest.approx(volume[n] / 2**n, rel=1e-12)
    assert ball_to_cube_ratio(1000) < 1e-300 or ball_to_cube_ratio(1000) == 0


# --- reduction -------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus():
    generator = np.random.default_rng(6)
    X = generator.normal(size=(80, 12)) + 0.7
    return X, generator.normal(size=(9, 12)) + 0.7


def by_hand(X, Q, method, k):
    """Each formula, for all pairs at once."""
    c = unit(Q) @ unit(X).T
    own = unit(X) @ unit(X).T
    d, own_d = np.sqrt(2 - 2 * c), np.sqrt(np.maximum(0, 2 - 2 * own))
    near_q = np.sort(d, axis=1)[:, :k]
    near_y = np.sort(own_d + np.diag(np.full(len(X), 9.0)), axis=1)[:, :k]
    if method == "csls":
        return 2 * c - (1 - near_q**2 / 2).mean(axis=1)[:, None] - (1 - near_y**2 / 2).mean(axis=1)
    if method == "center":
        return unit(Q - X.mean(axis=0)) @ unit(X - X.mean(axis=0)).T
    if method == "nicdm":
        return -d / np.sqrt(near_q.mean(axis=1)[:, None] * near_y.mean(axis=1))
    if method == "local_scaling":
        return np.exp(-(d**2) / (near_q[:, -1:] * near_y[:, -1]))
    others = own_d[~np.eye(len(X), dtype=bool)].reshape(len(X), -1)  # a vector's distance to itself is no distance
    q = special.ndtr((d.mean(axis=1)[:, None] - d) / d.std(axis=1)[:, None])
    return q * special.ndtr((others.mean(axis=1) - d) / others.std(axis=1))


@pytest.mark.parametrize("method", METHODS)
def test_rescore_is_the_formula(corpus, method):
    X, Q = corpus
    ids = np.argsort(np.random.default_rng(7).random((9, 80)), axis=1)[:, :20]
    cosines = np.take_along_axis(unit(Q) @ unit(X).T, ids, axis=1)
    ours = HubnessReducer(method, k=5).fit(X).rescore(Q, cosines, ids)
    # 2 - 2c loses half the digits near c = 1 for a point with itself, which mutual proximity averages over.
    np.testing.assert_allclose(ours, np.take_along_axis(by_hand(X, Q, method, 5), ids, axis=1), atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_zero_vectors_have_a_cosine_of_zero(method):
    generator = np.random.default_rng(12)
    X = np.vstack([generator.normal(size=(20, 4)), np.zeros((3, 4))])
    Q = np.vstack([generator.normal(size=(4, 4)), np.zeros((1, 4))])
    reducer = HubnessReducer(method, k=3).fit(X)
    ids = np.tile(np.arange(23), (5, 1))

    def safe_unit(x):
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300)

    cosines = safe_unit(Q) @ safe_unit(X).T
    scores = reducer.rescore(Q, cosines, ids)
    assert np.isfinite(scores).all()
    own = safe_unit(X) @ safe_unit(X).T - np.diag(np.full(23, 9.0))
    if method == "csls":
        r_q, r_y = (np.sort(c, axis=1)[:, -3:].mean(axis=1) for c in (cosines, own))
        np.testing.assert_allclose(scores, 2 * cosines - r_q[:, None] - r_y, atol=1e-12)
        np.testing.assert_allclose(reducer.local_[20:], 0, atol=1e-12)
    if method in ("nicdm", "local_scaling"):
        assert reducer.local_[20:] == pytest.approx(2**0.5)


@pytest.mark.parametrize("n", [3, 7, 9000])
def test_centring_equal_rows_leaves_no_direction(n):
    X = np.full((n, 5), 0.1)
    reducer = HubnessReducer("center", k=2).fit(X)
    assert not reducer.augment(X).any()
    assert not reducer.augment_queries(X[:2] + 1e-17).any()
    assert reducer.augment_queries(X[:2] + 1e-9).any()


@pytest.mark.parametrize("n", [50, 20_000])
def test_mutual_proximity_leaves_a_vector_s_own_distance_out(n):
    unit_circle = np.random.default_rng(13).normal(size=(n, 2))
    reducer = HubnessReducer("mutual_proximity", k=1).fit(unit_circle)
    some = unit(unit_circle)[:: max(1, n // 10_000)]
    for row in (0, 1, 2, n - 1):
        chords = np.linalg.norm(some - unit(unit_circle)[row], axis=1)
        chords = chords[chords > 0]
        # 2 - 2 cos loses half the digits near 0; the mean keeps seven.
        np.testing.assert_allclose(reducer.local_[row], [chords.mean(), chords.std()], rtol=1e-6)


def test_csls_as_vectors_orders_as_the_formula(corpus):
    X, Q = corpus
    reducer = HubnessReducer("csls", k=5).fit(X)
    documents, queries = reducer.augment(X), reducer.augment_queries(Q)
    assert documents.shape == (80, 13)
    products = queries @ documents.T
    explicit = by_hand(X, Q, "csls", 5)
    np.testing.assert_array_equal(np.argsort(-products, axis=1), np.argsort(-explicit, axis=1))
    near_q = np.sort(np.sqrt(2 - 2 * unit(Q) @ unit(X).T), axis=1)[:, :5]
    np.testing.assert_allclose(products - (1 - near_q**2 / 2).mean(axis=1)[:, None], explicit, atol=1e-12)


def test_centre_as_vectors(corpus):
    X, Q = corpus
    reducer = HubnessReducer("center").fit(X)
    products = reducer.augment_queries(Q) @ reducer.augment(X).T
    np.testing.assert_allclose(products, by_hand(X, Q, "center", 5), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reduces_hubness_of_the_shifted_gaussian(method):
    X = np.random.default_rng(8).normal(size=(600, 60)) + 1
    everyone = np.tile(np.arange(600), (600, 1))
    scores = HubnessReducer(method, k=10).fit(X).rescore(X, unit(X) @ unit(X).T, everyone)
    np.fill_diagonal(scores, -np.inf)
    after = np.bincount(np.argsort(-scores, axis=1)[:, :10].ravel(), minlength=600)
    assert stats.skew(after) < 0.6 * hubness_report(X, 10, metric="cosine").k_skewness


def test_dtype_and_kind_are_kept(corpus):
    torch = pytest.importorskip("torch")
    X = torch.tensor(corpus[0], dtype=torch.float32)
    reducer = HubnessReducer("csls", k=5).fit(X)
    assert reducer.augment(X).dtype == torch.float32
    assert reducer.augment_queries(corpus[1].astype(np.float32)).dtype == np.float32


# --- sampling --------------------------------------------------------------------------------------------------------


def test_hub_sampler_keeps_hubs():
    sampler = HubSampler(30, n=1000, k=5, threshold=15)
    drawn = sampler.sample(20, generator=0)
    assert drawn.latents.shape == (20, 30)
    assert 0 < drawn.acceptance < 0.3
    # Kept latents lie nearer to the centre than the prior's typical sqrt(30).
    assert np.linalg.norm(drawn.latents, axis=1).mean() < 0.95 * np.sqrt(30)
    np.testing.assert_array_equal(drawn.latents, sampler.sample(20, generator=0).latents)


def test_hub_sampler_keeps_exactly_those_over_the_threshold():
    points = np.random.default_rng(9).normal(size=(100, 8))
    counts = k_occurrence(points, 3)
    sampler = HubSampler(8, n=100, k=3, threshold=6, prior=lambda n, generator: points)
    expected = points[counts >= 6]
    np.testing.assert_array_equal(sampler.sample(len(expected), generator=0).latents, expected)
    strict = HubSampler(8, n=100, k=3, threshold=6, inclusive=False, prior=lambda n, generator: points)
    np.testing.assert_array_equal(strict.sample(int((counts > 6).sum()), generator=0).latents, points[counts > 6])


def test_an_unreachable_threshold_stops():
    with pytest.raises(InfeasibleError, match="largest seen"):
        HubSampler(2, n=50, k=2, threshold=49, max_rounds=2).sample(1, generator=0)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input_is_named(corpus):
    X, Q = corpus
    with pytest.raises(ValueError, match="between 1 and 79"):
        k_occurrence(X, 80)
    with pytest.raises(ValueError, match="row 3"):
        k_occurrence(np.vstack([X[:3], np.full((1, 12), np.nan)]), 1)
    with pytest.raises(ValueError, match="zero vector in row 0"):
        k_occurrence(np.vstack([np.zeros((1, 12)), X]), 1, metric="cosine")
    with pytest.raises(ValueError, match="cosine"):
        k_occurrence(X, 5, metric="manhattan")
    with pytest.raises(ValueError, match="dimensions"):
        k_occurrence(X, 5, queries=Q[:, :3])
    with pytest.raises(ValueError, match="more than k"):
        HubnessReducer(k=10).fit(X[:10])
    with pytest.raises(NotFittedError, match="fit"):
        HubnessReducer().augment_queries(Q)
    with pytest.raises(NotSupported, match="rescore"):
        HubnessReducer("nicdm").fit(X).augment(X)
    with pytest.raises(ValueError, match="csls"):
        HubnessReducer("magic")
    for counts in (np.zeros(4, dtype=int), [1.0, np.nan], [-1, 2]):
        with pytest.raises(ValueError, match="not all zero"):
            hubness_report(counts, 2)
    with pytest.raises(ValueError, match="k >= 1"):
        hubness_report([1, 1], 0)
    with pytest.raises(ValueError, match="leave float64"):
        nearest(np.array([[1e308], [-1e308]]), 1)
    with pytest.raises(ValueError, match="shape"):
        HubSampler(3, n=10, k=1, prior=lambda n, generator: generator.normal(size=(n, 2))).sample(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ids", [[[-1]], [[80]], [[1.5]]])
def test_ids_that_are_no_rows_are_named(corpus, method, ids):
    X, Q = corpus
    reducer = HubnessReducer(method, k=5).fit(X)
    with pytest.raises(ValueError, match=r"\[0, 80\)"):
        reducer.rescore(Q[:1], [[0.5]], ids)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_named(corpus, method, bad):
    X, Q = corpus
    reducer = HubnessReducer(method, k=5).fit(X)
    with pytest.raises(ValueError, match="row 0"):
        reducer.rescore(Q[:1], [[bad]], [[0]])
    with pytest.raises(ValueError, match="row 0"):
        reducer.rescore(Q[:1] * bad, [[0.5]], [[0]])
    with pytest.raises(ValueError, match="row 0"):
        HubnessReducer(method, k=5).fit(X * bad)
