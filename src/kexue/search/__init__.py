"""Find texts by meaning: an index in one file, filters on metadata, exact and approximate search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.search.backup import (
        CheckReport as CheckReport,
        CopyReport as CopyReport,
        backup_index as backup_index,
        check_index as check_index,
        restore_index as restore_index,
    )
    from kexue.search.build import BuildReport as BuildReport, add_files as add_files, build_index as build_index
    from kexue.search.capacity import Capacity as Capacity, plan_capacity as plan_capacity
    from kexue.search.copying import copy_index as copy_index
    from kexue.search.cross import CrossEncoderReranker as CrossEncoderReranker
    from kexue.search.filters import parse_filter as parse_filter
    from kexue.search.index import (
        AddReport as AddReport,
        Document as Document,
        Index as Index,
        IndexInfo as IndexInfo,
    )
    from kexue.search.ranking import Hit as Hit
    from kexue.search.rerank import (
        CosineReranker as CosineReranker,
        Reranked as Reranked,
        Reranker as Reranker,
        TransportReranker as TransportReranker,
    )
    from kexue.search.store import (
        CompactReport as CompactReport,
        IndexBusyError as IndexBusyError,
        IndexExistsError as IndexExistsError,
        IndexMissingError as IndexMissingError,
        IndexReadOnlyError as IndexReadOnlyError,
        IndexReplacedError as IndexReplacedError,
        Row as Row,
        Store as Store,
        open_store as open_store,
    )

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "backup": ("CheckReport", "CopyReport", "backup_index", "check_index", "restore_index"),
        "build": ("BuildReport", "add_files", "build_index"),
        "capacity": ("Capacity", "plan_capacity"),
        "copying": ("copy_index",),
        "cross": ("CrossEncoderReranker",),
        "filters": ("parse_filter",),
        "index": ("AddReport", "Document", "Index", "IndexInfo"),
        "ranking": ("Hit",),
        "rerank": ("CosineReranker", "Reranked", "Reranker", "TransportReranker"),
        "store": (
            "CompactReport",
            "IndexBusyError",
            "IndexExistsError",
            "IndexMissingError",
            "IndexReadOnlyError",
            "IndexReplacedError",
            "Row",
            "Store",
            "open_store",
        ),
    },
)
