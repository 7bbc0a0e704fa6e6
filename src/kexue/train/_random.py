"""Python's, numpy's and torch's global generators: their states, and a stretch in which they begin from a key."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

CPU = torch.device("cpu")


def seed_of(*key: int) -> int:
    """A seed in [0, 2^63) from whole numbers >= 0; other numbers, an unrelated seed."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_of(*key: int, device: torch.device = CPU) -> torch.Generator:
    """A torch generator on `device` that begins from a key."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def get_states(device: torch.device = CPU) -> dict[str, Any]:
    """States of the global generators, those of `device` included."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_states(states: Mapping[str, Any], device: torch.device = CPU) -> None:
    """Put back what `get_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"], device)


@contextmanager
def isolated(*key: int, device: torch.device = CPU) -> Iterator[None]:
    """Begin the global generators from `key`, and leave them afterwards as they were."""
    states = get_states(device)
    seed = seed_of(*key)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
        yield
    finally:
        set_states(states, device)
