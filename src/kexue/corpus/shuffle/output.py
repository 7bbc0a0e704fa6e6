"""Output of a shuffle: one file or shards, plain or compressed, under temporary names until it is whole."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue._files import synchronise, write_all
from kexue.corpus.open import COMPRESSIONS, STDIN, compress_block, split_suffix
from kexue.corpus.shuffle.options import ShuffleOptions
from kexue.errors import DataError

_BLOCK = 4 << 20  # bytes compressed at a time, independently, so that the file does not depend on the buckets
_STDOUT = 1


class OutputNames:
    """Names of the files of the output.

    One file: the output's name, or ``part-00000`` with the inputs' ending in a folder. Shards: ``part-00000.txt`` in a
    folder; ``name-00000.txt`` for an output called ``name.txt``.

    Args:
        options: options of the shuffle.
        folder: folder of temporary files. Unfinished files are named after it, so that those of two shuffles differ.

    Attributes:
        codec: compression of the files; None: they are plain.
    """

    def __init__(self, options: ShuffleOptions, folder: Path | None = None) -> None:
        self._tag = hashlib.sha256(os.fsencode(folder or "")).hexdigest()[:8]
        path = Path(options.output)
        self._single: Path | None = None
        ending, compression = split_suffix(path.name)
        in_folder = path.is_dir() or options.output.endswith(os.sep)
        if in_folder or (options.to_shards and not ending and not compression):
            first = split_suffix(options.inputs[0])[0] if options.inputs[0] != STDIN else ".txt"
            self._folder, self._stem, self._end = path, "part", first
        else:
            self._folder, self._end = path.parent, ending + compression
            self._stem = path.name[: len(path.name) - len(self._end)]
            self._end = path.name[len(self._stem) :]
            if not options.to_shards:
                self._single = path
        self.codec = COMPRESSIONS.get(split_suffix(self.final(0).name)[1])

    def final(self, number: int) -> Path:
        """Return the name of a file."""
        return self._single or self._folder / f"{self._stem}-{number:05}{self._end}"

    def partial(self, number: int) -> Path:
        """Return the name of an unfinished file, beside the file that a link points to."""
        target = Path(os.path.realpath(self.final(number)))
        return target.with_name(f".{target.name}.{self._tag}.partial")

    def remove_partial(self) -> None:
        """Remove unfinished files that an earlier process with this folder has left."""
        with suppress(FileNotFoundError):
            for path in self.partial(0).parent.glob(f".*.{self._tag}.partial"):
                path.unlink(missing_ok=True)

    def publish(self, files: int) -> list[str]:
        """Give the first `files` unfinished files their names, and remove further shards of an earlier run."""
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

    def stale(self, files: int) -> list[Path]:
        """Return the shards of an earlier run beyond the first `files`."""
        if self._single is not None or not self._folder.is_dir():
            return []
        pattern = re.compile(re.escape(self._stem) + r"-(\d{5,})" + re.escape(self._end))
        matches = ((path, pattern.fullmatch(path.name)) for path in self._folder.iterdir())
        return [path for path, match in matches if match and int(match[1]) >= files]


def check_output(options: ShuffleOptions) -> None:
    """Raise a ValueError if the output, or one of those of aligned files, would replace an input."""
    for part in options.split_aligned():
        if part.to_stream:
            continue
        names = OutputNames(part)
        for target in [names.final(0), *names.stale(0)]:
            for name in options.inputs:
                if name != STDIN and target.exists() and os.path.samefile(target, name):
                    raise ValueError(f"the output {target} is one of the inputs; choose another name.")


class OutputWriter:
    """Writer of records in their final order.

    Args:
        options: names and limits of the files.
        records: number of records that will come, which decides where shards of equal numbers end.
        header: bytes at the start of every file.
        state: state of an earlier writer, which this one continues.
        folder: folder of temporary files, for bytes that are not compressed yet.
    """

    def __init__(
        self,
        options: ShuffleOptions,
        records: int,
        header: bytes,
        state: dict[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._options, self._records, self._header, self._folder = options, records, header, folder
        self._to_stream = options.to_stream
        self._names = None if self._to_stream else OutputNames(options, folder)
        self._codec = None if self._names is None else self._names.codec
        self._turn = 0  # which of two file names holds the bytes that are not compressed yet
        self._pending = bytearray()
        self._number, self._rows, self._bytes, self._size = -1, 0, 0, 0
        self._fd = -1
        if state is None:
            self._next_file()
        else:
            self._restore(state)

    def write(self, values: Array, offsets: Array) -> None:
        """Append records: record i is values[offsets[i] - offsets[0] : offsets[i + 1] - offsets[0]]."""
        done, count, base = 0, len(offsets) - 1, int(offsets[0])
        while done < count:
            stop = min(count, done + self._room(offsets, done))
            if stop == done:
                self._next_file()
                continue
            start, end = int(offsets[done]), int(offsets[stop])
            self._append(values[start - base : end - base])
            self._rows += stop - done
            self._bytes += end - start
            done = stop

    def begin_record(self, size: int) -> None:
        """Begin a record of `size` bytes that comes in pieces."""
        if self._room(np.array([0, size]), 0) == 0:
            self._next_file()
        self._rows += 1
        self._bytes += size

    def extend_record(self, data: Array) -> None:
        """Append a piece of that record."""
        self._append(data)

    def state(self) -> dict[str, Any]:
        """Return the state for a later writer that continues after what has been written so far."""
        pending = ""
        if self._pending and self._folder is not None:
            self._turn ^= 1
            pending = f"pending-{self._turn}"
            (self._folder / pending).write_bytes(self._pending)
        counts = {"number": self._number, "rows": self._rows, "bytes": self._bytes, "size": self._size}
        return {**counts, "pending": pending}

    def duplicate(self) -> int | None:
        """Return a second descriptor of the file being written, to synchronise; None for a stream."""
        return None if self._to_stream else os.dup(self._fd)

    @property
    def files(self) -> int:
        """Number of files begun so far."""
        return self._number + 1

    def close(self) -> int:
        """Write the rest through to the disk; return the number of files."""
        while self._options.shards is not None and self._number < self._options.shards - 1:
            self._next_file()
        self._end_file()
        return self._number + 1

    def close_unfinished(self) -> None:
        """Close the file as it is."""
        if self._fd > 2:
            os.close(self._fd)
        self._fd = -1

    def _room(self, offsets: Array, done: int) -> int:
        """Return how many records from `done` on the current file has room for."""
        options, rest = self._options, len(offsets) - 1 - done
        if options.shards is not None:
            if self._number == options.shards - 1:
                return rest
            begin, end = (number * self._records // options.shards for number in (self._number, self._number + 1))
            return end - begin - self._rows
        if options.shard_lines is not None:
            return options.shard_lines - self._rows
        if options.shard_bytes is not None:
            most = int(offsets[done]) + options.shard_bytes - self._bytes
            fits = int(np.searchsorted(offsets, most, "right")) - 1 - done
            return max(fits, int(self._rows == 0))
        return rest

    def _next_file(self) -> None:
        """Begin the next file."""
        if self._number >= 0:
            self._end_file()
        self._number, self._rows, self._bytes, self._size = self._number + 1, 0, 0, 0
        self._open_file(new=True)
        self._append(np.frombuffer(self._header, np.uint8))

    def _open_file(self, *, new: bool) -> None:
        """Open the file of the current number; `new`: without what an earlier run has written."""
        if self._names is None:
            if self._options.output == STDIN and sys.stdout is None:  # its number may be that of another file by now
                raise DataError("standard output is closed.", path=STDIN, remedy="Name a file with -o.")
            self._fd = _STDOUT if self._options.output == STDIN else os.open(self._options.output, os.O_WRONLY)
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
        """Return a context in which errors of the system get the name of the output, if they name no file."""
        place = self._options.output if self._names is None else str(self._names.partial(max(self._number, 0)))
        return _name_errors(place)

    def _end_file(self) -> None:
        """Write the rest of the current file through to the disk, and close it."""
        if self._codec is not None and (self._pending or self._size == 0):
            self._write_out(compress_block(bytes(self._pending), self._codec))
            self._pending.clear()
        if not self._to_stream:
            with self.name_errors():
                os.fsync(self._fd)
        if self._fd > 2:
            os.close(self._fd)
        self._fd = -1

    def _append(self, data: Array) -> None:
        """Append bytes to the current file, compressed in blocks."""
        if self._codec is None:
            self._write_out(data.data)
            return
        self._pending += data.data
        while len(self._pending) >= _BLOCK:
            self._write_out(compress_block(bytes(self._pending[:_BLOCK]), self._codec))
            del self._pending[:_BLOCK]

    def _write_out(self, data: bytes | memoryview) -> None:
        """Write bytes to the current file."""
        try:
            write_all(self._fd, data)
        except OSError:
            with self.name_errors():
                raise
        self._size += len(data)

    def _restore(self, state: dict[str, Any]) -> None:
        """Continue where an earlier writer was in this state."""
        self._number, self._rows = state["number"], state["rows"]
        self._bytes, self._size = state["bytes"], state["size"]
        if state["pending"] and self._folder is not None:
            self._turn = int(state["pending"][-1])
            self._pending += (self._folder / state["pending"]).read_bytes()
        self._open_file(new=False)
        os.ftruncate(self._fd, self._size)
        os.lseek(self._fd, self._size, os.SEEK_SET)


@contextmanager
def _name_errors(place: str) -> Iterator[None]:
    """Give errors of the system inside the `with` block the name `place`, if they name no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or place
        raise
