"""Folders of extractors: weights as safetensors, everything else as JSON, written completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kexue._files import replacing_folder
from kexue._text import parse_json
from kexue.errors import CheckpointError, DataError

RECORD, WEIGHTS, MODEL, ENCODER = "extractor.json", "model.safetensors", "model", "encoder"
_FORMAT, _VERSION = "kexue-extractor", 1
_NAMES = {RECORD, WEIGHTS, ENCODER}


def write_extractor(
    folder: str | os.PathLike[str],
    kind: str,
    record: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    add: Callable[[Path], None] | None = None,
) -> None:
    """Write the folder of a model; one that was written before is replaced.

    Args:
        folder: the folder.
        kind: of the model.
        record: all that is no weight, ready for JSON.
        state: its weights.
        add: called with the folder that is being written, to put more into it.

    Raises:
        DataError: the folder holds other files.
    """
    host = {name: value.detach().cpu().contiguous() for name, value in state.items() if value.numel()}
    with replacing_folder(folder, foreign=list_foreign) as temporary:
        save_file(host, temporary / WEIGHTS)
        head = {"format": _FORMAT, "version": _VERSION, "kind": kind}
        (temporary / RECORD).write_text(
            json.dumps({**head, **record}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        if add is not None:
            add(temporary)


def list_foreign(folder: Path) -> list[str]:
    """Return the names in a folder that are not of an extractor: all, unless it holds one."""
    names = set(os.listdir(folder))
    return sorted(names - _NAMES if RECORD in names else names)


def is_extractor(run: str | os.PathLike[str]) -> bool:
    """Return whether a folder is the run, or the model, of an extractor."""
    return any((folder / RECORD).is_file() for folder in _model_folders(run))


def find_extractor(run: str | os.PathLike[str]) -> Path:
    """Return the folder of the model of a run, or of a model; CheckpointError where there is none."""
    for folder in _model_folders(run):
        if (folder / RECORD).is_file():
            return folder
    raise CheckpointError(
        f"{os.fspath(run)} holds no extractor: neither {RECORD} nor {MODEL}/{RECORD}.",
        remedy="Name the folder of a training that has ended (kexue extract train), or of save_pretrained.",
    )


def _model_folders(run: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return where the model of a folder may be: right in it, or one folder below."""
    return Path(run), Path(run) / MODEL


def read_record(folder: Path) -> dict[str, Any]:
    """Return the JSON of the folder of a model; CheckpointError for a damaged or foreign one."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = parse_json(path.read_bytes(), path, kind=dict)
    except DataError as error:
        raise CheckpointError(f"{path} is damaged: {error.message}", remedy="Train again.") from error
    if (record.get("format"), record.get("version")) != (_FORMAT, _VERSION):
        raise CheckpointError(
            f"{path} has format {record.get('format')!r} version {record.get('version')!r}, expected {_FORMAT!r} "
            f"version {_VERSION}.",
            remedy="Open it with the version of kexue that wrote it.",
        )
    return record


def load_state(model: nn.Module, folder: Path) -> None:
    """Load the weights of a folder into a model; CheckpointError where they are damaged or do not fit."""
    try:
        state = load_file(folder / WEIGHTS)
        empty = {name: value for name, value in model.state_dict().items() if not value.numel()}
        model.load_state_dict({**empty, **state})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be loaded: {error}", remedy="Train again.") from error
