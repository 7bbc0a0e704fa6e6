"""Options of a shuffle, checked once."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kexue._cores import count_cores
from kexue._files import system_error
from kexue.corpus.open import STDIN
from kexue.corpus.shuffle.keys import ALGORITHMS, check_seed
from kexue.corpus.shuffle.reader import RecordFormat
from kexue.errors import DataError

FilePath = str | os.PathLike[str]
Paths = FilePath | Iterable[FilePath]
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_RESULT = ("algorithm", "seed", "shards", "shard_lines", "shard_bytes", "sample")  # besides inputs, output and format


@dataclass(frozen=True)
class ShuffleOptions:
    """Arguments of `shuffle_files`, checked; make one with `check_options`.

    Attributes:
        inputs: files, or ``"-"`` for standard input.
        output: a file, a folder, or ``"-"`` for standard output.
        form: how files are cut into records.
        memory: limit of the process's memory, in bytes, plus 60 MB for Python.
        workers: number of threads, >= 1.
        others: see `shuffle_files`.
    """

    inputs: tuple[str, ...]
    output: str
    form: RecordFormat
    memory: int
    workers: int
    tmp: FilePath | None = None
    seed: int | None = None
    algorithm: str = "keyed"
    aligned: bool = False
    shards: int | None = None
    shard_lines: int | None = None
    shard_bytes: int | None = None
    sample: int | None = None
    resume: bool = True
    verify: bool = True

    @property
    def to_stream(self) -> bool:
        """Whether the output is standard output, a pipe or a device, which cannot be replaced or read again."""
        if self.output == STDIN:
            return True
        return os.path.exists(self.output) and not (
            os.path.isdir(self.output) or stat.S_ISREG(os.stat(self.output).st_mode)
        )

    @property
    def to_shards(self) -> bool:
        """Whether the output is several files."""
        return any(limit is not None for limit in (self.shards, self.shard_lines, self.shard_bytes))

    @property
    def resumable(self) -> bool:
        """Whether reading and writing can start in the middle of the files. A sample is drawn from the start again."""
        return (
            self.sample is None
            and STDIN not in self.inputs
            and not self.to_stream
            and all(map(os.path.isfile, self.inputs))
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides the result, for JSON; paths are absolute."""
        names = {name: getattr(self, name) for name in _RESULT}
        paths = {"inputs": [_absolute(path) for path in self.inputs], "output": _absolute(self.output)}
        return {**names, **paths, "form": list(self.form.__dict__.values())}

    def fingerprints(self) -> list[list[int]]:
        """Return size, time of change and inode of each input, which show whether it has changed."""
        return [[one.st_size, one.st_mtime_ns, one.st_ino] for one in map(os.stat, self.inputs)]

    def folder(self) -> Path:
        """Return the folder of temporary files: below `tmp`, else beside the output.

        One output has one folder: two shuffles cannot write it at once, and the next shuffle finds what an
        interrupted one has left.
        """
        output = self.output if self.output == STDIN else os.path.realpath(self.output)
        parent = self.tmp
        if parent is None:
            parent = tempfile.gettempdir() if self.to_stream else existing_parent(Path(output).parent)
        return Path(parent) / f".kexue-shuffle-{hashlib.sha256(output.encode()).hexdigest()[:16]}"

    def split_aligned(self) -> list[ShuffleOptions]:
        """Return the options of each shuffle: one an input, into the folder `output`, if the files are aligned."""
        if not self.aligned:
            return [self]
        names = [Path(path).name for path in self.inputs]
        if STDIN in self.inputs or len(set(names)) < len(names):
            raise ValueError(f"aligned files need different names, got {', '.join(self.inputs)}.")
        if self.to_shards:
            raise ValueError("aligned files cannot be cut into shards; shuffle them aligned, then cut them.")
        if self.to_stream or os.path.isfile(self.output):
            raise ValueError(f"aligned needs a folder as output, got {self.output}.")
        return [
            replace(self, inputs=(path,), output=os.path.join(self.output, name), aligned=False)
            for path, name in zip(self.inputs, names, strict=True)
        ]


