"""Reader of C3: questions about a passage, with options."""

from __future__ import annotations

from collections.abc import Sequence

from kexue.clue.catalogue import TaskInfo
from kexue.clue.examples import ChoiceExample
from kexue.clue.readers.records import Record

_SHAPE = "[[lines of the passage], [questions], id]"


def read_choices(records: Sequence[Record], info: TaskInfo) -> list[ChoiceExample]:
    """Return one example for each question; the lines of a passage are joined by ``||``.

    Raises:
        DataError: a record is not such an array, a field is missing or empty, or an answer is none of the options.
    """
    examples: list[ChoiceExample] = []
    for record in records:
        value = record.value
        if not (isinstance(value, list) and len(value) >= 2 and all(isinstance(part, list) for part in value[:2])):
            raise record.error(f"expected {_SHAPE}, got {value!r:.40}.")
        lines, questions = value[:2]
        if not lines or not all(isinstance(line, str) for line in lines) or not "".join(lines).strip():
            raise record.error(f"the passage must be a list of texts, got {lines!r:.40}.")
        for number, question in enumerate(questions, 1):
            part = record.child(question, f"question {number}")
            examples.append(_question(part, "||".join(lines), len(examples)))
    return examples


def _question(record: Record, passage: str, number: int) -> ChoiceExample:
    """Return the example of one question; `number` is its id where it has none."""
    question = record.text("question")
    options = record.field("choice", list, say="a list of options")
    if not 2 <= len(options) <= 4 or not all(isinstance(option, str) for option in options):
        raise record.error(f"'choice' must be a list of 2 to 4 texts, got {options!r:.60}.")
    answer = None
    if "answer" in record.value:
        right = record.text("answer")
        if right not in options:
            raise record.error(f"the answer {right!r:.40} is none of the options {options!r:.80}.")
        answer = options.index(right)
    return ChoiceExample(record.id("id", default=number), passage, question, tuple(options), answer)
