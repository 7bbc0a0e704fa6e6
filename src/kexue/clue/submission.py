"""Files of predictions in the form that the site of CLUE accepts: JSON Lines, or one JSON object."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kexue._files import replacing
from kexue._text import parse_json, split_lines
from kexue.clue.catalogue import TaskInfo
from kexue.clue.examples import EntityExample, Example
from kexue.clue.readers.entities import find_problem
from kexue.clue.readers.records import read_document
from kexue.errors import DataError

AS_OBJECT = ("cmrc2018", "chid")  # one object, id -> prediction; the others are JSON Lines
CANDIDATES = 10  # idioms of a blank of ChID
_OPTIONS = ("0", "1", "2", "3")  # of a question of C3


def write_submission(
    info: TaskInfo,
    predictions: Sequence[Any] | Mapping[str, Any],
    path: str | os.PathLike[str],
    examples: Sequence[Example] | None = None,
) -> None:
    """Write predictions as a file of the site; `path` is replaced in one step.

    Args:
        info: the task.
        predictions: one for each example, in order, or id -> prediction.
        path: the file; the site knows it by its name, one of `TaskInfo.submissions`.
        examples: what was predicted, which give the ids and, for CLUENER, the texts. None: the ids are the keys of
            `predictions`, or the numbers from 0, as the test files of classification and C3 have them.

    Raises:
        ValueError: as many predictions as examples are needed, or the examples for a task whose files need more than
            numbers.
    """
    rows = list(_pair_up(info, predictions, examples))
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        if info.name in AS_OBJECT:
            json.dump({id_: _plain(value) for id_, value, _ in rows}, file, ensure_ascii=False)
            file.write("\n")
            return
        for id_, value, example in rows:
            if isinstance(example, EntityExample):
                number = int(id_) if id_.isdecimal() else id_  # as the test file has it
                record: dict[str, Any] = {"id": number, "text": example.text, "label": value}
            else:
                record = {"id": id_, "label": str(_plain(value))}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _pair_up(
    info: TaskInfo, predictions: Sequence[Any] | Mapping[str, Any], examples: Sequence[Example] | None
) -> Iterable[tuple[str, Any, Example | None]]:
    """Return (id, prediction, example) of each row."""
    if examples is None:
        if info.framing == "entity" or (info.name in AS_OBJECT and not isinstance(predictions, Mapping)):
            raise ValueError(f"a file of {info.name} needs the examples, too: write_submission(..., examples=...)")
        pairs = predictions.items() if isinstance(predictions, Mapping) else enumerate(predictions)
        return [(str(id_), value, None) for id_, value in pairs]
    if isinstance(predictions, Mapping):
        predictions = [predictions[example.id] for example in examples]
    if len(predictions) != len(examples):
        raise ValueError(f"{len(predictions)} predictions for {len(examples)} examples; give one for each, in order")
    return [(example.id, value, example) for example, value in zip(examples, predictions, strict=True)]


def _plain(value: Any) -> Any:
    """Return a number of numpy as one of Python."""
    return value.item() if hasattr(value, "item") else value


class Row(NamedTuple):
    """One prediction of a file; `problem` says what is wrong with it, None where nothing is.

    `value`: a label; an index (C3, ChID); a text (CMRC2018); entities (CLUENER). `text`: of CLUENER, which repeats it.
    """

    id: str
    value: Any
    line: int | None
    problem: str | None = None
    text: str | None = None


def read_rows(info: TaskInfo, path: str | os.PathLike[str]) -> list[Row]:
    """Return the predictions of a file of a task, in its order, also those that are wrong.

    Raises:
        DataError: the file cannot be read, or it must be one JSON object and is none.
    """
    text = read_document(path)
    if info.name not in AS_OBJECT:
        return [_read_line(info, line, number) for number, line in enumerate(split_lines(text), 1)]
    parse_json(text, os.fspath(path), kind=dict)
    pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=_Pairs)  # keys that are repeated, too
    return list(_read_pairs(info, pairs))


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of a JSON object."""


def _read_pairs(info: TaskInfo, pairs: Sequence[tuple[str, Any]]) -> Iterator[Row]:
    """Yield the rows of a file that is one object, id -> prediction."""
    seen: set[str] = set()
    for id_, value in pairs:
        problem = f"the id {id_!r} is there twice" if id_ in seen else None
        if info.framing == "span" and not isinstance(value, str):
            problem = f"the answer of {id_!r} must be a text, got {value!r:.40}"
        elif info.framing == "idiom" and not (type(value) is int and 0 <= value < CANDIDATES):
            problem = f"the answer of {id_!r} must be a whole number from 0 to {CANDIDATES - 1}, got {value!r:.40}"
        seen.add(id_)
        yield Row(id_, value, None, problem)


def _read_line(info: TaskInfo, line: str, number: int) -> Row:
    """Return the row of a line of JSON Lines."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row("", None, number, f"not JSON: {error}" if line.strip() else "the line is empty")
    if not isinstance(record, dict):
        return Row("", None, number, f"expected an object, got {line:.40}")
    id_, label = record.get("id"), record.get("label")
    if info.framing == "entity":
        text = record.get("text")
        if not isinstance(text, str):
            return Row(str(id_), label, number, f"'text' must be the text of the test file, got {text!r:.40}")
        return Row(str(id_), label, number, find_problem(label, text, info.labels), text)
    problem = None if type(id_) in (int, str) else f"'id' must be that of the test file, got {id_!r:.40}"
    if info.framing == "choice":
        if label not in _OPTIONS:
            return Row(str(id_), None, number, f"'label' must be the index of an option as text, got {label!r:.40}")
        return Row(str(id_), int(label), number, problem)
    if label not in info.labels:
        problem = f"'label' must be one of {info.say_labels()}, as text, got {label!r:.40}"
    return Row(str(id_), label, number, problem)


def read_predictions(info: TaskInfo, path: str | os.PathLike[str], examples: Sequence[Example]) -> list[Any]:
    """Return the predictions of a file for examples, in their order; None for a question without one (CMRC2018).

    Raises:
        DataError: the file is not one of this task, or an example has no prediction.
    """
    rows = read_rows(info, path)
    for row in rows:
        if row.problem:
            raise DataError(f"{row.problem}.", path=path, line=row.line, remedy="Predict the file again.")
    values = {row.id: row.value for row in rows}
    if info.framing == "entity" and all(row.id == "None" for row in rows):  # a file with gold answers has no ids
        values = {str(number): row.value for number, row in enumerate(rows)}
    missing = [example.id for example in examples if example.id not in values]
    if missing and (info.framing != "span" or len(missing) == len(examples)):
        raise DataError(
            f"no prediction for {len(missing)} of {len(examples)} examples, the first with the id {missing[0]!r}.",
            path=path,
            remedy="Predict the file that the gold answers are of.",
        )
    return [values.get(example.id) for example in examples]
