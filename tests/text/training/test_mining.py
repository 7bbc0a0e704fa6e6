"""Pseudo-pairs against a brute-force count of shared characters."""

import itertools
from collections import Counter

import numpy as np
import pytest

from kexue.text import mine_pairs
from kexue.text.training.mining import char_jaccard

SENTENCES = ["如何申请退货", "怎么申请退货呢", "退货退货退货", "今天天气不错", "天气今天好", "", "!!", "A b", "Ａb c"]


def brute_force(a, b):
    def grams(text):
        text = "".join(one for one in text.lower().replace("Ａ".lower(), "a") if one.isalnum())
        return Counter([*text, *map("".join, itertools.pairwise(text))])

    a, b = grams(a), grams(b)
    either = sum((a | b).values())
    return sum((a & b).values()) / either if either else 0.0


def test_similarity_by_characters_and_pairs_of_them():
    wanted = [[brute_force(a, b) for b in SENTENCES] for a in SENTENCES]
    np.testing.assert_allclose(char_jaccard(SENTENCES), wanted, atol=1e-12)


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_pairs_of_one_group_above_the_threshold(threshold):
    groups = [SENTENCES[:4], SENTENCES[4:], ["今天天气不错"], []]
    wanted = {
        frozenset((a, b))
        for group in groups
        for i, a in enumerate(group)
        for b in group[:i]
        if brute_force(a, b) >= threshold
    }
    pairs = list(mine_pairs(groups, threshold=threshold))
    assert {frozenset(pair) for pair in pairs} == wanted
    assert len(pairs) == len(wanted)


def test_the_same_sentence_is_no_pair():
    assert list(mine_pairs([["怎么退货?", "怎么 退货", "怎么退货", "ＡＢ", "ab!"]], threshold=0.9)) == []


def test_the_generator_decides_the_order_only():
    group = [f"如何申请退货{i}" for i in "一二三四五"]
    first, second, third = (list(mine_pairs([group], generator=seed)) for seed in (0, 0, 1))
    assert first == second != third
    assert {frozenset(pair) for pair in first} == {frozenset(pair) for pair in third}
    assert len(first) == 10


def test_a_similarity_of_ones_own():
    calls = []

    def similarity(sentences):
        calls.append(list(sentences))
        return np.array([[1.0, 0.2, 0.9], [0.2, 1.0, 0.1], [0.9, 0.1, 1.0]])

    [pair] = mine_pairs([["甲", "乙", "丙"]], similarity=similarity, threshold=0.9)
    assert set(pair) == {"甲", "丙"}
    assert calls == [["甲", "乙", "丙"]]


def test_an_unknown_similarity():
    with pytest.raises(ValueError, match="similarity must be 'char_jaccard' or a function, got 'bm25'"):
        list(mine_pairs([["甲"]], similarity="bm25"))
