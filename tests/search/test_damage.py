"""Damage is told, never served: flipped bits, lost rows, foreign schemas, logs and snapshots of another file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kexue.errors import IndexFormatError, KexueError
from kexue.search import (
    Index,
    IndexBusyError,
    IndexExistsError,
    IndexMissingError,
    IndexReadOnlyError,
    IndexReplacedError,
    backup_index,
    build_index,
    check_index,
    restore_index,
)
from kexue.search.store.sqlite import database, handles, tables, wal

pytest.importorskip("faiss")

N, DIM = 300, 16
VECTORS = np.random.default_rng(0).standard_normal((N + 200, DIM)).astype(np.float32)
QUERIES = np.random.default_rng(1).standard_normal((4, DIM)).astype(np.float32)


def make(path: Path, n: int = N, **options: Any) -> Path:
    with Index.create(path, encoder=None, **options) as index:
        index.add(
            [f"document {i} " + "words " * 20 for i in range(n)],
            ids=[f"id{i}" for i in range(n)],
            metadata=[{"n": i, "lang": "en"} for i in range(n)],
            vectors=VECTORS[:n],
        )
        if n >= 50:
            index.calibrate(n=500)
    return path


def look(path: Path) -> Any:
    """All that a reader can ask for."""
    with Index.open(path, readonly=True) as index:
        return [
            [
                [(hit.id, hit.text, round(hit.score, 6), hit.percentile) for hit in hits]
                for hits in index.search(QUERIES)
            ],
            [hit.id for hit in index.search(QUERIES[:1], N, filter={"n": {"lt": 50}})[0]],
            [document.text for document in index.get([f"id{i}" for i in range(N)])],
            [
                (row.id, row.text, str(row.metadata), bytes(row.vector))
                for some in index.store.iterate()
                for row in some
            ],
            len(index),
        ]


def alone(path: Path) -> None:
    for ending in ("-wal", "-shm", *wal.SNAPSHOTS):
        Path(f"{path}{ending}").unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"dehub": "csls"}], ids=["plain", "csls"])
def test_no_flipped_bit_is_silently_wrong(tmp_path: Path, options: dict[str, Any]) -> None:
    path = make(tmp_path / "x.kx", **options)
    alone(path)
    good, data = look(path), path.read_bytes()
    generator = np.random.default_rng(7)
    told = 0
    for place in generator.integers(0, len(data), 150).tolist():
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        try:
            assert look(path) == good, f"byte {place}"
        except KexueError as error:
            told += "x.kx" in str(error)
        alone(path)
    assert told > 40, "a good part of the file is rows"


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE vectors SET vector = x'0102030405' WHERE key = 2",
        "UPDATE vectors SET vector = NULL WHERE key = 2",
        "UPDATE vectors SET vector = 7 WHERE key = 2",
        "DELETE FROM vectors WHERE key = 2",
        "DELETE FROM documents WHERE key = 2",
        "UPDATE documents SET text = 'other' WHERE key = 2",
        "UPDATE documents SET metadata = '{' WHERE key = 2",
        "UPDATE documents SET checksum = 'x' WHERE key = 2",
        "UPDATE documents SET text = CAST(x'ff41' AS TEXT) WHERE key = 2",
        "UPDATE meta SET value = CAST(x'ff41' AS TEXT) WHERE key = 'model'",
        "UPDATE meta SET value = '{}' WHERE key = 'model'",
        "DELETE FROM meta WHERE key = 'calibration'",
        "DELETE FROM state",
        "UPDATE state SET line = 'kexue-state'",
    ],
)
def test_a_row_that_is_not_what_was_written_is_named(tmp_path: Path, harm: str) -> None:
    path = make(tmp_path / "x.kx")
    alone(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        with contextlib.suppress(sqlite3.IntegrityError):
            connection.execute("PRAGMA ignore_check_constraints = ON")
        try:
            connection.execute(harm)
        except sqlite3.IntegrityError:
            pytest.skip("SQLite itself refuses this")
        connection.commit()
        connection.execute("PRAGMA journal_mode = DELETE")
    with pytest.raises(IndexFormatError, match=r"x\.kx is damaged") as caught:
        look(path)
    assert "kexue index restore" in str(caught.value.remedy)
    report = check_index(path)
    assert not report.ok
    if "key = 2" in harm:
        assert any("key 2" in problem or "key 2 " in problem for problem in report.problems), report.problems


def test_a_vector_that_is_not_finite_is_named_on_the_way_in_and_out(tmp_path: Path) -> None:
    path = make(tmp_path / "x.kx")
    with Index.open(path) as index:
        for bad in (np.nan, np.inf, 1e300):
            vectors = VECTORS[:3].astype(np.float64)
            vectors[1, 4] = bad
            with pytest.raises(ValueError, match=r"row 1 \(id 'two'\)"):
                index.add(["a", "b", "c"], ids=["one", "two", "three"], vectors=vectors)
    alone(path)
    blob = np.full(DIM, np.nan, "<f4").tobytes()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        state = tables.read_state(connection)
        [(old,)] = connection.execute("SELECT checksum FROM vectors WHERE key = 5")
        checksum = tables.vector_checksum(5, blob)
        state.vectors += checksum - old
        connection.execute("UPDATE vectors SET vector = ?, checksum = ? WHERE key = 5", (blob, checksum))
        tables.write_state(connection, state)
        connection.commit()
    with Index.open(path) as index, pytest.raises(IndexFormatError, match=r"key 5 \(id 'id4'\).*NaN"):
        index.search(QUERIES)
    assert any("id4" in problem and "NaN" in problem for problem in check_index(path).problems)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON documents BEGIN DELETE FROM documents WHERE key < new.key; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE INDEX i ON documents (text)",
        "CREATE TABLE more (a)",
        "ALTER TABLE meta RENAME TO m2",
        "ALTER TABLE documents ADD COLUMN extra",
        "DROP TABLE tombstones",
        "ALTER TABLE meta RENAME TO m2; CREATE VIEW meta AS WITH RECURSIVE r(n) AS "
        "(SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT 'k' || n AS key, 1 AS value, 1 AS checksum FROM r",
    ],
)
@pytest.mark.parametrize("readonly", [True, False])
def test_a_schema_that_is_not_ours_is_refused_before_it_is_read(tmp_path: Path, statement: str, readonly: bool) -> None:
    path = make(tmp_path / "x.kx", 3)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(statement)
    with pytest.raises(IndexFormatError, match="schema"):
        Index.open(path, readonly=readonly)
    assert not check_index(path).ok


# ---- logs ------------------------------------------------------------------------------------------------------------


def abandoned(path: Path, folder: Path, n: int = 40) -> Path:
    """The index at `path` as a process that was killed leaves it, with its log, in another folder."""
    folder.mkdir()
    with Index.open(path) as index:
        index.add([f"late {i}" for i in range(n)], ids=[f"late{i}" for i in range(n)], vectors=VECTORS[-n:])
        for ending in ("", "-wal"):
            shutil.copyfile(f"{path}{ending}", folder / f"{path.name}{ending}")
    return folder / path.name


def test_a_log_that_belongs_is_played_back(tmp_path: Path) -> None:
    copy = abandoned(make(tmp_path / "x.kx"), tmp_path / "killed")
    with Index.open(copy) as index:
        assert len(index) == N + 40
        index.add(["more"], vectors=VECTORS[:1])
    assert check_index(copy).ok


@pytest.mark.parametrize("how", ["another index", "an older backup", "an index made anew"])
def test_a_log_of_another_file_is_refused_and_kept(tmp_path: Path, how: str) -> None:
    path = make(tmp_path / "x.kx")
    if how == "an older backup":
        backup_index(path, tmp_path / "other.kx")
        with Index.open(path) as index:
            index.add(["in between"], vectors=VECTORS[:1])
    else:
        make(tmp_path / "other.kx", 20 if how == "another index" else N)
    copy = abandoned(path, tmp_path / "killed")
    shutil.copyfile(tmp_path / "other.kx", copy)
    log = Path(f"{copy}-wal").read_bytes()
    for readonly in (True, False):
        with pytest.raises(IndexFormatError, match="does not belong"):
            Index.open(copy, readonly=readonly)
    assert Path(f"{copy}-wal").read_bytes() == log
    assert copy.read_bytes() == (tmp_path / "other.kx").read_bytes()
    restore_index(tmp_path / "other.kx", copy, overwrite=True)
    assert check_index(copy).ok


def log_of_two_changes(tmp_path: Path) -> tuple[Path, list[int]]:
    """A killed writer's index whose log holds two changes, and the bytes at which their frames begin and end."""
    path, folder = make(tmp_path / "x.kx"), tmp_path / "killed"
    folder.mkdir()
    ends = []
    with Index.open(path) as index:
        for change in ("first", "second"):
            index.add([change], ids=[change], vectors=VECTORS[-1:])
            ends.append(os.path.getsize(f"{path}-wal"))
        for ending in ("", "-wal"):
            shutil.copyfile(f"{path}{ending}", folder / f"{path.name}{ending}")
    return folder / path.name, ends


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("place", ["magic", "salt", "sum", "frame's number", "frame's salt", "frame's sum", "page"])
def test_a_flipped_bit_in_what_a_log_was_sure_of_is_told(tmp_path: Path, place: str, readonly: bool) -> None:
    copy, ends = log_of_two_changes(tmp_path)
    log = Path(f"{copy}-wal")
    data = bytearray(log.read_bytes())
    frame = 24 + wal.PAGE
    at = {"magic": 3, "salt": 17, "sum": 25, "frame's number": 35, "frame's salt": 41, "frame's sum": 49}
    where = at.get(place, ends[0] - frame + 5000)
    data[where] ^= 4
    log.write_bytes(data)
    with pytest.raises(IndexFormatError, match=r"-wal is damaged at byte [\d,]+: changes after it"):
        Index.open(copy, readonly=readonly)
    assert not check_index(copy).ok
    assert log.read_bytes() == data, "nothing was deleted"


