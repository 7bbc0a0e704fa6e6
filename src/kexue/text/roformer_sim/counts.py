"""Whole numbers that callers give: checked in one way."""

from __future__ import annotations

from numbers import Integral
from typing import TypeGuard


def is_whole(number: object) -> TypeGuard[int]:
    """Return whether an object is a whole number, of Python or numpy; a bool is none."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def check_counts(**counts: object) -> None:
    """Raise a ValueError for a count, given by its name, that is not a whole number of at least 1."""
    for name, count in counts.items():
        if not is_whole(count) or count < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {count!r}")
