"""Whether an output holds the lines of its inputs, all of them and nothing else, whatever their order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kexue.corpus.shuffle.digest import Digest, hash_records
from kexue.corpus.shuffle.pipeline import run_ordered
from kexue.corpus.shuffle.source import Chunk, Format, Reader

_BUFFER = 4 << 20
_WORKERS = 2

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def multiset_digest(paths: Paths, *, separator: bytes = b"\n") -> str:
    """Checksum of all lines of files that does not depend on their order, nor on how they are spread over files.

    Args:
        paths: files, also compressed, or ``"-"``. A last line without separator is a line like others.
        separator: one byte.

    Returns:
        32 hexadecimal digits: the sum of 128-bit hashes of the lines. Zero for no lines.
    """
    if not isinstance(separator, bytes) or len(separator) != 1:
        raise ValueError(f"separator must be one byte, such as b'\\n' or b'\\0', got {separator!r}.")
    return digest_of(_names(paths), Format(separator[0]))


def verify_shuffle(inputs: Paths, outputs: Paths) -> bool:
    r"""Whether both have the same lines, each as often; their order may differ.

    >>> from pathlib import Path
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, text in {"a": "x\ny\nx\n", "b": "x\nx\ny", "c": "x\ny\n"}.items():
    ...     _ = (folder / name).write_text(text)
    >>> verify_shuffle(folder / "a", folder / "b"), verify_shuffle(folder / "a", folder / "c")
    (True, False)
    """
    return multiset_digest(inputs) == multiset_digest(outputs)


def digest_of(paths: Sequence[str], form: Format) -> str:
    """The digest of files cut by `form`."""
    total = Digest()
    reader = Reader(paths, form, cap=_BUFFER // 32, giants=_Nowhere())
    buffers = [np.empty(_BUFFER, np.uint8) for _ in range(_WORKERS)]

    def process(_: int, chunk: Chunk) -> str:
        if chunk.giant:
            return chunk.digest
        part, starts = Digest(), np.concatenate([[0], chunk.lines[:-1] + 1])
        part.add(hash_records(chunk.data, starts, chunk.lines - starts))
        return str(part)

    try:
        run_ordered(_WORKERS, lambda worker: reader.read(buffers[worker]), process, total.merge)
    finally:
        reader.close()
    return str(total)


class _Nowhere:
    """Takes giant records, of which the digest is all that is wanted."""

    def write(self, _: Any) -> None:
        """Forget it."""


def _names(paths: Paths) -> list[str]:
    some = [paths] if isinstance(paths, str | os.PathLike) else paths
    return [os.fspath(path) for path in some]