def test_a_change_that_a_power_cut_tore_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy, ends = log_of_two_changes(tmp_path)
    log = Path(f"{copy}-wal")
    data = log.read_bytes()[: ends[1]]
    log.write_bytes(data[:-5000])  # as far as it got
    with Index.open(copy, readonly=True) as index:
        assert [d.id for d in index.get(["first", "second"])] == ["first"]
    assert not caplog.records
    log.write_bytes(data[: ends[1] - 9000] + bytes(4000) + data[ends[1] - 5000 :])  # blocks reach a disk in any order
    with Index.open(copy) as index:
        assert [d.id for d in index.get(["first", "second"])] == ["first"]
    assert "its last change is incomplete" in caplog.text


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_checksum_of_a_log_is_sqlites(order: str) -> None:
    draw = np.random.default_rng(3)
    for size in (8, 24, wal.PAGE):
        data, (a, b) = draw.bytes(size), (0x12345678, 0xFEDCBA98)
        sums = (a, b)
        for x, y in np.frombuffer(data, f"{order}u4").reshape(-1, 2).tolist():
            a = (a + x + b) % 2**32
            b = (b + y + a) % 2**32
        assert wal._log_sums(data, sums, order) == (a, b)


def test_a_new_index_never_meets_the_log_of_one_that_is_gone(tmp_path: Path, gram_encoder: Any) -> None:
    copy = abandoned(make(tmp_path / "x.kx"), tmp_path / "killed")
    copy.unlink()
    (tmp_path / "new.txt").write_text("new one\nnew two\n")
    for build in (
        lambda **options: build_index(tmp_path / "new.txt", copy, encoder=gram_encoder(), **options),
        lambda **options: Index.create(copy, encoder=None, **options).close(),
        lambda **options: restore_index(tmp_path / "x.kx", copy, **options),
    ):
        with pytest.raises(IndexExistsError, match="last changes"):
            build()
        assert Path(f"{copy}-wal").exists()
        assert not copy.exists()
    build_index(tmp_path / "new.txt", copy, encoder=gram_encoder(), overwrite=True)
    with Index.open(copy) as index:
        assert len(index) == 2
    Path(f"{copy}-wal").unlink(missing_ok=True)
    copy.unlink()
    Path(f"{copy}-wal").write_text("a letter of forty characters, and not a log")
    with pytest.raises(IndexExistsError, match="exists, but is not the log of an index"):
        Index.create(copy, encoder=None, overwrite=True)
    assert Path(f"{copy}-wal").read_text().startswith("a letter")


