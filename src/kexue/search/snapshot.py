"""Snapshot files of search engines: a checksum, a line of JSON, then bytes. No pickle."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from kexue._files import replacing

_MAGIC = b"kexue-snapshot-1\n"
_CHECKSUM = 9  # eight hexadecimal digits and a line end


def write_snapshot(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    body: Callable[[Callable[[bytes], int]], None],
    *,
    mode: int | None = None,
) -> None:
    """Write a file atomically: a header, then the bytes that `body` passes to its argument."""
    with replacing(path, mode=mode) as temporary, temporary.open("r+b") as file:
        crc = 0

        def write(data: bytes) -> int:
            nonlocal crc
            crc = zlib.crc32(data, crc)
            return file.write(data)

        file.write(_MAGIC + b"0" * 8 + b"\n")
        write(json.dumps(header).encode() + b"\n")
        body(write)
        file.seek(len(_MAGIC))
        file.write(b"%08x" % crc)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the header of a snapshot without reading the rest; None where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return _read_header(file)
    except OSError:
        return None


def _read_header(file: BinaryIO) -> dict[str, Any] | None:
    """Return the header at the beginning of a file; None where it is not one of a snapshot."""
    if file.read(len(_MAGIC)) != _MAGIC:
        return None
    file.seek(_CHECKSUM, os.SEEK_CUR)
    try:
        header = json.loads(file.readline(10_000))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


@contextlib.contextmanager
def open_snapshot(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], BinaryIO] | None]:
    """Yield the header of a snapshot, and the file after it; None where there is none, or its checksum is wrong.

    Both are of one file, also where another process puts a new one in its place meanwhile.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(path).open("rb"))
        except FileNotFoundError:
            yield None
            return
        file.seek(len(_MAGIC))
        stated, crc = file.read(_CHECKSUM).strip(), 0
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
        file.seek(0)
        header = _read_header(file)
        yield None if header is None or stated != b"%08x" % crc else (header, file)
