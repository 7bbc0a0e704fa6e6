"""Modes of a search: which is chosen, and what its hits say."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kexue.search import Index
from kexue.search.fusion import WEIGHT
from kexue.search.modes import choose_mode

Make = Callable[..., Index]
TEXTS = [
    "order AB-1234 was sent",
    "a red apple",
    "a green apple and a pear",
    "退货要多久",
    "parcels arrive in two days",
]


def store(words: bool = True) -> Any:
    return SimpleNamespace(searches_words=words)


def test_auto_is_hybrid_where_that_is_possible() -> None:
    assert choose_mode("auto", store()) == "hybrid"
    assert choose_mode("auto", store(), weight=0.2) == "hybrid"
    assert choose_mode("auto", store(), texts=False) == "dense"
    assert choose_mode("auto", store(words=False)) == "dense"
    assert choose_mode("auto", store(), reorder=True) == "dense"
    assert [choose_mode(mode, store()) for mode in ("dense", "lexical", "hybrid")] == ["dense", "lexical", "hybrid"]


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("sparse", {}, "mode must be one of auto, dense, lexical, hybrid, got 'sparse'"),
        ("hybrid", {"texts": False}, "mode='hybrid' needs queries as texts"),
        ("lexical", {"texts": False}, "mode='lexical' needs queries as texts"),
        ("hybrid", {"reorder": True}, "dehub='csls' .* pass mode='dense'"),
        ("auto", {"weight": 1.5}, "weight must be a number from 0 .* to 1 .*, got 1.5"),
        ("auto", {"weight": float("nan")}, "weight must be"),
        ("dense", {"weight": 0.5}, "weight=0.5 has a meaning only in a hybrid search; this one is dense"),
        ("auto", {"weight": 0.5, "texts": False}, "this one is dense"),
    ],
)
def test_what_is_excluded_says_why(mode: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose_mode(mode, store(), **options)


def test_scores_are_cosines_but_in_lexical_mode_bm25(make_index: Make, encoder: Any, brute: Any) -> None:
    index = make_index(encoder=encoder)
    index.add(TEXTS)
    query = "apple parcels ab1234"
    [cosines] = brute(encoder.encode([query]), encoder.encode(TEXTS))
    for mode in ("auto", "hybrid", "dense"):
        [hits] = index.search(query, mode=mode)
        assert {hit.text: hit.score for hit in hits} == pytest.approx(dict(zip(TEXTS, cosines, strict=True)), abs=1e-6)
    assert index.search(query)[0] == index.search(query, mode="hybrid", weight=WEIGHT)[0]
    assert index.search(query, weight=0.0) == index.search(query, mode="dense")
    [hits] = index.search(query, mode="lexical")
    assert {hit.text for hit in hits} == {TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[4]}
    [matches] = index.store.search_words([query], 9)
    assert [hit.score for hit in hits] == [match.score for match in matches]
    assert index.search("ab1234", 1)[0][0].text == TEXTS[0]


def test_calibrated_meaning_belongs_to_cosines_only(make_index: Make) -> None:
    index = make_index()
    index.add([*TEXTS, *(f"pear {i}" for i in range(50))])
    pairs = [(TEXTS[0], f"apple {i}") for i in range(10)] + [("pear", f"apple {i}") for i in range(10)]
    index.calibrate(pairs=pairs, labels=[1] * 10 + [0] * 10)
    for mode in ("dense", "hybrid"):
        for hit in index.search("apple", mode=mode)[0]:
            assert hit.percentile == pytest.approx(float(index.calibrator.percentile(hit.score)))  # type: ignore[union-attr]
            assert hit.probability is not None
    for hit in index.search("apple", mode="lexical")[0]:
        assert (hit.percentile, hit.chance, hit.probability) == (None, None, None)


def test_lexical_needs_no_encoder(make_index: Make) -> None:
    index = make_index(encoder=None)
    assert index.search("apple", mode="lexical") == [[]]
    index.add(TEXTS, vectors=np.eye(5), metadata=[{"lang": "zh"}] * 5)
    assert [hit.text for hit in index.search("apple", mode="lexical")[0]] == [TEXTS[1], TEXTS[2]]
    assert index.search("apple", 1, mode="lexical", filter={"lang": "en"}) == [[]]


def test_known_vectors_of_texts_are_not_made_again(make_index: Make, encoder: Any) -> None:
    index = make_index(encoder=encoder)
    index.add(TEXTS)
    queries = ["apple", "parcels"]
    vectors = index.encode_queries(queries)
    done = len(encoder.encoded)
    answers = index.search(queries, 3, vectors=vectors)
    assert len(encoder.encoded) == done
    assert answers == index.search(queries, 3)
    with pytest.raises(ValueError, match="one row for each of the 2 queries, got 1"):
        index.search(queries, vectors=vectors[:1])


def test_an_index_corrected_for_hubs_is_searched_with_words(make_index: Make, encoder: Any, brute: Any) -> None:
    index = make_index(encoder=encoder, dehub="csls")
    index.add(TEXTS)
    [hits] = index.search("ab1234")
    assert hits[0].text == TEXTS[0]
    [cosines] = brute(encoder.encode(["ab1234"]), encoder.encode(TEXTS))
    assert {hit.text: hit.score for hit in hits} == pytest.approx(dict(zip(TEXTS, cosines, strict=True)), abs=1e-6)


def test_correction_after_the_search_is_by_meaning(make_index: Make) -> None:
    index = make_index()
    index.add(TEXTS)
    assert index.search("apple", dehub="csls") == index.search("apple", dehub="csls", mode="dense")
    with pytest.raises(ValueError, match="pass mode='dense'"):
        index.search("apple", dehub="csls", mode="hybrid")


def test_hybrid_candidates_are_reranked(make_index: Make) -> None:
    class Reverse:
        def rerank(self, query: str, documents: list[str]) -> tuple[np.ndarray, list[None]]:
            return np.arange(len(documents), dtype=float), [None] * len(documents)

    index = make_index()
    index.add(TEXTS)
    plain = index.search("apple ab1234", 5)[0]
    assert [hit.id for hit in index.search("apple ab1234", 5, rerank=Reverse())[0]] == [hit.id for hit in plain][::-1]