def test_a_backup_copied_back_is_not_read_with_the_newer_snapshot(tmp_path: Path) -> None:
    path = make(tmp_path / "x.kx")
    backup = Path(shutil.copyfile(path, tmp_path / "backup"))
    before = look(path)
    with Index.open(path) as index:  # as many documents, other vectors
        index.add(
            [f"changed {i}" for i in range(N)],
            ids=[f"id{i}" for i in range(N)],
            metadata=[{"n": i} for i in range(N)],
            vectors=VECTORS[100 : N + 100],
        )
        index.search(QUERIES)
    assert look(path) != before
    shutil.copyfile(backup, path)
    assert look(path) == before
    with Index.open(path) as index:  # and the snapshot is made anew
        index.search(QUERIES)
    assert look(path) == before


# ---- files that move while open --------------------------------------------------------------------------------------


def rename_over(path: Path, other: Path) -> None:
    other.replace(path)


def copy_over(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def remove(path: Path, other: Path) -> None:
    path.unlink()


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def turn_link(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("lineage", ["another", "older"])
@pytest.mark.parametrize("move", [rename_over, copy_over, remove, empty, turn_link])
@pytest.mark.parametrize("written", [True, False])
def test_nothing_is_acknowledged_into_a_file_that_was_replaced(
    tmp_path: Path, move: Callable[[Path, Path], None], lineage: str, written: bool
) -> None:
    real = make(tmp_path / "real.kx", 30)
    path = real
    if move is turn_link:
        path = tmp_path / "x.kx"
        path.symlink_to(real)
    other = tmp_path / "other.kx"
    if lineage == "another":
        make(other, 20)
    else:
        backup_index(real, other)
        with Index.open(real) as index:
            index.add(["since"], vectors=VECTORS[:1])
    writer, reader = Index.open(path), Index.open(path, readonly=True)
    if written:
        writer.add(["before"], vectors=VECTORS[:1])
    reader.search(QUERIES)
    expected = other.read_bytes()
    move(path, other)
    for act in (
        lambda: writer.add(["lost?"], vectors=VECTORS[1:2]),
        lambda: writer.delete(["id1"]),
        lambda: writer.search(QUERIES),
        lambda: reader.search(QUERIES),
        lambda: reader.get(["id1"]),
    ):
        with pytest.raises(
            (IndexReplacedError, IndexFormatError) if move is empty else IndexReplacedError, match=path.name
        ):
            act()
    writer.close()
    reader.close()
    if move in (rename_over, turn_link):
        assert path.read_bytes() == expected


def test_a_second_look_in_one_process_drops_no_lock(tmp_path: Path) -> None:
    """Closing a descriptor drops a process's locks: another process would then take the log away as the last one."""
    path = make(tmp_path / "x.kx", 30)
    writer = Index.open(path)
    writer.add(["first"], vectors=VECTORS[:1])
    Index.open(path, readonly=True).close()
    check_index(path)
    backup_index(path, tmp_path / "b.kx")
    with pytest.raises(IndexExistsError):
        Index.create(path, encoder=None)
    script = "import sys; from kexue.search import Index as I; i = I.open(sys.argv[1], readonly=True); print(len(i))"
    script += "; i.close()"
    seen = [subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True).stdout]
    assert Path(f"{path}-wal").exists(), "the log was taken from under the writer"
    writer.add(["second"], vectors=VECTORS[1:2])
    seen.append(subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True).stdout)
    assert [int(line) for line in seen] == [31, 32]
    writer.close()


