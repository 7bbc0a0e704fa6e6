import itertools
import warnings

import numpy as np
import pytest
from scipy import stats

from kexue.errors import DataError, InfeasibleError, NotFittedError
from kexue.similarity.calibration import ScoreCalibrator
from kexue.similarity.random_pairs import null_scores, random_pair_scores


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
    # Four draws cannot tell what happens less often than one time in five.
    np.testing.assert_allclose(calibrator.percentile(wanted), np.clip(expected, 20, 80), rtol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_no_percentile_says_more_than_its_sample_can(n):
    calibrator = ScoreCalibrator().fit(np.random.default_rng(0).normal(size=n))
    low, high = calibrator.percentile([-np.inf, np.inf])
    assert (low, high) == (pytest.approx(100 / (n + 1)), pytest.approx(100 * n / (n + 1)))
    # A fresh draw lies above all n others once in n + 1 times: that is what the highest percentile says of it.
    many = np.random.default_rng(1).normal(size=(4000, n + 1))
    share = (many[:, 0] > many[:, 1:].max(axis=1)).mean()
    assert share == pytest.approx(1 - high / 100, abs=4 * np.sqrt(0.25 / 4000))


@pytest.mark.parametrize("m", [2, 5, 30])
def test_every_pair_counts_once_where_there_are_no_more(m):
    X = np.random.default_rng(2).normal(size=(m, 4))
    cosines = (X @ X.T / np.outer(*[np.linalg.norm(X, axis=1)] * 2))[np.triu_indices(m, 1)]
    np.testing.assert_allclose(np.sort(null_scores(X, 100_000)), np.sort(cosines), atol=1e-14)
    assert len(null_scores(X, 1)) == 1
    if m > 2:
        np.testing.assert_array_equal(null_scores(X, 2, generator=3), random_pair_scores(X, 2, generator=3))


@pytest.mark.parametrize("scale", [1e-200, 1e-150, 1e150, 1e200])
def test_cosines_of_random_pairs_know_no_scale(scale):
    X = np.random.default_rng(3).normal(size=(40, 5))
    np.testing.assert_allclose(random_pair_scores(X * scale, 500), random_pair_scores(X, 500), atol=1e-14)


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
def test_probability_is_near_the_truth(method):
    wanted = np.linspace(0.0, 0.9, 10)
    errors = []
    for seed in range(40):
        scores = ScoreCalibrator(method).fit_labels(*labelled(2000, seed)).probability(wanted)
        assert (scores.low <= scores.value).all()
        assert (scores.value <= scores.high).all()
        assert all((np.diff(curve) >= 0).all() for curve in scores)
        errors.append(np.abs(scores.value - truth(wanted)))
    assert np.mean(errors) < {"isotonic": 0.05, "platt": 0.02}[method]


CURVES = {
    "logistic": truth,
    "steep": lambda s: truth(s, 20.0),
    "a step": lambda s: np.where(s < 0.5, 0.1, 0.9),
    "a line": lambda s: np.clip(0.2 + 0.6 * s, 0, 1),
    "never sure": lambda s: 0.8 * truth(s, 12.0),
    "flat": lambda s: np.full_like(s, 0.4),
}


@pytest.mark.parametrize("method", ["isotonic", "platt"])
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("m", [20, 200, 2000])
def test_intervals_hold_the_truth_whatever_the_curve(method, curve, m):
    wanted = np.linspace(-0.3, 1.1, 15)  # also where no score was seen
    covered = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        scores = generator.uniform(-0.2, 1.0, m)
        labels = (generator.random(m) < CURVES[curve](scores)).astype(int)
        if 0 < labels.sum() < m:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # flat curves
                try:
                    low, high = ScoreCalibrator(method).fit_labels(scores, labels).probability(wanted)[1:]
                except ValueError:  # a flat curve may look the wrong way round, one time in forty
                    assert curve == "flat"
                    continue
            real = CURVES[curve](wanted)
            covered.append((low <= real) & (real <= high))
    # 95 % are promised for each score; the mean over sixty sets of pairs has a deviation below 0.03 where they are.
    assert np.mean(covered, axis=0).min() > 0.9
    assert np.mean(covered) >= 0.95


def test_intervals_narrow_with_more_labels():
    widths = []
    for m in (50, 500, 5000, 50_000):
        low, high = ScoreCalibrator().fit_labels(*labelled(m, 0)).probability(np.linspace(0, 0.9, 10))[1:]
        widths.append((high - low).mean())
    assert all(later < 0.75 * earlier for earlier, later in itertools.pairwise(widths))
    assert widths[-1] < 0.12


@pytest.mark.parametrize("ties", [False, True])
def test_limits_are_those_of_the_pairs_next_below_and_above(ties):
    scores, labels = labelled(60, 9)
    scores = np.round(scores, 1) if ties else scores
    calibrator = ScoreCalibrator().fit_labels(scores, labels)
    known, marks, reach = calibrator.scores_, calibrator.labels_, 15  # 60^(2/3) = 15.3

    def limit(upper, kept):
        share = stats.binomtest(int(marks[kept].sum()), int(kept.sum())).proportion_ci(0.95, "exact")
        return share.high if upper else share.low

    def below(s):
        upto = known[known <= s]
        return known >= (upto[-reach] if len(upto) >= reach else -np.inf)

    def above(s):
        left = known[known >= s]
        return known <= (left[reach - 1] if len(left) >= reach else np.inf)

    values = np.unique(known)
    low = [limit(False, below(s) & (known <= s)) for s in values]
    high = [limit(True, above(s) & (known >= s)) for s in values]
    probability = calibrator.probability(values)
    expected = np.minimum.accumulate(low[::-1])[::-1], np.maximum.accumulate(high)
    np.testing.assert_allclose(probability.low, np.minimum(expected[0], probability.value), atol=1e-12)
    np.testing.assert_allclose(probability.high, np.maximum(expected[1], probability.value), atol=1e-12)


def in_the_right_order(scores, labels):
    """Both labels are there, and ones score higher as a rule: by chance a handful of pairs may be otherwise."""
    return 0 < labels.sum() < len(labels) and scores[labels == 1].mean() >= scores[labels == 0].mean()


@pytest.mark.parametrize("n", [2, 3, 10, 40, 300])
@pytest.mark.parametrize("ties", [False, True])
def test_isotonic_is_pooled_adjacent_violators(n, ties):
    sklearn = pytest.importorskip("sklearn.isotonic")
    for seed in range(20):
        scores, labels = labelled(n, seed)
        scores = np.round(scores, 1) if ties else scores
        if not in_the_right_order(scores, labels):
            continue
        ours = ScoreCalibrator().fit_labels(scores, labels)
        peer = sklearn.IsotonicRegression(out_of_bounds="clip").fit(scores, labels)
        wanted = np.concatenate([scores, np.linspace(-0.5, 1.3, 37)])  # in blocks, between them, and beyond
        np.testing.assert_allclose(ours.probability(wanted).value, peer.predict(wanted), atol=1e-12)


def test_isotonic_probability_is_the_share_of_its_block():
    # Labels by score 0 | 1 0 0 | 1 0 | 1: shares 0, 1/3, 1/2 and 1.
    scores, labels = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9], [0, 1, 0, 0, 1, 0, 1]
    value = ScoreCalibrator().fit_labels(scores, labels).probability([*scores, 0.15, 0.25, 0.75]).value
    third, half = 1 / 3, 1 / 2
    np.testing.assert_allclose(value, [0, third, third, third, half, half, 1, third / 2, third, 0.75], atol=1e-12)


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_labels_the_wrong_way_round_are_named(method):
    scores, labels = labelled(200, 10)
    with pytest.raises(ValueError, match="wrong way round"):
        ScoreCalibrator(method).fit_labels(scores, 1 - labels)
    with pytest.raises(ValueError, match="similarities instead of distances"):
        ScoreCalibrator(method).fit_labels(-scores, labels)


