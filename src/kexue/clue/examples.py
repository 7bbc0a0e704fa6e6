"""Examples of the tasks of CLUE, one type for each framing; the answer is None where a file has none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Mentions = dict[str, dict[str, list[list[int]]]]
"""Entities of a text as files write them: {type: {mention: [[start, end inclusive], ...]}}."""


@dataclass(frozen=True)
class TextExample:
    """One text or two, and a label: AFQMC, TNEWS, IFLYTEK, CMNLI, OCNLI, CSL, CLUEWSC2020.

    CSL: `first` holds the keywords, joined by ``；``, `second` the abstract. CLUEWSC2020: in `first` the noun is
    between underscores and the pronoun between square brackets.
    """

    id: str
    first: str
    second: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class ChoiceExample:
    """A question about a passage with 2 to 4 options, one of which is right (C3); `answer` is its index."""

    id: str
    passage: str
    question: str
    options: tuple[str, ...]
    answer: int | None = None


@dataclass(frozen=True)
class IdiomExample:
    """One blank of a text, and the idioms that may fill it (ChID); `answer` is the index of the right one.

    `id` is the mark of the blank, as ``#idiom000378#``; `left` and `right` are the text around it, in which the marks
    of other blanks stay. Blanks of one `group` share the candidates, and no two of them have the same answer.
    """

    id: str
    group: str
    left: str
    right: str
    candidates: tuple[str, ...]
    answer: int | None = None


@dataclass(frozen=True)
class Answer:
    """A span of a context: ``context[start : start + len(text)] == text``."""

    text: str
    start: int


@dataclass(frozen=True)
class SpanExample:
    """A question whose answers are spans of the context (CMRC2018)."""

    id: str
    context: str
    question: str
    answers: tuple[Answer, ...] | None = None


@dataclass(frozen=True)
class Entity:
    """A named entity; its text is ``text[start : end + 1]``: `end` is inclusive, as in the files."""

    type: str
    start: int
    end: int


@dataclass(frozen=True)
class EntityExample:
    """A text and its named entities, in the order of the text (CLUENER)."""

    id: str
    text: str
    entities: tuple[Entity, ...] | None = None

    @property
    def mentions(self) -> Mentions | None:
        """The entities as files write them."""
        return None if self.entities is None else mentions_of(self.text, self.entities)


def mentions_of(text: str, entities: Iterable[Entity]) -> Mentions:
    """Return entities of a text as files write them.

    >>> mentions_of("王芳在北京", [Entity("name", 0, 1), Entity("address", 3, 4)])
    {'name': {'王芳': [[0, 1]]}, 'address': {'北京': [[3, 4]]}}
    """
    mentions: Mentions = {}
    for one in entities:
        spans = mentions.setdefault(one.type, {}).setdefault(text[one.start : one.end + 1], [])
        spans.append([one.start, one.end])
    return mentions


Example = TextExample | ChoiceExample | IdiomExample | SpanExample | EntityExample
