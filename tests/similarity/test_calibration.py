import numpy as np
import pytest
from scipy import stats

from kexue.errors import DataError, InfeasibleError, NotFittedError
from kexue.similarity.calibration import ScoreCalibrator, random_pair_scores


def labelled(n, seed, slope=6.0):
    """Scores and labels whose P(1 | s) = 1/(1 + exp(-slope (s - 0.5))) is known."""
    generator = np.random.default_rng(seed)
    scores = generator.uniform(-0.2, 1.0, n)
    return scores, (generator.random(n) < truth(scores, slope)).astype(int)


def truth(scores, slope=6.0):
    return 1 / (1 + np.exp(-slope * (scores - 0.5)))


def test_percentile_is_the_counting_definition():
    null = np.array([0.1, 0.2, 0.2, 0.7])
    calibrator = ScoreCalibrator().fit(null)
    wanted = np.array([[0.0, 0.1, 0.2], [0.5, 0.7, 1.0]])
    expected = [[100 * np.mean((null < s) + 0.5 * (null == s)) for s in row] for row in wanted]
    np.testing.assert_allclose(calibrator.percentile(wanted), expected, rtol=1e-15)


def test_percentiles_of_random_pairs_are_uniform():
    embeddings = np.random.default_rng(0).normal(size=(2000, 16)) + 0.5
    calibrator = ScoreCalibrator().fit(random_pair_scores(embeddings, 50_000, generator=1))
    fresh = calibrator.percentile(random_pair_scores(embeddings, 2_000, generator=2)) / 100
    # The Kolmogorov-Smirnov test at level 0.001 on fixed seeds.
    assert stats.kstest(fresh, "uniform").pvalue > 1e-3
    biased = ScoreCalibrator().fit(random_pair_scores(np.abs(embeddings), 50_000, generator=1))
    assert stats.kstest(biased.percentile(random_pair_scores(embeddings, 2_000)) / 100, "uniform").pvalue < 1e-6


def test_random_pairs_are_cosines_of_different_rows():
    embeddings = np.random.default_rng(3).normal(size=(6, 4))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    every = (unit @ unit.T)[np.triu_indices(6, 1)]
    scores = random_pair_scores(embeddings, 30_000, generator=4)
    distance = np.abs(scores[:, None] - every).min(axis=1)
    assert distance.max() < 1e-12  # each is one of the 15; a row with itself would give 1
    # All pairs equally often: 30,000 draws over 15 cells, chi-square at level 0.001.
    counts = np.bincount(np.abs(scores[:, None] - every).argmin(axis=1), minlength=15)
    assert stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(scores, random_pair_scores(embeddings, 30_000, generator=4))
    assert random_pair_scores(np.zeros((3, 2)), 5).tolist() == [0.0] * 5


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_probability_is_near_the_truth_and_covered_by_its_interval(method):
    wanted = np.linspace(0.0, 0.9, 10)
    covered, errors = [], []
    for seed in range(40):
        found = ScoreCalibrator(method).fit_labels(*labelled(2000, seed)).probability(wanted)
        assert (found.low <= found.value).all()
        assert (found.value <= found.high).all()
        assert (np.diff(found.value) >= 0).all()
        covered.append((found.low <= truth(wanted)) & (truth(wanted) <= found.high))
        errors.append(np.abs(found.value - truth(wanted)))
    assert np.mean(errors) < {"isotonic": 0.05, "platt": 0.02}[method]
    # Platt's model is the truth here, so its intervals should cover 95 %; isotonic blocks are chosen by the data.
    assert np.mean(covered) > {"isotonic": 0.8, "platt": 0.92}[method]


def test_isotonic_is_pooled_adjacent_violators():
    sklearn = pytest.importorskip("sklearn.isotonic")
    scores, labels = labelled(300, 5)
    peer = sklearn.IsotonicRegression(out_of_bounds="clip").fit(scores, labels)
    ours = ScoreCalibrator().fit_labels(scores, labels).probability(scores).value
    # The peer is constant within a block, ours passes through the block's mean at its mean score: the averages agree.
    assert ours.mean() == pytest.approx(peer.predict(scores).mean(), abs=0.01)
    assert np.abs(ours - peer.predict(scores)).mean() < 0.05


