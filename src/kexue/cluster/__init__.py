"""Long jobs on a Ray cluster: embedding, moments, building an index, shuffling. Results equal those of one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.cluster.build import ClusterBuildReport as ClusterBuildReport, build_index as build_index
    from kexue.cluster.embed import EmbedReport as EmbedReport, embed_files as embed_files
    from kexue.cluster.shards import encode_table as encode_table, list_shards as list_shards
    from kexue.cluster.shuffle import (
        ClusterShuffleReport as ClusterShuffleReport,
        shuffle_files as shuffle_files,
    )
    from kexue.cluster.statistics import whitening_moments as whitening_moments

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "build": ("ClusterBuildReport", "build_index"),
        "embed": ("EmbedReport", "embed_files"),
        "shards": ("encode_table", "list_shards"),
        "shuffle": ("ClusterShuffleReport", "shuffle_files"),
        "statistics": ("whitening_moments",),
    },
)
