"""Check of a folder of predictions before it goes to the site, where a file with another name silently scores 0."""

from __future__ import annotations

import difflib
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kexue.clue.catalogue import TASKS, TaskInfo
from kexue.clue.examples import ChoiceExample, EntityExample, Example, IdiomExample
from kexue.clue.submission import AS_OBJECT, Row, find_repeated, read_rows
from kexue.clue.tasks import get_task
from kexue.errors import DataError

SUBMISSIONS = {name: info for info in TASKS.values() for name in info.submissions}
_FOLDERS = {"cluewsc2020": ("wsc",)}  # further names of a task's folder
_TESTS = {"cmrc2018": ("cmrc2018_test_2k.json",)}  # and of its test file


@dataclass(frozen=True)
class FileReport:
    """One file of a submission; `lines`: how many predictions it holds."""

    name: str
    lines: int
    ok: bool


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, or with one of its lines."""

    file: str
    line: int | None
    message: str


@dataclass(frozen=True)
class SubmissionReport:
    """What `check_submission` has seen; `ok`: there are files of predictions, and nothing is wrong with them."""

    files: tuple[FileReport, ...]
    problems: tuple[Problem, ...]
    ok: bool


def check_submission(folder: str | os.PathLike[str], *, data: str | os.PathLike[str] | None = None) -> SubmissionReport:
    """Return what is wrong with a folder of predictions.

    Of each file: its name; that it is UTF-8 without a byte order mark; its labels and indices; that no id is there
    twice; that the text of each entity is at its span. With the test files also: the number of predictions; the ids, in
    order where the site reads lines; that an option exists (C3); that blanks with the same candidates have different
    idioms (ChID); the texts (CLUENER).

    Args:
        folder: its files have the names of `TaskInfo.submissions`.
        data: the test files, in folders with the names of the tasks, such as ``afqmc/test.json`` or
            ``afqmc_public/test.json``; of one task also without the folder. TNEWS, CLUEWSC2020, C3 and ChID have two
            test files: ``test1.0.json``, and ``test1.1.json`` or ``test.json``.

    Raises:
        DataError: `folder` or `data` is no folder.
    """
    for path in (folder, data):
        if path is not None and not Path(path).is_dir():
            raise DataError("no such folder.", path=path, remedy="Check the spelling.")
    files, problems = [], []
    for path in sorted(Path(folder).iterdir()):
        if path.name in SUBMISSIONS:
            lines, wrong = _check_file(path, SUBMISSIONS[path.name], None if data is None else Path(data))
            files.append(FileReport(path.name, lines, not wrong))
            problems += wrong
        elif not path.name.startswith(".") and (path.suffix in (".json", ".jsonl") or "predict" in path.name):
            problems.append(Problem(path.name, None, _wrong_name(path.name)))
    if not files and not problems:
        problems.append(Problem("", None, f"the folder has no predictions; their names are {', '.join(SUBMISSIONS)}"))
    return SubmissionReport(tuple(files), tuple(problems), not problems)


def _wrong_name(name: str) -> str:
    """Return what to say of a name that is none of the site's."""
    stem = re.split("[_.]", name.lower())[0]
    similar = [known for known, info in SUBMISSIONS.items() if stem and (known + info.name).startswith(stem)]
    similar = similar or difflib.get_close_matches(name, SUBMISSIONS, n=1)
    return "the site does not know this name" + (f"; did you mean {' or '.join(similar)}?" if similar else "")


