"""Verification of a shuffle: the output has the lines of the inputs, each as often, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kexue.corpus.shuffle.digest import Digest
from kexue.corpus.shuffle.lines import hash_lines
from kexue.corpus.shuffle.options import Paths, check_separator, path_names
from kexue.corpus.shuffle.parallel import run_ordered
from kexue.corpus.shuffle.reader import Chunk, Reader, RecordFormat
from kexue.errors import KexueError

_BUFFER = 4 << 20
_WORKERS = 2


def multiset_digest(paths: Paths, *, separator: bytes = b"\n") -> str:
    """Return a checksum of all lines of files that does not depend on their order or on the number of files.

    Args:
        paths: files, also compressed, or ``"-"``. A last line without separator is a line like others.
        separator: one byte that ends lines.

    Returns:
        32 hexadecimal digits: the sum of 128-bit hashes of the lines. Zero for no lines.
    """
    check_separator(separator)
    return digest_of(path_names(paths), RecordFormat(separator[0]))


def verify_shuffle(inputs: Paths, outputs: Paths) -> bool:
    r"""Return whether both have the same lines, each as often; their order may differ.

    >>> from pathlib import Path
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, text in {"a": "x\ny\nx\n", "b": "x\nx\ny", "c": "x\ny\n"}.items():
    ...     _ = (folder / name).write_text(text)
    >>> verify_shuffle(folder / "a", folder / "b"), verify_shuffle(folder / "a", folder / "c")
    (True, False)
    """
    return multiset_digest(inputs) == multiset_digest(outputs)


def digest_of(paths: Sequence[str], form: RecordFormat) -> str:
    """Return the digest of the lines of files that are cut by `form`."""
    total = Digest()
    reader = Reader(paths, form, cap=_BUFFER // 32, oversized=_NoFile())
    try:
        run_ordered(_digest_chunk, reader.chunks(_BUFFER, _WORKERS), total.merge, _WORKERS)
    finally:
        reader.close()
    return str(total)


def _digest_chunk(chunk: Chunk) -> str:
    """Return the digest of the lines of a chunk."""
    if chunk.oversized:
        return chunk.digest
    digest = Digest()
    digest.add(hash_lines(chunk.data, chunk.lines))
    return str(digest)


def check_digest(paths: Sequence[str], form: RecordFormat, expected: str) -> None:
    """Raise a KexueError if the lines of files do not have the `expected` multiset checksum."""
    digest = digest_of(paths, form)
    if digest != expected:
        raise KexueError(
            f"the output does not hold the lines of the input: checksum {digest}, expected {expected}.",
            remedy="Disk or memory may be faulty; run again.",
        )


class _NoFile:
    """File of oversized records that keeps nothing: only their digest is needed."""

    def write(self, _: Any) -> None:
        """Do nothing."""