def check_options(
    inputs: Paths,
    output: FilePath,
    *,
    memory: int | str = "4G",
    workers: int | None = None,
    separator: bytes = b"\n",
    header: int = 0,
    lines_per_record: int = 1,
    strip_bom: bool = False,
    **others: Any,
) -> ShuffleOptions:
    """Check the arguments of `shuffle_files`, which are those of this function, and return them as a record.

    Raises:
        TypeError, ValueError: an unknown argument, or one out of range.
        DataError: an input that is missing or is a folder.
    """
    if unknown := set(others) - {field.name for field in fields(ShuffleOptions)}:
        raise TypeError(f"shuffle_files has no argument {min(unknown)!r}.")
    total = parse_size(memory)
    if total < 1 << 20:
        raise ValueError(f"memory must be 1M at least, got {memory!r}.")
    if workers is None:
        workers = min(4, count_cores())
    check_separator(separator)
    _check_counts(workers=(workers, 1), header=(header, 0), lines_per_record=(lines_per_record, 1))
    form = RecordFormat(separator[0], lines_per_record, header, strip_bom)
    options = ShuffleOptions(path_names(inputs), os.fspath(output), form, total, workers, **others)
    _check_limits(options)
    _check_inputs(options.inputs)
    if options.algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {options.algorithm!r}.")
    if options.seed is not None:
        check_seed(options.seed)
    return options


def path_names(paths: Paths) -> tuple[str, ...]:
    """Return one path, or several, as strings."""
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    return tuple(os.fspath(path) for path in several)


def check_separator(separator: bytes) -> None:
    """Raise a ValueError for a separator that is not one byte."""
    if not isinstance(separator, bytes) or len(separator) != 1:
        raise ValueError(f"separator must be one byte, such as b'\\n' or b'\\0', got {separator!r}.")


def parse_size(size: int | str, name: str = "memory") -> int:
    """Return the bytes of ``"8G"``, ``"256M"``, or a number.

    Args:
        size: the size, > 0; K, M, G and T are powers of 1024.
        name: name of the argument, for the error.

    >>> parse_size("1.5K"), parse_size("256M"), parse_size(10)
    (1536, 268435456, 10)
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if match is None or float(match[1]) <= 0:
        raise ValueError(f'{name} must be a positive number of bytes or such as "8G" or "256M", got {size!r}.')
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def existing_parent(path: Path) -> Path:
    """Return a path, or the nearest folder above it that exists."""
    return next(one for one in (path, *path.parents) if one.exists())


def _check_limits(options: ShuffleOptions) -> None:
    """Check the numbers that cut the output."""
    limits = {name: getattr(options, name) for name in ("shards", "shard_lines", "shard_bytes", "sample")}
    given = {name: value for name, value in limits.items() if value is not None}
    _check_counts(**{name: (value, int(name != "sample")) for name, value in given.items()})
    cuts = [name for name in given if name != "sample"]
    if len(cuts) > 1:
        raise ValueError(f"give only one of shards, shard_lines and shard_bytes, got {' and '.join(cuts)}.")


def _check_inputs(names: tuple[str, ...]) -> None:
    """Check that the inputs are there and can be read as files."""
    if not names:
        raise ValueError("inputs must name at least one file, got none.")
    if names.count(STDIN) > 1:
        raise ValueError("standard input can be given only once.")
    for name in names:
        if name != STDIN and not os.path.exists(name):
            raise system_error(FileNotFoundError(errno.ENOENT, ""), name)
        if name != STDIN and os.path.isdir(name):
            raise DataError(
                "expected a file, got a folder.", remedy="Name its files, for example with *.txt.", path=name
            )


def _check_counts(**counts: tuple[Any, int]) -> None:
    """Raise a ValueError for a (value, least) whose value is not a whole number of at least `least`."""
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}.")


def _absolute(path: str) -> str:
    """Return an absolute path; ``"-"`` stays."""
    return path if path == STDIN else os.path.abspath(path)
