"""Reader of ChID: texts with blanks, and the idioms that may fill them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from kexue._text import parse_json
from kexue.clue.catalogue import TaskInfo
from kexue.clue.examples import IdiomExample
from kexue.clue.readers.records import Record, read_document
from kexue.errors import DataError

BLANK = re.compile(r"#idiom\d*#")  # FewCLUE: without the number, one blank a text


def read_idioms(records: Sequence[Record], info: TaskInfo) -> list[IdiomExample]:
    """Return one example for each blank.

    The answers of CLUE are in a file of their own: of ``dev.json`` in ``dev_answer.json``, read where it exists.
    FewCLUE has them in the records.

    Raises:
        DataError: a field is missing, a text has no blank, an answer is missing or is no index of a candidate.
    """
    path = answer_file(records[0].path)
    answers = None if path is None else parse_json(read_document(path), path, kind=dict)
    examples: list[IdiomExample] = []
    for record in records:
        candidates = record.field("candidates", list, say="a list of idioms")
        if len(candidates) < 2 or not all(isinstance(idiom, str) and idiom for idiom in candidates):
            raise record.error(f"'candidates' must be a list of idioms, got {candidates!r:.60}.")
        ids: set[str] = set()
        content = record.field("content", (list, str), say="a text or a list of texts")
        for text in [content] if isinstance(content, str) else content:
            blanks = list(BLANK.finditer(text)) if isinstance(text, str) else []
            if not blanks:
                raise record.error(f"no blank such as #idiom000378# in the text {text!r:.60}.")
            for blank in blanks:
                id_ = blank[0] if blank[0] != "#idiom#" else f"#idiom{record.id('id').zfill(6)}#"
                if id_ in ids:
                    raise record.error(f"the blank {id_} is there twice.", "Number the blanks: #idiom000378#.")
                ids.add(id_)
                answer = _answer(record, id_, answers, path)
                if answer is not None and not 0 <= answer < len(candidates):
                    raise record.error(f"the answer of {id_} must be 0 to {len(candidates) - 1}, got {answer}.")
                left, right = text[: blank.start()], text[blank.end() :]
                examples.append(IdiomExample(id_, str(record.number), left, right, tuple(candidates), answer))
    return examples


def answer_file(path: str) -> str | None:
    """Return the file with the answers of a ChID file, beside it; None where there is none."""
    name = Path(path).name
    stem, dot, endings = name.partition(".json")
    for ending in (endings, ".gz", "") if dot else ():
        other = Path(path).with_name(f"{stem}_answer.json{ending}")
        if other.exists():
            return os.fspath(other)
    return None


def _answer(record: Record, id_: str, answers: dict[str, object] | None, path: str | None) -> int | None:
    """Return the index of the right candidate, from the record or from the file of answers; None without either."""
    if answers is None:
        return record.field("answer", int, say="a whole number") if "answer" in record.value else None
    if id_ not in answers:
        raise DataError(f"no answer for {id_} of {record.path}.", path=path, remedy="Fetch both files again.")
    value = answers[id_]
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"the answer of {id_} must be a whole number, got {value!r:.40}.", path=path)
    return value
