"""Noise on whole words: of a text that is read, words are masked or replaced, and the text to be written stays clean.

Source: kexue.fm/archives/8454.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kexue.text.tokenizer import TextTokenizer


def whole_word_noise(
    words: Sequence[Sequence[int]], vocabulary: TextTokenizer, *, p: float = 0.15, generator: np.random.Generator | int
) -> list[list[int]]:
    """Return words with noise: of all words, 0.8 p are masked, 0.1 p are replaced at random, the rest stays.

    A word is hit as a whole: each of its tokens becomes [MASK], or each another random token; a word's length stays.
    (Another 0.1 p are drawn and kept, as in BERT.)

    Args:
        words: token ids of each word.
        vocabulary: tokenizer that has a [MASK]; random tokens are any of it but the special ones.
        p: share of words drawn, in [0, 1].
        generator: for the draws; an int is a fresh generator with that seed.

    Raises:
        ValueError: `p` outside [0, 1], or a tokenizer without [MASK].

    Example:
        >>> whole_word_noise([[6, 7], [8]], tokenizer, p=1.0, generator=0)  # doctest: +SKIP
        [[4, 4], [4]]
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p is a share between 0 and 1, got {p}")
    sizes = np.fromiter(map(len, words), np.int64, len(words))
    if not sizes.sum():
        return [list(word) for word in words]
    ids = np.concatenate([np.asarray(word, dtype=np.int64) for word in words])
    numbers = np.repeat(np.arange(len(words)), sizes)
    changed = corrupt(ids, numbers, vocabulary, p, np.random.default_rng(generator))
    return [part.tolist() for part in np.split(changed, np.cumsum(sizes)[:-1])]


def corrupt(
    ids: np.ndarray, words: np.ndarray, vocabulary: TextTokenizer, p: float, generator: np.random.Generator
) -> np.ndarray:
    """Return token ids with the noise of `whole_word_noise`.

    Args:
        ids: (n,) token ids.
        words: (n,) number of each token's word, or -1 for a token that stays.
        vocabulary, p, generator: as of `whole_word_noise`.
    """
    if vocabulary.mask_id is None:
        raise ValueError("this tokenizer has no [MASK] token, which noise needs; use noise=0.")
    drawn = generator.random(int(words.max(initial=-1)) + 1)[words]  # a token of word -1 is put right below
    drawn[words < 0] = 1.0
    changed = np.where(drawn < 0.8 * p, vocabulary.mask_id, ids)
    random = (drawn >= 0.9 * p) & (drawn < p)
    changed[random] = generator.choice(_usual_ids(vocabulary), int(random.sum()))
    return changed


def _usual_ids(vocabulary: TextTokenizer) -> np.ndarray:
    """Return the ids of all tokens that are not special."""
    special = (vocabulary.pad_id, vocabulary.unknown_id, vocabulary.mask_id, vocabulary.cls_id, vocabulary.sep_id)
    return np.setdiff1d(np.arange(vocabulary.vocabulary_size), [one for one in special if one is not None])
