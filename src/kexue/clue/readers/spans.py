"""Reader of CMRC2018: questions whose answers are spans of a text, in the layout of SQuAD."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from kexue.clue.catalogue import TaskInfo
from kexue.clue.examples import Answer, SpanExample
from kexue.clue.readers.records import Record

_LOG = logging.getLogger(__name__)


def read_spans(records: Sequence[Record], info: TaskInfo) -> list[SpanExample]:
    """Return one example for each question of a file in the layout of SQuAD, or of lines with one paragraph each.

    About one gold answer in fifty of the published files is no span of its text and has the start -1: it counts for the
    score and cannot be learnt. A start that is off moves to the nearest place where the answer is; their number is
    logged. A file in which all starts are -1 has no answers: it is a test file.

    Raises:
        DataError: a field is missing or empty, or an answer with a start is not in the text.
    """
    examples: list[SpanExample] = []
    moved = 0
    for paragraph in _paragraphs(records):
        context = paragraph.text("context")
        for number, value in enumerate(paragraph.field("qas", list, say="a list of questions"), 1):
            part = paragraph.child(value, f"question {number}")
            question = part.field("question", str, say="a text")  # empty once in a published file
            found = part.field("answers", list, say="a list of answers") if "answers" in part.value else []
            placed = [_answer(part.child(one, f"answer {k}"), context) for k, one in enumerate(found, 1)]
            moved += sum(off for _, off in placed)
            answers = tuple(answer for answer, _ in placed if answer.text)
            id_ = part.id("id", default=len(examples))
            examples.append(SpanExample(id_, context, question, answers or None))
    if moved:
        _LOG.warning("%s: moved %d answers to where their text is", records[0].path, moved)
    if all(answer.start < 0 for example in examples for answer in example.answers or ()):
        return [SpanExample(example.id, example.context, example.question) for example in examples]
    return examples


def _paragraphs(records: Sequence[Record]) -> Iterator[Record]:
    """Yield the paragraphs of a file."""
    for record in records:
        if not isinstance(record.value, dict) or "data" not in record.value:
            yield record
            continue
        for i, article in enumerate(record.field("data", list, say="a list of articles"), 1):
            part = record.child(article, f"article {i}")
            for j, value in enumerate(part.field("paragraphs", list, say="a list of paragraphs"), 1):
                yield part.child(value, f"paragraph {j}")


def _answer(record: Record, context: str) -> tuple[Answer, bool]:
    """Return an answer, and whether it was moved to the nearest place where its text is."""
    text: str = record.field("text", str, say="a text")
    start: int = record.field("answer_start", int, say="a whole number")
    if start < 0 or (text and context.startswith(text, start)):
        return Answer(text, max(start, -1)), False
    places = [place for place in range(len(context)) if text and context.startswith(text, place)]
    if not places:
        raise record.error(
            f"the answer {text!r:.40} is not in the text.",
            "Correct it, or give it the start -1: it then counts for the score only.",
        )
    return Answer(text, min(places, key=lambda place: abs(place - start))), True