def test_platt_is_smoothed_logistic_regression():
    linear = pytest.importorskip("sklearn.linear_model")
    scores, labels = labelled(500, 6)
    positives, negatives = labels.sum(), (1 - labels).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    doubled = np.concatenate([scores, scores])[:, None]
    weights = np.concatenate([targets, 1 - targets])
    marks = np.concatenate([np.ones(500), np.zeros(500)])
    peer = linear.LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(doubled, marks, sample_weight=weights)
    ours = ScoreCalibrator("platt").fit_labels(scores, labels).probability(scores).value
    # Two optimisers of one convex function; the peer's hardly regularised.
    np.testing.assert_allclose(ours, peer.predict_proba(scores[:, None])[:, 1], atol=1e-4)


def test_threshold_is_the_lowest_that_keeps_the_precision():
    scores, labels = labelled(400, 7)
    found = ScoreCalibrator().fit_labels(scores, labels).threshold(0.8)
    shares = {t: labels[scores >= t].mean() for t in np.unique(scores)}
    assert found.value == min(t for t, share in shares.items() if share >= 0.8)
    assert found.precision == pytest.approx(shares[found.value])
    assert found.recall == pytest.approx(labels[scores >= found.value].sum() / labels.sum())


def test_thresholds_hold_their_precision_on_fresh_pairs():
    held = []
    for seed in range(60):
        found = ScoreCalibrator().fit_labels(*labelled(1000, seed)).threshold(0.8)
        scores, labels = labelled(20_000, 1000 + seed)
        held.append(found.low <= labels[scores >= found.value].mean() <= found.high)
    # The interval is one of 95 %; picking the lowest threshold that suffices costs a little of it.
    assert np.mean(held) >= 0.9


def test_ties_are_in_or_out_together():
    calibrator = ScoreCalibrator().fit_labels([0.5, 0.5, 0.5, 0.9], [1, 0, 0, 1])
    assert calibrator.threshold(0.9).value == 0.9
    assert calibrator.threshold(0.5).value == 0.5


def test_a_precision_out_of_reach_says_what_is_there():
    with pytest.raises(InfeasibleError, match=r"0\.500"):
        ScoreCalibrator().fit_labels([0.1, 0.2, 0.3, 0.3], [1, 0, 1, 0]).threshold(0.9)


def test_saved_and_loaded_answers_are_equal(tmp_path):
    scores, labels = labelled(100, 8)
    calibrator = ScoreCalibrator("platt").fit(scores).fit_labels(scores, labels)
    calibrator.save(tmp_path / "c.safetensors")
    again = ScoreCalibrator.load(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(again.percentile(scores), calibrator.percentile(scores))
    np.testing.assert_array_equal(again.probability(scores), calibrator.probability(scores))
    (tmp_path / "x").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="no saved calibration"):
        ScoreCalibrator.load(tmp_path / "x")


def test_bad_input_is_named():
    with pytest.raises(NotFittedError, match="fit"):
        ScoreCalibrator().percentile([0.1])
    with pytest.raises(NotFittedError, match="fit_labels"):
        ScoreCalibrator().fit([0.1]).threshold()
    with pytest.raises(ValueError, match="position 1"):
        ScoreCalibrator().fit([0.1, np.nan])
    with pytest.raises(ValueError, match="both present"):
        ScoreCalibrator().fit_labels([0.1, 0.2], [1, 1])
    with pytest.raises(ValueError, match="2 scores"):
        ScoreCalibrator().fit_labels([0.1, 0.2], [1])
    with pytest.raises(ValueError, match="two rows"):
        random_pair_scores(np.ones((1, 3)))
    with pytest.raises(ValueError, match="isotonic"):
        ScoreCalibrator("beta")
