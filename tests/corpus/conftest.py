"""Compressed bytes for the tests of the readers."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable

import pytest


def _arrow(data: bytes, codec: str) -> bytes:
    pa = pytest.importorskip("pyarrow")
    half = len(data) // 2  # in two frames
    return b"".join(pa.compress(part, codec=codec, asbytes=True) for part in (data[:half], data[half:]))


_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": lambda data: _arrow(data, "zstd"),
    ".lz4": lambda data: _arrow(data, "lz4"),
}


@pytest.fixture
def compress() -> Callable[[bytes, str], bytes]:
    """Return a function that compresses bytes as an ending says (none for "")."""
    return lambda data, ending: _COMPRESS[ending](data)
