"""Generators as the layers take them."""

from __future__ import annotations

import torch


def as_generator(generator: torch.Generator | int | None, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`: the given one, one with the given seed, or for None one seeded by the system."""
    if isinstance(generator, torch.Generator):
        if generator.device.type != torch.device(device).type:
            raise ValueError(f"the generator lives on {generator.device}, the tensors on {device}: make one there")
        return generator
    made = torch.Generator(device=device)
    if generator is None:
        made.seed()
    elif isinstance(generator, int) and not isinstance(generator, bool):
        made.manual_seed(generator)
    else:
        raise TypeError(f"generator must be a torch.Generator, an int or None, got {type(generator).__name__}")
    return made
