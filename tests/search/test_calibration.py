"""Percentiles, probabilities and hubness of an index, against the same computed from its vectors."""

import numpy as np
import pytest
from scipy import stats

from kexue.errors import DataError
from kexue.search import Index
from kexue.similarity import hubness_report, k_occurrence

TEXTS = [f"document number {i} about {('cats', 'dogs', 'birds', 'fish')[i % 4]}" for i in range(120)]


@pytest.fixture
def index(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(120, 12)) + 0.5
    with Index.create(tmp_path / "i.kx", None) as made:
        made.add(TEXTS, vectors=vectors)
        made.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        yield made


def test_nothing_is_claimed_before_calibration(index):
    [hits] = index.search(index.vectors[:1], k=3)
    assert all(hit.percentile is None and hit.probability is None for hit in hits)
    assert index.info().calibration is None


def test_percentile_is_the_rank_among_pairs_of_documents(index):
    every = (index.vectors @ index.vectors.T)[np.triu_indices(120, 1)]
    # 5,000 draws of 7,140 pairs: a percentile is off by 100 sqrt(p (1 - p) / 5,000), at most 0.7; three times that.
    # Where more are asked for than there are, every pair counts once: scores of float32 vectors, half a tie off.
    for n, close in ((5_000, 2.2), (7_140, 0.02), (20_000, 0.02)):
        index.calibrate(n=n)
        drawn = min(n, 7_140)
        [hits] = index.search(index.vectors[:1], k=120)
        exact = np.clip([100 * (every < hit.score).mean() for hit in hits[1:]], 100 / (drawn + 1), None)
        np.testing.assert_allclose([hit.percentile for hit in hits[1:]], exact, atol=close)
        assert hits[0].percentile == pytest.approx(100 * drawn / (drawn + 1), rel=1e-12)
        assert index.info().calibration == {
            "null_pairs": drawn, "labelled_pairs": 0, "method": "isotonic", "threshold": None,
        }  # fmt: skip


@pytest.mark.parametrize("documents", [2, 3, 5])
def test_few_documents_claim_little(documents, tmp_path):
    with Index.create(tmp_path / "few.kx", None) as index:
        vectors = np.eye(8)[:documents] + 0.1
        index.add([f"text {i}" for i in range(documents)], vectors=vectors)
        calibrator = index.calibrate()
        pairs = documents * (documents - 1) // 2
        assert len(calibrator.null_) == pairs
        assert index.search(vectors[:1])[0][0].percentile == pytest.approx(100 * pairs / (pairs + 1))


def test_percentiles_of_unrelated_queries_are_uniform(index):
    index.calibrate(n=50_000)
    queries = np.random.default_rng(1).normal(size=(20, 12)) + 0.5
    spread = [hit.percentile / 100 for hits in index.search(queries, k=120) for hit in hits]
    # Queries are not documents, and scores of one query hang together: near uniform, no more.
    assert stats.kstest(spread, "uniform").statistic < 0.06


def test_calibration_is_kept_and_seen_by_others(index, tmp_path):
    with Index.open(tmp_path / "i.kx", readonly=True) as other:
        assert other.search(index.vectors[:1])[0][0].percentile is None
        index.calibrate(n=1000)
        assert other.search(index.vectors[:1])[0][0].percentile is not None
    with Index.open(tmp_path / "i.kx", readonly=True) as again:
        assert again.search(index.vectors[:1]) == index.search(index.vectors[:1])


def test_hubness_is_that_of_the_vectors(index, tmp_path):
    counts, ids = index.k_occurrence(5)
    np.testing.assert_array_equal(counts, k_occurrence(index.vectors, 5, metric="cosine"))
    assert [document.text for document in index.get(ids)] == TEXTS
    report = index.hubness(5)
    assert report == hubness_report(index.vectors, 5, metric="cosine")
    assert index.info().hubness == {"n": 120, "k": 5, "k_skewness": report.k_skewness}


def test_too_few_documents_are_named(tmp_path):
    with Index.create(tmp_path / "one.kx", None) as index:
        index.add(["alone"], vectors=np.ones((1, 3)))
        with pytest.raises(DataError, match="holds 1 documents"):
            index.calibrate()
        with pytest.raises(DataError, match="k = 10"):
            index.hubness()


def test_pairs_may_come_once(index, monkeypatch):
    monkeypatch.setattr(index.encoder, "encode", lambda texts, *_: np.eye(12)[[len(text) for text in texts]])
    calibrator = index.calibrate(pairs=zip(["a", "aa"], ["a", "b"], strict=True), labels=[1, 0])
    assert calibrator.scores_.tolist() == [0.0, 1.0]


def test_pairs_come_with_labels(index):
    with pytest.raises(ValueError, match="labels"):
        index.calibrate(pairs=[("a", "b")])
