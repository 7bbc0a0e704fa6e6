"""Size limits of requests: address, headers, and the number and depth of JSON values, before they are parsed."""

from __future__ import annotations

import numpy as np
from starlette.types import Scope

from kexue.serve.errors import ApiError

MAX_HEAD = 60 * 1024  # bytes of the address, and bytes of all headers; the parser gives up at 64 KiB
MAX_HEADERS = 100
# Counts in a body, by the bytes that mark them: enough for 2,048 texts of 500 token ids, or for 2,048 documents of
# 120 fields, 30 of them lists.
MAX_JSON = {"values": (b",", 2**20), "fields of objects": (b":", 2**18), "lists and objects": (b"[{", 2**16)}
MAX_DEPTH = 500  # levels of nested lists and objects
MAX_INPUTS = 2048  # texts of one request
MAX_LIST = 10 * MAX_INPUTS  # ids to delete, or values of a filter
MAX_CONDITIONS = 100  # of a filter; the server answers many, so fewer than `kexue.search.filters` allows
_PIECE = 64 * 1024  # bytes counted at a time
_VALUE = 64  # bytes that a small value takes in memory
_STEPS = np.zeros(256, np.int64)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1


def check_head(scope: Scope) -> ApiError | None:
    """Return an error for an address or headers over the limits; None where they are within."""
    target = len(scope.get("raw_path") or scope["path"].encode()) + len(scope.get("query_string", b""))
    if target > MAX_HEAD:
        return ApiError(414, f"The address of the request has {target:,} bytes; at most {MAX_HEAD:,} are allowed.")
    headers = scope["headers"]
    size = sum(len(name) + len(value) for name, value in headers)
    if size > MAX_HEAD or len(headers) > MAX_HEADERS:
        return ApiError(
            431,
            f"The request has {len(headers)} headers of {size:,} bytes; at most {MAX_HEADERS} of {MAX_HEAD:,} "
            "are allowed.",
        )
    return None


class JsonMeter:
    """Counter of the values in a JSON text and of their depth, fed with the bytes as they arrive.

    A value of two bytes takes sixty bytes in memory once parsed, and a wrong value an error of a thousand. The count is
    exact up to the first byte that is not JSON, and no parser reads past that byte.

    Attributes:
        counts: number of commas, colons and opening brackets outside strings, by the names in `MAX_JSON`.
        depth: level of the deepest bracket.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys(MAX_JSON, 0)
        self.depth = 0
        self._open = 0
        self._in_string = 0
        self._rest = b""

    @property
    def weight(self) -> int:
        """Bytes in memory that the values take if all are small."""
        return _VALUE * sum(self.counts.values())

    def add(self, chunk: bytes) -> ApiError | None:
        """Count the next bytes; return an error once a limit is exceeded, else None."""
        for start in range(0, len(chunk), _PIECE):
            piece = chunk[start : start + _PIECE]
            if b"\0" in piece:  # UTF-16 and UTF-32 have it; their quotes would be miscounted
                return ApiError(400, "The body is not JSON in UTF-8: it holds a byte 0.")
            self._count(piece)
            for what, (_, most) in MAX_JSON.items():
                if self.counts[what] > most:
                    return ApiError(413, f"The body holds more than {most:,} {what}; send it in parts.")
            if self.depth > MAX_DEPTH:
                return ApiError(400, f"The body is nested more than {MAX_DEPTH} levels deep.")
        return None

    def _count(self, piece: bytes) -> None:
        """Add the marks outside strings; a string may go on in the next piece."""
        data = self._rest + piece
        dangling = (len(data) - len(data.rstrip(b"\\"))) % 2  # a last backslash is kept for the byte that it escapes
        data, self._rest = data[: len(data) - dangling], data[len(data) - dangling :]
        parts = data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self._in_string = (self._in_string + len(parts) - 1) % 2
        for what, (marks, _) in MAX_JSON.items():
            self.counts[what] += sum(outside.count(mark) for mark in marks)
        if outside:
            levels = self._open + np.cumsum(_STEPS[np.frombuffer(outside, np.uint8)])
            self.depth, self._open = max(self.depth, int(levels.max())), int(levels[-1])