# ---- reading where nothing can be written ----------------------------------------------------------------------------


@pytest.fixture
def nothing_beside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SQLite finds no room for the small file it shares a log by."""
    connect = database.connect_file

    def refusing(path: Path, mode: str, readonly: bool, timeout: float) -> sqlite3.Connection:
        if "immutable" not in mode and path.is_relative_to(tmp_path):
            error = sqlite3.OperationalError("unable to open database file")
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error
        return connect(path, mode, readonly, timeout)

    monkeypatch.setattr(database, "connect_file", refusing)


@pytest.mark.usefixtures("nothing_beside")
@pytest.mark.parametrize("logged", [False, True])
def test_reading_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: bool) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(database, "connect_file", _connect)
        path = make(tmp_path / "x.kx")
        if logged:
            path = abandoned(path, tmp_path / "killed")
    names = sorted(os.listdir(path.parent))
    with Index.open(path, readonly=True) as index:
        assert len(index) == N + 40 * logged
        assert len(index.search(QUERIES)[0]) == 10
        with pytest.raises(IndexReadOnlyError):
            index.add(["x"], vectors=VECTORS[:1])
        with monkeypatch.context() as patch:  # another process finds room, and its change is seen
            patch.setattr(database, "connect_file", _connect)
            with Index.open(path) as writer:
                writer.add(["one more"], ids=["more"], vectors=QUERIES[:1])
        assert index.search(QUERIES[:1], 1)[0][0].id == "more"
    assert sorted(os.listdir(path.parent)) == [name for name in names if not name.endswith(("-wal", "-shm"))] + (
        [f"{path.name}{ending}" for ending in wal.SNAPSHOTS] if logged else []
    )


_connect = database.connect_file


# ---- permissions -----------------------------------------------------------------------------------------------------


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()}


def test_a_private_index_has_private_companions_and_copies(tmp_path: Path, gram_encoder: Any) -> None:
    from kexue.search import copy_index

    folder = tmp_path / "private"
    folder.mkdir()
    path = make(folder / "x.kx")
    alone(path)
    path.chmod(0o600)
    with Index.open(path) as index:
        index.add(["more"], vectors=VECTORS[:1])
        index.search(QUERIES)
        assert set(modes(folder).values()) == {0o600}, "the log"
    backup_index(path, folder / "backup.kx")
    copy_index(path, folder / "copy.kx")
    restore_index(folder / "backup.kx", folder / "restored.kx")
    (tmp_path / "t.txt").write_text("one\ntwo\n")
    seen: list[dict[str, int]] = []
    build_index(
        tmp_path / "t.txt", path, encoder=gram_encoder(), overwrite=True, progress=lambda *_: seen.append(modes(folder))
    )
    assert "x.kx.partial" in seen[0]
    for found in (*seen, modes(folder)):
        assert set(found.values()) == {0o600}, found


# ---- check, backup, restore ------------------------------------------------------------------------------------------


def test_a_backup_is_one_state_of_an_index_in_use(tmp_path: Path) -> None:
    path = make(tmp_path / "x.kx")
    with Index.open(path) as index:
        index.add(["after"], ids=["after"], vectors=VECTORS[-1:])
        pages: list[tuple[int, int | None]] = []
        report = index.backup(tmp_path / "b.kx", progress=lambda done, total: pages.append((done, total)))
        index.add(["later"], ids=["later"], vectors=VECTORS[-2:-1])
        assert index.check().ok
    assert report.documents == N + 1
    assert report.bytes == (tmp_path / "b.kx").stat().st_size
    assert pages[-1][0] == pages[-1][1]
    with Index.open(tmp_path / "b.kx", readonly=True) as copy:
        assert len(copy) == N + 1
        assert copy.get(["after", "later"])[0].id == "after"
    assert sorted(os.listdir(tmp_path)) == ["b.kx", "x.kx", "x.kx-snapshot", "x.kx-words"], (
        "a reader needs nothing beside a backup"
    )


def test_a_damaged_index_makes_no_backup_and_a_damaged_backup_no_index(tmp_path: Path) -> None:
    path = make(tmp_path / "x.kx")
    good = Path(shutil.copyfile(path, tmp_path / "good.kx"))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE documents SET text = 'other' WHERE key = 7")
        connection.commit()
    for act in (
        lambda: backup_index(path, tmp_path / "b.kx"),
        lambda: restore_index(path, tmp_path / "b.kx"),
        lambda: restore_index(path, good, overwrite=True),
    ):
        with pytest.raises(IndexFormatError, match="key 7"):
            act()
    assert not (tmp_path / "b.kx").exists()
    assert check_index(good).ok
    restore_index(good, path, overwrite=True)
    assert look(path) == look(good)


def test_restore_replaces_no_index_by_accident_and_none_in_use(tmp_path: Path) -> None:
    path, backup = make(tmp_path / "x.kx"), make(tmp_path / "b.kx", 20)
    with pytest.raises(IndexExistsError, match="overwrite"):
        restore_index(backup, path)
    with Index.open(path), pytest.raises(IndexBusyError):
        restore_index(backup, path, overwrite=True)
    with pytest.raises(IndexExistsError, match="itself"):
        restore_index(path, path, overwrite=True)
    (tmp_path / "letter").write_text("dear reader" * 20)
    with pytest.raises(IndexFormatError):
        restore_index(backup, tmp_path / "letter", overwrite=True)
    with pytest.raises(IndexMissingError):
        restore_index(tmp_path / "nothing", path, overwrite=True)
    with Index.open(path) as index:
        assert len(index) == N
    restore_index(backup, path, overwrite=True)
    with Index.open(path) as index:
        assert len(index) == 20
        assert len(index.search(QUERIES, 99)[0]) == 20


@pytest.mark.parametrize("kill", range(3))
def test_temporary_files_of_a_killed_backup_go(tmp_path: Path, kill: int) -> None:
    path = make(tmp_path / "x.kx")
    script = f"""
