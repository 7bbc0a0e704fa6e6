"""Snapshot files: one file is read, whatever happens at its path meanwhile."""

from __future__ import annotations

from pathlib import Path

from kexue.search.snapshot import open_snapshot, read_header, write_snapshot


def write(path: Path, name: str) -> None:
    write_snapshot(path, {"name": name}, lambda write: write(name.encode()))


def test_header_and_body_are_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    write(path, "first")
    with open_snapshot(path) as snapshot:
        write(path, "second")
        assert snapshot is not None
        assert (snapshot[0], snapshot[1].read()) == ({"name": "first"}, b"first")
    assert read_header(path) == {"name": "second"}


def test_a_damaged_or_missing_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    with open_snapshot(path) as snapshot:
        assert snapshot is None
    write(path, "first")
    whole = path.read_bytes()
    second_line_end = whole.index(b"\n", whole.index(b"\n") + 1)
    for place in (*range(second_line_end), *range(second_line_end + 1, len(whole))):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with open_snapshot(path) as snapshot:
            assert snapshot is None
    for length in (0, 5, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        with open_snapshot(path) as snapshot:
            assert snapshot is None
