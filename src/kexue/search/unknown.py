"""Words and languages that a model does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MOST_UNKNOWN = 0.1  # share of unknown tokens, above which a language is not read


def unknown_words(encoder: Any, texts: Sequence[str]) -> list[list[str]]:
    """Return the parts of each text that are unknown to an encoder; none where it does not say."""
    ask = getattr(encoder, "unknown_words", None)
    return [[] for _ in texts] if ask is None else ask(texts)


def reads_language(encoder: Any, language: str, texts: Sequence[str]) -> bool:
    """Return whether an encoder reads a language, by what it says, else by the share of unknown tokens in texts."""
    languages = getattr(encoder, "languages", None)
    if languages is not None:
        return language in languages
    unknown = sum(map(len, unknown_words(encoder, texts)))
    return not unknown or unknown <= _MOST_UNKNOWN * sum(encoder.count_tokens(list(texts)))
