"""Check of counts: numbers of events, layers, levels, classes."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def check_count(value: Any, name: str, least: int = 0) -> int:
    """Return a count as an int.

    Raises:
        ValueError: not an integer, or below `least`.

    Example:
        >>> check_count(3, "couplings", 2)
        3
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(value)
