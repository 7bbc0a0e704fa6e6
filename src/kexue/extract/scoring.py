"""Scores of triples: precision, recall and F1 of sets of triples per sentence.

Source: kexue.fm/archives/6671 and 8888, whose two ways to compare strings differ.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.similarity.bootstrap import totals_interval

Match = Literal["string", "tokens"]
_TOKENS = re.compile(r"[^\W_\u2e80-\u9fff\uf900-\ufaff]+|\S")


class TripleScore(NamedTuple):
    """Micro precision, recall and F1 over the sets of triples of all sentences.

    Attributes:
        precision, recall, f1: n_correct / n_pred, n_correct / n_gold and their harmonic mean; 0 where a count is 0.
        n_pred, n_gold, n_correct: numbers of predicted, annotated and correctly predicted triples, in the sets.
        match: how strings were compared.
    """

    precision: float
    recall: float
    f1: float
    n_pred: int
    n_gold: int
    n_correct: int
    match: str


def triple_f1(
    predictions: Sequence[Iterable[Sequence[Any]]], golds: Sequence[Iterable[Sequence[Any]]], *, match: Match = "string"
) -> TripleScore:
    """Compare predicted with annotated triples, sentence by sentence, as sets.

    A triple is its first three fields, (subject, predicate, object), whatever follows, such as spans. Both sides are
    normalised alike: ``"string"``: Unicode NFC, small letters, no space at the ends; ``"tokens"``, as GPLinker
    counts, more leniently: accents and all spaces are left out, too, as by the tokenizer of a BERT. Name the variant
    with every number.

    Args:
        predictions: for each of n sentences its triples.
        golds: the annotated ones, in the same order.
        match: how strings are compared.

    Raises:
        ValueError: different numbers of sentences, another `match`, a triple that is not three strings.

    >>> triple_f1([[("A", "is", "b")]], [[("a", "is", "b"), ("a", "is", "c")]])
    TripleScore(precision=1.0, recall=0.5, f1=0.66..., n_pred=1, n_gold=2, n_correct=1, match='string')
    """
    n_correct, n_pred, n_gold = count_triples(predictions, golds, match=match).sum(0).tolist()
    f1 = 2 * n_correct / (n_pred + n_gold) if n_pred + n_gold else 0.0
    return TripleScore(n_correct / max(n_pred, 1), n_correct / max(n_gold, 1), f1, n_pred, n_gold, n_correct, match)


def triple_f1_interval(
    predictions: Sequence[Iterable[Sequence[Any]]], golds: Sequence[Iterable[Sequence[Any]]], *, match: Match = "string"
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval, over sentences, of the F1 of `triple_f1`, whose arguments it takes.

    Of no sentence it is (0, 0), as the F1.
    """
    counts = count_triples(predictions, golds, match=match)
    if not len(counts):
        return 0.0, 0.0
    return totals_interval(counts, lambda totals: 2 * totals[:, 0] / np.maximum(totals[:, 1] + totals[:, 2], 1))


def count_triples(
    predictions: Sequence[Iterable[Sequence[Any]]], golds: Sequence[Iterable[Sequence[Any]]], *, match: Match
) -> Array:
    """Return the numbers (n, 3) of correct, predicted and annotated triples of each sentence; see `triple_f1`."""
    if match not in ("string", "tokens"):
        raise ValueError(f"match must be 'string' or 'tokens', got {match!r}")
    if len(predictions) != len(golds):
        raise ValueError(f"{len(predictions)} predicted sentences, but {len(golds)} annotated ones")
    normal = normalize if match == "string" else split_tokens
    pairs = [(_as_set(a, normal), _as_set(b, normal)) for a, b in zip(predictions, golds, strict=True)]
    return np.array([(len(a & b), len(a), len(b)) for a, b in pairs], np.int64).reshape(-1, 3)


def _as_set(triples: Iterable[Sequence[Any]], normal: Callable[[str], Any]) -> set[Any]:
    kept = set()
    for triple in triples:
        subject, predicate, object = triple[:3] if not isinstance(triple, str) and len(triple) >= 3 else (None,) * 3
        if not (isinstance(subject, str) and isinstance(predicate, str) and isinstance(object, str)):
            raise ValueError(f"a triple must be (subject, predicate, object), strings, got {triple!r:.80}")
        kept.add((normal(subject), predicate, normal(object)))
    return kept


def normalize(text: str) -> str:
    """Return a text in Unicode NFC and small letters, without space at its ends."""
    return unicodedata.normalize("NFC", text).lower().strip()


def split_tokens(text: str) -> tuple[str, ...]:
    """Return the runs of letters and digits, and the other characters; accents and spaces are left out.

    >>> split_tokens("《Café 2》 ")
    ('《', 'cafe', '2', '》')
    """
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return tuple(_TOKENS.findall(plain))
