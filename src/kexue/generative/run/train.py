"""Training of a generative model by its name: data, model, trainer, and the files at the end."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from kexue._progress import Progress
from kexue.errors import DataError, NotSupported
from kexue.generative.data import is_named_set
from kexue.generative.model import GenerativeModel
from kexue.generative.recipes import Course, Recipe, find_recipe, to_batches
from kexue.generative.run.config import ModelConfig, ModelResult
from kexue.generative.run.images import Images
from kexue.generative.run.medium import Medium, Parts
from kexue.train.checkpoint import load_checkpoint
from kexue.train.config import TrainConfig, TrainResult
from kexue.train.loop import Callback, Trainer, reporting
from kexue.train.schedules import warm_then_fall
from kexue.train.settings import check_settings, write_settings

WEIGHTS = "model.safetensors"
_SAMPLES = 64  # of a sheet
_START = 512  # items that a recipe prepares a new model with
_SHOWN = 1000  # items that a recipe finishes the model with before samples are shown during the training
Phases = Callable[[str], AbstractContextManager[Progress]]


def train_model(config: ModelConfig, *, progress: Phases | None = None) -> ModelResult:
    """Train a model into a folder; `open_run` opens it.

    The folder gets ``settings.json``, the checkpoints and logs of `kexue.train.Trainer` (samples of the model appear in
    TensorBoard while it learns), ``model.safetensors`` and a sheet of samples. A tenth of the training items is held
    back: the step with the lowest loss on it is kept, and the training ends when it no longer falls; a model whose loss
    does not tell how good it is, as that of a GAN, is trained to the end, and the last step is kept. A run that was
    interrupted (SIGTERM, SIGINT, a crash) continues where it was when it is called again with the same settings and
    data, with the same bits at the end.

    Args:
        config: model, data and settings.
        progress: opens the progress of a phase, as ``with progress("training") as report: report(done, total)``.

    Returns:
        `ModelResult`; its value is the lowest loss on the items held back, or else the loss of the last step.

    Raises:
        DataError: data that cannot be read, a run in their folder. ValueError: an unknown model, or one that does not
            fit the data. NotSupported: captions for a model that does not learn them.
        CheckpointError: the run in `out` has other settings or data. NonFiniteLossError: the training diverged.

    Example:
        >>> result = train_model(ModelConfig("vae", "digits", "run"))  # doctest: +SKIP
        >>> open_run("run").model.sample(4, generator=0).shape  # doctest: +SKIP
        torch.Size([4, 1, 8, 8])
    """
    recipe = find_recipe(config.model)
    _check_apart(config)
    if config.captions is not None and not recipe.classes:
        raise NotSupported(f"{config.model} does not learn captions; diffusion and flow-matching do.")
    load = recipe.medium.load if config.captions is None else partial(Images.load, captions=config.captions)
    medium, parts = load(config.data, config.image_size)
    parts = parts if recipe.classes else parts.without_classes()
    facts = medium.facts()
    _check_size(config, recipe, facts)
    course, sizes = _settle(config, recipe.choose_course(facts)), dict(recipe.choose_sizes(facts))
    settings = _settings(config, course, parts)
    check_settings(config.out, settings, resume=config.resume)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = recipe.build(facts, sizes)
        recipe.start(model, parts.train[:_START])
    source = os.path.abspath(config.data) if os.path.exists(config.data) else os.fspath(config.data)
    sheet = Path(config.out) / medium.sheet

    def start(trainer: Trainer) -> None:
        check_settings(config.out, settings, resume=config.resume)  # another trainer may have been here since
        if trainer.place.step == 0:  # what an earlier run has made is not of this one
            for path in (Path(config.out) / WEIGHTS, sheet):
                path.unlink(missing_ok=True)
        write_settings(config.out, {**settings, "source": source, "facts": facts, "sizes": sizes})

    with (progress or _silent)("training") as report:
        callbacks = [reporting(report), _showing(model, medium, recipe, parts.train[:_SHOWN], course.eval_every)]
        result = _fit(model, recipe.optimizers(model, course), config, course, parts, callbacks, start)
    saved = load_checkpoint(result.checkpoint)
    model.load_state_dict(saved["ema" if course.ema else "model"])
    recipe.finish(model, parts.train)
    model.save(Path(config.out) / WEIGHTS)
    medium.write(model.sample(_SAMPLES, generator=config.seed).cpu(), sheet)
    return ModelResult(**dataclasses.asdict(result), samples=os.fspath(sheet))


def _check_apart(config: ModelConfig) -> None:
    """Raise a DataError for a run among its data: its sheet of samples would be one of the images."""
    out, data = Path(config.out).resolve(), Path(config.data).resolve()
    if data.is_dir() and not is_named_set(config.data) and (out == data or data in out.parents):
        raise DataError(
            "the run would be written into the folder of its images, and learn from its own samples.",
            path=config.out,
            remedy=f"Name a folder outside of {os.fspath(config.data)}.",
        )


def _check_size(config: ModelConfig, recipe: Recipe, facts: Mapping[str, Any]) -> None:
    """Raise a DataError for images whose height or width does not suit the model."""
    multiple = recipe.multiple(facts)
    height, width = facts["event_shape"][1:] if multiple > 1 else (0, 0)
    if height % multiple or width % multiple:
        size = math.ceil(max(height, width) / multiple) * multiple
        raise DataError(
            f"the images have {height} x {width} pixels; {config.model} takes heights and widths divisible by "
            f"{multiple}.",
            path=config.data,
            remedy=f"Resize them: --image-size {size} (image_size={size}).",
        )


def _settle(config: ModelConfig, course: Course) -> Course:
    """Return the course of a recipe with what the user has set."""
    given = {name: getattr(config, name) for name in ("steps", "batch_size", "lr", "ema")}
    return dataclasses.replace(course, **{name: value for name, value in given.items() if value is not None})


def _settings(config: ModelConfig, course: Course, parts: Parts) -> dict[str, Any]:
    """Return the settings that decide the result of a run, JSON-ready."""
    return {
        "model": config.model,
        "image_size": config.image_size,
        "seed": config.seed,
        **{name: getattr(course, name) for name in ("steps", "batch_size", "lr", "ema")},
        "data": (parts if config.captions is None else parts.without_classes()).hash(),
        "captions": None if config.captions is None else config.captions.hash(),
    }


def _fit(
    model: GenerativeModel,
    optimizers: list[Optimizer],
    config: ModelConfig,
    course: Course,
    parts: Parts,
    callbacks: list[Callback],
    start: Callable[[Trainer], None],
) -> TrainResult:
    """Train a model; return the result of the trainer."""
    watched = course.patience is not None
    trainer = Trainer(
        model,
        optimizers,
        TrainConfig(
            config.out,
            steps=course.steps,
            precision="fp32",
            clip=course.clip,
            ema=course.ema or None,
            eval_every=course.eval_every,
            patience=course.patience,
            monitor="loss" if watched else None,
            mode="min",
            seed=config.seed,
            device=config.device,
            limit=config.limit,
            resume=config.resume,
        ),
        schedulers=[warm_then_fall(optimizer, course.steps) for optimizer in optimizers],
        callbacks=callbacks,
    )
    size = min(course.batch_size, len(parts.train))
    rows = _Rows(parts.train, parts.train_classes)
    loader = DataLoader(rows, size, shuffle=True, drop_last=True, collate_fn=_as_is)

    def evaluate(model: GenerativeModel) -> dict[str, float]:
        return measure_loss(model, parts.validation, parts.validation_classes)

    return trainer.fit(loader, evaluate=evaluate if watched else None, start=start)


def measure_loss(model: GenerativeModel, items: Tensor, classes: Tensor | None = None) -> dict[str, float]:
    """Return the mean loss of items, and its parts; the same noise each time, so that steps can be compared.

    Every item has noise of its own: the number of a batch's first item is the seed of the batch.
    """
    totals: dict[str, float] = {}
    start = 0
    for batch in to_batches(items, model.device):
        end = start + len(batch)
        labels = None if classes is None else classes[start:end].to(batch.device)
        output = model.loss(batch if labels is None else (batch, labels), generator=start)
        for name, value in {**output.parts, "loss": output.loss}.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(batch)
        start = end
    return {name: total / len(items) for name, total in totals.items()}


def _showing(model: GenerativeModel, medium: Medium, recipe: Recipe, items: Tensor, every: int) -> Callback:
    """Return a callback that shows samples of the averaged weights in TensorBoard."""

    def show(trainer: Trainer, _record: Mapping[str, float]) -> None:
        step = trainer.place.step
        if trainer.log is None or step % every:
            return
        with trainer.state.averaged_weights():
            recipe.finish(model, items)
            picture = medium.draw(model.sample(_SAMPLES, generator=0).cpu())
        if picture is not None:
            trainer.log.write_image("samples", step, picture)

    return show


class _Rows(Dataset[Any]):
    """Items of a tensor, a batch at a time; with classes, pairs of items and classes."""

    def __init__(self, items: Tensor, classes: Tensor | None) -> None:
        self.items, self.classes = items, classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        return self.__getitems__([row])

    def __getitems__(self, rows: list[int]) -> Any:
        return self.items[rows] if self.classes is None else (self.items[rows], self.classes[rows])


def _as_is(batch: Any) -> Any:
    return batch


@contextmanager
def _silent(_label: str) -> Iterator[Progress]:
    yield lambda _done, _total: None
