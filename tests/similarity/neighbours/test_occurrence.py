import numpy as np
import pytest

from kexue.similarity import HubnessReducer, HubSampler, ball_to_cube_ratio, hubness_report, k_occurrence


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_one_far_row_changes_no_counts():
    X = np.random.default_rng(11).normal(size=(200, 5))
    far = np.vstack([X, np.full((1, 5), 1e6)])
    near, with_far = (k_occurrence(rows, 4) for rows in (X, far))
    # The far row is nobody's neighbour; it only adds its own four.
    assert with_far[-1] == 0
    assert (with_far[:-1] - near).sum() == 4
    assert (with_far[:-1] >= near).all()
    assert hubness_report(far, 4).max <= near.max() + 1


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_k_occurrence_counts_by_hand(metric, brute_force_neighbours):
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


@pytest.mark.parametrize("n", range(1, 8))
def test_ball_to_cube_ratio(n):
    # V(n) = 2 pi / n V(n - 2), V(0) = 1, V(1) = 2.
    volume = [1.0, 2.0]
    for i in range(2, n + 1):
        volume.append(2 * np.pi / i * volume[i - 2])
    assert ball_to_cube_ratio(n) == pytest.approx(volume[n] / 2**n, rel=1e-12)
    assert ball_to_cube_ratio(1000) < 1e-300 or ball_to_cube_ratio(1000) == 0


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


def test_bad_input_is_named():
    generator = np.random.default_rng(7)
    X, Q = generator.normal(size=(80, 12)), generator.normal(size=(9, 12))
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
    for counts in (np.zeros(4, dtype=int), [1.0, np.nan], [-1, 2]):
        with pytest.raises(ValueError, match="not all zero"):
            hubness_report(counts, 2)
    with pytest.raises(ValueError, match="k >= 1"):
        hubness_report([1, 1], 0)
