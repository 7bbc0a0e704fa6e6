"""Noise hits whole words, in the shares of the article."""

import numpy as np
import pytest

from kexue.text import whole_word_noise


def test_shares_of_words(tokenizer):
    n = 200_000
    words = [[300 + i % 50, 400 + i % 70] for i in range(n)]
    noisy = whole_word_noise(words, tokenizer, generator=0)
    masked = sum(word == [tokenizer.mask_id] * 2 for word in noisy)
    same = sum(a == b for a, b in zip(words, noisy, strict=True))
    assert masked / n == pytest.approx(0.12, abs=4 * (0.12 / n) ** 0.5)
    assert same / n == pytest.approx(0.865, abs=4 * (0.13 / n) ** 0.5)
    assert (n - masked - same) / n == pytest.approx(0.015, abs=4 * (0.015 / n) ** 0.5)


def test_a_word_is_hit_as_a_whole(tokenizer):
    words = [[300 + i, 301 + i, 302 + i] for i in range(3000)]
    for before, after in zip(words, whole_word_noise(words, tokenizer, p=0.5, generator=1), strict=True):
        assert len(after) == 3
        assert sum(a == tokenizer.mask_id for a in after) in (0, 3)
        assert sum(a == b for a, b in zip(before, after, strict=True)) in (0, 1, 3)  # 1: a random token by chance


def test_random_tokens_are_usual_ones(tokenizer):
    noisy = np.ravel(whole_word_noise([[300]] * 400_000, tokenizer, p=1.0, generator=2))
    random = noisy[(noisy != 300) & (noisy != tokenizer.mask_id)]
    special = {tokenizer.pad_id, tokenizer.unknown_id, tokenizer.cls_id, tokenizer.sep_id}
    assert not special & set(random.tolist())
    assert len(set(random.tolist())) > 0.99 * (tokenizer.vocabulary_size - 5)


def test_edges(tokenizer):
    words = [[300, 301], [], [302]]
    assert whole_word_noise(words, tokenizer, p=0, generator=0) == words
    assert whole_word_noise([], tokenizer, generator=0) == []
    generator = np.random.default_rng(5)
    assert whole_word_noise(words * 20, tokenizer, p=1, generator=generator) == whole_word_noise(
        words * 20, tokenizer, p=1, generator=5
    )


def test_bad_input(tokenizer):
    with pytest.raises(ValueError, match=r"p is a share between 0 and 1, got 1\.5"):
        whole_word_noise([[300]], tokenizer, p=1.5, generator=0)
    tokenizer.mask_id = None
    with pytest.raises(ValueError, match=r"no \[MASK\] token"):
        whole_word_noise([[300]], tokenizer, generator=0)
