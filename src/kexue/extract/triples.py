"""Triples of a text (subject, predicate, object), examples to learn from, and the predicates that are allowed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from kexue._text import parse_json
from kexue.corpus.decoding import Decoder, decode_lines
from kexue.errors import DataError

_STRICT = Decoder("strict", options=False)

Span = tuple[int, int]
"""Start and end of a part of a text: ``text[start:end]``."""


class Triple(NamedTuple):
    """A statement that a text makes: `subject` has `object` as its `predicate`.

    Attributes:
        subject, object: parts of the text.
        predicate: name of the relation.
        subject_span, object_span: where the two are in the original text, ``[start, end)``; of an annotated triple
            where they occur first, None where they do not.
        score: in [0, 1], the geometric mean of the four probabilities (two ends of two spans); 1 for an annotation.
    """

    subject: str
    predicate: str
    object: str
    subject_span: Span | None = None
    object_span: Span | None = None
    score: float = 1.0


class TripleExample(NamedTuple):
    """A text and its annotated triples."""

    text: str
    triples: tuple[Triple, ...]


@dataclass(frozen=True)
class TripleSchema:
    """The predicates that triples may have, in the order of their numbers.

    Args:
        predicates: names, all different, at least one.

    Raises:
        ValueError: no predicate, an empty one, or one that is there twice.
    """

    predicates: tuple[str, ...]

    def __post_init__(self) -> None:
        names = self.predicates
        if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise ValueError(f"predicates must be different names, at least one, got {names!r:.200}")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TripleSchema:
        """Read JSON Lines with a ``predicate`` each, also compressed; other fields, such as types, are not used.

        A predicate may be there several times, as some have several types of subjects.

        Raises:
            DataError: a line without a predicate, or no line at all; it names the line.
        """
        path, names = os.fspath(path), dict[str, None]()
        for line, text in decode_lines(path, Decoder("strict", options=False)):
            if text.strip():
                record = parse_json(text, path, line=line, kind=dict)
                names[read_name(record, "predicate", path, line)] = None
        if not names:
            raise DataError("no predicate.", path=path, remedy='Write a line {"predicate": NAME} for each.')
        return cls(tuple(names))

    @classmethod
    def of(cls, examples: Iterable[TripleExample]) -> TripleSchema:
        """Return the schema of the predicates that occur in examples, sorted by name."""
        names = {triple.predicate for example in examples for triple in example.triples}
        if not names:
            raise DataError("no example has a triple.", remedy="Give examples with triples, or a schema.")
        return cls(tuple(sorted(names)))

    def number(self, predicate: str) -> int:
        """Return the number of a predicate; a `DataError` where it is not in the schema."""
        try:
            return self.predicates.index(predicate)
        except ValueError:
            raise DataError(
                f"the predicate {predicate!r} is not in the schema, which has {', '.join(self.predicates[:20])}"
                f"{', ...' * (len(self.predicates) > 20)}.",
                remedy="Add it to the schema, or correct the data.",
            ) from None


def read_name(record: dict[str, Any], field: str, path: str, line: int) -> str:
    """Return a text of a record that must be there and not be blank; else a `DataError` names line and field."""
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        what = "is missing" if field not in record else f"must be a text that is not blank, got {value!r:.40}"
        raise DataError(f"{field} {what}.", path=path, line=line, column=field, remedy="Correct the line.")
    return _STRICT.clean(value, path=path, line=line, column=field)


def require_triples(examples: Iterable[TripleExample], what: str) -> None:
    """Raise a `DataError` where no example has a triple, since every F1 on them is 0; `what` names them."""
    if not any(example.triples for example in examples):
        raise DataError(f"{what}: no text has a triple, so the F1 says nothing.", remedy="Annotate texts with triples.")


def lower(text: str) -> str:
    """Return a text in small letters, of the same length: a letter whose small form is longer stays.

    Letters are taken one by one, since a small sigma at the end of a word is another one than within it.

    >>> lower("ABC İ")
    'abc İ'
    """
    if text.isascii():
        return text.lower()
    return "".join(small if len(small := letter.lower()) == 1 else letter for letter in text)


def find_span(text: str, part: str) -> Span | None:
    """Return where a part occurs first in a text, else where it does letter case apart; None where nowhere, or empty.

    >>> find_span("Give us the US flag", "US")
    (12, 14)
    """
    start = text.find(part) if part else -1
    if part and start < 0:
        start = lower(text).find(lower(part))
    return None if start < 0 else (start, start + len(part))


def annotate(text: str, subject: str, predicate: str, object: str) -> Triple:
    """Return the triple with its spans in a text."""
    return Triple(subject, predicate, object, find_span(text, subject), find_span(text, object))
