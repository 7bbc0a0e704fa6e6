"""`kexue index merge` and `kexue index duplicates` through the command line."""

from __future__ import annotations

import json

import pytest

from kexue.cli import main
from kexue.search import Index
from kexue.text import Encoder

A = [("a", "how long does a refund take"), ("b", "where is my money"), ("c", "dog"), ("d", "a\tred\nball")]
B = [("e", "how long does a refund take?"), ("b", "where is my bank card"), ("f", "a red ball")]


@pytest.fixture
def run(tiny_model, monkeypatch, capsys, tmp_path):
    """Run `kexue index` in a folder with a.kx and b.kx: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("a.kx", A), ("b.kx", B)):
        with Index.create(name, Encoder(tiny_model, device="cpu")) as index:
            index.add([text for _, text in rows], ids=[id for id, _ in rows])

    def run(*arguments):
        capsys.readouterr()
        code = main(["index", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_merge(run):
    code, out, _ = run("merge", "all.kx", "a.kx", "b.kx", "--json")
    error = json.loads(out)["error"]
    assert code == 1
    assert error["type"] == "DataError"
    assert "'b' in a.kx and b.kx" in error["message"]
    assert "--prefer" in error["remedy"]
    code, out, _ = run("merge", "all.kx", "a.kx", "b.kx", "--prefer", "last", "--json")
    record = json.loads(out)
    assert code == 0
    assert (record["documents"], record["replaced"], record["out"]) == (6, 1, "all.kx")
    assert record["sources"] == [{"index": "a.kx", "documents": 3}, {"index": "b.kx", "documents": 3}]
    code, _, err = run("merge", "all.kx", "a.kx", "b.kx", "--prefer", "last")
    assert (code, "--overwrite" in err) == (1, True)
    code, out, _ = run("merge", "all.kx", "a.kx", "b.kx", "--prefer", "first", "--overwrite")
    assert code == 0
    assert "6 documents in all.kx" in out
    assert "4 from a.kx" in out
    assert "1 left out" in out


@pytest.mark.parametrize(
    "arguments", [("merge", "all.kx", "a.kx"), ("merge", "all.kx"), ("duplicates", "a.kx", "--threshold", "2")]
)
def test_wrong_usage(run, arguments):
    assert run(*arguments)[0] == 2


def test_merge_into_milvus_is_refused(run):
    code, _, err = run("merge", "milvus://127.0.0.1:1/all", "a.kx", "b.kx")
    assert code == 1
    assert "Milvus" in err


def test_duplicates(run, tmp_path):
    run("merge", "all.kx", "a.kx", "b.kx", "--prefer", "first")
    code, out, _ = run("duplicates", "all.kx", "--threshold", "0.97", "--out", "d.tsv", "--json")
    record = json.loads(out)
    assert code == 0
    assert (record["documents"], record["threshold"], record["origin"], record["exact"]) == (6, 0.97, "given", True)
    groups = [sorted(document["id"] for document in group["documents"]) for group in record["groups"]]
    assert ["a", "e"] in groups
    assert ["d", "f"] in groups
    assert record["groups_total"] == len(groups)
    assert record["duplicates"] == sum(map(len, groups)) - len(groups)
    lines = (tmp_path / "d.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split("\t") == ["group", "size", "score", "id", "text"]
    assert len(lines) == 1 + sum(map(len, groups))
    assert any(line.endswith("\td\ta\\tred\\nball") for line in lines)
    assert run("duplicates", "all.kx", "--threshold", "0.97", "--out", "d.jsonl")[0] == 0
    listed = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in listed] == [one["id"] for group in record["groups"] for one in group["documents"]]
    assert {row["id"]: row["text"] for row in listed}["d"] == "a\tred\nball"


def test_the_list_of_duplicates_does_not_replace_the_index(run, tmp_path):
    before = (tmp_path / "a.kx").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "a.kx")
    for name in ("a.kx", "link"):
        code, _, err = run("duplicates", "a.kx", "--out", name)
        assert code == 1
        assert "is the index itself" in err
    assert (tmp_path / "a.kx").read_bytes() == before


def test_duplicates_for_people(run):
    run("merge", "all.kx", "a.kx", "b.kx", "--prefer", "first")
    code, out, _ = run("duplicates", "all.kx", "--threshold", "0.97", "--top", "1")
    assert code == 0
    assert "6 documents in all.kx: 2 groups of near-duplicates; without repetition 4 would be left" in out
    assert "threshold 0.97 (as given)" in out
    assert "1 smaller group is not shown" in out
    assert "how long does a refund take" in out
    code, out, _ = run("duplicates", "all.kx")
    assert "from random pairs" in out
