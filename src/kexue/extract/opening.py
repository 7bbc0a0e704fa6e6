"""Extractors opened from their folder, whatever their kind."""

from __future__ import annotations

import os

from kexue.errors import CheckpointError
from kexue.extract.dgcnn import DGCNNExtractor
from kexue.extract.folder import RECORD, find_extractor, read_record
from kexue.extract.gplinker import GPLinkerExtractor

_KINDS: dict[str, type[DGCNNExtractor | GPLinkerExtractor]] = {
    kind.kind: kind for kind in (DGCNNExtractor, GPLinkerExtractor)
}


def open_extractor(run: str | os.PathLike[str], *, device: str = "cpu") -> DGCNNExtractor | GPLinkerExtractor:
    """Return the model of a run of `train_extractor`, or of a folder of `save_pretrained`.

    Raises:
        CheckpointError: no model there, a damaged one, or one of an unknown kind.
    """
    folder = find_extractor(run)
    kind = read_record(folder).get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise CheckpointError(f"{folder / RECORD}: unknown kind {kind!r}, expected {', '.join(_KINDS)}.")
    return _KINDS[kind].from_pretrained(folder, device=device)
