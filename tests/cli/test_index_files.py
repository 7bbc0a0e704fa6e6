"""`kexue index build`, `add`, `info` and `list` on a messy export, as a person types them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kexue.cli import main
from kexue.search import Index

ROWS = "\r\n".join(
    ["编号;问题;类别;日期;版本"]
    + [f"{i:03};保险怎么退,第 {i} 问?;{'退保' if i % 2 else '理赔'};2024/{i % 12 + 1}/1;3.{i % 12}" for i in range(30)]
    + ["030; ;退保;2024/1/1;3.1", "004;又一个;退保;2024/1/1;3.1", ";没有编号;退保;2024/1/1;3.1"]
)
COLUMNS = ("--text", "问题", "--id", "编号", "--metadata", "类别,日期,版本")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEXUE_MODEL", str(tiny_model))
    Path("faq.csv").write_bytes(ROWS.encode("gb18030"))

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_messy_export_is_checked_built_added_to_and_listed(run: Run) -> None:
    code, out, _ = run("index", "build", "faq.csv", *COLUMNS, "--out", "faq.kx", "--check")
    assert code == 1
    assert "faq.csv: GB18030, fields separated by ';', texts in column '问题'" in out
    assert "30 of 33 records can be indexed; 1 empty (first: line 32), 1 without id (first: line 34)" in out
    assert not Path("faq.kx").exists()
    code, out, err = run("index", "build", "faq.csv", *COLUMNS, "--out", "faq.kx")
    assert (code, Path("faq.kx").exists()) == (1, False)
    assert "3 of 33 records cannot be indexed" in err
    assert "--on-error skip" in err
    code, out, err = run("index", "build", "faq.csv", *COLUMNS, "--out", "faq.kx", "--on-error", "skip")
    assert code == 0
    assert "30 documents in faq.kx" in out
    assert "left out 3" in out
    assert "GB18030" in err
    assert "left out: 1 empty (first: line 32)" in err

    Path("new.csv").write_bytes("编号,问题\r\n001,保险怎样退?\r\n900,车险怎么买?\r\n".encode("utf-16"))
    code, out, err = run("index", "add", "faq.kx", "new.csv")
    assert (code, out) == (0, "1 added, 1 updated, 0 unchanged; 31 documents in faq.kx\n")
    assert "new.csv: UTF-16, fields separated by ','" in err

    code, out, _ = run("index", "list", "faq.kx", "--filter", "类别=退保|其他", "--filter", "版本=3.1", "--json")
    found = json.loads(out)
    assert [one["id"] for one in found["documents"]] == ["001", "013", "025"]
    assert found["documents"][0]["metadata"] == {"类别": "退保", "日期": "2024-02-01", "版本": "3.1"}
    assert found["documents"][0]["text"] == "保险怎样退?"
    code, out, err = run("index", "list", "faq.kx", "--filter", "日期>=2024/12/1", "--limit", "1")
    assert out.startswith("011\t保险怎么退,第 11 问?\t{")
    assert "--after '011'" in err
    code, out, _ = run("index", "info", "faq.kx")
    assert "field 日期: date in 30 documents, 2024-01-01 to 2024-12-01, 12 values" in out
    code, _, err = run("search", "faq.kx", "退保", "--filter", "类型=退保")
    assert code == 1
    assert "'类型', which no document has; there are: 类别, 日期, 版本" in err


def test_json_says_the_same(run: Run) -> None:
    code, out, _ = run("index", "build", "faq.csv", *COLUMNS, "--out", "faq.kx", "--check", "--json")
    checked = json.loads(out)
    assert (code, checked["records"], checked["left_out"]) == (1, 30, 3)
    assert checked["files"] == [
        {
            "path": "faq.csv", "format": "csv", "encoding": "gb18030", "delimiter": ";", "sheet": None, "text": "问题",
            "records": 31,
        }
    ]  # fmt: skip
    code, out, _ = run("index", "build", "faq.csv", *COLUMNS, "--out", "faq.kx", "--json")
    error = json.loads(out)["error"]
    assert error["faults"] == checked["faults"]
    assert (error["line"], error["type"]) == (32, "FaultyRecordsError")
    code, out, _ = run("index", "build", "faq.csv", *COLUMNS, "--out", "faq.kx", "--json", "--on-error", "skip")
    built = json.loads(out)
    assert (built["documents"], built["left_out"], built["faults"]) == (30, 3, checked["faults"])
    code, out, _ = run("index", "add", "faq.kx", "faq.csv", "--json", "--on-error", "skip")
    added = json.loads(out)
    assert (added["skipped"], added["left_out"], added["faults"]) == (30, 3, checked["faults"])
    code, out, _ = run("index", "info", "faq.kx", "--json")
    assert json.loads(out)["schema"]["id"] == "编号"


def test_encoding_and_delimiter_can_be_named(run: Run) -> None:
    Path("b.csv").write_bytes("text\tn\n退款會在五天內處理\t1\n".encode("big5"))
    code, out, _ = run(
        "index", "build", "b.csv", "--encoding", "big5", "--delimiter", "tab", "--metadata", "n", "--out", "b.kx"
    )
    assert code == 0
    code, out, _ = run("index", "list", "b.kx", "--json")
    [document] = json.loads(out)["documents"]
    assert (document["text"], document["metadata"]) == ("退款會在五天內處理", {"n": 1})
    code, _, err = run("index", "build", "b.csv", "--encoding", "no-such", "--out", "c.kx")
    assert code == 1
    assert "unknown encoding 'no-such'" in err


def test_info_counts_no_values_of_lists_and_long_texts(run: Run) -> None:
    row = {"text": "one", "tags": ["a"], "long": "x" * 101, "n": 1}
    Path("one.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert run("index", "build", "one.jsonl", "--metadata", "tags,long,n", "--out", "one.kx")[0] == 0
    fields = [line for line in run("index", "info", "one.kx")[1].splitlines() if line.startswith("field")]
    assert sorted(fields) == [
        "field long: text in 1 document, values not counted",
        "field n: number in 1 document, 1 to 1, 1 value",
        "field tags: list in 1 document, values not counted",
    ]
    assert run("index", "backup", "one.kx", "--out", "b.kx")[1] == "1 document of one.kx is in b.kx\n"


def test_the_remedy_for_a_single_fault_leaves_it_out(run: Run) -> None:
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("one", encoding="utf-8")
    Path("notes/b.html").write_text("<p></p>", encoding="utf-8")
    err = run("index", "build", "notes", "--out", "notes.kx")[2]
    assert "Leave it out. --on-error skip (in Python on_error='skip') leaves it out." in err
    assert "them" not in err


@pytest.mark.parametrize(
    "columns",
    [("类别,日期,版本",), ("类别", "日期", "版本"), ("类别, 日期", "版本,类别")],
    ids=["commas", "repeated", "both"],
)
def test_columns_of_metadata_are_separated_by_commas_or_repeated(run: Run, columns: tuple[str, ...]) -> None:
    options = [word for words in columns for word in ("--metadata", words)]
    arguments = ["faq.csv", "--text", "问题", *options, "--out", "faq.kx", "--on-error", "skip"]
    assert run("index", "build", *arguments)[0] == 0
    with Index.open("faq.kx") as index:
        assert index.schema["metadata"] == ["类别", "日期", "版本"]
    Path("new.csv").write_text("问题,类别,版本\n车险怎么买?,车险,3.2\n", encoding="utf-8")
    assert run("index", "add", "faq.kx", "new.csv", "--metadata", "类别", "--metadata", "版本")[0] == 0
    _, out, _ = run("index", "list", "faq.kx", "--filter", "类别=车险", "--json")
    assert json.loads(out)["documents"][0]["metadata"] == {"类别": "车险", "版本": "3.2"}
    assert run("index", "add", "faq.kx", "new.csv", "--metadata", "", "--replace")[0] == 0
    assert json.loads(run("index", "list", "faq.kx", "--filter", "类别=车险", "--json")[1])["documents"] == []


def test_info_and_list_show_a_value_with_line_breaks_in_one_line(run: Run) -> None:
    Path("lines.csv").write_text('text,answer\nhow?,"call\nus"\nwhere?,"call\nus"\n')
    assert run("index", "build", "lines.csv", "--metadata", "answer", "--out", "lines.kx")[0] == 0
    code, out, _ = run("index", "info", "lines.kx")
    assert code == 0
    assert "field answer: text in 2 documents, 1 value, call us (2)\n" in out
    assert len(run("index", "list", "lines.kx")[1].splitlines()) == 2


def test_a_built_index_is_calibrated_from_fifty_documents_on(run: Run) -> None:
    """Two commands, build and search, end in a word about how sure each hit is; a smaller index says it cannot."""
    lines = [f"how do I order item number {n}\n" for n in range(50)]
    Path("t.txt").write_text("".join(lines[:49]))
    code, out, _ = run("index", "build", "t.txt", "--out", "few.kx")
    assert code == 0
    assert "not calibrated: 50 documents are needed to tell a good score from a common one, and there are 49" in out
    assert json.loads(run("index", "build", "t.txt", "--out", "few2.kx", "--json")[1])["calibration"] is None
    assert json.loads(run("search", "few.kx", lines[3].strip(), "--json")[1])["match"] is None

    Path("t.txt").write_text("".join(lines))
    code, out, err = run("index", "build", "t.txt", "--out", "many.kx")
    assert (code, err) == (0, "")
    assert re.search(r"^calibrated with \d+ unrelated queries, .* a match is good", out, re.MULTILINE)
    made = json.loads(run("index", "build", "t.txt", "--out", "many2.kx", "--json")[1])["calibration"]
    answer = json.loads(run("search", "many.kx", lines[3].strip(), "--json")[1])
    assert (answer["match"], answer["warnings"]) == ("good", [])
    assert min(hit["chance"] for hit in answer["results"]) <= 0.05
    with Index.open("many.kx") as index:  # what was recorded is what the command `calibrate` records
        before = index.calibrator
        assert index.info().calibration == made | {"created": index.info().calibration["created"]}
        after = index.calibrate()
        assert np.array_equal(before.null_, after.null_)
        assert all(np.array_equal(before.best_[name], after.best_[name]) for name in after.best_)

    Path("more.txt").write_text("".join(f"where is parcel number {n}\n" for n in range(13)))
    run("index", "add", "many.kx", "more.txt")
    assert any("too old" in text for text in json.loads(run("search", "many.kx", "x", "--json")[1])["warnings"])
