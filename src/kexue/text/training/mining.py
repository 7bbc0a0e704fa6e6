"""Pseudo-pairs: sentences of one group, such as answers to one question, that share most of their characters.

Source: kexue.fm/archives/8454, which does not give its measure and thresholds; those here are ours.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array

Similarity = Callable[[Sequence[str]], np.ndarray]


def mine_pairs(
    groups: Iterable[Sequence[str]],
    *,
    similarity: str | Similarity = "char_jaccard",
    threshold: float = 0.5,
    generator: np.random.Generator | int = 0,
) -> Iterator[tuple[str, str]]:
    """Yield pairs of sentences of one group that are similar, but not the same.

    Sentences are the same if they differ in spaces, punctuation, case or width only. The article takes sentences of
    different answers to one question, and with a higher threshold (0.7, say) those of one passage.

    Args:
        groups: n sentences in each group, of which the same is used once; a group needs memory for n x n numbers.
        similarity: ``"char_jaccard"``: shared over all characters and pairs of characters, each counted as often as
            it occurs; or a function from n sentences to their similarities (n, n).
        threshold: smallest similarity of a pair.
        generator: for the order of a group's pairs and of the two sentences; an int is a fresh generator with that
            seed.

    Raises:
        ValueError: an unknown similarity.

    Example:
        >>> list(mine_pairs([["如何申请退货?", "如何申请退货", "如何申请退款?", "今天下雨"]]))
        [('如何申请退款?', '如何申请退货?')]
    """
    if similarity == "char_jaccard":
        measure: Similarity = char_jaccard
    elif isinstance(similarity, str):
        raise ValueError(f"similarity must be 'char_jaccard' or a function, got {similarity!r}")
    else:
        measure = similarity
    random = np.random.default_rng(generator)
    for group in groups:
        sentences = list({_plain(text): text for text in reversed(group) if _plain(text)}.values())[::-1]
        if len(sentences) < 2:
            continue
        first, second = np.nonzero(np.triu(measure(sentences) >= threshold, k=1))
        for i in random.permutation(len(first)):
            pair = sentences[first[i]], sentences[second[i]]
            yield pair if random.random() < 0.5 else pair[::-1]


def char_jaccard(sentences: Sequence[str]) -> np.ndarray:
    """Return the similarities (n, n) of sentences by their characters and pairs of characters.

    With c_a(g) the number of times that g, one or two characters, stands in a,

        J(a, b) = sum_g min(c_a(g), c_b(g)) / sum_g max(c_a(g), c_b(g)),

    spaces, punctuation, case and width apart; 0 where both have none.
    """
    numbers: dict[tuple[str, int], int] = {}
    rows, columns = [], []
    for row, sentence in enumerate(sentences):
        text = _plain(sentence)
        grams = Counter((*text, *(text[i : i + 2] for i in range(len(text) - 1))))
        # the k-th occurrence of a gram is an element of its own, so the shared ones of two multisets are counted
        elements = [(gram, k) for gram, count in grams.items() for k in range(count)]
        columns += [numbers.setdefault(element, len(numbers)) for element in elements]
        rows += [row] * len(elements)
    shape = len(sentences), max(1, len(numbers))
    sets = csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    shared = (sets @ sets.T).toarray()
    sizes = shared.diagonal()
    either = sizes[:, None] + sizes - shared
    return np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)


def _plain(text: str) -> str:
    """Return a text without spaces, punctuation, case and width."""
    normal = unicodedata.normalize("NFKC", text).casefold()
    return "".join(one for one in normal if unicodedata.category(one)[0] not in "ZPC")
