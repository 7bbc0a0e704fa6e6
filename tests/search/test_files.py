"""Users' files into an index: faults reported together, columns remembered, types kept."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from kexue.corpus.faults import FaultyRecordsError
from kexue.errors import DataError
from kexue.search import Index, add_files, build_index
from kexue.search.adding import check_additions
from kexue.search.inputs import InputReport, check_files

COLUMNS: dict[str, Any] = {"text": "question", "id": "nr", "metadata": ["version", "year", "day"]}
HEADER = ["nr", "question", "version", "year", "day"]


def write(path: Path, rows: list[list[str]], header: list[str] = HEADER) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows([header, *rows])
    return path


def sound(n: int = 50) -> list[list[str]]:
    return [[f"{i:03}", f"question {i}", f"3.{i % 12}", str(2000 + i), f"2024/{i % 12 + 1}/1"] for i in range(n)]


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    rows = sound()
    rows[10][1] = " "
    rows[20][1] = ""
    rows[30][0] = "005"
    rows[40][0] = ""
    return write(tmp_path / "faulty.csv", [*rows, ["too", "short"]])


def test_all_faults_stop_a_build_at_once_and_nothing_is_written(tmp_path: Path, faulty: Path, encoder: Any) -> None:
    with pytest.raises(FaultyRecordsError) as caught:
        build_index(faulty, tmp_path / "a.kx", encoder=encoder, **COLUMNS)
    error = caught.value
    assert "5 of 51 records cannot be indexed: 1 malformed (first: line 52), 2 empty (first: line 12), " in (
        error.message
    )
    assert "1 duplicate id (first: line 32)" in error.message
    assert "--on-error skip" in str(error.remedy)
    assert (error.path, error.line, error.column) == (str(faulty), 12, "question")
    assert [fault["kind"] for fault in error.faults] == ["malformed", "empty", "no_id", "duplicate_id"]
    assert not list(tmp_path.glob("a.kx*"))
    assert not encoder.encoded


def test_faults_are_left_out_where_that_is_wanted(tmp_path: Path, faulty: Path, encoder: Any) -> None:
    seen: list[InputReport] = []
    report = build_index(faulty, tmp_path / "a.kx", encoder=encoder, **COLUMNS, on_error="skip", notice=seen.append)
    assert (report.documents, report.left_out, len(report.faults)) == (46, 5, 4)
    [read] = seen
    assert (read.records, read.left_out, read.faults) == (46, 5, report.faults)
    assert report.files[0]["delimiter"] == ";"
    with Index.open(tmp_path / "a.kx", encoder=encoder) as index:
        assert index.get("005")[0].text == "question 5", "the first of two"
        assert not index.get(["010", "020", "040"])


def test_a_check_reads_and_reports_the_same_and_writes_nothing(tmp_path: Path, faulty: Path, encoder: Any) -> None:
    read = check_files(faulty, **COLUMNS)
    report = build_index(faulty, tmp_path / "a.kx", encoder=encoder, **COLUMNS, on_error="skip")
    assert (read.faults, read.records) == (report.faults, report.documents)
    before = (tmp_path / "a.kx").read_bytes()
    with Index.open(tmp_path / "a.kx", encoder=encoder, readonly=True) as index:
        assert check_additions(index, faulty).faults == read.faults
    assert (tmp_path / "a.kx").read_bytes() == before


def test_a_single_fault_is_its_own_error(tmp_path: Path, encoder: Any) -> None:
    path = write(tmp_path / "a.csv", [*sound(5), ["003", "again", "", "", ""]])
    with pytest.raises(DataError, match="'003' was given already, in line 5") as caught:
        build_index(path, tmp_path / "a.kx", encoder=encoder, **COLUMNS)
    assert caught.value.line == 7
    assert "--on-error skip" in str(caught.value.remedy)
    with pytest.raises(ValueError, match="on_error"):
        build_index(path, tmp_path / "a.kx", encoder=encoder, on_error="ignore")  # type: ignore[arg-type]


def test_an_index_remembers_columns_and_types(tmp_path: Path, encoder: Any) -> None:
    build_index(write(tmp_path / "a.csv", sound()), tmp_path / "a.kx", encoder=encoder, **COLUMNS)
    more = write(tmp_path / "b.csv", [["900", "new one", "3.9", "2030", "2025/1/2"]])
    with Index.open(tmp_path / "a.kx", encoder=encoder) as index:
        assert index.schema["text"] == "question"
        assert index.schema["id"] == "nr"
        types = {name: field["type"] for name, field in index.schema["fields"].items()}
        assert types == {"version": "text", "year": "number", "day": "date"}
        add_files(index, more)
        assert index.get("900")[0].metadata == {"version": "3.9", "year": 2030, "day": "2025-01-02"}
        assert [one.id for one in index.list(filter={"day": {"ge": "2025"}})] == ["900"]
        assert [one.id for one in index.list(filter={"version": "3.9"})][-1] == "900", "text, as in the rest"
        odd = write(tmp_path / "c.csv", [["901", "another", "4", "unknown", ""]])
        seen: list[InputReport] = []
        add_files(index, odd, notice=seen.append)
        assert "year is text" in seen[0].warnings[0]
        assert index.get("901")[0].metadata == {"version": "4", "year": "unknown"}


def test_an_index_without_columns_takes_those_of_its_first_files(tmp_path: Path, make_index: Any) -> None:
    index: Index = make_index()
    add_files(index, write(tmp_path / "a.csv", sound()), **COLUMNS)
    assert index.schema["text"] == "question"
    add_files(index, write(tmp_path / "b.csv", [["001", "changed", "9", "2001", ""]]))
    assert index.get("001")[0] == ("001", "changed", {"version": "9", "year": 2001})


def test_a_new_text_keeps_the_other_fields(tmp_path: Path, encoder: Any) -> None:
    build_index(write(tmp_path / "a.csv", sound()), tmp_path / "a.kx", encoder=encoder, **COLUMNS)
    narrow = write(tmp_path / "b.csv", [["001", "a better question"]], ["nr", "question"])
    with Index.open(tmp_path / "a.kx", encoder=encoder) as index:
        before = index.get("001")[0].metadata
        add_files(index, narrow)
        assert index.get("001")[0] == ("001", "a better question", before)
        assert index.search("a better question", 1)[0][0].id == "001"
        add_files(index, narrow, replace=True)
        assert index.get("001")[0].metadata == {}
