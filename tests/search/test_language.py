"""Guess of a language, and unrelated queries in it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kexue.search.language import guess_language, guess_main_language, name_language
from kexue.search.unrelated import find_answered, sample_queries, shuffle_words


@pytest.mark.parametrize("language", sample_queries())
def test_every_sample_is_of_its_language_as_far_as_it_shows(language: str) -> None:
    queries = sample_queries()[language]
    assert guess_main_language(queries) == language
    others = [text for text in queries if guess_language(text) not in (language, None)]
    assert others == []
    assert len(set(queries)) == len(queries) >= 40
    assert name_language(language) != language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("", None), ("42 + 7", None), ("pizza", None), ("die hard", None), ("how", "en"), ("한국어 문장", "ko"),
        ("ความหมาย", "thai"), ("日本の天気", "ja"), ("用 pandas 读取 CSV", "zh"), ("the Greek letter λ", "en"),
        ("was ist das", "de"), ("où est la gare et le train", "fr"), ("¿dónde está el tren y cuándo?", "es"),
    ],
)  # fmt: skip
def test_language_of_a_text(text: str, language: str | None) -> None:
    assert guess_language(text) == language


def test_mixed_words_are_words_of_the_texts_and_no_text() -> None:
    texts = [f"alpha{i} beta{i} gamma{i}" for i in range(50)]
    words = {word for text in texts for word in text.split()}
    queries = shuffle_words(texts, 200, np.random.default_rng(0))
    assert queries == shuffle_words(texts, 200, np.random.default_rng(0))
    assert len(queries) == 200
    for query in queries:
        assert set(query.split()) <= words
        assert 3 <= len(query.split()) <= 9
    assert not any(query in text for query in queries for text in texts)
    chinese = shuffle_words(["怎么办理信用卡", "退货款多久到账户"], 50, np.random.default_rng(0))
    assert all(re.fullmatch("[\u4e00-\u9fff]{6,18}", query) for query in chinese)
    assert shuffle_words([], 5, np.random.default_rng(0)) == shuffle_words(["..."], 5, np.random.default_rng(0)) == []


def test_answers_stand_out_and_others_hardly_ever() -> None:
    draws = np.random.default_rng(0).gumbel(size=(400, 150))
    # P(above the upper quartile by three interquartile ranges) is 0.0026 for the Gumbel distribution.
    assert np.mean([find_answered(row).mean() for row in draws]) == pytest.approx(0.0026, abs=0.001)
    for row in draws[:50]:
        row[:15] = 25.0
        assert find_answered(row)[:15].all()
    assert not find_answered(np.full(10, 0.3)).any()