def test_a_curve_that_could_only_fall_is_flat_and_says_so():
    calibrator = ScoreCalibrator("platt")
    with pytest.warns(UserWarning, match="so the curve is"):
        calibrator.fit_labels([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0])
    np.testing.assert_allclose(calibrator.probability([-1e9, 0.0, 1.0, np.inf]).value, 0.5, atol=1e-12)


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_every_number_has_a_probability_and_nan_is_named(method):
    calibrator = ScoreCalibrator(method).fit([0.1, 0.2]).fit_labels(*labelled(100, 11))
    for curve in calibrator.probability([-np.inf, -1e300, -1e-320, 0.5, 1e300, np.inf]):
        assert np.isfinite(curve).all()
        assert (np.diff(curve) >= 0).all()
    for ask in (calibrator.percentile, calibrator.probability):
        with pytest.raises(ValueError, match="NaN at position 1"):
            ask([0.1, np.nan])
        assert len(np.ravel(ask([]))) == 0


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


def test_threshold_is_the_highest_of_the_largest_recall_at_the_precision():
    scores, labels = labelled(400, 7)
    found = ScoreCalibrator().fit_labels(scores, labels).threshold(0.8)
    shares = {t: labels[scores >= t].mean() for t in np.unique(scores)}
    recalls = {t: labels[scores >= t].sum() / labels.sum() for t in shares}
    most = max(recalls[t] for t, share in shares.items() if share >= 0.8)
    assert found.value == max(t for t in shares if recalls[t] == most)
    assert found.recall == pytest.approx(most)
    assert found.precision == pytest.approx(max(share for t, share in shares.items() if recalls[t] == most))
    assert found.precision == pytest.approx(shares[found.value])


