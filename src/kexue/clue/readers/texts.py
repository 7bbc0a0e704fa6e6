"""Reader of the tasks that ask for the label of one text or two."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from kexue.clue.catalogue import NLI, TaskInfo
from kexue.clue.examples import TextExample
from kexue.clue.readers.records import Record

_LOG = logging.getLogger(__name__)
_UNDECIDED = "-"  # label of a pair on which the annotators had no majority (CMNLI, OCNLI)


def read_texts(records: Sequence[Record], info: TaskInfo) -> list[TextExample]:
    """Return the examples of AFQMC, TNEWS, IFLYTEK, CMNLI, OCNLI, CSL or CLUEWSC2020.

    Pairs of CMNLI and OCNLI without a majority label, which is ``-``, are left out; their number is logged.

    Raises:
        DataError: a field is missing, empty or of a wrong type, a label is not of the task, some records have a label
            and others do not, or a span of CLUEWSC2020 is not where its index says.
    """
    labelled = "label" in records[0].value if isinstance(records[0].value, dict) else False
    examples = []
    for record in records:
        first, second = _TEXTS[info.name](record)
        label = None
        if labelled or "label" in record.value:
            if not labelled:
                raise record.error("has a 'label', but the first record has none.", "Label all records or none.")
            label = _label(record, info)
        if label != _UNDECIDED:
            examples.append(TextExample(record.id("id", "idx"), first, second, label))
    if dropped := len(records) - len(examples):
        _LOG.warning("%s: left out %d of %d pairs, whose label is '-'", records[0].path, dropped, len(records))
    return examples


def _label(record: Record, info: TaskInfo) -> str:
    """Return the label of a record, which files write as text, number or boolean, as one of the task's labels."""
    value = record.field("label", (str, int), say="a text or a whole number")
    label = str(value).lower() if isinstance(value, bool) else str(value)
    if label in info.labels or (info.labels == NLI and label == _UNDECIDED):
        return label
    raise record.error(f"label {label!r} is none of {info.name}.", f"Its labels are {info.say_labels()}.")


def _pair(record: Record) -> tuple[str, str | None]:
    return record.text("sentence1"), record.text("sentence2")


def _single(record: Record) -> tuple[str, str | None]:
    return record.text("sentence"), None


def _keywords(record: Record) -> tuple[str, str | None]:
    abstract = record.text("abst")
    keywords: list[Any] = record.field("keyword", list, say="a list of texts")
    if not keywords or not all(isinstance(word, str) and word.strip() for word in keywords):
        raise record.error(f"'keyword' must be a list of texts that are not empty, got {keywords!r:.60}.")
    return "；".join(keywords), abstract


def _pronoun(record: Record) -> tuple[str, str | None]:
    text = record.text("text")
    target = record.child(record.field("target", dict, say="an object"), "target")
    spans = []
    for name in ("span1", "span2"):
        span, start = target.text(f"{name}_text"), target.field(f"{name}_index", int, say="a whole number")
        if start < 0 or text[start : start + len(span)] != span:
            there = text[max(start, 0) : max(start, 0) + len(span)]
            raise target.error(
                f"{name}_text is {span!r}, but the text has {there!r} at {name}_index {start}.",
                "Count characters from 0.",
            )
        spans.append((start, start + len(span)))
    return mark_spans(text, spans[0], spans[1]), None


def mark_spans(text: str, noun: tuple[int, int], pronoun: tuple[int, int]) -> str:
    """Return a text with the noun between underscores and the pronoun between square brackets.

    Args:
        text: the text.
        noun: start and end of the noun in the text; the end is exclusive.
        pronoun: start and end of the pronoun; it may be before the noun.

    >>> mark_spans("小猫饿了，它在叫。", (0, 2), (5, 6)), mark_spans("他说小明累了", (2, 4), (0, 1))
    ('_小猫_饿了，[它]在叫。', '[他]说_小明_累了')
    """
    # section "text classification": both spans between marks of their own
    opening, closing = 1, 0  # where one span ends as the other starts, it is closed first
    marks = [
        (noun[0], opening, "_"), (noun[1], closing, "_"), (pronoun[0], opening, "["), (pronoun[1], closing, "]"),
    ]  # fmt: skip
    for place, _, mark in sorted(marks, reverse=True):  # from the right, so that the other places stay valid
        text = text[:place] + mark + text[place:]
    return text


_TEXTS: dict[str, Callable[[Record], tuple[str, str | None]]] = {
    "afqmc": _pair, "tnews": _single, "iflytek": _single, "cmnli": _pair, "ocnli": _pair,
    "cluewsc2020": _pronoun, "csl": _keywords,
}  # fmt: skip
