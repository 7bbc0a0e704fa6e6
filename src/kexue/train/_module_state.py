"""State dicts of modules under names that do not depend on how the module is wrapped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from kexue.errors import CheckpointError

_SHOWN = 5  # names in an error message
_PARALLEL = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)


def plain_state(module: torch.nn.Module) -> dict[str, Any]:
    """The state dict of a module under the names it has without `torch.compile` and data parallel wrappers."""
    return {plain_name(module, name): value for name, value in module.state_dict().items()}


def match_state(
    module: torch.nn.Module, state: Mapping[str, Any], name: str, absent: Collection[str] = ()
) -> dict[str, Any]:
    """A saved state under the names of `module` as it is wrapped now, after a check that it fits.

    Args:
        module: the module to load the state into.
        state: values by plain names.
        name: name of the state, for the error message.
        absent: plain names that were left out on purpose; the module keeps its own values for them.

    Raises:
        CheckpointError: tensors are missing, extra or of another shape.
    """
    own = module.state_dict()
    plain = {key: plain_name(module, key) for key in own}
    present = {plain[key]: value for key, value in own.items() if plain[key] in absent and plain[key] not in state}
    filled = {**state, **present}
    check_fit({plain[key]: value for key, value in own.items()}, filled, name)
    return {key: filled[plain[key]] for key in own}


def plain_name(module: torch.nn.Module, name: str) -> str:
    """A name in the state dict of `module` without the parts added by `torch.compile` and data parallel wrappers."""
    plain, part = [], module
    for step in name.split("."):
        wraps = step == "_orig_mod" or (step == "module" and isinstance(part, _PARALLEL))
        plain += [] if wraps else [step]
        part = getattr(part, step) if step in part._modules else part
    return ".".join(plain)


def check_fit(own: Mapping[str, Any], saved: Mapping[str, Any], name: str) -> None:
    """Raise a CheckpointError that names the tensors missing, extra or of another shape, if any."""
    faults = {
        "missing": [key for key in own if key not in saved],
        "unexpected": [key for key in saved if key not in own],
        "of another shape": [
            f"{key} {tuple(saved[key].shape)} instead of {tuple(value.shape)}"
            for key, value in own.items()
            if isinstance(value, Tensor) and isinstance(saved.get(key), Tensor) and saved[key].shape != value.shape
        ],
    }
    lines = [
        f"{kind}: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        for kind, names in faults.items()
        if names
    ]
    if lines:
        raise CheckpointError(f"{name} does not fit; {'; '.join(lines)}.", remedy="Build the model as saved.")
