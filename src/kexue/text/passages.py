"""Long texts split into passages: at paragraphs, else sentences, else words, each within a number of tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import islice
from typing import Protocol

import numpy as np

Span = tuple[int, int]
_BLANK_LINE, _LINE, _SENTENCE, _WORD, _PIECE, _CLUSTER = 5, 4, 3, 2, 1, 0  # ranks of a border, best first
_STOPS = "。！？；…｡؟۔।॥"  # end a sentence whatever follows
_LATIN_STOPS = ".!?．"  # end a sentence before a space, or before Chinese
_CLOSERS = "\"'”’»›)]}）】〕」』》〉"
_ABBREVIATIONS = re.compile(
    r"mrs?|ms|dr|prof|st|jr|sr|inc|ltd|co|corp|vs|etc|cf|al|figs?|eq|vol|pp|eds?|approx|resp|ca|dept|est|e\.g|i\.e|u\.s|"
    r"u\.k|a\.m|p\.m|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|bzw|usw|z\.b|d\.h|bspw|[^\W\d_]"
)
_BEFORE_NUMBER = frozenset(("no", "nos", "nr"))  # abbreviations only there
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘]+$")
_CHUNK = 256  # long texts tokenised at a time
_CHINESE = 0x2E80  # first code point of the scripts that are written without spaces


def split_text(text: str, offsets: Sequence[Span] | np.ndarray, tokens: int, overlap: int = 0) -> list[Span]:
    """Split a text into passages of at most `tokens` tokens.

    A passage ends at the last border of the best kind in the second half of what it may hold: a blank line, a line end,
    the end of a sentence, or a word. A word is only cut where it is longer than a passage, and a character with its
    accents or an emoji with its parts only where that is. No passage is shorter than a quarter of `tokens`, if it can
    be avoided.

    Args:
        text: the text.
        offsets: (t, 2) characters of each token, from start to end, in order, special tokens left out.
        tokens: tokens of a passage, >= 1.
        overlap: tokens that a passage may repeat of the one before, in whole sentences or else words; 0 to half of
            `tokens`.

    Returns:
        Passages as characters (start, end), in order. They cover the text: each begins at the end of the one before,
        or within it.

    >>> text = "One. Two three. Four five"
    >>> spans = split_text(text, [(m.start(), m.end()) for m in re.finditer(r"\\w+|\\.", text)], 4)
    >>> [text[start:end] for start, end in spans]
    ['One. ', 'Two three. ', 'Four five']

    Cost: O(t).
    """
    if tokens < 1:
        raise ValueError(f"tokens must be >= 1, got {tokens}.")
    if not 0 <= overlap <= tokens // 2:
        raise ValueError(f"overlap must be between 0 and half of the {tokens} tokens of a passage, got {overlap}.")
    borders = _Borders(text, np.asarray(offsets, np.int64).reshape(-1, 2))
    n = borders.n
    spans, first, stop = [], 0, 0
    while n - first > tokens:
        end = borders.choose_end(first, stop, min(first + tokens, n - tokens // 4))
        if end >= n:
            break
        if first < stop and borders.rank(end) == _CLUSTER:  # what is repeated leaves no room for a whole character
            first = stop
            continue
        spans.append((borders.place(first), borders.place(end)))
        first, stop = borders.choose_start(max(first + 1, end - overlap), end), end
    return [*spans, (borders.place(first), len(text))]


class SupportsOffsets(Protocol):
    """A tokenizer, as far as texts are split with it; `kexue.text.tokenizer.TextTokenizer` is one."""

    def read_offsets(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the characters (t, 2) of all tokens of each text, special ones left out."""
        ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number t of these tokens of each text."""
        ...


def split_texts(texts: Sequence[str], tokenizer: SupportsOffsets, tokens: int, overlap: int = 0) -> list[list[Span]]:
    """Split each text that has more than `tokens` tokens; see `split_text`.

    A passage may have other tokens by itself than within its text. They are counted again, and a text with a passage of
    too many is split into shorter ones.

    Args:
        texts: n texts.
        tokenizer: reads the tokens.
        tokens, overlap: as in `split_text`.

    Returns:
        The passages of each text; one, the whole text, where it is short.
    """
    spans = [[(0, len(text))] for text in texts]
    long = [place for place, text in enumerate(texts) if len(text.encode("utf-8", "surrogatepass")) > tokens]
    for start in range(0, len(long), _CHUNK):
        some = long[start : start + _CHUNK]
        read = tokenizer.read_offsets([texts[place] for place in some])
        left = {place: (offsets, tokens) for place, offsets in zip(some, read, strict=True) if len(offsets) > tokens}
        while left:
            for place, (offsets, limit) in left.items():
                spans[place] = split_text(texts[place], offsets, limit, min(overlap, limit // 2))
            counts = iter(tokenizer.count([texts[place][a:b] for place in left for a, b in spans[place]]))
            excess = {place: max(islice(counts, len(spans[place]))) - tokens for place in left}
            left = {
                place: (offsets, limit - excess[place])
                for place, (offsets, limit) in left.items()
                if 0 < excess[place] < limit
            }
    return spans


class _Borders:
    """Places between the tokens of a text where it can be cut: border i is before token i.

    Args:
        text: the text.
        offsets: (n, 2) characters of each token.
    """

    def __init__(self, text: str, offsets: np.ndarray) -> None:
        self._text = text
        self.n = len(offsets)
        self._starts = np.maximum.accumulate(offsets[:, 0]).tolist()
        self._ends = offsets[:, 1].tolist()

    def place(self, border: int) -> int:
        """Return the character before which a border is."""
        return int(self._starts[border]) if border else 0

    def choose_end(self, first: int, stop: int, last: int) -> int:
        """Return the best border for the end of a passage that begins at `first`, after `stop` and up to `last`.

        A later one is returned where several tokens share a character.
        """
        least = max(first, stop) + 1
        half = max(least, first + (last - first + 1) // 2)
        found, best = max((self.rank(border), border) for border in range(half, last + 1))
        if found < _WORD and half > least:
            found, best = max((found, best), *((self.rank(border), border) for border in range(least, half)))
        while best > least and self._starts[best - 1] == self._starts[best]:
            best -= 1
        while best < self.n and self._starts[best] <= self._starts[least - 1]:
            best += 1
        return best

    def choose_start(self, first: int, stop: int) -> int:
        """Return the first of the best borders from `first` on, before `stop`; `stop` where there is none."""
        found, best = max(((self.rank(border), -border) for border in range(first, stop)), default=(_CLUSTER, 0))
        return -best if found >= _WORD else stop

    def rank(self, border: int) -> int:
        """Return the kind of a border."""
        text, at = self._text, self._starts[border]
        if at <= self._starts[border - 1] or _is_within_cluster(text, at):
            return _CLUSTER
        lines = text.count("\n", self._ends[border - 1], at)
        if lines:
            return _BLANK_LINE if lines > 1 else _LINE
        if _ends_sentence(text, at):
            return _SENTENCE
        inside = text[at - 1].isalnum() and text[at].isalnum() and ord(text[at - 1]) < _CHINESE > ord(text[at])
        return _PIECE if inside else _WORD


def _ends_sentence(text: str, at: int) -> bool:
    """Whether a sentence ends before the character `at`: not after an abbreviation, an initial or within a number."""
    end = at
    while end and text[end - 1].isspace():
        end -= 1
    spaced = end < at
    mark = end
    while mark and text[mark - 1] in _CLOSERS:
        mark -= 1
    if not mark or text[at] in _CLOSERS or text[at] in _STOPS or text[at] in _LATIN_STOPS:
        return False
    stop = text[mark - 1]
    if stop in _STOPS:
        return True
    if stop not in _LATIN_STOPS or text[at].islower() or not (spaced or ord(text[at]) >= _CHINESE):
        return False
    if stop != "." or not spaced:
        return True
    found = _LAST_WORD.search(text, max(0, mark - 40), mark - 1)
    word = "" if found is None else found[0].lower()
    if word in _BEFORE_NUMBER:
        return not text[at].isdigit()
    return _ABBREVIATIONS.fullmatch(word) is None or word >= chr(_CHINESE)


def _is_within_cluster(text: str, at: int) -> bool:
    """Whether the character `at` belongs to what is read as one character with the one before it."""
    before, here = text[at - 1], text[at]
    if here.isascii() and before.isascii():
        return before == "\r" and here == "\n"
    if unicodedata.category(here)[0] == "M" or "\u200d" in (before, here):
        return True
    code = ord(here)
    if 0x1F3FB <= code <= 0x1F3FF or 0xE0020 <= code <= 0xE007F:  # colour of skin, tags of a flag
        return True
    if 0x1160 <= code <= 0x11FF and 0x1100 <= ord(before) <= 0x11FF:  # parts of a Korean syllable
        return True
    if not 0x1F1E6 <= code <= 0x1F1FF:
        return False
    flags = at  # two letters make a flag
    while flags and 0x1F1E6 <= ord(text[flags - 1]) <= 0x1F1FF:
        flags -= 1
    return (at - flags) % 2 == 1
