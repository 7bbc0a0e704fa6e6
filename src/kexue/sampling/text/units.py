"""Text as units: protected words, which stay whole, and free tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from kexue.sampling.text.laws import Tokens

Units = tuple[Tokens, ...]
_KEPT = 100_000  # texts whose units are remembered


def join_units(units: Iterable[Tokens]) -> Tokens:
    """Return the text of units."""
    return tuple(chain.from_iterable(units))


class Word(tuple[int, ...]):
    """Protected word: equal to no other object, so that the same tokens may be free elsewhere in a text."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def free_places(units: Units) -> list[int]:
    """Return the places of units that are no protected words."""
    return [place for place, unit in enumerate(units) if type(unit) is tuple]


class Parser:
    """Rule that cuts a text into units: from left to right, the longest protected word that begins there, or a token.

    Each word is protected once, where it first occurs; where it occurs again its tokens are free.

    Args:
        protected: words, each at least one token.

    Raises:
        TypeError: a string. ValueError: a word without tokens.
    """

    def __init__(self, protected: Iterable[Sequence[int]] = ()) -> None:
        protected = list(protected)
        if any(isinstance(word, str) for word in protected):  # of a string, too
            raise TypeError(f"protected words must be tokens, got {protected!r}; use lm.encode(word) for each word")
        words = {tuple(word) for word in protected}
        if () in words:
            raise ValueError("protected: got a word without tokens, expected at least one token in each")
        self._starting: dict[int, list[Word]] = {}
        for word in sorted(words, key=lambda word: (-len(word), word)):
            self._starting.setdefault(word[0], []).append(Word(word))
        self._known: dict[Tokens, Units] = {}

    def parse(self, text: Tokens) -> Units:
        """Return the units of a text; they are remembered."""
        known = self._known.get(text)
        if known is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            known = self._known[text] = self._parse(text)
        return known

    def _parse(self, text: Tokens) -> Units:
        units: list[Tokens] = []
        done = 0
        for place in [place for place, token in enumerate(text) if token in self._starting]:
            if place >= done:
                for word in self._starting[text[place]]:
                    if text[place : place + len(word)] == tuple(word) and word not in units:
                        units += zip(text[done:place])
                        units.append(word)
                        done = place + len(word)
                        break
        units += zip(text[done:])
        return tuple(units)
