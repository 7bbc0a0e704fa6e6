import dataclasses

import numpy as np
import pytest
import torch

from kexue.similarity import Whitening, pair_cosine, spearman, tune_whitening
from kexue.similarity.whitening.grid import Setting, best_setting

BETAS, GAMMAS = (0, 0.5, 1), (0, 0.25, 0.5, 0.75, 1)


def anisotropic(n=800, m=600, d=16, seed=0, offset=8.0):
    """Vectors whose similarity lives in isotropic latents, seen through a strong stretch and a shift."""
    random = np.random.default_rng(seed)
    latent = random.normal(size=(n, d))
    q, _ = np.linalg.qr(random.normal(size=(d, d)))
    X = latent * np.r_[12, 12, np.ones(d - 2)] @ q + offset
    pairs = random.integers(0, n, (m, 2))
    labels = pair_cosine(latent[pairs[:, 0]], latent[pairs[:, 1]]) + 0.05 * random.normal(size=m)
    return X, pairs, labels


@pytest.fixture(scope="module")
def tuned():
    X, pairs, labels = anisotropic()
    return tune_whitening(X, pairs, labels)


def test_finds_the_setting_that_undoes_the_stretch(tuned):
    assert (tuned.whitening.beta, tuned.whitening.gamma, tuned.whitening.n_components) == (1.0, 1.0, 16)
    assert tuned.low < tuned.score < tuned.high
    assert tuned.score > 0.9 > tuned.raw + 0.2
    assert tuned.advice.startswith("Use beta=1, gamma=1, k=16 of 16")
    assert tuned.whitening.n_samples_seen_ == 800


@pytest.mark.filterwarnings("ignore:kept")
def test_the_table_equals_fitting_each_setting(tuned):
    # The oracle of the closed-form grid: a Whitening for every row, fitted and applied.
    X, pairs, labels = anisotropic()
    assert len(tuned.table) == 3 * 5 * 2 + 1  # ks = 8, 16, and the raw vectors
    for row in tuned.table:
        w = Whitening(row.k, beta=row.beta, gamma=row.gamma).fit(X)
        y = X if row.name == "raw" else w.transform(X)
        wanted = spearman(pair_cosine(y[pairs[:, 0]], y[pairs[:, 1]]), labels)
        assert row.score == pytest.approx(wanted, abs=1e-6)  # two cosines a rounding apart may change places
        assert row.kept == pytest.approx(w.explained_variance_ratio_.sum())
    scores = [row.score for row in tuned.table]
    assert scores == sorted(scores, reverse=True)
    assert {(r.beta, r.gamma, r.k) for r in tuned.table} == {(b, g, k) for b in BETAS for g in GAMMAS for k in (8, 16)}
    raw = next(row for row in tuned.table if row.name == "raw")
    same = next(row for row in tuned.table if not row.name and (row.beta, row.gamma, row.k) == (0, 0, 16))
    assert raw.score == pytest.approx(same.score, abs=1e-9)
    assert dataclasses.asdict(raw)["name"] == "raw"


def test_the_score_is_held_out():
    # Labels of pure noise: the best of many settings looks good on the pairs it was chosen on, and is worth nothing.
    random = np.random.default_rng(1)
    chosen, held = [], []
    for seed in range(48):
        X, pairs, _ = anisotropic(300, 80, seed=seed)
        found = tune_whitening(X, pairs, random.normal(size=80), ks=(2, 4, 8, 16), generator=seed)
        chosen.append(max(row.score for row in found.table))
        held.append(found.score)
    assert np.mean(chosen) > 0.1
    # standard error of the mean of 48 correlations over 80 pairs: 1 / sqrt(79 * 48) = 0.016
    assert abs(np.mean(held)) < 0.05
    assert np.mean(chosen) - np.mean(held) > 0.08


def test_raw_is_best():
    # Supervised vectors: loud directions are the ones that matter.
    random = np.random.default_rng(2)
    X = random.normal(size=(500, 16)) * np.r_[np.full(8, 5.0), np.full(8, 0.5)]
    pairs = random.integers(0, 500, (400, 2))
    labels = pair_cosine(X[pairs[:, 0]], X[pairs[:, 1]])
    found = tune_whitening(X, pairs, labels)
    assert found.raw == pytest.approx(1.0)
    assert found.whitening.gamma == 0
    assert "No gain" in found.advice
    forced = tune_whitening(X, pairs, labels, betas=(1,), gammas=(1,))
    assert forced.advice.startswith("Leave the vectors as they are")
    assert forced.table[0].name == "raw"


