import itertools

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from kexue.errors import InfeasibleError, NotFittedError
from kexue.similarity import GeodesicIndex, GeodesicSummarizer, geodesic_distances, knn_graph


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def chords(X):
    return np.sqrt(np.maximum(0, 2 - 2 * unit(X) @ unit(X).T))


def floyd_warshall(distances, k, mutual=False):
    """Dense oracle: k nearest by sorting, then all shortest paths by relaxation."""
    n = len(distances)
    others = distances + np.diag(np.full(n, np.inf))
    listed = np.zeros((n, n), bool)
    for i in range(n):
        listed[i, np.argsort(others[i])[:k]] = True
    edge = listed & listed.T if mutual else listed | listed.T
    shortest = np.where(edge, distances, np.inf)
    np.fill_diagonal(shortest, 0)
    for via in range(n):
        shortest = np.minimum(shortest, shortest[:, via : via + 1] + shortest[via])
    return shortest


@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("k", [2, 5])
def test_distances_are_shortest_paths(k, mutual):
    X = np.random.default_rng(k).normal(size=(30, 4))
    graph = knn_graph(X, k, symmetrize="mutual" if mutual else "union")
    np.testing.assert_allclose(geodesic_distances(graph), floyd_warshall(chords(X), k, mutual), rtol=1e-9)
    assert (graph != graph.T).nnz == 0


def test_metrics():
    X = np.random.default_rng(0).normal(size=(20, 3))
    everything = {metric: geodesic_distances(knn_graph(X, 19, metric=metric)) for metric in ("chord", "euclidean")}
    # k = n - 1 gives the metric itself.
    np.testing.assert_allclose(everything["chord"], chords(X), atol=1e-7)
    np.testing.assert_allclose(everything["euclidean"], cdist(X, X), atol=1e-9)
    angle = knn_graph(X, 3, metric="angle")
    chord = knn_graph(X, 3)
    np.testing.assert_allclose(2 * np.sin(angle.data / 2), chord.data, atol=1e-12)
    distances = cdist(X, X, "cityblock")
    np.testing.assert_allclose(
        geodesic_distances(knn_graph(distances, 4, metric="precomputed")), floyd_warshall(distances, 4), rtol=1e-12
    )


def test_half_circle_and_spiral():
    angles = np.linspace(0, np.pi, 101)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    # The ends list their second neighbour too: 96 steps of one part and 2 of two.
    expected = 96 * 2 * np.sin(np.pi / 200) + 2 * 2 * np.sin(np.pi / 100)
    assert geodesic_distances(circle, [0], k=2)[0, -1] == pytest.approx(expected, rel=1e-12)
    theta = np.linspace(np.pi / 2, 9 * np.pi / 2, 200)
    spiral = np.column_stack([np.cos(theta), np.sin(theta)]) * theta[:, None] / 10
    arc = np.array([(t * np.sqrt(1 + t * t) + np.arcsinh(t)) / 20 for t in theta])
    true = arc - arc[0]
    ours = geodesic_distances(knn_graph(spiral, 3, metric="euclidean"), [0])[0]
    assert np.abs(ours - true).max() < 0.01  # chords over up to three steps against the arc, of 9.977
    assert spearmanr(ours, true).statistic > 0.9999
    assert spearmanr(cdist(spiral[:1], spiral)[0], true).statistic < 0.95


def test_laws():
    X = np.random.default_rng(1).normal(size=(60, 5))
    previous = None
    for k in (3, 6, 12, 59):
        distances = geodesic_distances(X, k=k)
        assert (distances >= chords(X) - 1e-7).all()  # never below the straight line
        np.testing.assert_allclose(distances, distances.T, rtol=1e-12)
        if previous is not None:
            assert (distances <= previous + 1e-12).all()  # more neighbours only shorten
        previous = distances
    rows = geodesic_distances(X, [4, 7], k=6)
    np.testing.assert_allclose(rows, geodesic_distances(X, k=6)[[4, 7]])
    limited = geodesic_distances(X, [4], k=6, limit=1.0)
    np.testing.assert_array_equal(np.isinf(limited), rows[:1] > 1.0)


