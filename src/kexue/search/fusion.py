"""Fusion of two searches, by vectors and by words, on one scale: how much evidence each score is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kexue.search.lexical import Places
from kexue.search.products import Scores

WEIGHT = 0.55  # of the words; measured with benchmarks/hybrid.py
TERM_WEIGHTS = np.array([1.0, 2.0, 0.5])  # of words, codes and pairs of characters; each character is in two pairs
_KNOWN = np.array([1.0, 1.0, 0.5])  # share of the terms that large indexes hold; half of the pairs span two words
_VOCABULARY = 1_000  # words of all documents; so many hold half of the words of a query in their language
_PRIOR = 2  # terms as common as expected that are added to those of a query
NEAREST = 100  # documents from which the scale of the inner products is taken


def fuse(
    products: Scores, words: Scores, coverage: Scores, *, nearest: Scores, weight: float
) -> npt.NDArray[np.float64]:
    """Return the evidence that each document answers a query; larger is better.

    The inner products of the nearest documents fall off like an exponential tail: a document whose product is larger
    by their mean excess over the last of them is e times as rare. So ``(product - last) / mean excess`` measures
    evidence in the same unit for every query and model; as ``ln(1 + exp(...))``, since a document that is not among the
    nearest is not proven wrong. The evidence of the words is ``coverage sqrt(10 BM25)``: what a document holds of the
    query, from its rarest terms on, counts more than how often it repeats common ones.

    The coverage of a document is the sum of ``u v^2 trust`` over the terms that it shares with the query, divided by
    the sum of ``u v^2`` over the terms of the query that any document holds: v is the rarity (idf); u is 1 for words, 2
    for codes (their digits mean nothing to a model) and 1/2 for pairs of characters; for `trust` see `trust_terms`. So
    meaning decides where the terms are common or of another language, words where a document holds all the rare ones.

    Args:
        products: inner products (n,) of n documents with the query.
        words, coverage: BM25 (n,) of the same documents, and the share (n,) of the query that each covers.
        nearest: the largest inner products of all documents, largest first; the first 100 are used.
        weight: of the words, in [0, 1].

    >>> holds = np.array([0.0, 0.8], np.float32)
    >>> fuse(np.array([0.9, 0.5]), 10 * holds, holds, nearest=np.array([0.9, 0.5, 0.4]), weight=0.5).round(2).tolist()
    [1.29, 4.06]
    """
    tail = nearest[:NEAREST].astype(np.float64)
    excess = float(np.mean(tail - tail[-1])) or 1.0
    evidence = coverage * np.sqrt(10 * words.astype(np.float64))
    fused: npt.NDArray[np.float64] = (1 - weight) * np.logaddexp(0, (products - tail[-1]) / excess) + weight * evidence
    return fused


def trust_terms(known: Places, asked: Places, length: int) -> npt.NDArray[np.float64]:
    """Return how far terms of each kind can be trusted, from 0 to 1, by how many of them the documents hold.

    Documents of N words in all hold about ``N / (N + 1000)`` of the words of a query in their language, and half as
    many of its pairs of characters. Where they hold as many, the trust is 1; where they hold half of that or less, as
    with a query in another language, it is 0: the few terms that both share say little. A few terms alone do not tell
    the language, so two more are added that are as common as expected: a name beside one unknown word keeps trust.

    Args:
        known, asked: terms of the query that the documents hold, and all, of each kind: words, codes, pairs.
        length: words and paired characters of all documents.

    >>> trust_terms(np.array([2, 1, 4]), np.array([8, 1, 8]), 50_000)
    array([0., 1., 1.])
    """
    expected = _KNOWN * length / (length + _VOCABULARY)
    share = (known + _PRIOR * expected) / (asked + _PRIOR) / np.maximum(expected, np.finfo(np.float64).tiny)
    return np.clip(2 * share - 1, 0.0, 1.0)