def test_pairs_as_rows_arrays_and_tensors():
    X, pairs, labels = anisotropic()
    one = tune_whitening(X, pairs, labels)
    for given in (
        (X[pairs[:, 0]], X[pairs[:, 1]]),
        X[pairs.T],
        torch.tensor(pairs),
        (torch.tensor(X[pairs[:, 0]]), torch.tensor(X[pairs[:, 1]])),
    ):
        other = tune_whitening(torch.tensor(X), given, torch.tensor(labels))
        assert other.score == pytest.approx(one.score, abs=1e-12)
        assert repr(other.whitening) == repr(one.whitening)


def test_rank_deficient_data():
    X, pairs, labels = anisotropic(d=16)
    X = np.hstack([X, X[:, :4]])  # rank 16 of 20
    found = tune_whitening(X, pairs, labels, ks=(8, 18, 20))
    assert {row.k for row in found.table if row.gamma > 0} == {8, 16}
    assert all(np.isfinite(row.score) for row in found.table)
    assert {row.k for row in found.table if row.gamma == 0} == {8, 18, 20}


def test_a_callable_metric_and_the_generator():
    X, pairs, labels = anisotropic(300, 200)

    def pearson(cosines, target):
        return float(np.corrcoef(cosines, target)[0, 1])

    found = tune_whitening(X, pairs, labels, metric=pearson, ks=(16,))
    assert found.whitening.gamma == 1.0
    assert found.low < found.score < found.high
    again = tune_whitening(X, pairs, labels, generator=np.random.default_rng(5))
    assert again.score == tune_whitening(X, pairs, labels, generator=5).score
    assert again.low != tune_whitening(X, pairs, labels, generator=6).low


def test_binary_labels_with_few_ones():
    X, pairs, labels = anisotropic(300, 200)
    rare = (labels > np.sort(labels)[-8]).astype(float)  # 7 ones in 5 folds: stratified, so every fold holds one
    found = tune_whitening(X, pairs, rare)
    assert np.isfinite([found.score, found.low, found.high, found.raw]).all()


@pytest.mark.parametrize("given", [(None, None), ("pairs", None), (None, "labels")])
def test_without_labels_the_safe_setting(given):
    X, pairs, labels = anisotropic()
    found = tune_whitening(X, pairs if given[0] else None, labels if given[1] else None, ks=(1, 2, 3, 16))
    assert (found.whitening.beta, found.whitening.gamma) == (0.0, 0.0)
    share = found.whitening.explained_variance_ratio_
    assert share.sum() >= 0.9 > share[:-1].sum()  # the fewest dimensions that keep 90 %
    assert np.isnan([found.score, found.low, found.high, found.raw]).all()
    assert [row.k for row in found.table] == [1, 2, 3, 16]
    assert "It is not known whether" in found.advice
    assert "labelled pairs" in found.advice


