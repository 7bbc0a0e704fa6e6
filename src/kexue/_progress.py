"""The type of callbacks that report the progress of long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None], None]
"""Called as ``progress(done, total)``; `total` is None while it is unknown."""
