"""Words of texts, by jieba or by the longest match."""

import random
import sys
import types

import pytest

from kexue.text.training import words
from kexue.text.training.words import choose_splitter, learn_words, split_longest

TEXT = "我要退货iPhone 12_3,Ünal!退款?\n好"


def test_pieces_join_to_the_text():
    generator = random.Random(0)
    for _ in range(100):
        text = "".join(generator.choices(TEXT, k=12))
        assert "".join(split_longest(text, frozenset({"退货", "我要退货", "货退"}))) == text


def test_the_longest_word_is_taken_first():
    assert split_longest("我要退货了", frozenset({"退货", "要退货", "我要"})) == ["我要", "退货", "了"]
    assert split_longest("要退货了", frozenset({"退货", "要退货", "要退"})) == ["要退货", "了"]


def test_words_are_learned_that_stick_together():
    generator = random.Random(1)
    characters = [chr(0x4E00 + i) for i in range(200)]
    texts = [
        "".join(generator.choices(characters, k=30)) + "退货" + "".join(generator.choices(characters, k=30))
        for _ in range(60)
    ]
    assert learn_words(texts) == {"退货"}


def test_jieba_is_used_where_it_is_installed(monkeypatch):
    fake = types.ModuleType("jieba")
    fake.lcut = lambda text: [text[:2], text[2:]]
    monkeypatch.setitem(sys.modules, "jieba", fake)
    monkeypatch.setattr(words, "find_spec", lambda name: object())
    name, split = choose_splitter(())
    assert (name, split("怎么退货")) == ("jieba", ["怎么", "退货"])


def test_characters_are_words_where_nothing_was_learned(monkeypatch):
    monkeypatch.setattr(words, "find_spec", lambda name: None)
    name, split = choose_splitter(())
    assert (name, split("退货AB1")) == ("longest match", ["退", "货", "AB1"])


@pytest.mark.parametrize("text", ["", "!", "中"])
def test_short_texts(text):
    assert split_longest(text, frozenset()) == list(text)
