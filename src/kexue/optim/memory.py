"""How much memory the state of an optimizer will take, before its first step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue.errors import NotSupported
from kexue.optim._update import Update
from kexue.optim._wrapper import Wrapper, bottom, layers


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of optimizer state: all of it, by parameter (its name, else its index), and by layer of the stack."""

    total_bytes: int
    by_param: Mapping[str | int, int]
    by_wrapper: Mapping[str, int]


def optimizer_memory(optimizer: Optimizer) -> MemoryReport:
    """The bytes of state that an optimizer, ours or torch's, has once every parameter has had a gradient.

    A copy of it on the meta device, which has shapes but no numbers, takes a step; nothing is allocated and the
    optimizer stays as it is. A state that is there already counts as it is.

    Args:
        optimizer: wrapped or not. Gradients are taken to be dense.

    Returns:
        `by_wrapper` has the name of the inner class, and those of `extend` for the wrappers around it.

    Raises:
        NotSupported: the optimizer cannot step without numbers, for it reads values of its tensors.

    >>> p = torch.nn.Parameter(torch.zeros(1000))
    >>> optimizer_memory(torch.optim.Adam([p])).total_bytes  # two moments, and a step counter
    8004
    """
    names: list[Any] = [name for group in optimizer.param_groups for name in group.get("param_names", [])]
    params = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    twins = {p: _twin(p) for p in params}
    memo: dict[int, Any] = {id(p): twin for p, twin in twins.items()}
    for part in (bottom(optimizer).state, *(layer._tensors for layer in layers(optimizer))):
        for values in part.values():
            memo.update({id(v): _like(v) for v in values.values() if isinstance(v, Tensor)})
    twin = copy.deepcopy(optimizer, memo)
    base = bottom(twin)
    scalars = _on_the_host(base)
    update = Update(allocate=True)
    try:
        if isinstance(twin, Wrapper):
            twin._shared = update
        twin.step()
    except (NotImplementedError, RuntimeError, AssertionError) as error:
        raise NotSupported(
            f"{type(base).__name__} cannot step without numbers ({error}).",
            remedy="Let it take one step, and sum the bytes of the tensors in its state.",
        ) from error
    by_param = dict.fromkeys(names or range(len(params)), 0)
    by_wrapper = {type(base).__name__: 0} | {layer._prefix[6:-1]: 0 for layer in reversed([*layers(twin)])}
    for key, p in zip(by_param, params, strict=True):
        held = {type(base).__name__: base.state.get(twins[p], {})}
        held |= {layer._prefix[6:-1]: layer._tensors.get(twins[p], {}) for layer in layers(twin)}
        for layer, values in held.items():
            count = sum(_bytes(value, 4 if twins[p] in scalars else 0) for value in values.values())
            by_param[key] += count
            by_wrapper[layer] += count
    return MemoryReport(sum(by_param.values()), by_param, by_wrapper)


def _twin(p: Tensor) -> Tensor:
    twin = torch.nn.Parameter(_like(p), requires_grad=p.requires_grad)
    if p.requires_grad:
        twin.grad = torch.empty_like(twin)
    return twin


def _like(tensor: Tensor) -> Tensor:
    """Without numbers, except for counters, which optimizers read."""
    if tensor.dim() == 0:
        return tensor.detach().clone()
    return torch.empty_like(tensor.detach(), device="meta")


def _on_the_host(base: Optimizer) -> set[Tensor]:
    """Turn off what needs a real device; the parameters whose counter is float32 whatever the default type."""
    found: set[Tensor] = set()
    for group in base.param_groups:
        flags = {"fused", "capturable"} & group.keys()
        if any(group[flag] for flag in flags):
            found |= set(group["params"])
            group.update(dict.fromkeys(flags, False))
    return found


def _bytes(value: Any, scalar: int) -> int:
    if not isinstance(value, Tensor):
        return 0
    return scalar if scalar and value.dim() == 0 else value.numel() * value.element_size()