@pytest.mark.parametrize("merge", [True, False])
def test_identical_points_are_at_distance_zero(merge):
    X = np.repeat(np.random.default_rng(2).normal(size=(10, 3)), 2, axis=0)
    distances = geodesic_distances(knn_graph(X, 4, merge_duplicates=merge))
    np.testing.assert_array_equal(distances[::2, 1::2].diagonal(), np.zeros(10))
    assert np.isfinite(distances).all() or not merge
    # Ten copies of one point leave it neighbours of its own only; merged, it keeps four others.
    many = np.concatenate([np.tile(X[:1], (10, 1)), X[2::2]])
    assert np.isfinite(geodesic_distances(knn_graph(many, 4))[0]).all()
    assert np.isinf(geodesic_distances(knn_graph(many[:12], 3, merge_duplicates=False, symmetrize="mutual"))[0]).any()


def test_all_points_equal():
    assert not geodesic_distances(np.ones((5, 2)), k=2).any()


def two_clusters():
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(2, 12, 2)) * 0.05
    return np.concatenate([a + np.array([1, 0]), b + np.array([0, 1])])


def test_disconnected():
    X = two_clusters()
    assert np.isinf(geodesic_distances(X, k=3)[0, -1])
    with pytest.raises(InfeasibleError, match="2 parts of 12, 12"):
        geodesic_distances(X, k=3, on_disconnected="raise")
    joined = geodesic_distances(X, k=3, on_disconnected="bridge")
    assert np.isfinite(joined).all()
    gap = chords(X)[:12, 12:].min()
    assert joined[:12, 12:].min() == pytest.approx(gap, rel=1e-6)  # the bridge is the closest pair
    with pytest.raises(ValueError, match="vectors"):
        geodesic_distances(knn_graph(X, 3), on_disconnected="bridge")


def test_a_bridge_of_angles_is_the_smallest_angle():
    X = two_clusters()
    distances = GeodesicIndex(3, metric="angle", on_disconnected="bridge").fit(X).distances(X[:12])
    angle = np.arccos(unit(X)[:12] @ unit(X)[12:].T).min()
    assert distances[:, 12:].min() == pytest.approx(angle, rel=1e-9)


def test_the_inverted_file_finds_most_edges_and_their_lengths():
    generator = np.random.default_rng(9)
    X = generator.normal(size=(20, 16))[generator.integers(20, size=2000)] + generator.normal(size=(2000, 16)) / 2
    exact, approx = (knn_graph(X, 5, approx=approx) for approx in (False, True))
    both = exact.minimum(approx)  # an edge of both is as long in each
    assert both.nnz > 0.95 * exact.nnz
    np.testing.assert_allclose(both.data, np.asarray(exact[both.nonzero()]).ravel(), rtol=1e-12)
    i, j = approx.nonzero()
    np.testing.assert_allclose(approx.data, np.linalg.norm(unit(X)[i] - unit(X)[j], axis=1), rtol=1e-9)


def test_radius_cuts_edges():
    graph = knn_graph(two_clusters(), 15, radius=0.5)
    assert graph.data.max() <= 0.5
    assert np.isinf(geodesic_distances(graph)[0, -1])


def test_a_query_goes_through_its_neighbours():
    generator = np.random.default_rng(4)
    X, Q = generator.normal(size=(40, 3)), generator.normal(size=(5, 3))
    index = GeodesicIndex(4).fit(X)
    inner = geodesic_distances(X, k=4)
    straight = np.sqrt(2 - 2 * unit(Q) @ unit(X).T)
    for row, distances in zip(straight, index.distances(Q), strict=True):
        near = np.argsort(row)[:4]
        np.testing.assert_allclose(distances, (row[near][:, None] + inner[near]).min(axis=0), rtol=1e-7)
    # A query that is a point of the corpus: its own edge has length 0 and must not be lost.
    np.testing.assert_allclose(index.distances(X[:1])[0], inner[0], atol=1e-7)


def test_paths_are_as_long_as_the_distance():
    X = np.random.default_rng(5).normal(size=(50, 3))
    index, straight = GeodesicIndex(4).fit(X), chords(X)
    distances = geodesic_distances(X, k=4)
    for i, j in [(0, 49), (3, 3), (10, 20)]:
        path = index.paths(i, j)
        assert (path[0], path[-1]) == (i, j)
        assert sum(straight[a, b] for a, b in itertools.pairwise(path)) == pytest.approx(distances[i, j], abs=1e-6)
    assert GeodesicIndex(3).fit(two_clusters()).paths(0, 23) == []


def test_the_graph_is_scipy_s():
    X = np.random.default_rng(6).normal(size=(25, 3))
    graph = knn_graph(X, 4)
    np.testing.assert_allclose(geodesic_distances(graph), dijkstra(csr_matrix(graph)), rtol=1e-15)


