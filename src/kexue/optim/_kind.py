"""Whether a saved state is one of the optimizer it is to be loaded into."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch.optim import Optimizer

from kexue.errors import CheckpointError

_FLAGS = {"params", "foreach", "fused", "capturable", "differentiable", "maximize", "decoupled_weight_decay"}
_MARKS = {torch.optim.Adamax: "exp_inf", torch.optim.RAdam: "exp_avg_sq"}  # those whose settings agree


def check_kind(state_dict: Mapping[str, Any], optimizer: Optimizer, *, name: str | None = None) -> None:
    """Refuse the state of an optimizer of another kind, which `load_state_dict` would take and `step` would miss.

    Args:
        state_dict: its groups tell by their settings, and where these agree the state does by its names.
        optimizer: at the bottom of a stack.
        name: of the class that the state was saved from, where that is known.

    Raises:
        CheckpointError: the kinds differ; the message names both.
    """
    own = type(optimizer).__name__
    groups = state_dict["param_groups"]
    if not groups or name == own:
        return
    settings = _settings()
    known = frozenset(optimizer.defaults).union(*(names for _, names in settings)) - _FLAGS
    saved = known & groups[0].keys()
    mark = _MARKS.get(type(optimizer))
    entries = [entry for entry in state_dict["state"].values() if entry]
    if name is None and saved == known & optimizer.defaults.keys():
        if mark is None or all(mark in entry for entry in entries):
            return
        settings = [(kind, names) for kind, names in settings if kind != own]
    alike = name or " or ".join(kind for kind, names in settings if names - _FLAGS == saved)
    raise CheckpointError(
        f"the state is that of {alike or 'another optimizer'} (settings {', '.join(sorted(saved))}), "
        f"this optimizer is {own}.",
        remedy="Build the optimizer as it was when the state was saved.",
    )


@cache
def _settings() -> list[tuple[str, frozenset[str]]]:
    """The settings of each optimizer of torch and of this package, with its name."""
    from kexue.optim.adafactor import Adafactor
    from kexue.optim.adax import AdaX

    kinds = [kind for kind in vars(torch.optim).values() if inspect.isclass(kind) and issubclass(kind, Optimizer)]
    kinds = [kind for kind in kinds if kind is not Optimizer] + [Adafactor, AdaX]
    return [(kind.__name__, frozenset(inspect.signature(kind).parameters)) for kind in kinds]
