"""Training on a task of CLUE, and predictions of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

from kexue._files import remove_folder, replacing
from kexue._progress import Progress
from kexue.clue.catalogue import TASKS
from kexue.clue.config import ClueConfig
from kexue.clue.folder import STATES, WEIGHTS, Setup, build_model, open_run
from kexue.clue.model import TaskModel
from kexue.clue.splits import read_split
from kexue.clue.tasks import get_task
from kexue.errors import CheckpointError
from kexue.optim import Adafactor
from kexue.text.training.batches import LengthBatches
from kexue.train.checkpoint import load_checkpoint
from kexue.train.config import TrainConfig, TrainResult
from kexue.train.loop import Trainer, reporting
from kexue.train.settings import check_settings, write_settings

_LOG = logging.getLogger(__name__)
_HEAD = 30  # rate of the head, by that of the encoder
_NEVER = 1 << 40  # a dimension that no matrix has: second moments without factors
Phases = Callable[[str], AbstractContextManager[Progress]]
Measure = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, Any]]  # predictions, examples -> numbers by name


def train_task(config: ClueConfig, *, progress: Phases | None = None) -> TrainResult:
    """Train an encoder on a task of CLUE; `predict_task` predicts with the run.

    The folder gets ``settings.json`` (task, encoder, settings, and how many texts were cut), the checkpoints and logs
    of `kexue.train.Trainer`, and ``model.safetensors``: the weights that were trained, of the epoch with the highest
    main metric on the dev file. A run that was interrupted (SIGTERM, SIGINT, a crash) continues where it was when it is
    called again with the same settings and data, with the same bits at the end.

    Args:
        config: task, encoder, data and settings.
        progress: opens the progress of a phase, as ``with progress("training") as report: report(done, total)``.

    Returns:
        `TrainResult`; its value is the main metric on the dev file.

    Raises:
        DataError: files that are not there, or are of another task; an empty text; an example without an answer.
        ModelNotFoundError: no such encoder.
        CheckpointError: the run in `out` has other settings or data. NonFiniteLossError: the training diverged.

    Example:
        >>> config = ClueConfig("cluener", "kexue/roformer-sim-tiny-zh", "cluener", "run")  # doctest: +SKIP
        >>> train_task(config).metric  # doctest: +SKIP
        'macro_f1'
    """
    task = get_task(config.task)
    train, dev = (read_split(task, config.data, split) for split in ("train", "dev"))
    return train_on(config, train, dev, task.metric, progress=progress)


def predict_task(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str] | Sequence[Any],
    *,
    task: str | None = None,
    device: str = "auto",
    progress: Phases | None = None,
) -> list[Any]:
    """Return the predictions of a run for examples of its task, in their order.

    They are labels, numbers of options or candidates, texts, or entities ``{type: {text: [[start, end]]}}``, as
    `Task.metric` and `Task.write_submission` take them.

    Args:
        run: folder of a run of `train_task`.
        path: a file, with or without answers, or examples that were read from one.
        task: the task that the run should be of; None: any.
        device: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.
        progress: as of `train_task`.

    Raises:
        CheckpointError: no such run, or one of another task. DataError: a file that cannot be read, an empty text.
    """
    setup = open_run(run, device=device)
    if task not in (None, setup.task):
        raise CheckpointError(
            f"{os.fspath(run)} is a run of {setup.task}, not of {task}.", remedy="Name another run, or its task."
        )
    if isinstance(path, str | os.PathLike):
        rows, name = setup.encode(get_task(setup.task).read(path)), os.fspath(path)
    else:
        rows, name = setup.encode(path), "the examples"
    _tell({name: rows.count()})
    with (progress or _silent)("predicting") as report:
        return rows.read_outputs(setup.model, report)


def train_on(
    config: ClueConfig,
    train: Sequence[Any],
    dev: Sequence[Any],
    measure: Measure,
    *,
    progress: Phases | None = None,
) -> TrainResult:
    """Train on examples; `train_task` reads them from files.

    Args:
        config: task, encoder and settings.
        train, dev: labelled examples.
        measure: the metrics of predictions on `dev`; the epoch with the highest main metric is kept.
        progress: opens the progress of a phase.
    """
    phases, info = progress or _silent, TASKS[config.task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        setup = build_model(config.task, config.model, config.tune, config.max_length)
    model = setup.model
    rows = [setup.encode(examples) for examples in (train, dev)]
    for part in rows:
        part.require_gold()
    settings = _settings(config, setup, train, dev)
    facts = {name: part.count() for name, part in zip(("train", "dev"), rows, strict=True)}
    _tell(facts)
    check_settings(config.out, settings, resume=config.resume)
    out = Path(config.out)

    def start(trainer: Trainer) -> None:
        check_settings(config.out, settings, resume=config.resume)  # another trainer may have been here since
        if trainer.place.step == 0:  # what an earlier run has made is not of this one
            (out / WEIGHTS).unlink(missing_ok=True)
            remove_folder(out / STATES)
        write_settings(config.out, {**settings, "facts": facts})
        if config.tune != "full":
            for name, part in zip(("train", "dev"), rows, strict=True):
                with phases(f"states, {name}") as report:
                    part.cache(model, out / STATES / name, report)

    def evaluate(_model: nn.Module) -> dict[str, float]:
        scores = measure(rows[1].read_outputs(model), dev)
        return {name: float(value) for name, value in scores.items() if isinstance(value, (int, float))}

    with phases("training") as report:
        trainer = Trainer(model, build_optimizer(model, config), _trainer_config(config), callbacks=[reporting(report)])
        size = config.batch_size or info.batch_size
        batches = LengthBatches(rows[0], size, config.seed, drop_last=False)
        loader = DataLoader(rows[0], batch_sampler=batches, collate_fn=_as_is)
        result = trainer.fit(loader, evaluate=evaluate, start=start)
    if not result.interrupted:
        model.load_trained(load_checkpoint(result.checkpoint).model)
        with replacing(out / WEIGHTS) as temporary:
            save_file({name: x.contiguous().cpu() for name, x in model.trained_state().items()}, temporary)
        remove_folder(out / STATES)
    return result


def build_optimizer(model: TaskModel, config: ClueConfig) -> Optimizer:
    """Return the optimizer of the weights that are trained.

    Beside an encoder that AdamW tunes as a whole the head, which begins at random, has 30 times its rate. Adafactor's
    steps are relative to the size of each weight already.
    """
    encoder, head = (
        [weight for weight in part.parameters() if weight.requires_grad] for part in (model.encoder, model.head)
    )
    if config.optimizer == "adafactor":
        return Adafactor([*encoder, *head], config.rate, beta1=0.9, min_dim_size_to_factor=_NEVER)
    factor = _HEAD if config.tune == "full" else 1
    groups: list[dict[str, Any]] = [{"params": head, "lr": factor * config.rate}]
    return AdamW([{"params": encoder}, *groups] if encoder else groups, config.rate, weight_decay=0.01)


def _trainer_config(config: ClueConfig) -> TrainConfig:
    info = TASKS[config.task]
    return TrainConfig(
        config.out,
        epochs=config.epochs or info.epochs,
        precision=config.precision,
        accumulate=info.accumulate,
        weight="units",
        monitor=info.metric,
        seed=config.seed,
        device=config.device,
        limit=config.limit,
        resume=config.resume,
        save_frozen=False,
    )


def _settings(config: ClueConfig, setup: Setup, train: Sequence[Any], dev: Sequence[Any]) -> dict[str, Any]:
    """Return the settings that decide the result of a run, JSON-ready."""
    info = TASKS[config.task]
    return {
        "task": config.task,
        "encoder": dict(setup.encoder),
        "tune": config.tune,
        "optimizer": config.optimizer,
        "lr": config.rate,
        "epochs": config.epochs or info.epochs,
        "batch_size": config.batch_size or info.batch_size,
        "max_length": setup.max_length,
        "seed": config.seed,
        "precision": config.precision,
        "data": [_digest(train), _digest(dev)],
    }


def _digest(examples: Sequence[Any]) -> str:
    """Return a SHA-256 of examples, in hexadecimal."""
    total = hashlib.sha256()
    for example in examples:
        total.update(json.dumps(dataclasses.asdict(example), ensure_ascii=True).encode())
    return total.hexdigest()


def _tell(facts: Mapping[str, Mapping[str, int]]) -> None:
    """Warn of texts that were cut, and of gold answers that cannot be learned."""
    for name, counts in facts.items():
        if counts["cut"]:
            _LOG.warning("%s: %d of %d examples are cut to the limit.", name, counts["cut"], counts["examples"])
        if counts["lost"]:
            _LOG.warning(
                "%s: %d gold answers split a token, were cut off, or are not in the text: the model cannot give them.",
                name,
                counts["lost"],
            )


@contextmanager
def _silent(_label: str) -> Iterator[Progress]:
    yield lambda _done, _total: None


def _as_is(batch: Any) -> Any:
    return batch
