"""Reranking and explaining: against the distances themselves, on token vectors set by hand."""

from typing import NamedTuple

import numpy as np
import pytest

from kexue.errors import ModelNotFoundError, NotSupported
from kexue.search import CosineReranker, Index, TransportReranker
from kexue.search.rerank import words_of_tokens
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
        with pytest.raises(ModelNotFoundError, match="does not name a cross-encoder") as caught:
            index.search("x", rerank="cross")
        assert "CrossEncoderReranker(folder)" in caught.value.remedy
    with pytest.raises(NotSupported, match="encode_tokens"):
        TransportReranker(object())


def test_pieces_are_named_by_their_word():
    text = "a refund, 退货 now"
    offsets = [(0, 1), (2, 5), (5, 8), (8, 9), (10, 11), (11, 12), (13, 16)]
    assert words_of_tokens(text, offsets) == ["a", "refund", "refund", ",", "退", "货", "now"]
    assert words_of_tokens("", []) == []
    assert words_of_tokens("the refunds come", [(0, 3), (4, 6)]) == ["the", "refunds"]  # read no further than "re"


class ByPiece(ByWord):
    """Words of more than three letters come in pieces of three, as tokenizers take unknown words."""

    def encode_tokens(self, texts):
        found = []
        for text, whole in zip(texts, super().encode_tokens(texts), strict=True):
            offsets = [(at, min(at + 3, end)) for start, end in whole.offsets for at in range(start, end, 3)]
            vectors = np.array([self.vector(f"{at % 7} {text[at:end]}") for at, end in offsets]).reshape(-1, 8)
            found.append(Tokens([text[a:b] for a, b in offsets], offsets, vectors))
        return found


@pytest.mark.parametrize("kind", ["wrd", "wmd"])
@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("refundable purchases", "purchases are refundable whenever purchases arrive"),
        ("退货 refundable", "what is refundable? 退货"),
        ("a", "unbelievably"),
    ],
)
def test_explanations_are_of_whole_words_and_add_up(kind, query, text):
    encoder = ByPiece()
    [score], [reason] = TransportReranker(encoder, kind).rerank(query, [text])
    pieces, others = encoder.encode_tokens([query, text])
    distance = word_rotators_distance if kind == "wrd" else word_movers_distance
    assert reason.distance == pytest.approx(distance(pieces.vectors, others.vectors))
    assert score == pytest.approx(1 - reason.distance if kind == "wrd" else 1 / (1 + reason.distance))
    assert sum(pair.contribution for pair in reason.pairs) == pytest.approx(reason.distance)
    assert sum(pair.mass for pair in reason.pairs) == pytest.approx(1)
    assert all(pair.mass * pair.cost == pytest.approx(pair.contribution) for pair in reason.pairs)
    assert len({(pair.source, pair.target) for pair in reason.pairs}) == len(reason.pairs)
    assert [pair.mass for pair in reason.pairs] == sorted((pair.mass for pair in reason.pairs), reverse=True)
    # Each word carries the weights of its pieces.
    for tokens, said, end in ((pieces, query, "source"), (others, text, "target")):
        weights = np.linalg.norm(tokens.vectors, axis=1) if kind == "wrd" else np.ones(len(tokens.vectors))
        weights /= weights.sum()
        expected: dict[str, float] = {}
        for word, weight in zip(words_of_tokens(said, tokens.offsets), weights, strict=True):
            expected[word] = expected.get(word, 0) + weight
        found: dict[str, float] = {}
        for pair in reason.pairs:
            word = getattr(pair, end)
            found[word] = found.get(word, 0) + pair.mass
        assert found == pytest.approx(expected)


def test_a_long_word_is_cut_and_only_so_much_of_a_text_is_moved():
    encoder = ByPiece()
    word = "A" * 20_000
    [score], [reason] = TransportReranker(encoder).rerank("refund", [f"refund {word}"])
    assert {pair.source for pair in reason.pairs} == {"refund"}
    assert {pair.target for pair in reason.pairs} == {"refund", "A" * 40 + "... (20,000 letters)"}
    # The first 1,024 tokens alone.
    [expected], _ = TransportReranker(encoder).rerank("refund", ["refund " + word[: 3 * 1022]])
    assert score == pytest.approx(expected)


def test_hits_are_explained_also_where_the_reranker_says_nothing(tmp_path):
    encoder = ByWord()
    with Index.create(tmp_path / "i.kx", encoder) as index:
        index.add(TEXTS)
        [hits] = index.search("house red", k=3, rerank=CosineReranker(encoder), explain=True)
        [plain] = index.search("house red", k=3, rerank=CosineReranker(encoder))
        assert [hit._replace(explanation=None) for hit in hits] == plain
        reasons = TransportReranker(encoder).rerank("house red", [hit.text for hit in hits]).explanations
        assert [hit.explanation for hit in hits] == reasons


@pytest.mark.parametrize("candidates", [2, 4, 50])
def test_candidates_beyond_k_are_ranked_again(tmp_path, candidates):
    encoder = ByWord()

    class Backwards:
        def rerank(self, query, documents):
            seen.append(len(documents))
            return list(range(len(documents))), [None] * len(documents)

    seen: list[int] = []
    with Index.create(tmp_path / "i.kx", encoder) as index:
        index.add(TEXTS)
        [plain] = index.search("house red", k=6)
        [hits] = index.search("house red", k=2, rerank=Backwards(), candidates=candidates)
        looked = min(candidates, len(TEXTS))
        assert seen == [looked]
        assert [hit.id for hit in hits] == [hit.id for hit in plain[:looked]][::-1][:2]
