"""Measures that several experiments share: work and duration of calls, intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import stats

from kexue._optional import import_optional


def count_multiplications(call: Callable[[], Any]) -> float:
    """Number of multiplications in the matrix products and convolutions of ``call()``, backward passes included.

    Unlike seconds it is the same on every machine.
    """
    import_optional("torch", extra="train")
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    total = 0.0

    class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal total
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket in flop_registry:
                total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out) / 2
            return out

    with Counter():  # type: ignore[no-untyped-call]
        call()
    return total


def count_saved(module: Any, forward: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes of the tensors that autograd saves in a forward pass, parameters of the module left out, and its result."""
    torch = import_optional("torch", extra="train")
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages: dict[int, Any] = {}

    def count(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # referenced, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        result = forward()
    return sum(storage.nbytes() for storage in storages.values()), result


def time_in_turns(prepare: Mapping[str, Callable[[], Callable[[], Any]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of several calls, made alternately so that the state of the machine is the same for all.

    Args:
        prepare: by name, a function that is not timed and returns the call that is.
        rounds: calls of each name, >= 1.
    """
    seconds: dict[str, list[float]] = {name: [] for name in prepare}
    for _ in range(rounds):
        for name, make in prepare.items():
            call = make()
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def student_interval(values: Any) -> tuple[float, float, float]:
    """Mean of independent values and its 95 % interval by Student's t."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half
