"""Open compressed files decompressed: the first bytes decide the compression, else the extension of the name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from kexue._files import system_error
from kexue._optional import import_optional
from kexue._text import standard_input
from kexue.errors import DataError

STDIN = "-"
COMPRESSIONS = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".xz": "xz",
    ".zst": "zstd",
    ".lz4": "lz4",
}  # extension: name of the compression
HEAD = 10  # bytes at the start of a file that decide its compression
_MAGIC = {
    "gzip": (b"\x1f\x8b\x08",),
    # a digit for the block size, then the magic number of a block or of the end of the stream
    "bz2": tuple(b"BZh%d%b" % (n, next_) for n in range(1, 10) for next_ in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")),
    "xz": (b"\xfd7zXZ\0",),
    "zstd": (b"\x28\xb5\x2f\xfd",),
    "lz4": (b"\x04\x22\x4d\x18",),
}
_ARROW = ("zstd", "lz4")  # read with Arrow, the others with the standard library
_SKIPPABLE = tuple(
    bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16)
)  # starts of a frame without data, in zstd and in lz4


def split_suffix(path: str) -> tuple[str, str]:
    """Split a path's endings into the format's and the compression's, in lower case.

    >>> split_suffix("faq.JSONL.gz"), split_suffix("faq.csv"), split_suffix("faq")
    (('.jsonl', '.gz'), ('.csv', ''), ('', ''))
    """
    name = Path(path)
    compression = name.suffix.lower()
    if compression not in COMPRESSIONS:
        return compression, ""
    return name.with_suffix("").suffix.lower(), compression


def codec_of(head: bytes, ending: str = "") -> str | None:
    """Return the compression of a file; None for a plain one.

    Args:
        head: its first `HEAD` bytes, fewer only where the file is shorter.
        ending: extension of its name, such as ``".gz"``. It decides in two cases: the file is shorter than the first
            bytes that are needed, or it begins with a frame without data, which zstd and lz4 write alike.

    >>> codec_of(b"BZh91AY&SY"), codec_of(b"BZhou is a name"), codec_of(b"plain text", ".gz")
    ('bz2', None, None)
    """
    for codec, magic in _MAGIC.items():
        if head.startswith(magic):
            return codec
    expected = COMPRESSIONS.get(ending)
    if expected is None or not head:
        return None
    skippable = expected in _ARROW and head.startswith(_SKIPPABLE)
    cut_short = any(magic.startswith(head) for magic in _MAGIC[expected])
    return expected if skippable or cut_short else None


def read_codec(path: str) -> str | None:
    """Return the compression of the regular file at `path`, by `codec_of`."""
    with open(path, "rb", buffering=0) as stream:
        return codec_of(stream.read(HEAD), split_suffix(path)[1])


@contextmanager
def open_stream(path: str, *, raw: Any = None) -> Iterator[tuple[BinaryIO, str | None]]:
    """Open a file, a pipe, or standard input for ``"-"``: a decompressed stream and the name of its compression.

    A plain file is not buffered. Errors are those of the system and of the decompressor; see `explain_errors`.

    Args:
        path: the file.
        raw: stream of its bytes, which stays open; None opens it.
    """
    with ExitStack() as opened:
        if raw is None:
            raw = standard_input() if path == STDIN else opened.enter_context(open(path, "rb", buffering=0))
        raw, head = _peek(raw)
        codec = codec_of(head, split_suffix(path)[1])
        stream = raw if codec is None else opened.enter_context(closing(_decompress(raw, codec)))
        yield cast(BinaryIO, stream), codec


@contextmanager
def open_bytes(path: str, *, raw: Any = None) -> Iterator[BinaryIO]:
    """Open a file, a pipe, or standard input for ``"-"``: a decompressed, buffered stream; `raw`: see `open_stream`.

    Raises:
        DataError: it cannot be opened, or cannot be read inside the `with` block.
    """
    with explain_errors(path), open_stream(path, raw=raw) as (stream, codec):
        unbuffered = isinstance(stream, io.RawIOBase) or codec in _ARROW  # Arrow's streams have no readline
        yield io.BufferedReader(cast(Any, stream)) if unbuffered else stream


@contextmanager
def explain_errors(path: str) -> Iterator[None]:
    """Turn the errors of reading `path` inside the `with` block into a `DataError` with a remedy."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged_data(error, path) from error
    except OSError as error:
        if error.errno is None:  # damaged data, as bz2 and Arrow report them
            raise _damaged_data(error, path) from error
        raise system_error(error, path) from error
    except MemoryError as error:
        raise DataError(
            "there is not enough memory to decompress the file.", path=path, remedy="Decompress it."
        ) from error


def _damaged_data(error: BaseException, path: str) -> DataError:
    """Return the error about damaged compressed data."""
    return DataError(
        f"the compressed data are damaged or cut short ({error}).", path=path, remedy="Fetch or write the file again."
    )


def compress_block(block: bytes, codec: str) -> bytes:
    """Return bytes compressed, independently of what is before and after them in their file.

    Args:
        block: bytes of any number.
        codec: one of the values of `COMPRESSIONS`.
    """
    if codec == "gzip":
        return gzip.compress(block, 6, mtime=0)
    if codec in ("bz2", "xz"):
        return bz2.compress(block) if codec == "bz2" else lzma.compress(block)
    compressed: bytes = import_optional("pyarrow", extra="corpus").compress(block, codec=codec, asbytes=True)
    return compressed


def _decompress(raw: Any, codec: str) -> Any:
    """Return a decompressed stream of a compressed one."""
    if codec == "gzip":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if codec == "bz2":
        return bz2.BZ2File(raw)
    if codec == "xz":
        return lzma.LZMAFile(raw)
    return import_optional("pyarrow", extra="corpus").CompressedInputStream(raw, codec)


def _peek(stream: Any) -> tuple[Any, bytes]:
    """Return a stream and its first bytes, which reading the stream gives again."""
    if stream.seekable():
        start = stream.tell()
        head = stream.read(HEAD)
        stream.seek(start)
        return stream, head
    head = stream.peek(HEAD)[:HEAD] if hasattr(stream, "peek") else b""
    if len(head) == HEAD:
        return stream, head
    head = b""
    while len(head) < HEAD and (block := stream.read(HEAD - len(head))):  # a pipe may give less than is asked for
        head += block
    return io.BufferedReader(_Rejoined(head, stream)), head


class _Rejoined(io.RawIOBase):
    """A stream that cannot seek, with the bytes that have been read from its start put back.

    Args:
        head: those bytes.
        stream: the rest; it stays open.
    """

    def __init__(self, head: bytes, stream: Any) -> None:
        self._head = head
        self._read_rest = getattr(stream, "readinto1", stream.readinto)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what one read gives; return the number of bytes, 0 at the end."""
        if not self._head:
            return int(self._read_rest(buffer) or 0)
        n = min(len(buffer), len(self._head))
        buffer[:n], self._head = self._head[:n], self._head[n:]
        return n
