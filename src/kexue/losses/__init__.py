"""Losses as functions and modules: multi-label, multi-way, tailored, margin, contrastive, pairs.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from kexue._optional import import_optional

if TYPE_CHECKING:
    pass  # one import a file, for type checkers

_HOMES: dict[str, tuple[str, ...]] = {
    # one line a file: "file": ("public", "names")
}
_LAZY = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_LAZY)  # noqa: PLE0605 - the names are those of the table above


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'kexue.losses' has no attribute {name!r}")
    import_optional("torch", extra="train")  # a missing extra is named before the module fails on its first line
    return getattr(import_module(f"kexue.losses.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