def _check_file(path: Path, info: TaskInfo, data: Path | None) -> tuple[int, list[Problem]]:
    """Return the number of predictions of a file, and what is wrong with it."""
    try:
        rows = read_rows(info, path)
    except DataError as error:
        return 0, [Problem(path.name, error.line, str(error))]
    problems = [Problem(path.name, row.line, row.problem) for row in rows if row.problem]
    if encoding := _wrong_encoding(path.read_bytes()):
        problems.append(Problem(path.name, None, encoding))
    if not rows:
        problems.append(Problem(path.name, None, "the file has no predictions"))
    if data is None:
        twice = [rows[place] for place in find_repeated(row.id for row in rows) if rows[place].problem is None]
        return len(rows), problems + [Problem(path.name, r.line, f"the id {r.id!r} is there twice") for r in twice]
    test = find_test(data, info, path.name)
    if test is None:
        wanted = " or ".join(names_of_test(info, path.name))
        problems.append(Problem(path.name, None, f"cannot be compared: no {wanted} of {info.name} in {data}"))
        return len(rows), problems
    try:
        examples = get_task(info.name).read(test)
    except DataError as error:
        return len(rows), [*problems, Problem(path.name, None, f"cannot be compared: {error.message}")]
    compare = _compare_object if info.name in AS_OBJECT else _compare_lines
    problems += [Problem(path.name, line, text) for line, text in compare(rows, examples)]
    return len(rows), problems


def _wrong_encoding(data: bytes) -> str | None:
    """Return why the site would not read the bytes of a file as they are; None where it would."""
    if data.startswith(BOM_UTF8):
        return "the file begins with a byte order mark: save it as UTF-8 without one"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "the file is not UTF-8: save it as UTF-8, and not compressed"
    return None


def _compare_lines(rows: Sequence[Row], examples: Sequence[Example]) -> Iterator[tuple[int | None, str]]:
    """Yield what is wrong with lines, in comparison with the test file: the site reads them in its order."""
    if len(rows) != len(examples):
        yield None, f"{len(rows)} lines, but the test file has {len(examples)} examples"
    in_order = True
    for row, example in zip(rows, examples, strict=False):
        if in_order and row.id != example.id:
            in_order = False  # the lines after it are off, too
            yield row.line, f"the id is {row.id!r}, but the test file has {example.id!r} here: keep its order"
        if row.problem or row.id != example.id:
            continue
        if isinstance(example, ChoiceExample) and row.value >= len(example.options):
            yield row.line, f"option {row.value} of a question with {len(example.options)} options, counted from 0"
        if isinstance(example, EntityExample) and row.text != example.text:
            yield row.line, f"the text differs from that of the test file, {example.text!r:.40}"


def _compare_object(rows: Sequence[Row], examples: Sequence[Example]) -> Iterator[tuple[int | None, str]]:
    """Yield what is wrong with an object, in comparison with the test file: ids in any order, and idioms of a group."""
    known = {example.id: example for example in examples}
    given = {row.id: row for row in rows}
    if missing := [id_ for id_ in known if id_ not in given]:
        yield None, f"{len(missing)} of {len(known)} ids are missing, the first is {missing[0]!r}"
    if foreign := [id_ for id_ in given if id_ not in known]:
        yield None, f"{len(foreign)} ids are not of the test file, the first is {foreign[0]!r}"
    taken: dict[tuple[str, int], str] = {}
    for id_, row in given.items():
        example = known.get(id_)
        if row.problem or not isinstance(example, IdiomExample):
            continue
        if row.value >= len(example.candidates):
            yield None, f"{id_!r} has {len(example.candidates)} candidates, so {row.value} is none of them"
        other = taken.setdefault((example.group, row.value), id_)
        if other != id_:
            yield None, f"{other!r} and {id_!r} have the same idiom, {row.value}: no idiom is right twice in a group"


def names_of_test(info: TaskInfo, submission: str) -> tuple[str, ...]:
    """Return the names that the test file of a submission may have."""
    if len(info.submissions) == 1:
        return ("test.json", *_TESTS.get(info.name, ()))
    return ("test1.0.json",) if submission == info.submissions[0] else ("test1.1.json", "test.json")


def find_test(data: Path, info: TaskInfo, submission: str) -> Path | None:
    """Return the test file of a submission in a folder of data; None where there is none."""
    folders = [info.name, f"{info.name}_public", *_FOLDERS.get(info.name, ()), "."]
    paths = (data / folder / name for folder in folders for name in names_of_test(info, submission))
    return next((p for path in paths for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)
