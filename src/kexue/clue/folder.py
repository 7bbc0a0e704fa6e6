"""The folder of a run: `settings.json` says task and encoder, `model.safetensors` has what was trained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from kexue._devices import choose_device
from kexue._text import parse_json
from kexue.clue.catalogue import TASKS
from kexue.clue.config import Tune
from kexue.clue.framings import build_framing
from kexue.clue.framings.rows import RowTokenizer
from kexue.clue.model import TaskModel
from kexue.clue.unit_rows import UnitRows
from kexue.errors import CheckpointError
from kexue.text.folder import compute_fingerprint, read_model_folder
from kexue.text.models import find_model, model_id_of
from kexue.text.pooling import POOLINGS
from kexue.text.trainable import open_trainable
from kexue.train.settings import SETTINGS

WEIGHTS = "model.safetensors"
STATES = "states"  # folder of the cached states of a frozen encoder, while it is trained beside
_POOLINGS = tuple(name for name in POOLINGS if name in ("cls", "last-avg", "max"))


@dataclass(frozen=True)
class Setup:
    """A task with a model for it.

    Attributes:
        task: its name.
        model: encoder and head.
        tokenizer: of the encoder.
        max_length: most tokens of a row.
        encoder: name, pooling and fingerprint of the encoder, JSON-ready.
    """

    task: str
    model: TaskModel
    tokenizer: RowTokenizer
    max_length: int
    encoder: Mapping[str, Any]

    def encode(self, examples: Sequence[Any]) -> UnitRows:
        """Return examples as rows."""
        return UnitRows(self.model.framing, examples, self.tokenizer, self.max_length)


def build_model(task: str, model: str | os.PathLike[str], tune: Tune, max_length: int | None) -> Setup:
    """Return a new model for a task, whose head draws from torch's global generator.

    Raises:
        ModelNotFoundError: no such encoder. CheckpointError: a damaged one.
        ValueError: `max_length` beyond the positions of the encoder.
    """
    folder = find_model(model)
    encoder, info = open_trainable(folder), TASKS[task]
    limit = info.max_length if max_length is None else max_length
    if encoder.max_positions is not None and limit > encoder.max_positions:
        raise ValueError(f"max_length must be at most {encoder.max_positions}, as {model} has it, got {limit}")
    record = describe_encoder(folder)
    built = TaskModel(encoder, build_framing(info), tune, record["pooling"])
    return Setup(task, built, RowTokenizer(folder), limit, record)


def describe_encoder(folder: Path) -> dict[str, Any]:
    """Return the name, the pooling and the fingerprint of an encoder.

    The pooling is the folder's own where it is one of cls, mean and max, else cls.
    """
    stack = read_model_folder(folder)
    pooling = stack.pooling if stack.pooling in _POOLINGS else "cls"
    return {"model": model_id_of(folder), "pooling": pooling, "fingerprint": compute_fingerprint(stack, pooling)}


def open_run(run: str | os.PathLike[str], *, device: str = "auto") -> Setup:
    """Return the task of a run that `train_task` has written, with its model in evaluation mode.

    Args:
        run: folder of the run.
        device: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.

    Raises:
        CheckpointError: no such run, one that has not ended, damaged settings, another encoder than that of the
            training, weights that do not fit. ModelNotFoundError: the encoder is not there.
    """
    settings, weights = Path(run) / SETTINGS, Path(run) / WEIGHTS
    if not settings.is_file():
        raise CheckpointError(
            f"{os.fspath(run)} is not the folder of a run: it has no {SETTINGS}.",
            remedy="Name a folder that kexue clue train has written.",
        )
    record = parse_json(settings.read_bytes(), settings, kind=dict)
    try:
        task, tune, encoder, limit = (record[name] for name in ("task", "tune", "encoder", "max_length"))
        if task not in TASKS or tune not in ("full", "ladder", "linear"):
            raise ValueError(f"task {task!r}, tune {tune!r}")
        name, fingerprint = str(encoder["model"]), str(encoder["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{settings} is not of a run of kexue clue train ({type(error).__name__}: {error}).",
            remedy="Name a folder that kexue clue train has written.",
        ) from error
    if not weights.is_file():
        raise CheckpointError(
            f"{os.fspath(run)} has no {WEIGHTS}: its training has not ended.",
            remedy="Run the command of the training again; it continues.",
        )
    setup = build_model(task, name, tune, limit)
    if setup.encoder["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{name} is not the encoder that {os.fspath(run)} was trained with: its files have changed.",
            remedy="Put the files back, or train again.",
        )
    try:
        setup.model.load_trained(load_file(weights))
    except Exception as error:  # damaged files raise many types of errors
        raise CheckpointError(
            f"{weights} does not fit its {SETTINGS}: {error}", remedy="Run the command of the training again."
        ) from error
    setup.model.eval().to(choose_device(device))
    return setup
