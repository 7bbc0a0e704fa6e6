"""BM25 in memory: compared with sums over every document."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kexue.search import postings as module
from kexue.search.lexical import query_terms
from kexue.search.postings import K1, B, Postings, load_postings

WORDS = ["red", "green", "blue", "one", "two", "three", "AB-1", "退货", "货"]


def make(texts: Sequence[str], *, first: int = 0, blocks: int = 1) -> Postings:
    made = Postings()
    for part in np.array_split(np.arange(len(texts)), blocks):
        made.add(part + first, part + 7, [texts[i] for i in part])
    return made


def counts_of(text: str) -> tuple[Counter[int], int]:
    found = module.read_terms([text])
    return Counter(found.terms.tolist()), int(found.lengths[0])


def bm25(texts: Sequence[str], query: str) -> list[float]:
    """Brute force in float64."""
    documents = [counts_of(text) for text in texts]
    n, mean = len(texts), sum(length for _, length in documents) / max(1, len(texts))
    scores = [0.0] * n
    for term in query_terms(query).tolist():
        m = sum(term in counts for counts, _ in documents)
        for i, (counts, length) in enumerate(documents):
            if f := counts[term]:
                norm = K1 * (1 - B + B * length / mean)
                scores[i] += math.log(1 + (n - m + 0.5) / (m + 0.5)) * f * (K1 + 1) / (f + norm)
    return scores


def corpus(n: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 61)
    words = [f"w{i}" for i in range(60)]
    lengths = generator.integers(1, 30, n)
    return [" ".join(generator.choice(words, length, p=weights / weights.sum())) for length in lengths]


def test_scores_are_bm25_and_ties_go_to_the_older() -> None:
    texts = corpus(300)
    made = make(texts, first=1000)
    for query in ("w0", "w3 w40", "w59 w0 w1 w1", "w7 unknown"):
        expected = bm25(texts, query)
        scores, _ = made.search(query, 20)
        order = [i for i in sorted(range(300), key=lambda i: (-round(expected[i], 4), i)) if expected[i] > 0][:20]
        assert np.allclose(scores, [expected[i] for i in order], atol=1e-4)
        assert np.allclose(made.score(query, 3).at(np.arange(1000, 1300)), expected, atol=1e-4)
    same = make(["a b", "c", "a b", "a b"])
    assert same.search("a", 2)[1].tolist() == [0, 2]


def test_only_documents_with_a_term_are_found_and_only_allowed_ones() -> None:
    made = make(["red apple", "green apple", "red pear"])
    assert made.search("red", 9)[1].tolist() == [0, 2]
    assert made.search("red", 9, np.array([1, 2]))[1].tolist() == [2]
    assert made.search("yellow ,", 9)[1].tolist() == []
    assert Postings().search("red", 3)[1].tolist() == []


@pytest.mark.parametrize("long", [1, 30, 150])
def test_leaving_out_frequent_terms_changes_no_answer(monkeypatch: pytest.MonkeyPatch, long: int) -> None:
    texts = corpus(600, seed=3)
    made, pruned = make(texts), make(texts, blocks=3)
    made.remove(np.arange(0, 60, 3))
    pruned.remove(np.arange(0, 60, 3))
    allowed = np.arange(0, 600, 2)
    queries = ["w0 w1 w55", "w58 w2 w0", "w57 w59 w30 w0 w1 w2 w3", "w0", "w1 w0"]
    for query in queries:
        monkeypatch.setattr(module, "_LONG", 1 << 30)
        whole, some = made.score(query, 5), made.score(query, 5, allowed)
        monkeypatch.setattr(module, "_LONG", long)
        for left, right in ((whole, pruned.score(query, 5)), (some, pruned.score(query, 5, allowed))):
            assert left.keys.tolist() == right.keys.tolist()
            assert np.allclose(left.scores, right.scores, atol=1e-5)
            every = np.arange(60, 600)
            assert np.allclose(left.at(every), right.at(every), atol=1e-5)
            assert np.array_equal(left.coverage(every), right.coverage(every))


def rarity(n: int, m: int) -> float:
    return math.log(1 + (n - m + 0.5) / (m + 0.5)) ** 2


def test_coverage_is_the_share_of_squared_weights_codes_twice_and_pairs_half() -> None:
    texts = ["red apple 4711", "red pear", "green pear", "苹果4712"]
    red, apple, code, pair = rarity(4, 2), rarity(4, 1), 2 * rarity(4, 1), 0.5 * rarity(4, 1)
    found = make(texts).score("red apple 4711 苹果 no", 4).coverage(np.arange(4))
    whole = red + apple + code + pair  # so few documents cannot be expected to hold "no"
    assert np.allclose(found, np.array([red + apple + code, red, 0, pair]) / whole, atol=1e-6)


def test_terms_of_another_language_cover_nothing_but_codes_do() -> None:
    made = make([*corpus(300), *["w0 w1 w2 x9 shared"] * 4, "x7"])
    one, code = rarity(305, 4), 2 * rarity(305, 1)
    assert not made.score("ist das nicht hier shared", 5).coverage(np.arange(305)).any()
    found = made.score("ist das nicht hier shared x7", 5).coverage(np.arange(305))
    assert found[304] == pytest.approx(code / (one + code), abs=1e-6)
    assert not found[:304].any()
    assert made.score("shared", 5).coverage(np.array([300]))[0] == pytest.approx(1)


changes = st.lists(
    st.tuples(st.lists(st.lists(st.sampled_from(WORDS), max_size=4), max_size=4), st.sets(st.integers(0, 12))),
    max_size=8,
)


@given(changes, st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
def test_what_came_and_went_leaves_no_trace(steps: list[tuple[list[list[str]], set[int]]], query: list[str]) -> None:
    made, left, key = Postings(), dict[int, str](), 0
    for added, gone in steps:
        texts = {key + i: " ".join(words) for i, words in enumerate(added)}
        made.add(np.array(list(texts), np.int64), np.array(list(texts), np.int64), list(texts.values()))
        made.remove(np.array(sorted(gone), np.int64))
        left = {k: text for k, text in (left | texts).items() if k not in gone}
        key += len(texts)
    fresh = Postings()
    fresh.add(np.array(list(left), np.int64), np.array(list(left), np.int64), list(left.values()))
    found, expected = made.search(" ".join(query), 5), fresh.search(" ".join(query), 5)
    assert found[1].tolist() == expected[1].tolist()
    assert np.array_equal(found[0], expected[0])
    assert (len(made), made.checksums) == (len(left), sum(left))
    assert made.same(fresh)


def test_a_saved_file_holds_the_same(tmp_path: Path) -> None:
    made = make(corpus(50), blocks=4)
    made.remove(np.array([3, 4]))
    made.position = module.Position("epoch", 49, 2, made.checksums)
    made.save(tmp_path / "x-words")
    loaded = load_postings(tmp_path / "x-words")
    assert loaded is not None
    assert loaded.position == made.position
    assert loaded.same(made)
    loaded.add(np.array([90]), np.array([1]), ["w0 new"])
    assert loaded.search("new", 1)[1].tolist() == [90]
    assert not loaded.same(made)


def test_a_file_that_cannot_be_used_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x-words"
    assert load_postings(path) is None
    make(corpus(50)).save(path)
    data = bytearray(path.read_bytes())
    for at in (0, 30, len(data) // 2, len(data) - 1):
        data[at] ^= 1
        path.write_bytes(data)
        assert load_postings(path) is None
        data[at] ^= 1
    path.write_bytes(data[:-9])
    assert load_postings(path) is None
    path.write_bytes(data)
    assert load_postings(path) is not None
    monkeypatch.setattr(module, "TOKENIZER", 0)
    assert load_postings(path) is None
