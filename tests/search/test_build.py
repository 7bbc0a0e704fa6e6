"""Builds from files: the same as adding by hand, whatever interrupted them on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kexue.errors import DataError, IndexFormatError, SpaceMismatchError
from kexue.search import (
    AddReport,
    Index,
    IndexBusyError,
    IndexExistsError,
    add_files,
    build_index,
)
from kexue.search.engine import read_position
from kexue.search.ingest import BATCH, Ingest
from kexue.search.store.sqlite.wal import SNAPSHOTS
from kexue.similarity import Whitening

pytest.importorskip("faiss")

WORDS = ["order", "refund", "bank", "delivery", "password", "account", "week", "card"]


def rows(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": i, "text": f"{WORDS[i % 8]} {WORDS[i // 8 % 8]} question {i}", "topic": WORDS[i % 8]}
        for i in range(start, start + n)
    ]


def write(path: Path, documents: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "faq.jsonl", rows(1300))


def everything(path: Path, encoder: Any) -> dict[str, tuple[str, dict[str, Any], list[float]]]:
    with Index.open(path, readonly=True, encoder=encoder) as index:
        found = [row for batch in index.store.iterate() for row in batch]
    return {row.id: (row.text, row.metadata, np.round(row.vector, 4).tolist()) for row in found}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("whitening", [None, "fitted", "unfitted"])
def test_a_build_equals_adding_by_hand(tmp_path: Path, source: Path, encoder: Any, whitening: str | None) -> None:
    documents = rows(1300)
    texts = [document["text"] for document in documents]
    given = None
    if whitening is not None:
        given = Whitening(6, beta=0.5, gamma=0.5)
        if whitening == "fitted":
            given.fit(encoder.encode(texts))
    calls: list[tuple[int, int | None]] = []
    report = build_index(
        source,
        tmp_path / "built.kx",
        encoder=encoder,
        whitening=given,
        id="id",
        metadata=["topic"],
        progress=lambda done, total: calls.append((done, total)),
    )
    with Index.create(tmp_path / "by-hand.kx", encoder, whitening=given) as index:
        topics = [{"topic": document["topic"]} for document in documents]
        index.add(texts, ids=[document["id"] for document in documents], metadata=topics)
    assert everything(tmp_path / "built.kx", encoder) == everything(tmp_path / "by-hand.kx", encoder)
    assert calls[-1] == (1300, 1300)
    assert (report.documents, report.added, report.updated, report.skipped) == (1300, 1300, 0, 0)
    assert report.dims == (24 if given is None else 6)
    assert (report.whitening is None) == (given is None)
    assert report.model == {"id": "grams", "fingerprint": encoder.fingerprint}
    assert report.bytes == sum(file.stat().st_size for file in tmp_path.glob("built.kx*"))
    assert report.warnings == []
    assert files(tmp_path) == {"faq.jsonl", *(f"{n}.kx{e}" for n in ("built", "by-hand") for e in ("", *SNAPSHOTS))}


def test_what_happened_is_counted(tmp_path: Path, encoder: Any) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one text\ntwo text\none text\nbad \xff text\n" + b"long " * 300 + b"\n")
    report = build_index(path, tmp_path / "a.kx", encoder=encoder, errors="replace")
    assert (report.documents, report.added, report.skipped, report.replaced, report.truncated) == (4, 4, 1, 1, 1)
    assert report.index == str(tmp_path / "a.kx")


def test_ids_given_twice_name_both_lines(tmp_path: Path, encoder: Any) -> None:
    source = write(tmp_path / "a.jsonl", [*rows(3), {"id": 1, "text": "again"}])
    with pytest.raises(DataError, match=r"id '1' was given already, in line 2") as caught:
        build_index(source, tmp_path / "a.kx", encoder=encoder, id="id")
    assert (caught.value.path, caught.value.line) == (str(source), 4)
    other = write(tmp_path / "b.jsonl", rows(1))
    with pytest.raises(DataError, match=r"in .*b\.jsonl, line 1"):
        build_index([other, source], tmp_path / "a.kx", encoder=encoder, id="id")
    assert encoder.encoded == [], "all inputs are checked before the first text is encoded"
    assert files(tmp_path) == {"a.jsonl", "b.jsonl"}


def test_what_is_at_the_place_stays_unless_it_may_go(tmp_path: Path, source: Path, encoder: Any) -> None:
    out = tmp_path / "a.kx"
    build_index(write(tmp_path / "small.jsonl", rows(5)), out, encoder=encoder)
    before = everything(out, encoder)
    with pytest.raises(IndexExistsError, match="overwrite"):
        build_index(source, out, encoder=encoder)
    bad = write(tmp_path / "bad.jsonl", [*rows(3), {"text": ""}])
    with pytest.raises(DataError):
        build_index(bad, out, encoder=encoder, overwrite=True)
    assert everything(out, encoder) == before
    with Index.open(out, readonly=True), pytest.raises(IndexBusyError):
        build_index(source, out, encoder=encoder, overwrite=True)
    assert everything(out, encoder) == before
    encoder.encoded.clear()
    assert build_index(source, out, encoder=encoder, overwrite=True).documents == 1300
    assert encoder.encoded == [], "the busy run had done the work"
    letter = tmp_path / "letter.txt"
    letter.write_text("dear")
    with pytest.raises(IndexFormatError):
        build_index(source, letter, encoder=encoder, overwrite=True)
    assert letter.read_text() == "dear"


class StopHereError(Exception):
    """What stops an encoder in these tests."""


def failing(encoder: Any, after: int) -> Any:
    encode = encoder.encode

    def stops(texts: list[str]) -> np.ndarray:
        if len(encoder.encoded) >= after:
            raise StopHereError
        return encode(texts)

    encoder.encode = stops
    return encoder


def interrupt(source: Path, out: Path, encoder: Any, **options: Any) -> None:
    with pytest.raises(StopHereError):
        build_index(source, out, encoder=failing(encoder, 512), **options)
    assert not out.exists()


@pytest.mark.parametrize("whitening", [None, Whitening(6)])
def test_an_interrupted_build_goes_on(
    tmp_path: Path, source: Path, gram_encoder: Any, whitening: Whitening | None
) -> None:
    out = tmp_path / "a.kx"
    interrupt(source, out, gram_encoder(), id="id", whitening=whitening)
    with pytest.raises(IndexFormatError, match="unfinished") if whitening else pytest.raises(SpaceMismatchError):
        Index.open(f"{out}.partial", encoder=gram_encoder(seed=3))
    encoder = gram_encoder()
    report = build_index(source, out, encoder=encoder, id="id", whitening=whitening)
    assert len(encoder.encoded) == 1300 - 512
    assert (report.documents, report.added, report.skipped, report.warnings) == (1300, 788, 512, [])
    plain = build_index(source, tmp_path / "b.kx", encoder=encoder, id="id", whitening=whitening)
    assert everything(out, encoder) == everything(tmp_path / "b.kx", encoder)
    assert plain.bytes == report.bytes
    assert not any("partial" in name for name in files(tmp_path))


def test_a_resumed_build_holds_what_the_input_says_now(tmp_path: Path, source: Path, gram_encoder: Any) -> None:
    out = tmp_path / "a.kx"
    interrupt(source, out, gram_encoder(), id="id", metadata=["topic"])
    documents = [*rows(300, 100), *rows(50, 2000)]
    documents[0]["text"] = "another text"
    write(source, documents)
    encoder = gram_encoder()
    report = build_index(source, out, encoder=encoder, id="id")
    assert len(encoder.encoded) == 51
    assert (report.added, report.updated, report.documents) == (50, 300, 350), "299 of them lose their topic only"
    build_index(source, tmp_path / "b.kx", encoder=encoder, id="id")
    assert everything(out, encoder) == everything(tmp_path / "b.kx", encoder)


@pytest.mark.parametrize("change", ["encoder", "whitening", "raw", "damaged", "resume"])
def test_a_partial_index_that_does_not_fit_is_dropped_aloud(
    tmp_path: Path, source: Path, gram_encoder: Any, change: str
) -> None:
    out = tmp_path / "a.kx"
    fitted = [Whitening(4).fit(np.random.default_rng(i).standard_normal((99, 24))) for i in range(2)]
    interrupt(source, out, gram_encoder(), whitening=fitted[0] if change == "whitening" else None)
    encoder = gram_encoder(seed=int(change == "encoder"))
    options: dict[str, Any] = {"resume": change != "resume"}
    if change == "whitening":
        options["whitening"] = fitted[1]
    elif change == "raw":
        options["whitening"] = Whitening(4)
    elif change == "damaged":
        Path(f"{out}.partial").write_bytes(b"SQLite format 3\0" + bytes(200))
    report = build_index(source, out, encoder=encoder, **options)
    assert len(encoder.encoded) == report.added == 1300
    if change == "resume":
        assert report.warnings == []
    else:
        [said] = report.warnings
        assert "started again" in said
    assert not any("partial" in name for name in files(tmp_path))


def test_a_rank_cut_is_reported(tmp_path: Path, source: Path, gram_encoder: Any) -> None:
    class Flat(gram_encoder):  # type: ignore[misc]
        def encode(self, texts: list[str]) -> np.ndarray:
            vectors = super().encode(texts)
            vectors[:, 10:] = 0
            return vectors

    report = build_index(source, tmp_path / "a.kx", encoder=Flat(), whitening=Whitening(20))
    assert report.dims == 10
    assert report.whitening == {"beta": 1.0, "gamma": 1.0, "k": 10, "rank": 10}
    [said] = report.warnings
    assert "10 of 20" in said


def test_a_killed_build_goes_on(tmp_path: Path, source: Path, gram_encoder: Any) -> None:
    out = tmp_path / "a.kx"
    script = f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import GramEncoder
from kexue.search import build_index
class Slow(GramEncoder):
    def encode(self, texts):
        if self.encoded:
            print("batch", flush=True)
            time.sleep(60)
        return super().encode(texts)
build_index({str(source)!r}, {str(out)!r}, encoder=Slow(), id="id")
"""
    for stop in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "batch\n"
            process.send_signal(stop)
            assert process.wait() != 0
        assert not out.exists()
    encoder = gram_encoder()
    report = build_index(source, out, encoder=encoder, id="id")
    assert (report.documents, report.skipped) == (1300, 1024)
    assert len(encoder.encoded) == 276


