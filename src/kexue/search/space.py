"""The vector space of an index: the identity of the encoder, and the whitening of its vectors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from kexue._arrays import host
from kexue.errors import IndexFormatError, SpaceMismatchError
from kexue.search.hubs import Dehub, centre_whitening, check_dehub
from kexue.search.products import Vectors
from kexue.search.store.base import Value
from kexue.similarity import Whitening
from kexue.text.identity import ModelIdentity

T = TypeVar("T")


@runtime_checkable
class SupportsEncode(Protocol):
    """An encoder, as an index needs it; `kexue.text.Encoder` is one."""

    def encode(self, texts: list[str]) -> Any:
        """Return vectors (n, dim), float32, one for each text."""
        ...


@dataclasses.dataclass(frozen=True)
class Space:
    """The map from the vectors of an encoder to the stored ones: whitening if any, then length 1.

    Attributes:
        model: identity of the encoder.
        whitening: fitted, or None.
        unfitted: parameters of a whitening that is fitted on the first vectors, or None.
        token: random name of the space of the stored vectors; None while the index is empty.
        raw: True in an unfinished build, where vectors are stored before whitening, which needs all of them.
        dehub: correction for hubs: ``"csls"`` adds a coordinate to stored vectors, ``"center"`` is in the whitening.
    """

    model: ModelIdentity
    whitening: Whitening | None = None
    unfitted: dict[str, Any] | None = None
    token: str | None = None
    raw: bool = False
    dehub: Dehub | None = None

    def __post_init__(self) -> None:
        if self.whitening is not None:  # converted to float32 once, not for every query
            shift = (self.whitening.beta * self.whitening.mean_).astype(np.float32)
            object.__setattr__(self, "_map", (shift, self.whitening.kernel_.astype(np.float32)))

    def project(self, vectors: Vectors) -> Vectors:
        """Map (n, d) of the encoder to (n, k) of length 1; a zero vector stays zero."""
        if self.raw:
            return vectors
        if self.whitening is not None:
            shift, kernel = self._map  # type: ignore[attr-defined]
            vectors = (vectors - shift) @ kernel
        with np.errstate(over="ignore"):
            if (
                len(vectors) == 1 and 1e-20 < (square := float(vectors[0] @ vectors[0])) < 1e30
            ):  # the usual case: one query
                return vectors / np.float32(math.sqrt(square))
            squares = np.einsum("ij,ij->i", vectors, vectors)
        if squares.size and not 1e-20 < squares.min() <= squares.max() < 1e30:  # zero, or not in float32
            squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
            squares[squares == 0] = 1
        unit: Vectors = np.divide(vectors, np.sqrt(squares)[:, None], dtype=np.float32, casting="same_kind")
        return unit

    def digest(self) -> str | None:
        """Return a hash of the map of the whitening; None without whitening."""
        if self.whitening is None:
            return None
        shift, kernel = self._map  # type: ignore[attr-defined]
        return hashlib.sha256(shift.tobytes() + kernel.tobytes()).hexdigest()

    def dump(self) -> dict[str, Value]:
        """Return the space as metadata of a store."""
        values: dict[str, Value] = {
            "model": json.dumps(self.model.to_record()),
            "whitening": b"" if self.whitening is None else file_bytes(self.whitening.save),
            "unfitted": json.dumps(self.unfitted),
            "raw": json.dumps(self.raw),
            "dehub": json.dumps(self.dehub),
        }
        return values if self.token is None else {**values, "space": self.token}

    @classmethod
    def load(cls, metadata: Mapping[str, Value]) -> Self:
        """Read the space from the metadata of a store."""
        blob, token = metadata["whitening"], metadata.get("space")
        return cls(
            ModelIdentity.from_record(json.loads(metadata["model"])),
            from_file_bytes(blob, Whitening.load) if isinstance(blob, bytes) and blob else None,
            json.loads(metadata["unfitted"]),
            None if token is None else str(token),
            json.loads(metadata["raw"]),
            json.loads(metadata.get("dehub", "null")),
        )


def plan_space(encoder: object, whitening: Whitening | None, dehub: Dehub | None) -> Space:
    """Return the space of an index that is to be created; identity and fit come with the first vectors.

    Args:
        encoder: a name, an object with ``encode(texts)``, or None for an index that is given vectors only.
        whitening, dehub: as in `Index.create`.

    Raises:
        TypeError: another type of encoder or whitening. ValueError: `dehub` is unknown, or contradicts the whitening.
    """
    check_dehub(dehub)
    if not (encoder is None or isinstance(encoder, str | SupportsEncode)):
        raise TypeError(f"encoder must be a name, an object with encode(texts) or None, got {encoder!r:.60}")
    if whitening is not None and not isinstance(whitening, Whitening):
        raise TypeError(f"whitening must be a kexue.similarity.Whitening or None, got {whitening!r:.60}")
    whitening = centre_whitening(dehub, whitening)
    fitted = whitening if whitening is not None and is_fitted(whitening) else None
    unfitted = whitening.get_params() if whitening is not None and fitted is None else None
    model = ModelIdentity(reference=encoder if isinstance(encoder, str) else None)
    return Space(model, fitted, unfitted, dehub=dehub)


def is_fitted(whitening: Whitening) -> bool:
    """Whether a whitening is fitted."""
    return getattr(whitening, "moments_", None) is not None


def as_vectors(
    vectors: Any, *, dim: int | None, what: str, name: Callable[[int], str] = lambda row: f"row {row}"
) -> Vectors:
    """Return the vectors of an encoder as a finite float32 matrix (n, dim); an error names the first bad row.

    Accepts anything that numpy reads, of any float or integer type and memory order, and tensors.
    """
    if isinstance(vectors, np.ma.MaskedArray):
        raise TypeError(f"{what} are a masked array; give plain numbers: vectors.filled(...).")
    found: npt.NDArray[Any] = host(vectors)
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise ValueError(f"{what} must be a matrix (n, d) of numbers, got shape {found.shape} of {found.dtype}.")
    if dim is not None and found.shape[1] != dim:
        raise SpaceMismatchError(
            f"{what} have {found.shape[1]} dimensions, the index takes {dim}.",
            expected=dim,
            received=found.shape[1],
            remedy="Use vectors of the index's own encoder, before whitening.",
        )
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(found, np.float32)
    if not math.isfinite(found.sum()) and not np.isfinite(found).all():  # a sum may overflow, so look again
        row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        raise ValueError(f"{what} hold NaN or infinity in {name(row)}; every number must be finite in float32.")
    return found


def read_record(path: str, what: str, load: Callable[[], T]) -> T:
    """Return what `load` reads from the metadata of the index at `path`; IndexFormatError where it cannot be read."""
    try:
        return load()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IndexFormatError(
            f"{path} is damaged: its recorded {what} cannot be read ({type(error).__name__}: {error}).",
            remedy="Restore it from a backup (kexue index restore), or build it again (kexue index build).",
        ) from error


def file_bytes(save: Callable[[Path], None]) -> bytes:
    """Return the bytes that `save(path)` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved")
        save(path)
        return path.read_bytes()


def from_file_bytes(blob: bytes, load: Callable[[Path], T]) -> T:
    """Return what `load(path)` reads from a file with these bytes; in memory if possible: the disk may be full."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "saved")
            path.write_bytes(blob)
            return load(path)
    with open(os.memfd_create("kexue"), "wb") as file:
        file.write(blob)
        file.flush()
        return load(Path(f"/proc/self/fd/{file.fileno()}"))
