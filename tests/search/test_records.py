"""Records of answers: stages against a fake clock, what is encoded and searched counted, and one prompt per role."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kexue.search import records
from kexue.search.encoding import encode_texts
from kexue.search.ranking import Hit, Passage
from kexue.search.records import Stopwatch, hit_record, search_record
from kexue.similarity import ExplainedPair, Explanation, Probability
from kexue.text.roles import choose_prompt

TEXTS = ["a red house", "the blue car drives", "music plays", "blue music", "red car"]


@pytest.fixture
def clock(fake_clock: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(records, "time", fake_clock)
    return fake_clock


def test_a_stopwatch_gives_each_stage_what_the_clock_gave(clock: Any) -> None:
    watch = Stopwatch()
    for stage, seconds in (("encode", 4.0), ("search", 0.5), ("rerank", 0.0)):
        clock.now += seconds
        watch.lap(stage)
    clock.now += 8
    assert watch.seconds() == {"encode": 4.0, "search": 0.5, "rerank": 0.0, "total": 12.5}


class Counting:
    """An encoder of bags of letters, with tokens, that counts its texts."""

    model_id, fingerprint, dim = "letters", "a" * 64, 26
    encoded = 0
    read = 0

    def encode(self, texts: list[str]) -> np.ndarray:
        self.encoded += len(texts)
        return np.array([[text.count(chr(97 + i)) + 0.01 * (i == 0) for i in range(26)] for text in texts], np.float32)

    def encode_tokens(self, texts: list[str]) -> list[Any]:
        self.read += len(texts)
        tokens = []
        for text in texts:
            words = text.split()
            ends = np.cumsum([len(word) + 1 for word in words]) - 1
            offsets = [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]
            vectors = np.array([np.random.default_rng(list(word.encode())).normal(size=6) for word in words])
            tokens.append(SimpleNamespace(tokens=words, offsets=offsets, vectors=vectors))
        return tokens


@pytest.mark.parametrize("options", [{"rerank": "wrd"}, {"rerank": "wmd", "explain": True}, {"explain": True}], ids=str)
def test_reranking_and_explaining_encode_and_search_once(make_index: Any, monkeypatch: Any, options: Any) -> None:
    encoder = Counting()
    index = make_index(encoder=encoder)
    index.add(TEXTS)
    encoder.encoded, searches = 0, []
    search = index.store.search
    monkeypatch.setattr(index.store, "search", lambda *a, **k: searches.append(k) or search(*a, **k))
    whole = index.search("blue car", 3, **options)
    assert (encoder.encoded, len(searches), encoder.read) == (1, 1, 1 + (5 if "rerank" in options else 3))
    vectors = index.encode_queries(["blue car"])
    assert index.rerank(["blue car"], index.search(vectors, 5), 3, **options) == whole, "stage by stage it is the same"


HIT = Hit("7", "a text", 0.5, 99.0, None, None, None, {"n": 1}, None)
MOVES = (ExplainedPair("a", "b", 1.0, 0.25, 0.25),)


def test_a_hit_as_a_record() -> None:
    record = hit_record(HIT, "faq")
    assert record == {
        "id": "7",
        "index": "faq",
        "score": 0.5,
        "percentile": 99.0,
        "chance": None,
        "probability": None,
        "passage": None,
        "document": {"text": "a text", "metadata": {"n": 1}},
        "explanation": None,
    }
    sparse = hit_record(HIT, "faq", sparse=True)
    assert sparse == {
        name: value for name, value in record.items() if name not in ("probability", "passage", "explanation")
    }
    full = HIT._replace(
        probability=Probability(0.5, 0.4, 0.6),
        passage=Passage(2, 6, "text"),
        explanation=Explanation(0.25, "wrd", MOVES),
    )
    assert hit_record(full, "faq") == hit_record(full, "faq", sparse=True)
    assert hit_record(full, "faq")["explanation"] == {
        "distance": 0.25,
        "kind": "wrd",
        "pairs": [{"source": "a", "target": "b", "mass": 1.0, "cost": 0.25, "contribution": 0.25}],
    }
    assert hit_record(full, "faq")["passage"] == {"start": 2, "end": 6, "text": "text", "location": None}
    assert hit_record(full, "faq")["probability"] == {"value": 0.5, "low": 0.4, "high": 0.6}


def test_hits_of_a_query_as_a_record() -> None:
    record = search_record([HIT], "faq", mode="hybrid", tokens=4, seconds={"total": 1.0}, warnings=["cut"])
    assert record["results"] == [hit_record(HIT, "faq")]
    assert record["mode"] == "hybrid"
    assert record["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert (record["timings"], record["warnings"]) == ({"total": 1.0}, ["cut"])


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (None, [None, None, None]),
        ({}, [None, None, None]),
        ({"query": "q: ", "document": "d: ", "passage": "p: "}, ["query", "document", "query"]),
        ({"passage": "p: "}, [None, "passage", None]),
    ],
    ids=str,
)
def test_a_role_has_one_prompt(prompts: dict[str, str] | None, expected: list[str | None]) -> None:
    asked: list[str | None] = []

    class Encoder:
        def encode(self, texts: list[str], *, prompt_name: str | None = None) -> np.ndarray:
            asked.append(prompt_name)
            return np.ones((len(texts), 2))

    encoder = Encoder()
    if prompts is not None:
        encoder.prompts = prompts  # type: ignore[attr-defined]
    assert [choose_prompt(encoder, role) for role in ("query", "document", "pair")] == expected  # type: ignore[arg-type]
    for role in ("query", "document", "pair"):
        assert encode_texts(encoder, ["a", "b"], role).shape == (2, 2)  # type: ignore[arg-type]
    assert asked == expected
