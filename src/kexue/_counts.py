"""Whole numbers that callers give: checked in one way."""

from __future__ import annotations

from numbers import Integral
from typing import TypeGuard


def is_whole(number: object) -> TypeGuard[int]:
    """Return whether an object is a whole number, of Python or numpy; a bool is none."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def check_count(count: object, name: str, least: int = 0) -> int:
    """Return a count as an int; raise a ValueError, which names it, unless it is a whole number >= `least`."""
    if not is_whole(count) or count < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {count!r}")
    return int(count)


def check_counts(least: int = 1, /, **counts: object) -> None:
    """Raise a ValueError for a count, given by its name, that is not a whole number >= `least`."""
    for name, count in counts.items():
        check_count(count, name, least)