@pytest.mark.parametrize("precision", [0.5, 0.7, 0.9, 1.0])
def test_no_other_threshold_is_better_in_both(precision):
    for seed in range(30):
        scores, labels = labelled(60, seed)
        scores = np.round(scores, 2)
        try:
            found = ScoreCalibrator().fit_labels(scores, labels).threshold(precision)
        except InfeasibleError:
            continue
        for t in np.unique(scores):
            share, recall = labels[scores >= t].mean(), labels[scores >= t].sum() / labels.sum()
            better = (share > found.precision and recall >= found.recall) or (
                share >= max(precision, found.precision) and recall > found.recall
            )
            assert not better


@pytest.mark.parametrize("m", [30, 100, 1000])
@pytest.mark.parametrize("precision", [0.7, 0.9])
def test_thresholds_hold_their_precision_on_fresh_pairs(m, precision):
    held = []
    many = np.random.default_rng(0).uniform(-0.2, 1.0, 100_000)
    for seed in range(200):
        try:
            found = ScoreCalibrator().fit_labels(*labelled(m, seed)).threshold(precision)
        except (InfeasibleError, ValueError):
            continue
        held.append(found.low <= truth(many[many >= found.value]).mean() <= found.high)
    assert len(held) > 150
    # 95 %, less two deviations of a mean of 150 to 200.
    assert np.mean(held) >= 0.92


def test_ties_are_in_or_out_together():
    calibrator = ScoreCalibrator().fit_labels([0.5, 0.5, 0.5, 0.9], [1, 0, 0, 1])
    assert calibrator.threshold(0.9).value == 0.9
    assert calibrator.threshold(0.5).value == 0.5


def test_a_precision_out_of_reach_says_what_is_there():
    with pytest.raises(InfeasibleError, match=r"0\.500"):
        ScoreCalibrator().fit_labels([0.1, 0.2, 0.3, 0.3], [1, 0, 1, 0]).threshold(0.9)


