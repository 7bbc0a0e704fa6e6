"""Percentiles, chances, probabilities and hubness of an index, against the same computed from its vectors."""

import numpy as np
import pytest
from scipy import stats

from kexue.errors import DataError
from kexue.search import Index
from kexue.search.calibration import LEAST
from kexue.search.unrelated import find_answered, sample_queries
from kexue.similarity import ScoreCalibrator, hubness_report, k_occurrence, random_pair_scores
from kexue.similarity.random_pairs import null_scores

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
        record = index.info().calibration
        created = record.pop("created")
        assert record == {
            "null_pairs": drawn, "labelled_pairs": 0, "method": "isotonic", "threshold": None,
            "null_queries": 0, "language": "en", "mixed_words": False, "answered": [], "documents": 120,
        }  # fmt: skip
        assert created > index.info().created


def test_the_interval_of_a_percentile_decides_how_few_documents_are_refused(tmp_path):
    # Of `LEAST` documents drawn from many, the 90th percentile of random pairs is within five points, nineteen times
    # in twenty; of a fifth as many it is not.
    many = np.random.default_rng(0).normal(size=(3000, 8)) * np.linspace(2, 0.2, 8)
    high = np.quantile(random_pair_scores(many, 100_000), 0.9)

    def width(documents):
        draw = np.random.default_rng(1)
        found = [
            ScoreCalibrator()
            .fit(null_scores(many[draw.choice(3000, documents, replace=False)], 10**6))
            .percentile(high)
            for _ in range(300)
        ]
        low, top = np.quantile(found, [0.025, 0.975])
        return top - low

    assert width(LEAST) < 10 < width(LEAST // 5)
    for documents, enough in ((LEAST - 1, False), (LEAST, True)):
        with Index.create(tmp_path / f"{documents}.kx", None) as index:
            index.add([f"text {i}" for i in range(documents)], vectors=many[:documents])
            if enough:
                assert len(index.calibrate().null_) == LEAST * (LEAST - 1) // 2
            else:
                with pytest.raises(DataError, match=f"holds {documents} documents; .* need {LEAST} or more"):
                    index.calibrate()


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
        with pytest.raises(DataError, match="k = 10"):
            index.hubness()


def test_pairs_may_come_once(index, monkeypatch):
    monkeypatch.setattr(index.encoder, "encode", lambda texts, *_: np.eye(12)[[len(text) for text in texts]])
    calibrator = index.calibrate(pairs=zip(["a", "aa"], ["a", "b"], strict=True), labels=[1, 0])
    assert calibrator.scores_.tolist() == [0.0, 1.0]


def test_pairs_come_with_labels(index):
    with pytest.raises(ValueError, match="labels"):
        index.calibrate(pairs=[("a", "b")])


@pytest.mark.parametrize("dehub", [None, "csls"])
@pytest.mark.parametrize("passing", ["here", "another process"])
def test_a_chance_is_that_of_the_nearest_document_of_unrelated_queries(make_index, gram_encoder, brute, dehub, passing):
    index = make_index(dehub=dehub)
    index.add(TEXTS)
    index.calibrate(n=500)
    if passing == "another process":
        index = Index.open(index.encoder.path, readonly=True, encoder=gram_encoder())
    encode = gram_encoder().encode
    documents = encode(TEXTS)
    best = brute(encode(sample_queries()["en"]), documents).max(axis=1)
    kept = best[~find_answered(best)]
    queries = ["where are the cats of document 17", "number 40", "how is the weather"]
    for query, hits in zip(queries, index.search(queries, k=5, mode="dense"), strict=True):
        [scores] = brute(encode([query]), documents)
        for hit in hits:
            assert hit.score == pytest.approx(scores[TEXTS.index(hit.text)], abs=1e-6)
            exact = (1 + (kept >= hit.score - 1e-6).sum()) / (len(kept) + 1)
            assert hit.chance == pytest.approx(exact, abs=1.5 / (len(kept) + 1))
    assert len(index.calibrator.best_["en"]) == len(kept) == index.info().calibration["null_queries"]


def test_a_chance_is_uniform_for_more_queries_of_the_same_kind(make_index, monkeypatch):
    # Random words, half of them for the calibration, half as queries: exchangeable.
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefgh"), 12)) for _ in range(700)]
    monkeypatch.setattr("kexue.search.calibration.sample_queries", lambda: {"en": words[:300]})
    index = make_index()
    index.add(TEXTS)
    index.calibrate(n=500)
    for mode in ("dense", "hybrid"):
        chances = np.array([hits[0].chance for hits in index.search(words[300:], k=1, mode=mode)])
        for level in (0.02, 0.05, 0.1, 0.25, 0.5, 1.0):
            rare = int((chances <= level).sum())
            # Both samples are finite: the level itself is off by its deviation among 300.
            assert rare <= 400 * (level + 3 * np.sqrt(level * (1 - level) * (1 / 300 + 1 / 400)) + 2 / 300), (
                mode,
                level,
            )
    assert chances.mean() >= 0.45


def test_a_sample_query_that_the_index_answers_is_left_out(make_index):
    samples = sample_queries()["en"]
    index = make_index()
    index.add([*samples[:3], *(f"{i} {i * i} {i**3} {i**4} {i**5} {i**6}" for i in range(1, 90))])
    index.calibrate(n=500)
    left = index.info().calibration["answered"]
    assert set(samples[:3]) <= set(left)
    assert len(left) <= 5
    [[hit]] = index.search("completely different words", k=1, mode="dense")
    best = index.calibrator.best_["en"]
    assert best.max() < 0.99
    assert hit.chance == (1 + (best >= hit.score).sum()) / (len(best) + 1)


def test_where_there_are_no_samples_words_of_the_documents_are_mixed(make_index):
    index = make_index()
    greek = ["καλημέρα κόσμε", "πόσο κοστίζει", "πού είναι ο σταθμός", "θέλω έναν καφέ", "τι ώρα είναι"]
    index.add([f"{greek[i % 5]} {greek[i % 3]} αριθμός {i}" for i in range(60)])
    index.calibrate(n=500)
    record = index.info().calibration
    assert (record["language"], record["mixed_words"]) == ("greek", True)
    assert 400 < record["null_queries"] <= 500
    assert index.search("πόσο κοστίζει ο καφές")[0][0].chance is not None
    assert index.search("how much is the coffee")[0][0].chance is not None  # by the English samples
    assert index.search("กาแฟราคาเท่าไร")[0][0].chance is None  # neither
