"""Files of predictions in the form that the site of CLUE accepts: JSON Lines, or one JSON object."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kexue._files import replacing
from kexue._text import parse_json, split_lines
from kexue.clue.catalogue import TaskInfo
from kexue.clue.examples import EntityExample, Example
from kexue.clue.readers.entities import find_problem
from kexue.clue.readers.records import read_document
from kexue.errors import DataError

_LOG = logging.getLogger(__name__)
AS_OBJECT = ("cmrc2018", "chid")  # one object, id -> prediction; the others are JSON Lines
_AGAIN = "Predict the file that the gold answers are of."
_OPTIONS = {"choice": 4, "idiom": 10}  # of a question of C3, and candidates of a blank of ChID


def write_submission(
    info: TaskInfo,
    predictions: Sequence[Any] | Mapping[str, Any],
    path: str | os.PathLike[str],
    examples: Sequence[Example] | None = None,
) -> None:
    """Write predictions as a file of the site; `path` is replaced in one step.

    Args:
        info: the task.
        predictions: one for each example, in order, or id -> prediction: a label, an index, a text, or entities as
            {type: {mention: [[start, end inclusive], ...]}}.
        path: the file; the site knows it by its name, one of `TaskInfo.submissions`.
        examples: what was predicted: they give the ids and, for CLUENER, the texts. None: the ids are the keys of
            `predictions`, or the numbers from 0, as the test files of classification and C3 have them.

    Raises:
        ValueError: the numbers of predictions and examples differ, the examples are needed, an id of CMRC2018 or ChID
            is there twice, or the site would refuse a prediction.
    """
    rows = list(_pair_up(info, predictions, examples))
    if info.name in AS_OBJECT and (repeated := find_repeated(id_ for id_, *_ in rows)):
        raise ValueError(f"the id {rows[repeated[0]][0]!r} is there twice; a file of {info.name} has an id only once")
    for id_, value, example in rows:
        if problem := _problem(info, value, example.text if isinstance(example, EntityExample) else ""):
            raise ValueError(f"the prediction for {id_!r}: {problem}")
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        if info.name in AS_OBJECT:
            json.dump({id_: value for id_, value, _ in rows}, file, ensure_ascii=False)
            file.write("\n")
            return
        for id_, value, example in rows:
            record: dict[str, Any] = {"id": id_, "label": str(value)}
            if isinstance(example, EntityExample):  # the number as the test file has it
                number = re.fullmatch("0|[1-9][0-9]{0,17}", id_)
                record = {"id": int(id_) if number else id_, "text": example.text, "label": value}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _pair_up(
    info: TaskInfo, predictions: Sequence[Any] | Mapping[str, Any], examples: Sequence[Example] | None
) -> Iterable[tuple[str, Any, Example | None]]:
    """Return (id, prediction, example) of each row, with numbers of numpy as numbers of Python."""
    if examples is None:
        if info.framing == "entity" or (info.name in AS_OBJECT and not isinstance(predictions, Mapping)):
            raise ValueError(f"a file of {info.name} needs the examples, too: write_submission(..., examples=...)")
        pairs = predictions.items() if isinstance(predictions, Mapping) else enumerate(predictions)
        return [(str(id_), _plain(value), None) for id_, value in pairs]
    if isinstance(predictions, Mapping):
        if missing := [example.id for example in examples if example.id not in predictions]:
            raise ValueError(f"no prediction for the example {missing[0]!r}, and {len(missing) - 1} more")
        predictions = [predictions[example.id] for example in examples]
    if len(predictions) != len(examples):
        raise ValueError(f"{len(predictions)} predictions for {len(examples)} examples; give one for each, in order")
    return [(example.id, _plain(value), example) for example, value in zip(examples, predictions, strict=True)]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _problem(info: TaskInfo, value: Any, text: str) -> str | None:
    """Return why the site would refuse a prediction; None where it would not. `text`: of the example, for CLUENER."""
    if info.framing == "entity":
        return find_problem(value, text, info.labels)
    if info.framing == "span":
        return None if isinstance(value, str) else f"the answer must be a text, got {value!r:.40}"
    if info.framing == "text":
        return (
            None
            if value in info.labels
            else f"the label must be one of {info.say_labels()}, as text, got {value!r:.40}"
        )
    most = _OPTIONS[info.framing] - 1
    return None if type(value) is int and 0 <= value <= most else f"the index must be 0 to {most}, got {value!r:.40}"


class Row(NamedTuple):
    """One prediction of a file; `problem` says what is wrong with it, None where nothing is.

    `line` is None in a file that is one object. `text` is that of CLUENER, which its files repeat.
    """

    id: str
    value: Any
    line: int | None
    problem: str | None = None
    text: str = ""


def read_rows(info: TaskInfo, path: str | os.PathLike[str]) -> list[Row]:
    """Return the predictions of a file of a task, in its order, also those that are wrong.

    Raises:
        DataError: the file cannot be read, or it must be one JSON object and is none.
    """
    text = read_document(path)
    if info.name not in AS_OBJECT:
        return [_read_line(info, line, number) for number, line in enumerate(split_lines(text), 1)]
    parse_json(text, os.fspath(path), kind=dict)
    pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=_Pairs)  # an object would hide repeated keys
    return list(_read_pairs(info, pairs))


def find_repeated(ids: Iterable[str]) -> list[int]:
    """Return the places of the ids that were there before."""
    seen: set[str] = set()
    places = []
    for place, id_ in enumerate(ids):
        if id_ in seen:
            places.append(place)
        seen.add(id_)
    return places


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of a JSON object."""