@pytest.mark.parametrize(
    "build", [lambda X: knn_graph(X, 10), lambda X: knn_graph(X, 0), lambda X: GeodesicIndex(10).fit(X)]
)
def test_k_must_fit(build):
    with pytest.raises(ValueError, match="between 1 and 9"):
        build(np.random.default_rng(7).normal(size=(10, 2)))


def test_bad_input_is_named():
    X = np.random.default_rng(8).normal(size=(10, 2))
    with pytest.raises(ValueError, match="zero vector in row 2"):
        knn_graph(np.where(np.arange(10)[:, None] == 2, 0.0, X), 3)
    with pytest.raises(ValueError, match="row 1"):
        knn_graph(np.where(np.arange(10)[:, None] == 1, np.nan, X), 3)
    with pytest.raises(ValueError, match="chord"):
        knn_graph(X, 3, metric="cosine")
    with pytest.raises(ValueError, match=r"\[0, 10\)"):
        geodesic_distances(X, [10], k=3)
    with pytest.raises(NotFittedError, match="fit"):
        GeodesicIndex().paths(0, 1)


# --- summaries -------------------------------------------------------------------------------------------------------

SENTENCES = ["battery good", "battery fine", "screen bright", "battery lasts", "screen sharp", "price low"]
PLACES = np.array(
    [[1.0, 0.0, 0.1], [0.95, 0.05, 0.1], [0.1, 1.0, 0.0], [0.9, 0.3, 0.1], [0.2, 0.9, 0.1], [0.4, 0.4, 0.9]]
)


def encode(texts):
    return np.array([PLACES[SENTENCES.index(text)] for text in texts])


def test_summary_ranks_by_distance_and_skips_repetition():
    summary = GeodesicSummarizer(2, topic="battery", redundancy=0.99).summarize(SENTENCES, encode)
    assert summary.sentences[0] in SENTENCES[:2] + SENTENCES[3:4]
    assert not {"battery good", "battery fine"} <= set(summary.sentences)  # cosine 0.998
    assert summary.distances == sorted(summary.distances)
    assert summary.scores == sorted(summary.scores, reverse=True)
    for index, path in zip(summary.indices, summary.paths, strict=True):
        assert path[0] == index
    assert GeodesicSummarizer(2, topic="battery").summarize(SENTENCES, encode, n=1).sentences == summary.sentences[:1]


def test_summary_budget_counts_words_and_characters():
    assert len(GeodesicSummarizer(3, redundancy=1.0, budget=4).summarize(SENTENCES, encode).sentences) == 2
    chinese = ["电池很好", "屏幕不错", "价格低"]
    summary = GeodesicSummarizer(2, redundancy=1.0, budget=7).summarize(chinese, lambda texts: np.eye(3)[: len(texts)])
    assert sum(map(len, summary.sentences)) <= 7


def test_summary_of_a_vector_topic_is_the_nearest():
    summary = GeodesicSummarizer(5, topic=PLACES[5], redundancy=1.0).summarize(SENTENCES, encode)
    assert summary.sentences[0] == "price low"
    assert summary.distances[0] == pytest.approx(0, abs=1e-7)


def test_summary_bad_input():
    with pytest.raises(ValueError, match="two sentences"):
        GeodesicSummarizer().summarize(["one"], encode)
    with pytest.raises(ValueError, match="sentence 1 is blank"):
        GeodesicSummarizer().summarize(["battery good", " "], encode)
    with pytest.raises(ValueError, match="camera"):
        GeodesicSummarizer(2, topic="camera").summarize(SENTENCES, encode)
    with pytest.raises(ValueError, match="3 numbers"):
        GeodesicSummarizer(2, topic=np.ones(2)).summarize(SENTENCES, encode)


# --- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("build", [knn_graph, geodesic_distances, lambda X: GeodesicIndex().fit(X)])
def test_a_graph_of_one_point_is_refused_in_words(build, n):
    with pytest.raises(ValueError, match=f"needs two points or more, got {n}"):
        build(np.ones((n, 3)))
    with pytest.raises(ValueError, match="needs two points or more"):
        knn_graph(np.zeros((n, max(n, 1)))[:, :1], 1, metric="precomputed" if n else "euclidean")


