"""Stores that hold an index: created for a vector space, and opened with the space they record."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath

from kexue._version import __version__
from kexue.errors import IndexFormatError
from kexue.search.encoding import IndexEncoder
from kexue.search.space import Space
from kexue.search.store import Store, create_store, open_store
from kexue.search.store.base import Value

APPROX = ("auto", "exact", "approx")


def check_approx(approx: str) -> None:
    """Raise ValueError for an unknown way of searching."""
    if approx not in APPROX:
        raise ValueError(f"approx must be one of {', '.join(APPROX)}, got {approx!r}")


def create_index_store(
    uri: str | PathLike[str],
    space: Space,
    *,
    approx: str,
    overwrite: bool = False,
    mode: int | None = None,
    metadata: Mapping[str, Value] | None = None,
) -> Store:
    """Create the empty store of an index.

    Args:
        uri, overwrite, mode: see `kexue.search.store.create_store`.
        space: of the vectors it will hold.
        approx: one of `APPROX`.
        metadata: further entries to record.
    """
    entries = {**space.dump(), "approx": approx, "kexue_version": __version__, **(metadata or {})}
    return create_store(uri, entries, overwrite=overwrite, mode=mode)


def open_index_store(uri: str | PathLike[str], *, readonly: bool = False) -> tuple[Store, IndexEncoder]:
    """Open the store of a finished index, and read the space it records.

    Raises:
        IndexFormatError: nothing there (also a FileNotFoundError), not an index, damaged, of a newer version, or an
            unfinished build.
    """
    store = open_store(uri, readonly=readonly)
    try:
        encoder = IndexEncoder(store, fspath(uri))
        if encoder.space.raw:
            raise IndexFormatError(
                f"{fspath(uri)} is an unfinished build.",
                remedy="Run the same kexue index build again: it resumes where it stopped.",
            )
    except BaseException:
        store.close()
        raise
    return store, encoder
