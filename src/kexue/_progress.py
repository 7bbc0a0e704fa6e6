"""Callbacks that report the progress of long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None], None]
"""Called as ``progress(done, total)``; `total` is None while it is unknown."""


class ProgressCounter:
    """Counter of work done, which calls `progress` with it; a `total` of None is unknown."""

    def __init__(self, progress: Progress | None, total: int | None) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, count: int) -> None:
        """Report `count` more as done; never more than `total`, which may be an estimate."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done if self._total is None else min(self._done, self._total), self._total)
