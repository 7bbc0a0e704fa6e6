"""Vectors in memory, searched by FAISS: all of them, or the likely cells of an inverted file."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from kexue._files import replacing
from kexue._optional import import_optional
from kexue.search.store.base import Vectors

Keys = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
APPROXIMATE_FROM = 200_000  # documents; below, looking at every vector is fast enough and never wrong
_FEWEST_APPROXIMATE = 1_000
_MAGIC = b"kexue-snapshot-1\n"


class Position(NamedTuple):
    """How much of a store an engine has taken in: the store's `epoch`, its last document key and last removal."""

    epoch: str = ""
    last_key: int = 0
    last_removal: int = 0


def wants_approximate(n: int, approx: str) -> bool:
    """Whether `n` documents are searched through an inverted file: ``"auto"`` from 200,000 on."""
    return (approx == "approx" and n >= _FEWEST_APPROXIMATE) or (approx == "auto" and n >= APPROXIMATE_FROM)


class Engine:
    """Keys and unit vectors in ascending order of key, and their nearest neighbours by inner product.

    `exact` tells whether scores are true inner products of all vectors; otherwise they are estimates, good for
    choosing candidates. Memory: 4 d bytes a vector when exact, d bytes otherwise.
    """

    def __init__(self, index: Any, keys: Keys, position: Position, *, exact: bool) -> None:
        self._index = index
        self.keys = keys
        self.position = position
        self.exact = exact

    @classmethod
    def build(
        cls,
        blocks: Callable[[], Iterable[tuple[Keys, Vectors]]],
        sample: Callable[[int], Vectors],
        *,
        n: int,
        dims: int,
        approx: str,
    ) -> Engine:
        """Take in `n` vectors that come in blocks; `sample(size)` gives some of them to train an inverted file on."""
        faiss = import_optional("faiss")
        exact = not wants_approximate(n, approx)
        if exact:
            index = faiss.IndexFlatIP(dims)
        else:
            cells = max(1, min(round(4 * math.sqrt(n)), n // 39))  # FAISS wants 39 training vectors a cell
            index = faiss.index_factory(dims, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
            index.train(sample(64 * cells))
            index.nprobe = min(cells, max(8, cells // 24))
        engine = cls(index, np.empty(0, np.int64), Position(), exact=exact)
        for keys, vectors in blocks():
            engine.add(keys, vectors)
        return engine

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    def add(self, keys: Keys, vectors: Vectors) -> None:
        """Append vectors whose keys are larger than every key here."""
        if self.exact:
            self._index.add(vectors)
        else:
            self._index.add_with_ids(vectors, keys)
        self.keys = np.concatenate([self.keys, keys])

    def remove(self, keys: Keys) -> None:
        """Drop these keys; unknown ones are passed over."""
        gone = np.isin(self.keys, keys)
        if not gone.any():
            return
        faiss = import_optional("faiss")
        ids = np.flatnonzero(gone) if self.exact else self.keys[gone]
        self._index.remove_ids(faiss.IDSelectorBatch(ids))
        self.keys = self.keys[~gone]

    def search(self, queries: Vectors, k: int, allowed: Keys | None = None) -> tuple[Scores, Keys]:
        """The `k` best keys for each query (m, d), best first, ties by key; key -1 where fewer were found.

        Args:
            queries: (m, d) float32.
            k: 1 <= k <= number of vectors that may be found.
            allowed: the keys that may be found, ascending; None: all.
        """
        if self.exact:
            scores, places = self._search_all(queries, k, allowed)
            keys = self.keys[places] if len(self.keys) else places
            return _ties_by_key(scores, keys)
        scores, keys = self._index.search(queries, k, params=self._cells(allowed))
        return scores, keys

    def _search_all(self, queries: Vectors, k: int, allowed: Keys | None) -> tuple[Scores, Keys]:
        if allowed is None:
            return self._index.search(queries, k)  # type: ignore[no-any-return]
        faiss = import_optional("faiss")
        places = np.searchsorted(self.keys, allowed)
        if 4 * len(places) < len(self.keys):  # few: gather them; many: step over the others
            scores, found = faiss.knn(queries, self.matrix()[places], k, metric=faiss.METRIC_INNER_PRODUCT)
            return scores, places[found]
        mask = np.zeros(len(self.keys), bool)
        mask[places] = True
        bits = np.packbits(mask, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
        return self._index.search(queries, k, params=faiss.SearchParameters(sel=selector))  # type: ignore[no-any-return]

    def _cells(self, allowed: Keys | None) -> Any:
        """Search parameters of the inverted file: the rarer what is allowed, the more cells are opened."""
        if allowed is None:
            return None
        faiss = import_optional("faiss")
        cells = self._index.nlist
        nprobe = min(cells, math.ceil(self._index.nprobe * len(self.keys) / max(1, len(allowed))))
        return faiss.SearchParametersIVF(sel=faiss.IDSelectorBatch(allowed), nprobe=nprobe)

    def matrix(self) -> Vectors:
        """The vectors (n, d) themselves, where `exact`; a view, valid until the next change."""
        faiss = import_optional("faiss")
        flat: Vectors = faiss.rev_swig_ptr(self._index.get_xb(), len(self.keys) * self.dims)
        return flat.reshape(-1, self.dims)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a snapshot: a line of JSON, the keys and the FAISS index, with a checksum; whole or not at all."""
        faiss = import_optional("faiss")
        with replacing(path) as temporary, temporary.open("r+b") as file:
            file.write(_MAGIC + b"0" * 8 + b"\n")
            checked = _Checked(file)
            header = {**self.position._asdict(), "n": len(self.keys), "exact": self.exact}
            checked.write(json.dumps(header).encode() + b"\n")
            checked.write(self.keys.astype("<i8").tobytes())
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(checked.write))
            file.seek(len(_MAGIC))
            file.write(b"%08x" % checked.crc)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Engine | None:
        """Read a snapshot; None when there is none, or it is damaged or of another version."""
        faiss = import_optional("faiss")
        if read_position(path) is None or not _intact(path):
            return None
        with Path(path).open("rb") as file:
            file.seek(len(_MAGIC) + 9)
            header = json.loads(file.readline())
            keys = np.frombuffer(file.read(8 * header["n"]), "<i8").astype(np.int64)
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
        position = Position(header["epoch"], header["last_key"], header["last_removal"])
        return cls(index, keys, position, exact=header["exact"])


def read_position(path: str | os.PathLike[str]) -> Position | None:
    """How far a snapshot reaches, from its first lines; None when there is no snapshot."""
    try:
        with Path(path).open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            file.seek(9, os.SEEK_CUR)
            header = json.loads(file.readline(10_000))
            return Position(str(header["epoch"]), int(header["last_key"]), int(header["last_removal"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _intact(path: str | os.PathLike[str]) -> bool:
    with Path(path).open("rb") as file:
        file.seek(len(_MAGIC))
        stated, crc = file.read(9).strip(), 0
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return stated == b"%08x" % crc


class _Checked:
    """A file that sums up what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.crc = 0

    def write(self, data: bytes) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self._file.write(data)


def _ties_by_key(scores: Scores, keys: Keys) -> tuple[Scores, Keys]:
    """Order equal scores by key; FAISS leaves them in any order."""
    if not (scores[:, 1:] == scores[:, :-1]).any():
        return scores, keys
    order = np.lexsort((keys, -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(keys, order, axis=1)
