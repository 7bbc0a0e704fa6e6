"""Doubts about answers: each is said when its reason holds, and not before; every channel says the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kexue.search import Hit, Index
from kexue.search.answers import answer_queries
from kexue.search.calibration import GOOD_CHANCE, LEAST
from kexue.search.meaning import CHANGED_SHARE, LEAST_DRIFTED, LEAST_PAIRS
from kexue.search.space import file_bytes
from kexue.search.warnings import JudgedSearch, collect_warnings, judge_match
from kexue.similarity import ScoreCalibrator, Whitening
from kexue.text.tokens import TokenIds

Make = Callable[..., Index]
TEXTS = [f"document number {i} about {('cats', 'dogs', 'birds', 'fish')[i % 4]}" for i in range(80)]


def doubts(index: Index, query: str | None = "where are the cats") -> list[str]:
    [sentences] = collect_warnings(index, [query])
    return sentences


def only(index: Index, words: str, query: str | None = "where are the cats") -> None:
    """One doubt, with these words."""
    sentences = doubts(index, query)
    assert len(sentences) == 1, sentences
    assert words in sentences[0]


def test_an_index_is_doubted_until_it_is_calibrated(make_index: Make) -> None:
    index = make_index()
    assert doubts(index) == []  # nothing is claimed about nothing
    index.add(TEXTS[: LEAST - 1])
    only(index, f"fewer than {LEAST} documents")
    index.add(TEXTS)
    only(index, "not calibrated")
    assert judge_match(index.search("cats")[0], "cats") is None
    index.calibrate(n=500)
    assert doubts(index) == doubts(index, None) == []
    assert collect_warnings(index, ["x", "y"], "lexical") == [[], []]


@pytest.mark.parametrize("change", ["more", "changed", "removed"])
def test_a_calibration_grows_old_with_the_documents(make_index: Make, change: str) -> None:
    index = make_index()
    index.add(TEXTS, ids=[str(i) for i in range(80)])
    index.calibrate(n=500)
    most = int(CHANGED_SHARE * 80)

    def act(start: int, stop: int) -> None:
        names = [str(i) for i in range(start, stop)]
        if change == "removed":
            index.delete(names)
        else:
            there = [f"new {name}" for name in names]
            index.add([f"another text {name}" for name in names], ids=there if change == "more" else names)

    act(0, most)
    assert doubts(index) == []
    act(most, most + 1)
    only(index, f"it saw 80 documents, and {most + 1} have been")
    index.calibrate(n=500)
    assert doubts(index) == []


def test_a_calibration_of_an_older_version_keeps_percentiles_only(make_index: Make) -> None:
    index = make_index()
    index.add(TEXTS)
    old = ScoreCalibrator().fit(np.linspace(-1, 1, 101)).fit_labels(np.linspace(0, 1, 40), np.arange(40) % 2)
    index.store.upsert([], metadata={"calibration": file_bytes(old.save)})
    only(index, "older version")
    [[hit]] = index.search("cats", k=1)
    assert hit.percentile == pytest.approx(float(old.percentile(hit.score)))
    assert hit.chance is None
    assert hit.probability is not None
    assert judge_match([hit], "cats") is None
    assert index.info().calibration["null_queries"] is None  # type: ignore[index]


def test_a_calibration_without_an_encoder_has_no_chance(make_index: Make) -> None:
    index = make_index(encoder=None)
    vectors = np.random.default_rng(0).normal(size=(80, 8))
    index.add(TEXTS, vectors=vectors)
    index.calibrate(n=500)
    only(index, "without an encoder", None)
    assert index.search(vectors[:1])[0][0].chance is None


def test_a_probability_needs_enough_pairs_of_either_kind(make_index: Make) -> None:
    index = make_index()
    index.add(TEXTS)
    pairs = [(TEXTS[i], TEXTS[i + 4]) for i in range(15)] + [(TEXTS[i], f"zzz {i} qqq") for i in range(15)]
    for kept, labels, enough in (
        (pairs[:10] + pairs[15:25], [1] * 10 + [0] * 10, True),
        (pairs[:9] + pairs[15:25], [1] * 9 + [0] * 10, False),
        (pairs[:4] + pairs[15:], [1] * 4 + [0] * 15, False),
    ):
        assert (len(kept) >= LEAST_PAIRS) is enough
        index.calibrate(pairs=kept, labels=labels, n=500)
        if enough:
            assert doubts(index) == []
        else:
            only(index, "too few for a probability")
        [[hit]] = index.search("document number 3 about fish", k=1)
        assert (hit.probability is not None) is enough
        assert hit.chance is not None


def test_documents_of_another_kind_than_the_whitening_are_told(make_index: Make) -> None:
    index = make_index(whitening=Whitening(8))
    index.add(TEXTS)
    pairs = [(TEXTS[i], TEXTS[i + 4]) for i in range(15)] + [(TEXTS[i], f"zzz {i} qqq") for i in range(15)]
    index.add([f"document number {i} about {('cats', 'dogs', 'birds', 'fish')[i % 4]}" for i in range(20, 160)])
    index.calibrate(pairs=pairs, labels=[1] * 15 + [0] * 15, n=500)
    assert doubts(index) == []
    assert index.search("cats")[0][0].probability is not None
    index.add([f"XYZ{i}ZYX" * 4 for i in range(4 * LEAST_DRIFTED)])
    sentences = doubts(index)
    assert "another kind" in sentences[0]
    assert "too old" in sentences[1]
    [hits] = index.search("cats")
    assert all(hit.probability is None and hit.percentile is not None for hit in hits)


def test_a_calibration_of_other_vectors_is_not_used(make_index: Make) -> None:
    one = make_index("one.kx")
    one.add(TEXTS)
    one.calibrate(n=500)
    other = make_index("other.kx", whitening=Whitening(8))
    other.add(TEXTS)
    copied: dict[str, Any] = {name: one.store.metadata()[name] for name in ("calibration", "calibration_facts")}
    other.store.upsert([], metadata=copied)
    only(other, "another model or whitening")
    assert other.search("cats")[0][0][3:6] == (None, None, None)


class Reader:
    """An encoder that says what it cannot read: words with an x, all but English, more than 30 characters."""

    model_id, languages, max_length = "reader", ("en",), 30

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.fingerprint, self.dim = encoder.fingerprint, encoder.dim

    def encode(self, texts: list[str]) -> Any:
        return self._encoder.encode(texts)

    def unknown_words(self, texts: list[str]) -> list[list[str]]:
        return [[word for word in text.split() if "x" in word] for text in texts]

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    def tokenize(self, texts: list[str], prompt_name: str | None = None) -> Any:
        ids = TokenIds(np.arange(len(text)) for text in texts)
        ids.truncated = sum(len(text) > self.max_length for text in texts)
        return ids


class Foreign:
    """An encoder of another library, whose `tokenize` takes no prompt and returns something else."""

    model_id = "foreign"

    def __init__(self, encoder: Any) -> None:
        self.encode, self.fingerprint, self.dim = encoder.encode, encoder.fingerprint, encoder.dim

    def tokenize(self, texts: list[str]) -> dict[str, Any]:
        return {"input_ids": texts}


def test_an_encoder_with_another_tokenize_is_not_asked_about_tokens(make_index: Make, gram_encoder: Any) -> None:
    index = make_index(encoder=Foreign(gram_encoder()))
    index.add(TEXTS)
    [record] = answer_queries(index, ["the cat"], k=2)
    assert record["usage"]["total_tokens"] == 0
    assert len(record["results"]) == 2


def test_words_languages_and_lengths_that_a_model_does_not_read(make_index: Make, gram_encoder: Any) -> None:
    index = make_index(encoder=Reader(gram_encoder()))
    index.add(TEXTS)
    index.calibrate(n=500)
    assert list(index.calibrator.best_) == ["en"]  # type: ignore[union-attr]
    assert doubts(index) == []
    only(index, "does not know these parts of the query: xylophone, axe.", "xylophone axe axe")
    only(index, "x1, x2, x3, x4, x5 and 2 more", "x1 x2 x3 x4 x5 x6 x7")
    only(index, "the query looks Chinese, and reader reads only English", "退货要多久")
    only(index, "looks German", "wie ist das und was ist die")
    only(index, "at most 30 tokens are read", "a" * 31)
    [record] = answer_queries(index, ["退货要多久"], k=3)
    assert [hit["chance"] for hit in record["results"]] == [None] * 3
    assert record["match"] is None


def test_a_language_without_a_null_is_named(make_index: Make) -> None:
    index = make_index()
    index.add(TEXTS)
    index.calibrate(n=500)
    only(index, "looks Thai, but the documents English", "กาแฟราคาเท่าไร")
    assert doubts(index, "退货要多久") == []  # Chinese queries have samples


def hit(chance: float | None, text: str = "of no use") -> Hit:
    return Hit("a", text, 0.5, 90.0, chance, None, None, {}, None)


def test_a_match_is_good_by_chance_or_by_words() -> None:
    assert judge_match([], "cats") is None
    assert judge_match([hit(None)], "cats") is None
    assert judge_match([hit(GOOD_CHANCE + 1e-9)], None) == "weak"
    assert judge_match([hit(0.5), hit(GOOD_CHANCE)], None) == "good"
    weak = [hit(0.7), hit(0.9, "Order no. AB-1234, shipped on Monday")]
    assert judge_match(weak, "AB1234") == judge_match(weak, "where is ab-1234") == "good"
    assert judge_match(weak, "AB1235") == judge_match(weak, "ab-1234 tuesday") == "weak"
    assert judge_match([hit(0.9, "how is the")], "how is the") == "weak"  # words without content
    assert judge_match([hit(0.9, "订单号码是七")], "订单号码") == "good"


def test_a_match_does_not_depend_on_how_few_hits_are_wanted(make_index: Make) -> None:
    """In a search by words and meaning the hit that is nearest in meaning may come later than the wanted ones."""
    index = make_index()
    index.add(TEXTS)
    index.calibrate(n=500)
    queries = [f"{text} {'number about document ' * 3}" for text in TEXTS[:8]] + ["where are the cats", "hello there"]
    [one, ten, more] = [[record["match"] for record in answer_queries(index, queries, k=k)] for k in (1, 10, 80)]
    assert one == ten
    assert all(late == "good" for early, late in zip(ten, more, strict=True) if early == "good")
    chances = [[0.5] * 9 + [0.01], [0.5] * 10]
    search = JudgedSearch(lambda k: [[hit(chance) for chance in some[:k]] for some in chances])
    assert [len(hits) for hits in search(2)] == [2, 2]
    assert search.matches([None, None]) == ["good", "weak"]


def test_records_say_what_the_function_says(make_index: Make) -> None:
    index = make_index()
    index.add(TEXTS)
    for _ in range(2):
        queries = ["where are the cats", "document number 3 about fish"]
        records = answer_queries(index, queries, k=3)
        told = collect_warnings(index, queries)
        for record, sentences, hits in zip(records, told, index.search(queries, k=3), strict=True):
            assert record["warnings"] == sentences
            assert record["match"] == judge_match(index.search(record["query"], k=10)[0], record["query"])
            assert [found["chance"] for found in record["results"]] == [one.chance for one in hits]
            assert json.loads(json.dumps(record)) == record
        index.calibrate(n=500)