import os, sys
from kexue.search import backup_index
from kexue.search.store.sqlite import copying
setattr(copying, ["find_problems", "remove_old_store_files", "connect_file"][{kill}], lambda *a, **k: os._exit(9))
backup_index({str(path)!r}, {str(tmp_path / "b.kx")!r})
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert not (tmp_path / "b.kx").exists()
    backup_index(path, tmp_path / "b.kx")
    Index.open(path).close()
    assert sorted(os.listdir(tmp_path)) == ["b.kx", "x.kx", "x.kx-snapshot", "x.kx-words"]


def test_the_verbs_say_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kexue.cli import main

    path, backup = make(tmp_path / "x.kx"), tmp_path / "b.kx"

    def run(*arguments: Any) -> tuple[int, dict[str, Any]]:
        code = main(["index", *map(str, arguments), "--json"])
        return code, json.loads(capsys.readouterr().out)

    assert run("check", path)[1]["problems"] == []
    assert run("backup", path, "--out", backup)[1]["documents"] == N
    assert run("backup", path, "--out", backup)[0] == 1
    assert run("restore", backup, "--out", path)[1]["error"]["type"] == "IndexExistsError"
    assert run("restore", backup, "--out", path, "--overwrite")[1]["out"] == str(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE documents SET text = 'other' WHERE key = 7")
        connection.commit()
    code, record = run("check", path)
    assert (code, record["ok"]) == (1, False)
    assert any("id6" in problem for problem in record["problems"])
    assert run("check", "milvus://localhost/x")[1]["error"]["type"] == "NotSupported"


def test_the_state_page_is_where_it_is_looked_for(tmp_path: Path) -> None:
    path = make(tmp_path / "x.kx")
    with Index.open(path) as index:
        index.delete([f"id{i}" for i in range(100)])
        index.compact()
        index.add(["x"], vectors=VECTORS[:1])
    with handles.read_descriptor(path) as descriptor, contextlib.closing(sqlite3.connect(path)) as connection:
        change = wal.file_change(descriptor)
        assert change is not None
        assert change.own.decode() == tables.read_state(connection).change
