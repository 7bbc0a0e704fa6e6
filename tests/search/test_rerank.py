"""Reranking and explaining: against the distances themselves, on token vectors set by hand."""

from typing import NamedTuple

import numpy as np
import pytest

from kexue.errors import ModelNotFoundError, NotSupported
from kexue.search import CosineReranker, Index, TransportReranker
from kexue.search.rerank import surface
from kexue.similarity import word_movers_distance, word_rotators_distance


class Tokens(NamedTuple):
    tokens: list[str]
    offsets: list[tuple[int, int]]
    vectors: np.ndarray


class ByWord:
    """Every word has a random vector of its own; a sentence is their mean."""

    model_id, fingerprint, dim = "by-word", "f" * 64, 8

    def vector(self, word):
        return np.random.default_rng(list(word.encode())).normal(size=8)

    def encode(self, texts):
        return np.array([np.mean([self.vector(w) for w in t.split()], axis=0) for t in texts], dtype=np.float32)

    def encode_tokens(self, texts):
        found = []
        for text in texts:
            words, offsets, at = text.split(), [], 0
            for word in words:
                start = text.index(word, at)
                offsets.append((start, at := start + len(word)))
            found.append(Tokens(words, offsets, np.array([self.vector(w) for w in words]).reshape(len(words), 8)))
        return found


TEXTS = ["a red house", "red house", "the blue car drives", "a house is red", "music plays", "blue music"]


@pytest.mark.parametrize("kind", ["wrd", "wmd"])
def test_scores_are_those_of_the_distance(kind):
    encoder = ByWord()
    scores, explanations = TransportReranker(encoder, kind).rerank("red house", TEXTS)
    asked, *given = (one.vectors for one in encoder.encode_tokens(["red house", *TEXTS]))
    distance = word_rotators_distance if kind == "wrd" else word_movers_distance
    distances = np.array([distance(asked, vectors) for vectors in given])
    np.testing.assert_allclose(scores, 1 - distances if kind == "wrd" else 1 / (1 + distances), atol=1e-9)
    for reason, expected in zip(explanations, distances, strict=True):
        assert sum(pair.contribution for pair in reason.pairs) == pytest.approx(expected, abs=1e-9)
    assert explanations[0].pairs[0].source in ("red", "house")


def test_search_orders_candidates_by_the_reranker(tmp_path):
    encoder = ByWord()
    with Index.create(tmp_path / "i.kx", encoder) as index:
        index.add(TEXTS)
        [plain] = index.search("house red", k=6)
        [again] = index.search("house red", k=6, rerank="wrd", explain=True)
        scores, _ = TransportReranker(encoder).rerank("house red", [hit.text for hit in plain])
        order = np.argsort(-scores, kind="stable")
        assert [hit.text for hit in again] == [plain[i].text for i in order]
        np.testing.assert_allclose([hit.score for hit in again], scores[order])
        assert again[0].text == "red house"
        assert all(hit.explanation.kind == "wrd" for hit in again)
        # Explaining alone changes neither order nor score.
        [explained] = index.search("house red", k=3, explain=True)
        assert [hit._replace(explanation=None) for hit in explained] == plain[:3]
        assert [hit.explanation.distance for hit in explained] == pytest.approx(1 - scores[:3])
        # Only the nearest candidates are looked at again.
        [few] = index.search("house red", k=2, rerank="wrd", candidates=2)
        assert {hit.text for hit in few} == {hit.text for hit in plain[:2]}
        assert [hit.text for hit in index.search("house red", k=6, rerank=CosineReranker(encoder))[0]] == [
            hit.text for hit in plain
        ]


def test_bad_use_is_named(tmp_path):
    with Index.create(tmp_path / "i.kx", ByWord()) as index:
        assert index.search("x", rerank="wrd") == [[]]
        index.add(TEXTS)
        with pytest.raises(ValueError, match="as text"):
            index.search(np.ones((1, 8)), explain=True)
        with pytest.raises(ValueError, match="wmd"):
            index.search("x", rerank="bm25")
        with pytest.raises(TypeError, match="rerank"):
            index.search("x", rerank=3)
        with pytest.raises(ModelNotFoundError, match="does not say which cross-encoder") as caught:
            index.search("x", rerank="cross")
        assert "CrossEncoderReranker(folder)" in caught.value.remedy
    with pytest.raises(NotSupported, match="encode_tokens"):
        TransportReranker(object())


def test_pieces_are_named_by_their_word():
    text = "a refund, 退货 now"
    offsets = [(0, 1), (2, 5), (5, 8), (8, 9), (10, 11), (11, 12), (13, 16)]
    assert surface(text, offsets) == ["a", "refund", "refund", ",", "退", "货", "now"]
    assert surface("", []) == []
