"""Encode a stream of texts into one file; an interrupted run can be continued."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import struct
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from kexue._files import is_disk_full
from kexue._progress import Progress
from kexue._text import same_json
from kexue.errors import DiskFullError
from kexue.text.tokenizer import list_texts

_LOG = logging.getLogger("kexue.text")
_CHUNK = 4096  # number of texts after which the state is saved
_HEADER = 128  # bytes before the first vector
_REMEDY = "Free some space and run the same call again: it continues where it stopped."


class ChunkEncoder(Protocol):
    """Encoder of one chunk of texts at a time; `kexue.text.Encoder` is one.

    Attributes:
        truncated_: texts cut to the maximum length in the last call of `encode`.
    """

    truncated_: int

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    def encode(self, texts: list[str], /) -> np.ndarray:
        """Return vectors (n, dim) float32."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return everything that the vectors depend on, texts apart, as JSON values."""
        ...


@dataclass(frozen=True)
class EncodeReport:
    """Result of `encode_to`.

    Attributes:
        n: vectors in the file.
        dim: width of a vector.
        truncated: texts cut to the maximum length.
        seconds: duration of this call.
    """

    n: int
    dim: int
    truncated: int
    seconds: float


def encode_to(
    encoder: ChunkEncoder,
    path: str | os.PathLike[str],
    texts: Iterable[str],
    *,
    resume: bool = True,
    progress: Progress | None = None,
) -> EncodeReport:
    """Encode `texts` into the ``.npy`` file `path`, float32 (n, dim); continue what an interrupted call left.

    The stream is cut into chunks of 4,096 texts. A chunk's vectors depend on its own texts alone; they are written to
    ``path.partial`` and made durable before one line about the chunk (number of texts, SHA-256 of the texts, texts
    truncated) is added to the journal ``path.partial.jsonl``. A resumed call skips the chunks whose hash is in the
    journal; the result has the same bytes as an uninterrupted run. Chunks are encoded again, with a warning in the
    log, from the first whose texts differ, or all of them if the encoder differs.

    Args, returns and errors: see `kexue.text.Encoder.encode_to`.
    """
    began = time.perf_counter()
    texts = [texts] if isinstance(texts, str) else texts
    total = len(texts) if isinstance(texts, Sized) else None
    width = 4 * encoder.dim
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    journal_path = target.with_name(target.name + ".partial.jsonl")
    if not resume:
        journal_path.unlink(missing_ok=True)
    with _writing(target, _CHUNK * width):
        if total is not None:
            written = partial.stat().st_size if partial.exists() else 0
            _check_room(target, _HEADER + total * width - written)
        with open(partial, "a+b") as file:
            settings = {**encoder.settings(), "chunk": _CHUNK}
            journal = _Journal(journal_path, settings, len_data=file.tell() - _HEADER, width=width)
        with journal, open(partial, "r+b") as file:
            done = truncated = 0
            for i, chunk in enumerate(_chunks(texts)):
                known = journal.match(i, chunk)
                if known is None:
                    file.seek(_HEADER + done * width)
                    file.write(np.ascontiguousarray(encoder.encode(chunk), dtype="<f4").data)
                    _sync(file)
                    known = journal.append(chunk, encoder.truncated_)
                done += len(chunk)
                truncated += known["truncated"]
                if progress is not None:
                    progress(done, total)
            file.truncate(_HEADER + done * width)
            file.seek(0)
            file.write(_npy_header(done, encoder.dim))
            _sync(file)
    partial.replace(target)
    journal_path.unlink()
    encoder.truncated_ = truncated
    return EncodeReport(done, encoder.dim, truncated, time.perf_counter() - began)


class _Journal:
    """Journal: one JSON line on the encoder, then one line per finished chunk; an incomplete last line is ignored."""

    def __init__(self, path: Path, settings: dict[str, Any], *, len_data: int, width: int) -> None:
        self._path = path
        self._records: list[dict[str, Any]] = []
        self._ends: list[int] = []  # bytes of the journal up to the end of each record
        self._file = open(path, "a+b")  # noqa: SIM115 - closed by __exit__
        self._file.seek(0)
        lines = self._file.readlines()
        found = _parse(lines[0]) if lines else None
        if not same_json(found, settings):
            if found is not None:
                changed = ", ".join(key for key in settings if not same_json(found.get(key), settings[key]))
                _LOG.warning("%s: written with another %s; encoding from the start.", path, changed)
            self._file.truncate(0)
            self._start = self._write(settings)
            return
        self._start = end = len(lines[0])
        rows = 0
        for line in lines[1:]:
            record = _parse(line)
            rows += record["n"] if record else 0
            if record is None or rows * width > len_data:
                break
            end += len(line)
            self._records.append(record)
            self._ends.append(end)
        self._truncate(len(self._records))

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def match(self, i: int, chunk: list[str]) -> dict[str, Any] | None:
        """Return the record of chunk i if it is done; drop it and all later records if its texts differ."""
        if i >= len(self._records):
            return None
        if self._records[i]["n"] == len(chunk) and self._records[i]["sha256"] == _digest(chunk):
            return self._records[i]
        _LOG.warning("%s: the texts differ from text %d on; encoding again from there.", self._path, i * _CHUNK)
        self._truncate(i)
        return None

    def append(self, chunk: list[str], truncated: int) -> dict[str, Any]:
        """Add the record of a chunk whose vectors are on the disk."""
        record = {"n": len(chunk), "sha256": _digest(chunk), "truncated": truncated}
        self._ends.append(self._write(record))
        self._records.append(record)
        return record

    def _truncate(self, count: int) -> None:
        del self._records[count:], self._ends[count:]
        self._file.truncate(self._ends[-1] if self._ends else self._start)

    def _write(self, record: dict[str, Any]) -> int:
        self._file.write(json.dumps(record).encode() + b"\n")  # opened for appending: always at the end
        _sync(self._file)
        return self._file.tell()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    stream, done = iter(texts), 0
    while chunk := list_texts(islice(stream, _CHUNK), first=done):
        yield chunk
        done += len(chunk)


def _digest(chunk: list[str]) -> str:
    digest = hashlib.sha256()
    for text in chunk:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(struct.pack("<Q", len(raw)))  # so that ["ab"] and ["a", "b"] differ
        digest.update(raw)
    return digest.hexdigest()


def _npy_header(n: int, dim: int) -> bytes:
    """Return a header of format version 1.0, padded to a fixed size so that n can be written at the end."""
    fields = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({n}, {dim}), }}"
    body = fields.encode("latin1").ljust(_HEADER - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise DiskFullError(
            f"{target} needs {needed:,} more bytes, {free:,} are free.", needed=needed, free=free, remedy=_REMEDY
        )


@contextmanager
def _writing(target: Path, needed: int) -> Iterator[None]:
    """Raise a DiskFullError that names the file and the missing bytes when the disk fills up."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        free = shutil.disk_usage(target.parent).free
        raise DiskFullError(
            f"The disk filled up while writing {target}: the next part needs {needed:,} bytes, {free:,} are free.",
            needed=needed,
            free=free,
            remedy=_REMEDY,
        ) from error
