"""Search engines in memory: one compares every vector; a FAISS inverted file compares those in the nearest cells."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from kexue._optional import import_optional
from kexue.errors import MissingDependencyError
from kexue.search.products import Keys, Scores, Vectors, largest_products, slices
from kexue.search.snapshot import open_snapshot, read_header, write_snapshot
from kexue.similarity.neighbours.cells import count_cells

_LOG = logging.getLogger("kexue.search")
APPROXIMATE_FROM = 200_000  # documents; with fewer, comparing every vector is fast enough and exact
_FEWEST_APPROXIMATE = 1_000
_TRAINING = 64  # vectors per cell that an inverted file is trained on; FAISS asks for 39 or more


class Position(NamedTuple):
    """The state of a store that an engine contains: the store's `epoch`, its last document key and last removal.

    `checksums` is the sum over the vectors in the engine. An engine belongs to a store if this sum, after the later
    removals and additions, equals the sum of the store. It does not if the file was exchanged, or if a backup older
    than the engine was restored.
    """

    epoch: str = ""
    last_key: int = 0
    last_removal: int = 0
    checksums: int = 0


class Engine(Protocol):
    """Keys and vectors in ascending order of key, searched by inner product.

    Attributes:
        keys: (n,), ascending.
        position: the state of the store that the engine holds; set by the owner.
        exact: whether scores are inner products with all vectors. Otherwise they only serve to choose candidates.
    """

    keys: Keys
    position: Position
    exact: bool

    @property
    def dims(self) -> int:
        """Length of a vector."""
        ...

    def suits(self, n: int, approx: str) -> bool:
        """Return whether this kind and size of engine is right for `n` documents; if not, a new one must be built."""
        ...

    def add(self, keys: Keys, vectors: Vectors) -> None:
        """Append vectors whose keys are larger than every key here."""
        ...

    def remove(self, keys: Keys) -> None:
        """Remove the vectors with these keys; unknown keys are ignored."""
        ...

    def search(self, queries: Vectors, k: int, allowed: Keys | None = None) -> tuple[Scores, Keys]:
        """Return the `k` best `allowed` keys (ascending; None: all) of each query, best first; -1 where one is missing.

        `k` must not exceed the number of vectors that may be found.
        """
        ...

    def save(self, path: str | os.PathLike[str], *, mode: int | None = None) -> None:
        """Write a snapshot atomically, with these permissions."""
        ...


def wants_approximate(n: int, approx: str) -> bool:
    """Return whether `n` documents are searched through an inverted file: ``"auto"`` does so from 200,000 on."""
    return (approx == "approx" and n >= _FEWEST_APPROXIMATE) or (approx == "auto" and n >= APPROXIMATE_FROM)


class Cells(NamedTuple):
    """The cells of an inverted file, and how many of them a query opens."""

    number: int
    probes: int


def plan_cells(n: int) -> Cells:
    """Return the cells of the inverted file that is built for `n` vectors.

    >>> plan_cells(1_000_000)
    Cells(number=4000, probes=166)
    """
    count = count_cells(n)
    return Cells(count, min(count, max(8, count // 24)))


def exact_bytes(n: int, dims: int) -> int:
    """Return the bytes of an `ExactEngine` of `n` vectors: float32 numbers and keys."""
    return n * (4 * dims + 8)


def inverted_bytes(n: int, dims: int) -> int:
    """Return the bytes of an `InvertedEngine` of `n` vectors: a byte per number, keys twice, centres of cells."""
    return n * (dims + 16) + 4 * plan_cells(n).number * dims


def build_engine(
    blocks: Iterable[tuple[Keys, Vectors]], sample: Callable[[int], Vectors], *, n: int, dims: int, approx: str
) -> Engine:
    """Build the engine of `n` vectors that come in blocks; `sample(size)` draws some to train an inverted file."""
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
    except Exception as error:  # a snapshot only saves time: whatever is wrong with it, the engine is built again
        _LOG.warning("%s cannot be used, the vectors are read again: %s: %s", path, type(error).__name__, error)
        return None


def _load_engine(path: str | os.PathLike[str]) -> Engine | None:
    with open_snapshot(path) as snapshot:
        if snapshot is None:
            return None
        header, body = snapshot
        keys = np.frombuffer(body.read(8 * header["n"]), "<i8").astype(np.int64)
        engine: ExactEngine | InvertedEngine
        if header["exact"]:
            engine = ExactEngine(header["dims"], header["n"], keys)
            body.readinto(engine.matrix.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
        else:
            faiss = import_optional("faiss")
            engine = InvertedEngine(faiss.read_index(faiss.PyCallbackIOReader(body.read)), keys)
            if (engine._index.ntotal, engine.dims, len(keys)) != (header["n"], header["dims"], header["n"]):
                raise ValueError(f"it has {engine._index.ntotal} vectors of {engine.dims} numbers")
    engine.position = _parse_position(header)
    return engine


def read_position(path: str | os.PathLike[str]) -> Position | None:
    """Return the state that a snapshot contains; None when there is no snapshot."""
    header = read_header(path)
    try:
        return None if header is None else _parse_position(header)
    except KeyError:
        return None


def _parse_position(header: Mapping[str, Any]) -> Position:
    return Position(*(header[name] for name in Position._fields))


def _header(engine: Engine) -> dict[str, Any]:
    return {**engine.position._asdict(), "n": len(engine.keys), "dims": engine.dims, "exact": engine.exact}


class ExactEngine:
    """Every vector, 4 d bytes each, compared with every query; see `Engine`.

    Args:
        dims: length of a vector.
        capacity: number of vectors to reserve memory for.
        keys: keys of vectors that the caller will write into `matrix`; None: no vectors yet.
    """

    exact = True

    def __init__(self, dims: int, capacity: int = 0, keys: Keys | None = None) -> None:
        self._buffer = np.empty((capacity, dims), "<f4")
        self.keys: Keys = np.empty(0, np.int64) if keys is None else keys
        self.position = Position()

    def suits(self, n: int, approx: str) -> bool:
        """Return True unless `n` documents are searched approximately."""
        return not wants_approximate(n, approx)

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return self._buffer.shape[1]

    @property
    def matrix(self) -> Vectors:
        """The vectors (n, d), in order of key."""
        return self._buffer[: len(self.keys)]

    def add(self, keys: Keys, vectors: Vectors) -> None:
        """Append vectors; memory grows by half, so that many small additions are cheap."""
        n = len(self.keys)
        if n + len(keys) > len(self._buffer):
            buffer = np.empty((max(n + len(keys), n + n // 2), self.dims), "<f4")
            buffer[:n] = self.matrix
            self._buffer = buffer
        self._buffer[n : n + len(keys)] = vectors
        self.keys = np.concatenate([self.keys, keys])

    def remove(self, keys: Keys) -> None:
        """Remove the vectors with these keys."""
        left = ~np.isin(self.keys, keys)
        if not left.all():
            self._buffer, self.keys = self.matrix[left], self.keys[left]

    def search(self, queries: Vectors, k: int, allowed: Keys | None = None) -> tuple[Scores, Keys]:
        """Return the `k` best, exactly; equal ones in order of key."""
        return largest_products(queries, self._blocks(len(queries), allowed), k)

    def _blocks(self, m: int, allowed: Keys | None) -> Iterator[tuple[Keys, Vectors]]:
        if allowed is None:
            return ((self.keys[part], self.matrix[part]) for part in slices(m, len(self.keys)))
        places = np.searchsorted(self.keys, allowed)
        return ((allowed[part], self.matrix[places[part]]) for part in slices(m, len(places)))

    def save(self, path: str | os.PathLike[str], *, mode: int | None = None) -> None:
        """Write a snapshot atomically, with these permissions."""

        def body(write: Callable[[bytes], int]) -> None:
            write(self.keys.astype("<i8").tobytes())
            for part in slices(self.dims, len(self.keys)):
                write(self.matrix[part].tobytes())

        write_snapshot(path, _header(self), body, mode=mode)


class InvertedEngine:
    """FAISS ``IVF,SQ8``: one byte per dimension, and only the cells nearest to a query are searched; see `Engine`."""

    exact = False

    def __init__(self, index: Any, keys: Keys) -> None:
        self._index = index
        self.keys = keys
        self.position = Position()

    @classmethod
    def train(cls, sample: Callable[[int], Vectors], *, n: int, dims: int) -> Self:
        """Return an empty engine whose cells suit `n` vectors, trained on a sample of them."""
        faiss = import_optional("faiss")
        cells = plan_cells(n)
        index = faiss.index_factory(dims, f"IVF{cells.number},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.train(sample(_TRAINING * cells.number))
        index.nprobe = cells.probes
        return cls(index, np.empty(0, np.int64))

    @property
    def cells(self) -> Cells:
        """Cells of the file, and how many a query opens."""
        return Cells(int(self._index.nlist), int(self._index.nprobe))

    def suits(self, n: int, approx: str) -> bool:
        """Return False if `n` documents need the exact engine, or more than twice as many cells."""
        return wants_approximate(n, approx) and plan_cells(n).number <= 2 * self._index.nlist

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    def add(self, keys: Keys, vectors: Vectors) -> None:
        """Append vectors to their nearest cells."""
        self._index.add_with_ids(vectors, keys)
        self.keys = np.concatenate([self.keys, keys])

    def remove(self, keys: Keys) -> None:
        """Remove the vectors with these keys."""
        left = ~np.isin(self.keys, keys)
        if not left.all():
            faiss = import_optional("faiss")
            self._index.remove_ids(faiss.IDSelectorBatch(self.keys[~left]))
            self.keys = self.keys[left]

    def search(self, queries: Vectors, k: int, allowed: Keys | None = None) -> tuple[Scores, Keys]:
        """Return `k` good candidates; the fewer keys are allowed, the more cells are opened."""
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
        """Write a snapshot atomically, with these permissions."""
        faiss = import_optional("faiss")

        def body(write: Callable[[bytes], int]) -> None:
            write(self.keys.astype("<i8").tobytes())
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(write))

        write_snapshot(path, _header(self), body, mode=mode)