def test_large_inputs_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Any) -> None:
    sizes: list[int] = []
    add = Ingest.add_rows

    def watched(self: Ingest, batch: list[Any], vectors: Any) -> Any:
        sizes.append(len(batch))
        return add(self, batch, vectors)

    monkeypatch.setattr(Ingest, "add_rows", watched)
    monkeypatch.setattr("kexue.search.ingest.BATCH", 100)
    build_index(write(tmp_path / "a.jsonl", rows(950)), tmp_path / "a.kx", encoder=encoder, whitening=Whitening(4))
    assert sizes == [100] * 9 + [50]
    assert BATCH == 512


def test_add_files_checks_all_inputs_first(tmp_path: Path, source: Path, encoder: Any) -> None:
    out = tmp_path / "a.kx"
    build_index(source, out, encoder=encoder, id="id", metadata=["topic"])
    more = write(tmp_path / "more.jsonl", [{"id": 3, "text": "new three", "topic": "x"}, *rows(2, 5), *rows(2, 5000)])
    with Index.open(out, encoder=encoder) as index:
        with pytest.raises(DataError):
            add_files(index, [more, write(tmp_path / "bad.jsonl", [{"id": 9, "text": " "}])], id="id")
        assert len(index) == 1300
        done = add_files(index, more, id="id", metadata=["topic"])
        assert done == AddReport(2, 1, 2)
        assert index.get("3")[0].text == "new three"


