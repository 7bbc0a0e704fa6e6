"""Vectors in memory: all of them compared, or the likely cells of a FAISS inverted file."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from kexue._optional import import_optional
from kexue.errors import MissingDependencyError
from kexue.search.nearest import Keys, Scores, Vectors, nearest, slices
from kexue.search.snapshot import open_body, read_header, write_snapshot

_LOG = logging.getLogger("kexue.search")
APPROXIMATE_FROM = 200_000  # documents; below, looking at every vector is fast enough and never wrong
_FEWEST_APPROXIMATE = 1_000


class Position(NamedTuple):
    """How much of a store an engine has taken in: the store's `epoch`, its last document key and last removal.

    `checksums` is the sum over the vectors taken in. An engine belongs to a store when removals and additions since
    bring this sum to the store's own; one of another file, or of a later state than a backup, does not.
    """

    epoch: str = ""
    last_key: int = 0
    last_removal: int = 0
    checksums: int = 0


class Engine(Protocol):
    """Keys and vectors in ascending order of key, and the nearest of them.

    Attributes:
        keys: (n,), ascending.
        position: what of the store is in here; kept by the owner.
        exact: whether scores are true inner products with all vectors. If not, they are good for choosing candidates.
    """

    keys: Keys
    position: Position
    exact: bool

    @property
    def dims(self) -> int:
        """Length of a vector."""
        ...

    def suits(self, n: int, approx: str) -> bool:
        """Whether `n` documents are searched in this way; otherwise it is time for a new engine."""
        ...

    def add(self, keys: Keys, vectors: Vectors) -> None:
        """Append vectors whose keys are larger than every key here."""
        ...

    def remove(self, keys: Keys) -> None:
        """Drop these keys; unknown ones are passed over."""
        ...

    def search(self, queries: Vectors, k: int, allowed: Keys | None = None) -> tuple[Scores, Keys]:
        """The `k` best of the `allowed` keys (ascending; None: all) for each query, best first; -1 where none is left.

        `k` must not exceed the number of vectors that may be found.
        """
        ...

    def save(self, path: str | os.PathLike[str], *, mode: int | None = None) -> None:
        """Write a snapshot with these permissions, whole or not at all."""
        ...


def wants_approximate(n: int, approx: str) -> bool:
    """Whether `n` documents are searched through an inverted file: ``"auto"`` does so from 200,000 on."""
    return (approx == "approx" and n >= _FEWEST_APPROXIMATE) or (approx == "auto" and n >= APPROXIMATE_FROM)


def _cells(n: int) -> int:
    return max(1, min(round(4 * math.sqrt(n)), n // 39))  # FAISS wants 39 training vectors a cell


def build_engine(
    blocks: Iterable[tuple[Keys, Vectors]], sample: Callable[[int], Vectors], *, n: int, dims: int, approx: str
) -> Engine:
    """Take in `n` vectors that come in blocks; `sample(size)` gives some of them, to train an inverted file on."""
    engine: Engine = ExactEngine(dims, n)
    if wants_approximate(n, approx):
        engine = InvertedEngine.train(sample, n=n, dims=dims)
    for keys, vectors in blocks:
        engine.add(keys, vectors)
    return engine


def load_engine(path: str | os.PathLike[str]) -> Engine | None:
    """Read a snapshot; None when there is none, or it is damaged or of another version, of kexue or of FAISS."""
    try:
        return _load_engine(path)
    except MissingDependencyError:
        raise
    except Exception as error:  # it saves time, nothing else: whatever is wrong with it, the engine is built anew
        _LOG.warning("%s cannot be used, the vectors are read anew: %s: %s", path, type(error).__name__, error)
        return None


def _load_engine(path: str | os.PathLike[str]) -> Engine | None:
    header = read_header(path)
    if header is None:
        return None
    with open_body(path) as body:
        if body is None:
            return None
        keys = np.frombuffer(body.read(8 * header["n"]), "<i8").astype(np.int64)
        engine: ExactEngine | InvertedEngine
        if header["exact"]:
            engine = ExactEngine(header["dims"], header["n"], keys)
            body.readinto(engine.matrix.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
        else:
            faiss = import_optional("faiss")
            engine = InvertedEngine(faiss.read_index(faiss.PyCallbackIOReader(body.read)), keys)
            if (engine._index.ntotal, engine.dims, len(keys)) != (header["n"], header["dims"], header["n"]):
                raise ValueError(f"it holds {engine._index.ntotal} vectors of {engine.dims} numbers")
    engine.position = _position(header)
    return engine


def read_position(path: str | os.PathLike[str]) -> Position | None:
    """How far a snapshot reaches; None when there is none."""
    header = read_header(path)
    try:
        return None if header is None else _position(header)
    except KeyError:
        return None


def _position(header: Mapping[str, Any]) -> Position:
    return Position(*(header[name] for name in Position._fields))


def _header(engine: Engine) -> dict[str, Any]:
    return {**engine.position._asdict(), "n": len(engine.keys), "dims": engine.dims, "exact": engine.exact}


class ExactEngine:
    """Every vector, 4 d bytes each, compared with every query; see `Engine`.

    Args:
        dims: length of a vector.
        room: how many to make room for at once.
        keys: of vectors that the caller will fill in; None: no vectors yet.
    """

    exact = True

    def __init__(self, dims: int, room: int = 0, keys: Keys | None = None) -> None:
        self._room = np.empty((room, dims), "<f4")
        self.keys: Keys = np.empty(0, np.int64) if keys is None else keys
        self.position = Position()

    def suits(self, n: int, approx: str) -> bool:
        """Always, but for the many that are searched approximately."""
        return not wants_approximate(n, approx)

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return self._room.shape[1]

    @property
    def matrix(self) -> Vectors:
        """The vectors (n, d), in order of key."""
        return self._room[: len(self.keys)]

    def add(self, keys: Keys, vectors: Vectors) -> None:
        """Append vectors; room grows by half, so that many small additions cost little."""
        n = len(self.keys)
        if n + len(keys) > len(self._room):
            room = np.empty((max(n + len(keys), n + n // 2), self.dims), "<f4")
            room[:n] = self.matrix
            self._room = room
        self._room[n : n + len(keys)] = vectors
        self.keys = np.concatenate([self.keys, keys])

    def remove(self, keys: Keys) -> None:
        """Drop these keys."""
        left = ~np.isin(self.keys, keys)
        if not left.all():
            self._room, self.keys = self.matrix[left], self.keys[left]

    def search(self, queries: Vectors, k: int, allowed: Keys | None = None) -> tuple[Scores, Keys]:
        """The `k` best, exactly; equal ones in order of key."""
        return nearest(queries, self._blocks(len(queries), allowed), k)

    def _blocks(self, m: int, allowed: Keys | None) -> Iterator[tuple[Keys, Vectors]]:
        if allowed is None:
            return ((self.keys[part], self.matrix[part]) for part in slices(m, len(self.keys)))
        places = np.searchsorted(self.keys, allowed)
        return ((allowed[part], self.matrix[places[part]]) for part in slices(m, len(places)))

    def save(self, path: str | os.PathLike[str], *, mode: int | None = None) -> None:
        """Write a snapshot with these permissions, whole or not at all."""

        def body(write: Callable[[bytes], int]) -> None:
            write(self.keys.astype("<i8").tobytes())
            for part in slices(self.dims, len(self.keys)):
                write(self.matrix[part].tobytes())

        write_snapshot(path, _header(self), body, mode=mode)


class InvertedEngine:
    """FAISS ``IVF,SQ8``: one byte a dimension, and only the cells nearest to a query are opened; see `Engine`."""

    exact = False

    def __init__(self, index: Any, keys: Keys) -> None:
        self._index = index
        self.keys = keys
        self.position = Position()

    @classmethod
    def train(cls, sample: Callable[[int], Vectors], *, n: int, dims: int) -> Self:
        """An engine without vectors whose cells suit `n` of them."""
        faiss = import_optional("faiss")
        cells = _cells(n)
        index = faiss.index_factory(dims, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.train(sample(64 * cells))
        index.nprobe = min(cells, max(8, cells // 24))
        return cls(index, np.empty(0, np.int64))

    def suits(self, n: int, approx: str) -> bool:
        """Until there are so many that twice the cells would be right."""
        return wants_approximate(n, approx) and _cells(n) <= 2 * self._index.nlist

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    def add(self, keys: Keys, vectors: Vectors) -> None:
        """Append vectors to the cells they fall into."""
        self._index.add_with_ids(vectors, keys)
        self.keys = np.concatenate([self.keys, keys])

    def remove(self, keys: Keys) -> None:
        """Drop these keys."""
        left = ~np.isin(self.keys, keys)
        if not left.all():
            faiss = import_optional("faiss")
            self._index.remove_ids(faiss.IDSelectorBatch(self.keys[~left]))
            self.keys = self.keys[left]

    def search(self, queries: Vectors, k: int, allowed: Keys | None = None) -> tuple[Scores, Keys]:
        """`k` good candidates; the rarer what is allowed, the more cells are opened to find it."""
        if allowed is None:
            scores, keys = self._index.search(queries, k)
            return scores, keys
        faiss = import_optional("faiss")
        nprobe = math.ceil(self._index.nprobe * len(self.keys) / max(1, len(allowed)))
        parameters = faiss.SearchParametersIVF(
            sel=faiss.IDSelectorBatch(allowed), nprobe=min(self._index.nlist, nprobe)
        )
        scores, keys = self._index.search(queries, k, params=parameters)
        return scores, keys

    def save(self, path: str | os.PathLike[str], *, mode: int | None = None) -> None:
        """Write a snapshot with these permissions, whole or not at all."""
        faiss = import_optional("faiss")

        def body(write: Callable[[bytes], int]) -> None:
            write(self.keys.astype("<i8").tobytes())
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(write))

        write_snapshot(path, _header(self), body, mode=mode)