@pytest.mark.parametrize("metric", ["chord", "angle", "euclidean"])
@pytest.mark.parametrize("scale", [1e-200, 1e-150, 1e150, 1e200])
def test_edges_grow_with_the_points_at_every_scale(metric, scale):
    X = np.random.default_rng(20).normal(size=(40, 3))
    one, other = (knn_graph(rows, 4, metric=metric).toarray() for rows in (X, X * scale))
    np.testing.assert_allclose(other, one * (scale if metric == "euclidean" else 1), rtol=1e-9)
    index = GeodesicIndex(4, metric=metric).fit(X * scale)
    assert np.isfinite(index.distances(X[:3] * scale)).all()


def test_one_far_point_joins_no_strangers():
    X = np.array([[0.0], [1.0], [3.0], [4.5], [1e7]])
    expected = np.zeros((5, 5))
    for i, j in ((0, 1), (2, 3), (3, 4)):
        expected[i, j] = expected[j, i] = abs(X[i, 0] - X[j, 0])
    expected[1, 2] = expected[2, 1] = 0.0  # 1 is nearer to 0 than to 3
    np.testing.assert_array_equal(knn_graph(X, 1, metric="euclidean").toarray(), expected)


def test_ties_of_a_matrix_of_distances_are_drawn():
    # All points as near to one another: by order of columns the first two would have every edge.
    distances = 1.0 - np.eye(60)
    degree = np.diff(knn_graph(distances, 2, metric="precomputed").indptr)
    assert degree.max() < 15  # 4 expected; a Poisson count passes 14 once in a hundred thousand
    assert degree[:2].max() < 15


@pytest.mark.parametrize(("name", "value"), [("radius", np.nan), ("radius", -1.0), ("limit", np.nan), ("limit", -1.0)])
def test_lengths_that_are_none_are_named(name, value):
    X = np.random.default_rng(21).normal(size=(9, 2))
    with pytest.raises(ValueError, match=name):
        knn_graph(X, 2, radius=value) if name == "radius" else geodesic_distances(X, k=2, limit=value)


def test_points_that_are_none_and_rows_that_come_once():
    X = np.random.default_rng(22).normal(size=(9, 2))
    index = GeodesicIndex(3, metric="euclidean", on_disconnected="bridge").fit(iter(X))
    np.testing.assert_array_equal(
        index.graph_.toarray(), GeodesicIndex(3, metric="euclidean", on_disconnected="bridge").fit(X).graph_.toarray()
    )
    np.testing.assert_array_equal(
        geodesic_distances(map(list, X), iter([0, 1]), k=3, on_disconnected="bridge"),
        geodesic_distances(X, [0, 1], k=3, on_disconnected="bridge"),
    )
    assert index.distances(np.empty((0, 2))).shape == (0, 9)
    for target in (-1, 9):
        with pytest.raises(ValueError, match="numbered 0 to 8"):
            index.chains(X[:1], [target])


# --- summaries -------------------------------------------------------------------------------------------------------

SIX = ["red dog", "red cat", "blue cat", "blue sky", "grey sky", "grey rain"]


def words_as_vectors(texts):
    words = sorted({word for text in SIX for word in text.split()})
    return [[1.0 + text.split().count(word) for word in words] for text in texts]


def test_six_sentences_are_enough_for_the_default_number_of_neighbours():
    summary = GeodesicSummarizer(redundancy=1.0).summarize(iter(SIX), words_as_vectors)
    assert sorted(summary.indices) == list(range(6))
    assert summary.n_unreachable == 0
    # k is 5: all sentences are joined to one another, the topic to all but the farthest, which is one step further on.
    vectors = np.array(words_as_vectors(SIX))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    topic = unit.mean(axis=0) / np.linalg.norm(unit.mean(axis=0))
    straight = np.linalg.norm(unit - topic, axis=1)
    far = int(summary.indices[-1])
    straight[far] = min(straight[i] + np.linalg.norm(unit[i] - unit[far]) for i in range(6) if i != far)
    np.testing.assert_allclose(summary.distances, np.sort(straight), rtol=1e-12)


def test_sentences_that_cancel_have_no_mean_to_stand_near():
    opposite = {"up": [0.1, 0.7], "down": [-0.1, -0.7], "left": [-0.3, 0.2], "right": [0.3, -0.2]}
    with pytest.raises(ValueError, match="no direction"):
        GeodesicSummarizer(2).summarize(list(opposite), lambda texts: [opposite[text] for text in texts])
    with pytest.raises(ValueError, match="zero"):
        GeodesicSummarizer(2, topic=[0.0, 0.0]).summarize(["up", "left"], lambda texts: [opposite[t] for t in texts])
    with pytest.raises(TypeError, match="list of texts"):
        GeodesicSummarizer().summarize("up down", lambda texts: [opposite[text] for text in texts])
