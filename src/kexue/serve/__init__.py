"""Embeddings, reranking and search over HTTP, in the shapes that existing clients speak, and a page for people."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from kexue._optional import import_optional

if TYPE_CHECKING:
    from kexue.serve.app import create_app, run
    from kexue.serve.settings import Settings

__all__ = ["Settings", "create_app", "run"]

_LAZY = {"Settings": "settings", "create_app": "app", "run": "app"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'kexue.serve' has no attribute {name!r}")
    if _LAZY[name] == "app":
        import_optional("fastapi")  # a missing extra is named before the module fails on its first line
    return getattr(import_module(f"kexue.serve.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
