"""The long jobs on many machines through Ray: same results as one machine, and a restart redoes what is missing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kexue.cluster.build import ClusterBuildReport, build_index
    from kexue.cluster.embed import EmbedReport, embed_files
    from kexue.cluster.shards import encode_table, list_shards
    from kexue.cluster.statistics import whitening_moments

_HOMES = {
    "build": ("ClusterBuildReport", "build_index"),
    "embed": ("EmbedReport", "embed_files"),
    "shards": ("encode_table", "list_shards"),
    "statistics": ("whitening_moments",),
}
_LAZY = {name: f"kexue.cluster.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "ClusterBuildReport",
    "EmbedReport",
    "build_index",
    "embed_files",
    "encode_table",
    "list_shards",
    "whitening_moments",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kexue.cluster' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
