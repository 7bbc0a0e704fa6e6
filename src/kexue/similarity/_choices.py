"""Options that are one of a few values."""

from __future__ import annotations

from collections.abc import Sequence


def check_choice(name: str, value: object, legal: Sequence[object]) -> None:
    """Raise ValueError unless `value` is one of the legal ones."""
    if value not in legal:
        raise ValueError(f"{name} must be one of {', '.join(map(str, legal))}, got {value!r}")
