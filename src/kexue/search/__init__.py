"""Find texts by meaning: an index in one file, filters on metadata, exact and approximate search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.search.adding import add_files as add_files
    from kexue.search.build import BuildReport as BuildReport, build_index as build_index
    from kexue.search.capacity import Capacity as Capacity, plan_capacity as plan_capacity
    from kexue.search.check import CheckReport as CheckReport, check_index as check_index
    from kexue.search.copying import (
        CopyReport as CopyReport,
        backup_index as backup_index,
        copy_index as copy_index,
        restore_index as restore_index,
    )
    from kexue.search.cross import CrossEncoderReranker as CrossEncoderReranker
    from kexue.search.documents import Document as Document
    from kexue.search.duplicates import (
        DuplicateGroup as DuplicateGroup,
        DuplicateReport as DuplicateReport,
        find_duplicates as find_duplicates,
    )
    from kexue.search.filters import parse_filter as parse_filter
    from kexue.search.index import Index as Index
    from kexue.search.info import IndexInfo as IndexInfo
    from kexue.search.ingest import AddReport as AddReport
    from kexue.search.inputs import InputReport as InputReport, check_files as check_files
    from kexue.search.merging import MergeReport as MergeReport, merge_indexes as merge_indexes
    from kexue.search.ranking import Hit as Hit, Passage as Passage
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
        "adding": ("add_files",),
        "build": ("BuildReport", "build_index"),
        "capacity": ("Capacity", "plan_capacity"),
        "check": ("CheckReport", "check_index"),
        "copying": ("CopyReport", "backup_index", "copy_index", "restore_index"),
        "cross": ("CrossEncoderReranker",),
        "documents": ("Document",),
        "duplicates": ("DuplicateGroup", "DuplicateReport", "find_duplicates"),
        "filters": ("parse_filter",),
        "index": ("Index",),
        "inputs": ("InputReport", "check_files"),
        "info": ("IndexInfo",),
        "ingest": ("AddReport",),
        "merging": ("MergeReport", "merge_indexes"),
        "ranking": ("Hit", "Passage"),
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
