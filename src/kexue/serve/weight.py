"""What a request weighs before it is read: its head, and the values that its JSON will become."""

from __future__ import annotations

import numpy as np
from starlette.types import Scope

from kexue.serve.errors import ApiError

MAX_HEAD = 60 * 1024  # bytes of the target, and as many of the headers; the parser gives up at 64 KiB
MAX_HEADERS = 100
# Of a body, by their marks: 2,048 texts of 500 token ids, or 2,048 documents of 120 fields, 30 of them lists.
MOST = {"values": (b",", 2**20), "fields of objects": (b":", 2**18), "lists and objects": (b"[{", 2**16)}
MAX_DEPTH = 500  # of nested lists and objects
_PIECE = 64 * 1024
_VALUE = 64  # bytes
_STEPS = np.zeros(256, np.int64)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1


def check_head(scope: Scope) -> ApiError | None:
    """Refuse an address or headers no client of ours has a use for."""
    target = len(scope.get("raw_path") or scope["path"].encode()) + len(scope.get("query_string", b""))
    if target > MAX_HEAD:
        return ApiError(414, f"The address of the request has {target:,} bytes, at most {MAX_HEAD:,} are taken.")
    headers = scope["headers"]
    size = sum(len(name) + len(value) for name, value in headers)
    if size > MAX_HEAD or len(headers) > MAX_HEADERS:
        return ApiError(
            431,
            f"The request has {len(headers)} headers of {size:,} bytes, at most {MAX_HEADERS} of {MAX_HEAD:,} "
            "are taken.",
        )
    return None


class JsonMeter:
    """Counts the values of a JSON text and their depth while its bytes go by, before anything is made of them.

    A value of two bytes in a text is an object of sixty in memory and, where it is wrong, an error of a thousand. Up
    to the first byte that is no JSON the count is exact; what follows that byte no parser reads.

    Attributes:
        counts: commas, colons and opening brackets outside strings, each under what they count.
        depth: of the deepest bracket.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys(MOST, 0)
        self.depth = 0
        self._open = 0
        self._in_string = 0
        self._kept = b""

    @property
    def weight(self) -> int:
        """Bytes that small values, as many as there are, take in memory."""
        return _VALUE * sum(self.counts.values())

    def add(self, chunk: bytes) -> ApiError | None:
        """Count the next bytes; what is wrong with them, if anything."""
        for start in range(0, len(chunk), _PIECE):
            piece = chunk[start : start + _PIECE]
            if b"\0" in piece:  # the other encodings a parser would take have it, and quotes that are none
                return ApiError(400, "The body is no JSON in UTF-8: it holds a byte 0.")
            self._count(piece)
            for what, (_, most) in MOST.items():
                if self.counts[what] > most:
                    return ApiError(413, f"The body holds more than {most:,} {what}; send it in parts.")
            if self.depth > MAX_DEPTH:
                return ApiError(400, f"The body is no JSON of ours: it is nested more than {MAX_DEPTH} levels deep.")
        return None

    def _count(self, piece: bytes) -> None:
        data = self._kept + piece
        dangling = (len(data) - len(data.rstrip(b"\\"))) % 2  # a backslash waits for the byte it escapes
        data, self._kept = data[: len(data) - dangling], data[len(data) - dangling :]
        parts = data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self._in_string = (self._in_string + len(parts) - 1) % 2
        for what, (marks, _) in MOST.items():
            self.counts[what] += sum(outside.count(mark) for mark in marks)
        if outside:
            levels = self._open + np.cumsum(_STEPS[np.frombuffer(outside, np.uint8)])
            self.depth, self._open = max(self.depth, int(levels.max())), int(levels[-1])
