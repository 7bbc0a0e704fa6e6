"""Find texts by meaning: an index in one file, filters on metadata, exact and approximate search."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kexue.search.build import BuildReport, add_files, build_index
    from kexue.search.capacity import Capacity, plan_capacity
    from kexue.search.copying import copy_index
    from kexue.search.cross import CrossEncoderReranker
    from kexue.search.filters import parse_filter
    from kexue.search.index import AddReport, Document, Hit, Index, IndexInfo
    from kexue.search.rerank import CosineReranker, Reranked, Reranker, TransportReranker
    from kexue.search.store import (
        CompactReport,
        IndexBusyError,
        IndexExistsError,
        IndexMissingError,
        Row,
        Store,
        open_store,
    )

_HOMES = {
    "build": ("BuildReport", "add_files", "build_index"),
    "capacity": ("Capacity", "plan_capacity"),
    "copying": ("copy_index",),
    "cross": ("CrossEncoderReranker",),
    "filters": ("parse_filter",),
    "rerank": ("CosineReranker", "Reranked", "Reranker", "TransportReranker"),
    "index": ("AddReport", "Document", "Hit", "Index", "IndexInfo"),
    "store": (
        "CompactReport",
        "IndexBusyError",
        "IndexExistsError",
        "IndexMissingError",
        "Row",
        "Store",
        "open_store",
    ),
}
_LAZY = {name: f"kexue.search.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "AddReport",
    "BuildReport",
    "Capacity",
    "CompactReport",
    "CosineReranker",
    "CrossEncoderReranker",
    "Document",
    "Hit",
    "Index",
    "IndexBusyError",
    "IndexExistsError",
    "IndexInfo",
    "IndexMissingError",
    "Reranked",
    "Reranker",
    "Row",
    "Store",
    "TransportReranker",
    "add_files",
    "build_index",
    "copy_index",
    "open_store",
    "parse_filter",
    "plan_capacity",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kexue.search' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