def easy(d=48, m=200, seed=3, spread=0.01):
    """Pairs of near copies and of strangers: told apart by any few dimensions."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(2 * m, d)) * np.linspace(2, 1, d)
    X[m::2] = X[:m:2] + spread * random.normal(size=(m // 2, d))
    pairs = np.column_stack([np.arange(m), np.arange(m, 2 * m)])
    return X, pairs, (np.arange(m) % 2 == 0).astype(float)


@pytest.mark.parametrize("metric", ["spearman", lambda c, t: float(np.mean((c > 0.9) == t))])
def test_saturated_pairs_do_not_choose(metric):
    X, pairs, labels = easy()
    found = tune_whitening(X, pairs, labels, ks=(12, 24, 36, 48), metric=metric)
    scores = [row.score for row in found.table]
    assert max(scores) == pytest.approx(min(scores), abs=1e-9)  # every setting tells all of them apart
    assert (found.whitening.beta, found.whitening.gamma) == (0.0, 0.0)
    kept = found.whitening.explained_variance_ratio_.sum()
    assert kept >= 0.9
    assert found.whitening.n_components == tune_whitening(X, ks=(12, 24, 36, 48)).whitening.n_components > 12
    assert found.advice.startswith("Cannot tell which setting is best. These pairs do not tell the settings apart")
    assert "no recommendation" in found.advice
    assert "saves" not in found.advice


def test_the_fewest_dimensions_tried_are_no_finding():
    # A few settings are worse, yet the smallest k is as good as all dimensions: what shortening costs is not shown.
    X, pairs, labels = easy(spread=0.8)
    found = tune_whitening(X, pairs, labels, ks=(12, 48), betas=(0,), gammas=(0, 3))
    assert "shortening costs" in found.advice or "do not tell" in found.advice
    assert found.whitening.n_components == 48


def test_equal_scores_keep_the_dimensions():
    settings = [Setting(0, 0, 16, 1, "raw"), *(Setting(0, gamma, k, 1) for gamma in (1, 0) for k in (4, 8, 16))]
    assert best_setting(settings, np.full(7, 0.3)) == 6  # all dimensions, gamma 0: what changes least
    assert best_setting(settings, np.array([0.9, 0.3, 0.3, 0.3, 0.4, 0.3, 0.3])) == 4


def test_a_quality_near_zero_is_no_choice():
    # The best setting of many follows labels without meaning a little; the interval of the best includes 0.
    X, pairs, _ = anisotropic(300, 80, seed=2)
    found = tune_whitening(X, pairs, np.random.default_rng(5).normal(size=80), ks=(8, 16), betas=(0, 1), gammas=(0, 1))
    assert found.advice.startswith("Cannot tell which setting is best. Under no setting do the cosines")
    assert (found.whitening.beta, found.whitening.gamma) == (0.0, 0.0)


def test_too_few_pairs_do_not_choose():
    X, pairs, _ = anisotropic(200, 20, seed=5)
    found = tune_whitening(X, pairs, np.random.default_rng(0).normal(size=20))
    assert "safe setting" in found.advice
    assert found.whitening.gamma == 0
    for options in ({"betas": (0.5, 1)}, {"gammas": (0.5, 1)}):
        forced = tune_whitening(X, pairs, np.random.default_rng(0).normal(size=20), **options)
        wanted = {"beta": 0.0, "gamma": 0.0} | {name[:-1]: min(values) for name, values in options.items()}
        assert {name: getattr(forced.whitening, name) for name in wanted} == wanted


@pytest.mark.slow
def test_the_interval_holds_the_score_on_other_pairs():
    X, pairs, labels = anisotropic(800, 20_000, seed=7)
    covered, off = [], []
    for seed in range(40):
        some = np.random.default_rng(seed).choice(20_000, 100, replace=False)
        found = tune_whitening(X, pairs[some], labels[some], generator=seed)
        y = found.whitening.transform(X)
        real = spearman(pair_cosine(y[pairs[:, 0]], y[pairs[:, 1]]), labels)
        covered.append(found.low <= real <= found.high)
        off.append(found.score - real)
    assert np.mean(covered) >= 0.85  # 95 %, less three deviations of a mean of 40
    assert abs(np.mean(off)) < 0.02


def test_pairs_may_come_once():
    X, pairs, labels = anisotropic()
    ones = tune_whitening(X, zip(*pairs.T.tolist(), strict=True), iter(labels.tolist()))
    assert ones.score == tune_whitening(X, pairs, labels).score


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": np.zeros((600, 3), int)}, r"got shape \(600, 3\)"),
        ({"pairs": np.zeros((600, 2))}, "integer rows"),
        ({"pairs": np.full((600, 2), 800)}, r"rows in \[0, 799\]"),
        ({"pairs": np.full((600, 2), -1)}, r"rows in \[0, 799\]"),
        ({"pairs": (np.zeros((600, 3)), np.zeros((600, 3)))}, r"two arrays \(m, 16\)"),
        ({"labels": np.zeros(3)}, r"shape \(600,\)"),
        ({"labels": np.ones(600)}, "all labels are 1"),
        ({"labels": np.r_[np.nan, np.zeros(599)]}, "finite"),
        ({"cv": 1}, "cv >= 2"),
        ({"cv": 200}, "at least 4 pairs per fold"),
        ({"ks": (17,)}, r"ks must lie in \[1, 16\]"),
        ({"ks": ()}, "ks must lie in"),
        ({"betas": ()}, "betas must hold"),
        ({"gammas": (np.inf,)}, "gammas must hold"),
        ({"metric": "pearson"}, "metric must be"),
    ],
)
def test_refuses(change, message):
    X, pairs, labels = anisotropic()
    kwargs = {"pairs": pairs, "labels": labels} | change
    with pytest.raises(ValueError, match=message):
        tune_whitening(X, kwargs.pop("pairs"), kwargs.pop("labels"), **kwargs)