def _read_pairs(info: TaskInfo, pairs: Sequence[tuple[str, Any]]) -> Iterator[Row]:
    """Yield the rows of a file that is one object, id -> prediction."""
    seen: set[str] = set()
    for id_, value in pairs:
        problem = "the id is there twice" if id_ in seen else _problem(info, value, "")
        seen.add(id_)
        yield Row(id_, value, None, problem and f"{id_!r}: {problem}")


def _read_line(info: TaskInfo, line: str, number: int) -> Row:
    """Return the row of a line of JSON Lines."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        fault = f"not JSON: {getattr(error, 'msg', error)}" if line.strip() else "the line is empty"
        return Row("", None, number, fault)
    if not isinstance(record, dict):
        return Row("", None, number, f"expected an object, got {line:.40}")
    id_, label, text = record.get("id"), record.get("label"), record.get("text", "")
    problem = None
    if info.framing == "choice":
        if isinstance(label, str) and re.fullmatch("[0-9]", label):
            label = int(label)
        else:
            problem = f"the label must be the index of an option as text, got {label!r:.40}"
    elif info.framing == "entity" and not (isinstance(text, str) and text):
        problem = f"'text' must be that of the test file, got {text!r:.40}"
    if type(id_) not in (int, str):
        problem = f"'id' must be that of the test file, got {id_!r:.40}"
    return Row(str(id_), label, number, problem or _problem(info, label, text), text)


def read_predictions(info: TaskInfo, path: str | os.PathLike[str], examples: Sequence[Example]) -> list[Any]:
    """Return the predictions of a file for examples, in their order; None for a question without one (CMRC2018).

    Predictions of other ids do not count; their number is logged.

    Raises:
        DataError: the file is not one of this task; an example has no prediction, an id has two, or a text of CLUENER
            differs.
    """
    rows = read_rows(info, path)
    for row in rows:
        if row.problem:
            raise DataError(f"{row.problem}.", path=path, line=row.line, remedy="Predict the file again.")
    by_id = {row.id: row for row in rows}
    if [row.id for row in rows] == [example.id for example in examples]:  # also where the examples repeat an id
        return _values(path, rows, examples)
    if repeated := find_repeated(row.id for row in rows):
        second = rows[repeated[0]]
        raise DataError(f"the id {second.id!r} is there twice.", path=path, line=second.line, remedy=_AGAIN)
    missing = [example.id for example in examples if example.id not in by_id]
    if missing and (info.framing != "span" or len(missing) == len(examples)):
        raise DataError(
            f"no prediction for {len(missing)} of {len(examples)} examples, the first with the id {missing[0]!r}.",
            path=path,
            remedy=_AGAIN,
        )
    if foreign := len(by_id.keys() - {example.id for example in examples}):
        _LOG.warning("%s: %d of %d predictions are of ids without a gold answer", path, foreign, len(rows))
    return _values(path, [by_id.get(example.id) for example in examples], examples)


def _values(path: str | os.PathLike[str], rows: Sequence[Row | None], examples: Sequence[Example]) -> list[Any]:
    """Return the values of rows; DataError for one of CLUENER with another text than its example."""
    for row, example in zip(rows, examples, strict=True):
        if row is not None and isinstance(example, EntityExample) and row.text != example.text:
            raise DataError(
                f"the text of {row.id!r} is {row.text!r:.40}, with the gold answers it is {example.text!r:.40}.",
                path=path,
                line=row.line,
                remedy=_AGAIN,
            )
    return [None if row is None else row.value for row in rows]