def test_the_same_build_twice_at_once_is_noticed(tmp_path: Path, source: Path, gram_encoder: Any) -> None:
    out = tmp_path / "a.kx"
    interrupt(source, out, gram_encoder())
    with Index.open(f"{out}.partial"), pytest.raises(IndexBusyError, match="running twice"):
        build_index(source, out, encoder=gram_encoder())
    assert build_index(source, out, encoder=gram_encoder()).skipped == 1300


def test_a_build_needs_an_encoder(tmp_path: Path, source: Path) -> None:
    with pytest.raises(TypeError, match="encoder"):
        build_index(source, tmp_path / "a.kx", encoder=None)  # type: ignore[arg-type]


def test_a_build_can_be_approximate(tmp_path: Path, source: Path, encoder: Any) -> None:
    build_index(source, tmp_path / "a.kx", encoder=encoder, approx="approx")
    with Index.open(tmp_path / "a.kx", encoder=encoder) as index:
        assert index.info().approx == "approx"
        text = rows(1)[0]["text"]
        assert index.search(text, 1)[0][0].score == pytest.approx(1, abs=1e-6)
        assert not index.store.follower.engine.exact  # type: ignore[attr-defined]


def test_a_build_is_quick_to_open(tmp_path: Path, source: Path, encoder: Any) -> None:
    build_index(source, tmp_path / "a.kx", encoder=encoder)
    assert read_position(tmp_path / "a.kx-snapshot") is not None
    with Index.open(tmp_path / "a.kx", encoder=encoder) as index:
        index.store.follower._build = None  # type: ignore[attr-defined]
        assert len(index.search("refund", 5)[0]) == 5, "the snapshot is all it needs"


