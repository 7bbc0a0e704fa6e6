"""Random generators: seeds from keys, states of the global generators, and blocks that start them from a key."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kexue._tensors import as_generator

CPU = torch.device("cpu")


def seed_of(*key: int) -> int:
    """A seed in [0, 2^63) from whole numbers >= 0; other numbers give an unrelated seed."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_of(*key: int, device: torch.device = CPU) -> torch.Generator:
    """A torch generator on `device` that starts from a key."""
    return as_generator(seed_of(*key), device)


def get_states(device: torch.device = CPU) -> dict[str, Any]:
    """States of the global generators of Python, numpy and torch, that of `device` included."""
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
def fork_random(*key: int, device: torch.device = CPU) -> Iterator[None]:
    """Start the global generators from `key` within the `with`, and restore their states after it."""
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


def get_torch_states(generator: torch.Generator | None) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """States of torch's global generators, on the CPU and all CUDA devices, and of `generator`."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), cuda, None if generator is None else generator.get_state()


def set_torch_states(states: tuple[Tensor, list[Tensor], Tensor | None], generator: torch.Generator | None) -> None:
    """Put back what `get_torch_states` returned."""
    cpu, cuda, own = states
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    if generator is not None and own is not None:
        generator.set_state(own)
