"""Splitting of texts: laws that hold for every text, and where people would cut."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kexue.text import Encoder
from kexue.text.passages import split_text

WORDS = [
    "the",
    "Dr.",
    "3.14",
    "end.",
    "Ja!",
    "你好",
    "。",
    "，",
    "\n",
    "\n\n",
    "e\u0301te\u0301",
    "👩‍👩‍👧",
    "🇫🇷🇩🇪",
    "a" * 30,
    " ",
]


def offsets(text: str) -> list[tuple[int, int]]:
    """Runs of Latin letters in pieces of up to four, every other visible character by itself."""
    found = re.finditer(r"[A-Za-z0-9]{1,4}|[^\sA-Za-z0-9]", text)
    return [(match.start(), match.end()) for match in found]


def split(text: str, tokens: int, overlap: int = 0) -> list[str]:
    return [text[start:end] for start, end in split_text(text, offsets(text), tokens, overlap)]


def count(text: str, span: tuple[int, int]) -> int:
    return sum(span[0] <= start < span[1] for start, _ in offsets(text))


@given(st.lists(st.sampled_from(WORDS), max_size=80), st.integers(1, 12), st.data())
def test_passages_cover_the_text_within_the_limit(words: list[str], tokens: int, data: st.DataObject) -> None:
    text = " ".join(words)
    overlap = data.draw(st.integers(0, tokens // 2))
    spans = split_text(text, offsets(text), tokens, overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    for (start, end), (later, last) in pairwise(spans):
        assert start < later <= end < last
        assert count(text, (later, end)) <= overlap
        assert overlap or later == end
    if len(offsets(text)) > 0:
        assert all(1 <= count(text, span) <= tokens for span in spans)
    if len(offsets(text)) <= tokens:
        assert spans == [(0, len(text))]


@given(st.lists(st.sampled_from(WORDS), max_size=60), st.integers(8, 14), st.integers(0, 4))
def test_no_character_is_cut_where_a_window_holds_it(words: list[str], tokens: int, overlap: int) -> None:
    text = " ".join(words)
    for start, end in split_text(text, offsets(text), tokens, overlap):
        for at in (start, end):
            if 0 < at < len(text):
                assert text[at] not in "\u0301\u200d"
                assert text[at - 1] != "\u200d"
                assert not re.search("(?<![🇦-🇿])([🇦-🇿]{2})*[🇦-🇿]$", text[:at]), "half a flag"


@given(st.integers(0, 400), st.integers(1, 40), st.data())
def test_tokens_that_share_a_character_stay_together(n: int, tokens: int, data: st.DataObject) -> None:
    """Byte-level vocabularies make up to four tokens of one character."""
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
    text = "字" * n
    places = [(at, at + 1) for at, size in enumerate(sizes) for _ in range(size)]
    spans = split_text(text, places, tokens)
    assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]
    for start, end in spans:
        assert sum(sizes[start:end]) <= max(tokens, 3)


@pytest.mark.parametrize(
    ("text", "tokens", "first"),
    [
        ("One two three.\n\nTwo two. Six two. One two three", 8, "One two three.\n\n"),
        ("One two six one\nTwo two. Six two. One two", 8, "One two six one\n"),
        ("One two six. Two six. One two six two", 8, "One two six. Two six. "),
        ("One two six, two six, one two six", 7, "One two six, two six, "),
        ("他来了。我走了！好吗？是的，好的，没有问题，再见", 9, "他来了。我走了！"),
        ("她说：“好。”然后他走了，没有回来。", 8, "她说：“好。”"),
        ('She said "no." Then he left it', 8, 'She said "no." '),
        ("short " + "x" * 40, 4, "short "),
    ],
)
def test_cuts_where_a_reader_would(text: str, tokens: int, first: str) -> None:
    assert split(text, tokens)[0] == first


@pytest.mark.parametrize("text", ["By J. Smith", "Dr. Who", "At 3.14 km", "U.S. Army", "Say no. 5", "Ask etc. and"])
def test_abbreviations_initials_and_decimals_end_no_sentence(text: str) -> None:
    """Two sentence ends are within reach; the one inside the phrase would be later, and is not taken."""
    padded = f"One and two. {text} and more words"
    assert split(padded, 8)[0] == "One and two. "


def test_overlap_repeats_whole_sentences_where_it_can() -> None:
    assert split("One two six. Four five. Six nine. Ten two one two", 9, 4)[:2] == [
        "One two six. Four five. ",
        "Four five. Six nine. ",
    ]
    assert split("one two six four five six nine ten two", 5, 2)[:2] == [
        "one two six four five ",
        "four five six nine ten ",
    ]


def test_a_short_rest_is_not_left_alone() -> None:
    text = " ".join(f"w{i}" for i in range(41))
    sizes = [len(passage.split()) for passage in split(text, 20)]
    assert max(sizes) <= 20
    assert min(sizes) >= 5


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="tokens must be >= 1, got 0"):
        split_text("a", [(0, 1)], 0)
    for overlap in (-1, 3):
        with pytest.raises(ValueError, match=f"half of the 5 tokens of a passage, got {overlap}"):
            split_text("a", [(0, 1)], 5, overlap)


def test_a_large_text_takes_time_in_proportion() -> None:
    text = "word " * 100_000
    places = np.stack([np.arange(0, len(text), 5), np.arange(4, len(text) + 4, 5)], axis=1)
    assert len(split_text(text, places, 250)) == 400


# With the tokens of a model

LONG = (
    "Dr. Smith measured 3.14 metres. The old man runs in the park, and the girl reads! "
    "他今天没有来。明天会来吗？会的，一定会来的。\n\nUnaffable antidisestablishmentarianism 👩‍👩‍👧 é.\n" * 12
)


def check_split(encoder: Encoder, texts: list[str], tokens: int | None, overlap: int, prompt: str | None) -> None:
    """Every passage is read whole after the prompt, and together they are the text."""
    room = encoder.max_length - encoder.count_tokens([encoder.prompts[prompt] if prompt else ""])[0]
    found = encoder.split(texts, tokens, overlap, prompt_name=prompt)
    for text, spans in zip(texts, found, strict=True):
        passages = [text[start:end] for start, end in spans]
        assert encoder.tokenize(passages, prompt_name=prompt).truncated == 0
        assert all(size - 2 <= min(tokens or room, room) for size in encoder.count_tokens(passages))
        assert spans[0][0] == 0
        assert spans[-1][1] == len(text)
        assert all(start < later <= end < last for (start, end), (later, last) in pairwise(spans))
        if encoder.tokenize([text], prompt_name=prompt).truncated == 0 and tokens is None:
            assert spans == [(0, len(text))]


@pytest.mark.filterwarnings("ignore:.* of the tokens are unknown")
@pytest.mark.parametrize(("tokens", "overlap"), [(None, 0), (5, 0), (10, 3)])
@pytest.mark.parametrize("prompt", [None, "document"])
def test_passages_of_a_model_are_read_whole(
    tiny_model: Path, tokens: int | None, overlap: int, prompt: str | None
) -> None:
    encoder = Encoder(tiny_model)
    check_split(encoder, [LONG, "short", "", "x" * 3000, "的" * 500, LONG * 3], tokens, overlap, prompt)


@pytest.mark.multilingual
def test_passages_of_the_multilingual_model_are_read_whole() -> None:
    encoder = Encoder("multilingual-e5-small", max_length=64)
    for tokens, overlap in ((None, 0), (20, 5)):
        check_split(encoder, [LONG, "短", "这是一个没有任何标点符号的很长的句子" * 40], tokens, overlap, "passage")


def test_a_text_read_in_parts_has_the_same_tokens(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tiny_model)
    whole = encoder.split([LONG * 4], 12, 2)
    monkeypatch.setattr("kexue.text.tokenizer._PART", 100)
    assert encoder.split([LONG * 4], 12, 2) == whole


def test_more_tokens_than_the_model_reads_are_refused(tiny_model: Path) -> None:
    encoder = Encoder(tiny_model, max_length=16)
    for tokens in (0, 15, 100):
        with pytest.raises(ValueError, match=f"between 1 and 14 tokens.*got {tokens}"):
            encoder.split(["text"], tokens)
    with pytest.raises(ValueError, match="unknown prompt"):
        encoder.split(["text"], prompt_name="none")
    assert encoder.split([]) == []
