"""The folder of a trained model: `open_run`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kexue._devices import choose_device
from kexue._text import parse_json
from kexue.errors import CheckpointError
from kexue.generative.model import GenerativeModel
from kexue.generative.recipes import Recipe, Sizes, find_recipe
from kexue.generative.run.medium import Medium
from kexue.generative.run.train import WEIGHTS
from kexue.train.settings import SETTINGS

_LARGEST = 10_000  # of all sizes of a model


@dataclass(frozen=True)
class Run:
    """A trained model and what it was trained for.

    Attributes:
        folder: of the run.
        name: of the model, such as ``"vae"``.
        model: with its final weights, in evaluation mode.
        medium: what the model makes: reads and writes images, or texts.
        recipe: how the model was built and trained.
        source: the data it was trained on: a name, or a path.
        data: SHA-256 of these data, as `hash_tensors` of their parts.
    """

    folder: Path
    name: str
    model: GenerativeModel
    medium: Medium
    recipe: Recipe
    source: str
    data: str


def open_run(folder: str | os.PathLike[str], *, device: str = "auto") -> Run:
    """Return the model of a folder that `train_model` has written.

    Args:
        folder: of the run.
        device: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.

    Raises:
        CheckpointError: no run in the folder, one that has not ended, damaged settings, weights that do not fit.

    Example:
        >>> open_run("run").model.sample(4, generator=0).shape  # doctest: +SKIP
        torch.Size([4, 1, 8, 8])
    """
    path = Path(folder)
    settings, weights = path / SETTINGS, path / WEIGHTS
    if not settings.is_file():
        raise CheckpointError(
            f"{os.fspath(folder)} is not the folder of a run: it has no {SETTINGS}.",
            remedy="Name a folder that kexue model train has written.",
        )
    record = parse_json(settings.read_bytes(), settings, kind=dict)
    try:
        name, source, data = record["model"], str(record["source"]), str(record["data"])
        recipe = find_recipe(name)
        medium = recipe.medium.from_facts(record["facts"])
        model = recipe.build(medium.facts(), _check_sizes(record["sizes"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{settings} cannot be used ({type(error).__name__}: {error}).",
            remedy="Train again with --no-resume, or with the version of kexue that wrote it.",
        ) from error
    if not weights.is_file():
        raise CheckpointError(
            f"{os.fspath(folder)} has no {WEIGHTS}: its training has not ended.",
            remedy="Run the command of the training again; it continues.",
        )
    try:
        model.load(weights)
    except CheckpointError as error:
        raise CheckpointError(
            error.message, remedy="Run the command of the training again; it writes the file anew. Or name another run."
        ) from error
    model.eval().to(choose_device(device))
    return Run(path, name, model, medium, recipe, source, data)


def _check_sizes(sizes: Sizes) -> Sizes:
    """Return the sizes of a model; ValueError for one that no recipe has, such as a damaged file might."""
    for name, value in sizes.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, (int, float)) and not 0 <= one <= _LARGEST:
                raise ValueError(f"sizes must be from 0 to {_LARGEST:,}, got {name}={value}")
    return sizes
