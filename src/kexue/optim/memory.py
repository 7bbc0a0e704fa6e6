"""Memory of an optimizer's state, known before its first step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue.errors import NotSupported
from kexue.optim._wrapper import Wrapper
from kexue.optim.stack import layers, parameters, unwrap


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of optimizer state: in total, by parameter (its name, else its index), and by layer of the stack."""

    total_bytes: int
    by_param: Mapping[str | int, int]
    by_wrapper: Mapping[str, int]


def optimizer_memory(optimizer: Optimizer) -> MemoryReport:
    """Bytes of state of any optimizer after a step in which every parameter has a gradient.

    A copy on the meta device, which has shapes but no values, makes that step; the optimizer itself is not changed. An
    optimizer that reads values in its step makes it on zeros, one parameter at a time. Existing state counts as it is.

    Args:
        optimizer: wrapped or not. Gradients are assumed to be dense.

    Returns:
        Bytes; the keys of `by_wrapper` are the class of the inner optimizer and the names of `extend` for wrappers.

    Raises:
        NotSupported: the optimizer cannot step on zeros either.

    >>> p = torch.nn.Parameter(torch.zeros(1000))
    >>> optimizer_memory(torch.optim.Adam([p])).total_bytes  # two moments, and a step counter
    8004
    """
    params = parameters(optimizer)
    try:
        sizes = _count_after_step(optimizer, dict.fromkeys(params, "meta"))
    except (NotImplementedError, RuntimeError, AssertionError, ValueError):
        sizes = {}
        for p in params:
            try:
                sizes[p] = _count_after_step(optimizer, {p: "cpu"})[p]
            except (NotImplementedError, RuntimeError, AssertionError, ValueError) as error:
                raise NotSupported(
                    f"{type(unwrap(optimizer)).__name__} cannot step on a copy of a parameter ({error}).",
                    remedy="Make one step, and sum the bytes of the tensors in its state.",
                ) from error
    names: list[Any] = [name for group in optimizer.param_groups for name in group.get("param_names", [])]
    by_param = {name: sum(sizes[p].values()) for name, p in zip(names or range(len(params)), params, strict=True)}
    by_wrapper = {layer: sum(of_layer[layer] for of_layer in sizes.values()) for layer in sizes[params[0]]}
    return MemoryReport(sum(by_param.values()), by_param, by_wrapper)


def _count_after_step(optimizer: Optimizer, devices: dict[Tensor, str]) -> dict[Tensor, dict[str, int]]:
    """Bytes by parameter and layer after a copy made a step with these parameters on these devices."""
    params = parameters(optimizer)
    twins = {p: _parameter_like(p, devices.get(p)) for p in params}
    memo: dict[int, Any] = {id(p): twin for p, twin in twins.items()}
    for part in (unwrap(optimizer).state, *(layer.tensors for layer in layers(optimizer))):
        for p, values in part.items():
            device = devices.get(p, "meta")
            memo.update({id(v): _like(v, device) for v in values.values() if isinstance(v, Tensor)})
    twin = copy.deepcopy(optimizer, memo)
    base = unwrap(twin)
    scalars = _disable_device_flags(base)
    if isinstance(twin, Wrapper):
        twin.allocate_state()
    else:
        twin.step()
    sizes = {}
    for p in devices:
        parts = {type(base).__name__: base.state.get(twins[p], {})}
        parts |= {layer.prefix[6:-1]: layer.tensors.get(twins[p], {}) for layer in reversed([*layers(twin)])}
        scalar = 4 if twins[p] in scalars else 0
        sizes[p] = {layer: sum(_bytes(value, scalar) for value in values.values()) for layer, values in parts.items()}
    return sizes


def _parameter_like(p: Tensor, device: str | None) -> Tensor:
    """Return a parameter like `p`: with a gradient of zeros on `device`, or on the meta device for None."""
    twin = torch.nn.Parameter(_like(p, device or "meta"), requires_grad=p.requires_grad)
    if p.requires_grad and device is not None:
        twin.grad = torch.zeros_like(twin)
    return twin


def _like(tensor: Tensor, device: str) -> Tensor:
    """Zeros like a tensor on a device; a counter, which optimizers read, keeps its value."""
    if tensor.dim() == 0 and not tensor.is_meta:
        return tensor.detach().cpu().clone()
    return torch.zeros_like(tensor.detach(), device=device)


def _disable_device_flags(base: Optimizer) -> set[Tensor]:
    """Switch off flags that need a real device; returns the parameters whose counter is always float32."""
    params: set[Tensor] = set()
    for group in base.param_groups:
        flags = {"fused", "capturable"} & group.keys()
        if any(group[flag] for flag in flags):
            params |= set(group["params"])
            group.update(dict.fromkeys(flags, False))
    return params


def _bytes(value: Any, scalar: int) -> int:
    if not isinstance(value, Tensor):
        return 0
    return scalar if scalar and value.dim() == 0 else value.numel() * value.element_size()
