"""Extractors opened from their folder, whatever their kind."""

from __future__ import annotations

import os

from kexue.errors import CheckpointError
from kexue.extract.dgcnn import DGCNNExtractor
from kexue.extract.folder import RECORD, find_extractor, read_record

Extractors = DGCNNExtractor


def open_extractor(run: str | os.PathLike[str], *, device: str = "cpu") -> Extractors:
    """Return the model of a run of `train_extractor`, or of a folder of `save_pretrained`.

    Raises:
        CheckpointError: no model there, a damaged one, or one of an unknown kind.
    """
    folder = find_extractor(run)
    kind = read_record(folder).get("kind")
    kinds = {one.kind: one for one in (DGCNNExtractor,)}
    if kind not in kinds:
        raise CheckpointError(f"{folder / RECORD}: unknown kind {kind!r}, expected {', '.join(kinds)}.")
    return kinds[kind].from_pretrained(folder, device=device)
