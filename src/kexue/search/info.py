"""Description of an index: the fields of ``kexue index info``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kexue.search.calibration import StoredCalibration, calibration_record
from kexue.search.meaning import measure_drift
from kexue.search.space import Space
from kexue.search.splitting import Splitting
from kexue.search.store.base import Store, Value


@dataclass(frozen=True)
class IndexInfo:
    """Contents of an index; the fields of ``kexue index info``.

    `dims` is the length of the stored vectors, None while there are none. `bytes` is the size on disk. `drift` is the
    distance between the mean of the vectors added since the whitening was fitted and the mean it was fitted on, in
    units of the root of the total variance; None without whitening or without such vectors. `passages` is how long
    texts are split: ``mode`` and ``overlap``, ``tokens`` of a passage (None: as many as the encoder reads), the number
    of ``split`` documents, and that of ``vectors``; None where none is split.
    """

    index: str
    documents: int
    dims: int | None
    model: dict[str, Any]
    whitening: dict[str, Any] | None
    calibration: dict[str, Any] | None
    hubness: dict[str, Any] | None
    dehub: str | None
    approx: str
    passages: dict[str, Any] | None
    bytes: int
    format_version: int
    created: str
    updated: str
    drift: float | None


def describe_index(path: str, store: Store, space: Space, stored: StoredCalibration) -> IndexInfo:
    """Return the description of the index at `path`."""
    metadata = store.metadata()
    whitening, dims, drift = None, space.model.dim, None
    if (fitted := space.whitening) is not None:
        dims = int(fitted.kernel_.shape[1])
        whitening = {"beta": fitted.beta, "gamma": fitted.gamma, "k": dims, "rank": fitted.rank_}
        drift = measure_drift(space, metadata)
    return IndexInfo(
        index=path,
        documents=store.count(),
        dims=dims,
        model=space.model.to_record(),
        whitening=whitening,
        calibration=calibration_record(stored.load(), stored.facts()),
        hubness=json.loads(str(metadata["hubness"])) if "hubness" in metadata else None,
        dehub=space.dehub,
        approx=str(metadata["approx"]),
        passages=_describe_passages(store, metadata),
        bytes=store.size(),
        format_version=store.format_version,
        created=str(metadata["created"]),
        updated=str(metadata["updated"]),
        drift=drift,
    )


def _describe_passages(store: Store, metadata: Mapping[str, Value]) -> dict[str, Any] | None:
    """Return how long texts are split, and the numbers of split documents and vectors; None where none is split."""
    splitting = Splitting.load(metadata)
    if splitting.mode == "none" or not store.keeps_passages:
        return None
    return {**asdict(splitting), **store.count_passages()._asdict()}
