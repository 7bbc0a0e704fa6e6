"""Whether a saved state belongs to the optimizer it is loaded into."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch.optim import Optimizer

from kexue.errors import CheckpointError

_FLAGS = {"params", "foreach", "fused", "capturable", "differentiable", "maximize", "decoupled_weight_decay"}
# Name of a tensor in the state, for optimizers that have the same settings.
_MARKS = {torch.optim.Adamax: "exp_inf", torch.optim.RAdam: "exp_avg_sq"}

# Settings of the optimizers of this package, by class. Names alone, so that this file imports none of them.
OURS = {
    "Adafactor": {
        "lr", "beta1", "beta2", "decay_power", "eps", "clip_threshold", "scale_parameter", "relative_step_scale",
        "min_dim_size_to_factor", "factor_dims", "weight_decay", "warmup_init",
    },
    "AdaX": {"lr", "betas", "eps", "weight_decay", "decoupled", "eps_mode"},
}  # fmt: skip


def check_kind(state_dict: Mapping[str, Any], optimizer: Optimizer, *, name: str | None = None) -> None:
    """Raise an error if the state is that of another kind of optimizer.

    `load_state_dict` would accept such a state, and `step` would fail.

    Args:
        state_dict: compared by the settings in its groups, and where these agree by the names in its state.
        optimizer: the optimizer at the bottom of a stack.
        name: class that the state was saved from, if known.

    Raises:
        CheckpointError: the kinds differ; the message names both.
    """
    own = type(optimizer).__name__
    groups = state_dict["param_groups"]
    if not groups or name == own:
        return
    settings = _known_settings()
    names = frozenset(optimizer.defaults).union(*(of_kind for _, of_kind in settings)) - _FLAGS
    saved = names & groups[0].keys()
    mark = _MARKS.get(type(optimizer))
    entries = [entry for entry in state_dict["state"].values() if entry]
    if name is None and saved == names & optimizer.defaults.keys():
        if mark is None or all(mark in entry for entry in entries):
            return
        settings = [(kind, of_kind) for kind, of_kind in settings if kind != own]
    alike = name or " or ".join(kind for kind, of_kind in settings if of_kind - _FLAGS == saved)
    raise CheckpointError(
        f"the state is that of {alike or 'another optimizer'} (settings {', '.join(sorted(saved))}), "
        f"this optimizer is {own}.",
        remedy="Build the optimizer as it was when the state was saved.",
    )


@cache
def _known_settings() -> list[tuple[str, frozenset[str]]]:
    """Name and settings of each optimizer of torch and of this package."""
    kinds = [kind for kind in vars(torch.optim).values() if inspect.isclass(kind) and issubclass(kind, Optimizer)]
    theirs = [(kind.__name__, frozenset(inspect.signature(kind).parameters)) for kind in kinds if kind is not Optimizer]
    return theirs + [(kind, frozenset(names)) for kind, names in OURS.items()]
