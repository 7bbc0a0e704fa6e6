"""Collections of text on disk, of any size: reading them as a stream, and shuffling them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.corpus.fields import Record as Record, parse_scalar as parse_scalar
    from kexue.corpus.records import Records as Records, read_records as read_records
    from kexue.corpus.shuffle.keys import permutation_keys as permutation_keys
    from kexue.corpus.shuffle.plan import ShufflePlan as ShufflePlan
    from kexue.corpus.shuffle.run import (
        ShuffleReport as ShuffleReport,
        plan_shuffle as plan_shuffle,
        shuffle_files as shuffle_files,
    )
    from kexue.corpus.shuffle.tables import shuffle_dataset as shuffle_dataset
    from kexue.corpus.shuffle.verify import multiset_digest as multiset_digest, verify_shuffle as verify_shuffle

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "fields": ("Record", "parse_scalar"),
        "records": ("Records", "read_records"),
        "shuffle.tables": ("shuffle_dataset",),
        "shuffle.plan": ("ShufflePlan",),
        "shuffle.keys": ("permutation_keys",),
        "shuffle.run": ("ShuffleReport", "plan_shuffle", "shuffle_files"),
        "shuffle.verify": ("multiset_digest", "verify_shuffle"),
    },
    needs={"shuffle.tables": "pyarrow", "shuffle.run": "pyarrow"},
    extra="corpus",
)