# Columns


def table(path: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    path.write_text("\n".join(",".join(row) for row in [("nr", "question", "lang", "year"), *rows]) + "\n")
    return path


COLUMNS = {"text": "question", "id": "nr", "metadata": ["lang", "year"]}


@pytest.mark.parametrize("whitening", [None, Whitening(beta=1.0, gamma=0.0)], ids=["as they come", "finished"])
def test_documents_that_are_replaced_keep_ids_and_metadata(
    tmp_path: Path, whitening: Whitening | None, gram_encoder: Any
) -> None:
    rows = [(str(i), f"question {i}", "en", str(2000 + i)) for i in range(30)]
    build_index(
        table(tmp_path / "a.csv", rows), tmp_path / "a.kx", encoder=gram_encoder(), whitening=whitening, **COLUMNS
    )
    changed = [("3", "another question", "de", "1999"), ("40", "a new one", "fr", "2020")]
    with Index.open(tmp_path / "a.kx", encoder=gram_encoder()) as index:
        assert add_files(index, table(tmp_path / "b.csv", changed)) == AddReport(1, 1, 0)
        assert [d.metadata for d in index.get(["3", "40"])] == [
            {"lang": "de", "year": 1999},
            {"lang": "fr", "year": 2020},
        ]
        narrow = tmp_path / "narrow.csv"
        narrow.write_text("question,lang\none,en\n")
        with pytest.raises(DataError, match=r"built with .*id: nr"):
            add_files(index, narrow)
        assert len(index) == 31
        assert add_files(index, narrow, id="", metadata=()).added == 1
        narrow.write_text("nr,question,lang\n5,five,fr\n6,question 6,\n")
        assert add_files(index, narrow) == AddReport(0, 2, 0)
        assert index.get("5")[0] == ("5", "five", {"lang": "fr", "year": 2005}), "the column that is not there stays"
        assert index.get("6")[0].metadata == {"year": 2006}, "the cell that was emptied goes"
        assert add_files(index, narrow) == AddReport(0, 0, 2)
        assert add_files(index, narrow, replace=True) == AddReport(0, 2, 0)
        assert index.get("5")[0].metadata == {"lang": "fr"}
        add_files(index, table(tmp_path / "c.csv", changed[:1]), metadata=["lang"], replace=True)
        assert index.get("3")[0].metadata == {"lang": "de"}
        (tmp_path / "lines.txt").write_text("a line\n")  # has no columns, and replaces nothing
        assert add_files(index, tmp_path / "lines.txt") == AddReport(1, 0, 0)
        assert add_files(index, tmp_path / "lines.txt") == AddReport(0, 0, 1)


def test_an_index_that_was_not_built_from_columns_takes_what_it_is_told(make_index: Any, tmp_path: Path) -> None:
    index: Index = make_index()
    add_files(index, table(tmp_path / "a.csv", [("1", "one", "en", "2000")]), id="nr", metadata=["lang"])
    assert index.get("1")[0] == ("1", "one", {"lang": "en"})


@pytest.mark.parametrize("n", [1500])
def test_offsets_stand_beside_their_own_documents_over_several_batches(
    tmp_path: Path, n: int, gram_encoder: Any
) -> None:
    """More documents than a store hands out at a time: r of each is that of brute force."""
    (tmp_path / "t.txt").write_text("\n".join(f"text number {i} {i * 7919 % 1000}" for i in range(n)))
    build_index(tmp_path / "t.txt", tmp_path / "t.kx", encoder=gram_encoder(), dehub="csls", approx="exact")
    with Index.open(tmp_path / "t.kx", encoder=gram_encoder()) as index:
        rows = [row for some in index.store.iterate() for row in some]
    stored = np.stack([row.vector for row in rows]).astype(np.float64)
    raw = gram_encoder().encode([row.text for row in rows]).astype(np.float64)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    local = -np.sort(-cosines, axis=1)[:, :50].mean(axis=1)
    assert np.abs(stored[:, -1] + local / 2).max() < 1e-5
    assert np.abs(stored[:, :-1] - unit).max() < 1e-5
