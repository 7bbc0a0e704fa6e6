"""Texts to words, for noise that hits whole words: by jieba where it is installed, else by words learned from texts.

Without jieba, words are the sequences of 2 to 4 Chinese characters that occur often and stick together,

    count(ab) n / (count(a) count(b)) >= 50 for each way to cut the sequence into a and b,

with n the number of characters; a text is read from the left, the longest word first. Letters and digits in a row are a
word, and so is any other character.

Source of the rule: kexue.fm/archives/3491.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from itertools import islice

from kexue._optional import import_optional

Splitter = Callable[[str], list[str]]
_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_CHINESE = re.compile(f"[{_HAN}]+")
_PIECES = re.compile(rf"[{_HAN}]+|[^\W{_HAN}_]+|.", re.DOTALL)
_LONGEST, _AT_LEAST, _TOGETHER = 4, 5, 50.0
_SAMPLE = 200_000  # texts whose words are counted


def choose_splitter(texts: Iterable[str]) -> tuple[str, Splitter]:
    """Return ``"jieba"`` or ``"longest match"``, and the function from a text to its words, which joined give the text.

    Args:
        texts: those from which words are learned where jieba is not installed.
    """
    if find_spec("jieba") is not None:
        jieba = import_optional("jieba")
        return "jieba", lambda text: list(jieba.lcut(text))
    words = learn_words(islice(texts, _SAMPLE))
    return "longest match", lambda text: split_longest(text, words)


def learn_words(texts: Iterable[str]) -> frozenset[str]:
    """Return the words of texts: sequences of 2 to 4 Chinese characters that occur at least 5 times and stick together.

    >>> learn_words(["退货"] * 5 + ["天" * 300])
    frozenset({'退货'})
    """
    counts: Counter[str] = Counter()
    for text in texts:
        for run in _CHINESE.findall(text):
            for size in range(1, _LONGEST + 1):
                counts.update(run[i : i + size] for i in range(len(run) - size + 1))
    n = sum(count for piece, count in counts.items() if len(piece) == 1)

    def sticks(piece: str, count: int) -> bool:
        """Return whether a sequence occurs much more often than its parts would by chance, however it is cut."""
        cuts = range(1, len(piece))
        return all(count * n >= _TOGETHER * counts[piece[:i]] * counts[piece[i:]] for i in cuts)

    return frozenset(
        piece for piece, count in counts.items() if len(piece) > 1 and count >= _AT_LEAST and sticks(piece, count)
    )


def split_longest(text: str, words: frozenset[str]) -> list[str]:
    """Return the words of a text, the longest match from the left first; joined they give the text.

    >>> split_longest("我要退货iPhone 12!", frozenset({"退货"}))
    ['我', '要', '退货', 'iPhone', ' ', '12', '!']
    """
    found = []
    for piece in _PIECES.findall(text):
        if not _CHINESE.match(piece):
            found.append(piece)
            continue
        start = 0
        while start < len(piece):
            ends = range(min(start + _LONGEST, len(piece)), start + 1, -1)
            end = next((end for end in ends if piece[start:end] in words), start + 1)
            found.append(piece[start:end])
            start = end
    return found
