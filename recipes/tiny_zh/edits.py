"""Near copies of sentences: one small change each, which may or may not change the meaning."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_FRONT = [
    "请问",
    "你好，",
    "我想知道",
    "他说",
    "其实",
    "听说",
    "但是",
    "所以",
    "今天",
    "昨天",
    "我觉得",
    "麻烦问一下，",
]
_BACK = ["吗", "呢", "吧", "了", "啊", "怎么办", "为什么", "可以吗", "好不好", "的原因"]
_INSIDE = ["不", "没有", "很", "都", "也", "一定", "可能", "已经", "正在", "再", "只", "要", "想", "会", "能", "不能"]


def segment(text: str, words: frozenset[str]) -> list[str]:
    """Split into words by the longest match; a character that starts none is a word."""
    parts, at = [], 0
    while at < len(text):
        size = next((n for n in (4, 3, 2) if text[at : at + n] in words), 1)
        parts.append(text[at : at + size])
        at += size
    return parts


def write_edits(texts: Sequence[str], words: Sequence[str], *, seed: int) -> Iterator[tuple[str, str]]:
    """Yield (sentence, near copy) for each of the texts."""
    rng = random.Random(seed)
    known = frozenset(word for word in words if 2 <= len(word) <= 4)
    sizes = {n: sorted(word for word in known if len(word) == n) for n in (2, 3, 4)}
    for text in texts:
        mark = text[-1] if text[-1] in "。！？!?，；" else ""
        parts = segment(text[: len(text) - len(mark)], known)
        if len(parts) < 2:
            continue
        kind = rng.random()
        at = rng.randrange(len(parts))
        if kind < 0.2:
            del parts[at]
        elif kind < 0.3:
            at = min(at, len(parts) - 2)
            parts[at], parts[at + 1] = parts[at + 1], parts[at]
        elif kind < 0.4:
            far = rng.randrange(len(parts))
            parts[at], parts[far] = parts[far], parts[at]
        elif kind < 0.6:
            places = [i for i, part in enumerate(parts) if len(part) > 1] or [at]
            at = rng.choice(places)
            other = rng.choice(texts)
            again = [p for p in segment(other, known) if len(p) == len(parts[at])]
            parts[at] = rng.choice(again or sizes.get(len(parts[at]), ["人"]))
        elif kind < 0.75:
            parts.insert(at, rng.choice(_INSIDE))
        elif kind < 0.82:
            parts.insert(0, rng.choice(_FRONT))
        elif kind < 0.9:
            parts.append(rng.choice(_BACK))
            mark = ""
        else:
            half = len(parts) // 2
            parts = parts[half:] + parts[:half] if rng.random() < 0.5 else parts[: max(half, 2)]
        copy = "".join(parts) + mark
        if copy != text and len(copy) > 1:
            yield text, copy