@pytest.mark.parametrize("n", [1, 19, 150])
@pytest.mark.parametrize("ties", [False, True])
def test_a_chance_is_rarely_small_where_there_is_no_answer(n, ties):
    # One more query of the same kind: P(chance <= a) <= a for every a, whatever the distribution, and nearly a.
    generator = np.random.default_rng(n)
    draws = generator.gumbel(size=(4000, n + 1))
    draws = np.round(draws) if ties else draws
    chances = np.array([ScoreCalibrator().fit_best(row[1:]).chance(row[0]) for row in draws])
    for level in (0.01, 0.05, 0.2, 0.5, 1.0):
        rare = int((chances <= level).sum())
        assert stats.binomtest(rare, len(chances), level, alternative="greater").pvalue > 1e-3
        if not ties:  # the share is the largest multiple of 1 / (n + 1) up to the level, exactly
            exact = np.floor(level * (n + 1) + 1e-9) / (n + 1)
            assert stats.binomtest(rare, len(chances), exact).pvalue > 1e-3
    assert chances.min() >= 1 / (n + 1)  # never 0: no claim beyond the sample


def test_a_chance_is_the_counting_definition_and_falls_as_the_score_rises():
    best = np.array([0.3, 0.1, 0.2, 0.2])
    calibrator = ScoreCalibrator().fit_best(best, "en").fit_best([0.9], "zh")
    wanted = np.array([[-np.inf, 0.1, 0.15], [0.2, 0.3, np.inf]])
    expected = [[(1 + np.sum(best >= s)) / 5 for s in row] for row in wanted]
    np.testing.assert_array_equal(calibrator.chance(wanted, "en"), expected)
    assert (np.diff(calibrator.chance(np.linspace(-1, 1, 201), "en")) <= 0).all()
    assert calibrator.chance([0.95, 0.9], "zh").tolist() == [0.5, 1.0]


def test_saved_and_loaded_answers_are_equal(tmp_path):
    scores, labels = labelled(100, 8)
    calibrator = ScoreCalibrator("platt").fit(scores).fit_labels(scores, labels)
    calibrator.fit_best(scores[:30], "en").fit_best(scores[30:], "zh")
    calibrator.save(tmp_path / "c.safetensors")
    again = ScoreCalibrator.load(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(again.percentile(scores), calibrator.percentile(scores))
    np.testing.assert_array_equal(again.probability(scores), calibrator.probability(scores))
    assert list(again.best_) == ["en", "zh"]
    for kind in again.best_:
        assert again.best_[kind].tobytes() == calibrator.best_[kind].tobytes()
        np.testing.assert_array_equal(again.chance(scores, kind), calibrator.chance(scores, kind))
    (tmp_path / "x").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="no saved calibration"):
        ScoreCalibrator.load(tmp_path / "x")


def test_bad_input_is_named():
    with pytest.raises(NotFittedError, match="fit"):
        ScoreCalibrator().percentile([0.1])
    with pytest.raises(NotFittedError, match="fit_labels"):
        ScoreCalibrator().fit([0.1]).threshold()
    with pytest.raises(NotFittedError, match="fit_best"):
        ScoreCalibrator().fit_best([0.1], "en").chance(0.2, "zh")
    with pytest.raises(ValueError, match="NaN at position 0"):
        ScoreCalibrator().fit_best([0.1]).chance([np.nan])
    with pytest.raises(ValueError, match="non-empty"):
        ScoreCalibrator().fit_best([])
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


@pytest.mark.parametrize("method", ["isotonic", "platt"])
@pytest.mark.parametrize("exponent", [-1000, -520, 520, 1000])
def test_the_unit_of_the_scores_does_not_matter(method, exponent):
    """Their squares may leave float64."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=200)
    labels = (rng.random(200) < 1 / (1 + np.exp(-2 * scores))).astype(int)
    wanted = np.array([-np.inf, -1.0, 0.1, 2.0, np.inf])
    expected = ScoreCalibrator(method).fit_labels(scores, labels).probability(wanted)
    scaled = ScoreCalibrator(method).fit_labels(np.ldexp(scores, exponent), labels)
    for got, right in zip(scaled.probability(np.ldexp(wanted, exponent)), expected, strict=True):
        np.testing.assert_array_equal(got, right)
