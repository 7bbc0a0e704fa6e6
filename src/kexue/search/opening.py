"""Creating and opening the store of an index, with the vector space that it records."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath

from kexue._version import __version__
from kexue.errors import IndexFormatError, NotSupported
from kexue.search.encoding import IndexEncoder
from kexue.search.hubs import Dehub
from kexue.search.space import Space, SupportsEncode, plan_space
from kexue.search.splitting import Splitting
from kexue.search.store import Store, create_store, is_remote, open_store
from kexue.search.store.base import Value
from kexue.similarity import Whitening

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
        space: space of the vectors that it will contain.
        approx: one of `APPROX`.
        metadata: further entries to record.
    """
    entries = {**space.dump(), "approx": approx, "kexue_version": __version__, **(metadata or {})}
    return create_store(uri, entries, overwrite=overwrite, mode=mode)


def create_index(
    uri: str | PathLike[str],
    encoder: SupportsEncode | str | PathLike[str] | None,
    *,
    whitening: Whitening | None,
    dehub: Dehub | None,
    approx: str,
    passages: str | int | None,
    overwrite: bool,
) -> tuple[Store, IndexEncoder]:
    """Create the store of an empty index; see `Index.create`."""
    check_approx(approx)
    encoder = fspath(encoder) if isinstance(encoder, PathLike) else encoder
    space = plan_space(encoder, whitening, dehub)
    splitting = Splitting.parse(passages)
    if is_remote(uri) and splitting.mode == "tokens":
        raise NotSupported(
            f"{fspath(uri)} is in Milvus, which keeps one vector for each document.",
            remedy="Keep the index in a file, or choose passages='none'.",
        )
    if not (encoder is None or isinstance(encoder, str)):
        splitting.check(encoder)
    store = create_index_store(uri, space, approx=approx, overwrite=overwrite, metadata=splitting.dump())
    return store, IndexEncoder(store, fspath(uri), None if isinstance(encoder, str) else encoder)


def open_index(
    uri: str | PathLike[str],
    *,
    readonly: bool = False,
    encoder: SupportsEncode | str | PathLike[str] | None = None,
) -> tuple[Store, IndexEncoder]:
    """Open the store of a finished index, and read the space it records; see `Index.open`.

    Raises:
        IndexFormatError: nothing there (also a FileNotFoundError), not an index, damaged, of a newer version, or an
            unfinished build. SpaceMismatchError: the index holds vectors of another encoder.
    """
    store = open_store(uri, readonly=readonly)
    try:
        index_encoder = IndexEncoder(store, fspath(uri))
        if index_encoder.space.raw:
            raise IndexFormatError(
                f"{fspath(uri)} is an unfinished build.",
                remedy="Run the same kexue index build again: it resumes where it stopped.",
            )
        if encoder is not None and encoder != "auto":
            index_encoder.use(encoder)
    except BaseException:
        store.close()
        raise
    return store, index_encoder
