"""The output: one file or shards, plain or compressed, under temporary names until all of it is there."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kexue._files import synchronise
from kexue._optional import import_optional
from kexue.corpus.open import STDIN, split_suffix
from kexue.corpus.shuffle.job import Job, is_stream
from kexue.errors import DataError

if TYPE_CHECKING:
    from kexue.corpus.shuffle.state import State

Array = np.ndarray[Any, Any]

_BLOCK = 4 << 20  # bytes compressed at a time, on their own, so that the file does not depend on the buckets
_STDOUT = 1


def _arrow(codec: str) -> Callable[[bytes], bytes]:
    def compress(block: bytes) -> bytes:
        packed: bytes = import_optional("pyarrow", extra="corpus").compress(block, codec=codec, asbytes=True)
        return packed

    return compress


_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda block: gzip.compress(block, 6, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _arrow("zstd"),
    ".lz4": _arrow("lz4"),
}


class Names:
    """What the files of the output are called.

    One file: its own name, or ``part-00000`` with the inputs' ending in a folder. Shards: ``part-00000.txt`` in a
    folder; ``name-00000.txt`` for an output called ``name.txt``.

    Args:
        job: whose output it is.
        folder: of its temporary files, one a process: unfinished files are named after it, so that they are its own.
    """

    def __init__(self, job: Job, folder: Path | None = None) -> None:
        self._tag = hashlib.sha256(os.fsencode(folder or "")).hexdigest()[:8]
        path = Path(job.output)
        self._single: Path | None = None
        ending, packing = split_suffix(path.name)
        if path.is_dir() or job.output.endswith(os.sep) or (job.sharded and not ending and not packing):
            first = split_suffix(job.inputs[0])[0] if job.inputs[0] != STDIN else ".txt"
            self._folder, self._stem, self._end = path, "part", first
        else:
            self._folder, self._end = path.parent, ending + packing
            self._stem = path.name[: len(path.name) - len(self._end)]
            self._end = path.name[len(self._stem) :]
            if not job.sharded:
                self._single = path
        self.compress = _COMPRESS.get(split_suffix(self.final(0).name)[1])

    def final(self, number: int) -> Path:
        """Name of a file."""
        return self._single or self._folder / f"{self._stem}-{number:05}{self._end}"

    def partial(self, number: int) -> Path:
        """Its name until all is there, beside the file that a link points to."""
        target = Path(os.path.realpath(self.final(number)))
        return target.with_name(f".{target.name}.{self._tag}.partial")

    def intact(self, state: State) -> bool:
        """Whether the files are there that `state` speaks of: unfinished ones, in the end under their own names."""
        if state.phase == "publish":
            return all(self.partial(i).exists() or self.final(i).exists() for i in range(state.files))
        if state.sink is None:
            return True
        paths = [self.partial(i) for i in range(state.sink["number"] + 1)]
        return all(path.is_file() for path in paths) and paths[-1].stat().st_size >= state.sink["size"]

    def drop_partial(self) -> None:
        """Remove unfinished files that an earlier process with this folder has left."""
        with suppress(FileNotFoundError):
            for path in self.partial(0).parent.glob(f".*.{self._tag}.partial"):
                path.unlink(missing_ok=True)

    def publish(self, files: int) -> list[str]:
        """Give so many files their names; those of an earlier run beyond them go."""
        finals = [self.final(number) for number in range(files)]
        for number, final in enumerate(finals):
            partial = self.partial(number)
            if partial.exists():
                partial.replace(os.path.realpath(final))
                synchronise(partial.parent)
        for path in self.stale(files):
            path.unlink()
        synchronise(finals[0].parent)
        return [str(final) for final in finals]

    def stale(self, count: int) -> list[Path]:
        """Shards of an earlier run beyond those of this one."""
        if self._single is not None or not self._folder.is_dir():
            return []
        pattern = re.compile(re.escape(self._stem) + r"-(\d{5,})" + re.escape(self._end))
        found = ((path, pattern.fullmatch(path.name)) for path in self._folder.iterdir())
        return [path for path, match in found if match and int(match[1]) >= count]


class Sink:
    """Takes records in their final order.

    Args:
        job: names and limits of the files.
        records: how many will come, which decides the cuts between a given number of shards.
        header: bytes that every file begins with.
        state: of an earlier sink, to go on from.
        folder: where bytes wait that are not yet compressed.
    """

    def __init__(
        self, job: Job, records: int, header: bytes, state: dict[str, Any] | None = None, folder: Path | None = None
    ) -> None:
        self._job, self._records, self._header, self._folder = job, records, header, folder
        self._stream = is_stream(job.output)
        self._names = None if self._stream else Names(job, folder)
        self._compress = None if self._names is None else self._names.compress
        if self._stream and job.output == STDIN:
            self._compress = None
        self._turn = 0
        self._pending = bytearray()
        self._number, self._rows, self._bytes, self._size = -1, 0, 0, 0
        self._fd = -1
        if state is None:
            self._next()
        else:
            self._restore(state)

    def write(self, values: Array, offsets: Array) -> None:
        """Append records: record i is values[offsets[i] - offsets[0] : offsets[i + 1] - offsets[0]]."""
        done, count, base = 0, len(offsets) - 1, int(offsets[0])
        while done < count:
            stop = min(count, done + self._room(offsets, done))
            if stop == done:
                self._next()
                continue
            start, end = int(offsets[done]), int(offsets[stop])
            self._put(values[start - base : end - base])
            self._rows += stop - done
            self._bytes += end - start
            done = stop

    def begin_record(self, size: int) -> None:
        """One record of so many bytes comes, in pieces."""
        if self._room(np.array([0, size]), 0) == 0:
            self._next()
        self._rows += 1
        self._bytes += size

    def extend_record(self, data: Array) -> None:
        """A piece of it."""
        self._put(data)

    def state(self) -> dict[str, Any]:
        """What `Sink(state=...)` needs to go on after what has been written so far."""
        pending = ""
        if self._pending and self._folder is not None:
            self._turn ^= 1
            pending = f"pending-{self._turn}"
            (self._folder / pending).write_bytes(self._pending)
        return {
            "number": self._number, "rows": self._rows, "bytes": self._bytes, "size": self._size, "pending": pending
        }  # fmt: skip

    def duplicate(self) -> int | None:
        """A descriptor of the file being written, to synchronise; None where that makes no sense."""
        return None if self._stream else os.dup(self._fd)

    @property
    def files(self) -> int:
        """Files begun so far."""
        return self._number + 1

    def close(self) -> int:
        """Write what is left, all to the disk; how many files there are."""
        while self._job.shards is not None and self._number < self._job.shards - 1:
            self._next()
        self._end_file()
        return self._number + 1

    def abandon(self) -> None:
        """Close the file as it is."""
        if self._fd > 2:
            os.close(self._fd)
        self._fd = -1

    def _room(self, offsets: Array, done: int) -> int:
        """Records from `done` on that the current file still takes."""
        job, left = self._job, len(offsets) - 1 - done
        if job.shards is not None:
            end = (self._number + 1) * self._records // job.shards
            return (
                end - self._number * self._records // job.shards - self._rows if self._number < job.shards - 1 else left
            )
        if job.shard_lines is not None:
            return job.shard_lines - self._rows
        if job.shard_bytes is not None:
            most = int(offsets[done]) + job.shard_bytes - self._bytes
            fits = int(np.searchsorted(offsets, most, "right")) - 1 - done
            return max(fits, int(self._rows == 0))
        return left

    def _next(self) -> None:
        """Begin the next file."""
        if self._number >= 0:
            self._end_file()
        self._number, self._rows, self._bytes, self._size = self._number + 1, 0, 0, 0
        self._open(new=True)
        self._put(np.frombuffer(self._header, np.uint8))

    def _open(self, *, new: bool) -> None:
        if self._names is None:
            if self._job.output == STDIN and sys.stdout is None:  # its number may be that of another file by now
                raise DataError("standard output is closed.", path=STDIN, remedy="Name a file with -o.")
            self._fd = _STDOUT if self._job.output == STDIN else os.open(self._job.output, os.O_WRONLY)
            return
        partial, final = self._names.partial(self._number), self._names.final(self._number)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if not new:
            self._fd = os.open(partial, os.O_WRONLY | os.O_NOFOLLOW)
            return
        partial.unlink(missing_ok=True)
        mode = stat.S_IMODE(final.stat().st_mode) if final.exists() else None
        self._fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
        if mode is not None:
            os.fchmod(self._fd, mode)

    def name_errors(self) -> AbstractContextManager[None]:
        """Errors of the system that name no file get the name of the output."""
        place = self._job.output if self._names is None else str(self._names.partial(max(self._number, 0)))
        return _named(place)

    def _end_file(self) -> None:
        if self._compress is not None and (self._pending or self._size == 0):
            self._out(self._compress(bytes(self._pending)))
            self._pending.clear()
        if not self._stream:
            with self.name_errors():
                os.fsync(self._fd)
        if self._fd > 2:
            os.close(self._fd)
        self._fd = -1

    def _put(self, data: Array) -> None:
        if self._compress is None:
            self._out(data.data)
            return
        self._pending += data.data
        while len(self._pending) >= _BLOCK:
            self._out(self._compress(bytes(self._pending[:_BLOCK])))
            del self._pending[:_BLOCK]

    def _out(self, data: bytes | memoryview) -> None:
        try:
            write_all(self._fd, data)
        except OSError:
            with self.name_errors():
                raise
        self._size += len(data)

    def _restore(self, state: dict[str, Any]) -> None:
        self._number, self._rows = state["number"], state["rows"]
        self._bytes, self._size = state["bytes"], state["size"]
        if state["pending"] and self._folder is not None:
            self._turn = int(state["pending"][-1])
            self._pending += (self._folder / state["pending"]).read_bytes()
        self._open(new=False)
        os.ftruncate(self._fd, self._size)
        os.lseek(self._fd, self._size, os.SEEK_SET)


@contextmanager
def _named(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = error.filename or place
        raise


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all bytes, however few the system takes at a time."""
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while len(view):
        view = view[os.write(fd, view) :]
