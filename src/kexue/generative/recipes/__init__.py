"""Models by name: how one is built for the items of a data set, and how it is trained."""

from __future__ import annotations

from kexue.generative.recipes.adversarial import ADVERSARIAL
from kexue.generative.recipes.auto_encoders import AUTO_ENCODERS
from kexue.generative.recipes.diffusions import DIFFUSIONS
from kexue.generative.recipes.energies import ENERGIES
from kexue.generative.recipes.flows import FLOWS
from kexue.generative.recipes.recipe import (
    Course as Course,
    Facts as Facts,
    Recipe as Recipe,
    Sizes as Sizes,
    is_small as is_small,
    to_batches as to_batches,
    train_all as train_all,
)
from kexue.generative.recipes.texts import TEXT_MODELS

RECIPES: dict[str, Recipe] = {**AUTO_ENCODERS, **FLOWS, **TEXT_MODELS, **DIFFUSIONS, **ENERGIES, **ADVERSARIAL}


def list_models() -> list[str]:
    """Return the names of the models that `train_model` and ``kexue model train`` know.

    Example:
        >>> "vae" in list_models()
        True
    """
    return list(RECIPES)


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        ValueError: an unknown name; the message lists those known.
    """
    if name not in RECIPES:
        raise ValueError(f"model must be one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]
