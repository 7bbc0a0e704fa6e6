"""Fast paths: work of the wrappers that the optimizer at the bottom of a stack can do in its own step.

A wrapper edits an update after it was made, which takes a copy of the old parameters and another pass over them.
Neither is needed where the step at the bottom is known to allow it:

- a step proportional to lr (`is_linear`) is scaled by scaling lr: `PiecewiseLinear`;
- a step of each element by itself (`is_elementwise`) can include decoupled decay (`can_include_decay`), and may be made
  on some rows alone: `DecoupledWeightDecay`, `Lazy`;
- on a CPU such a step is made on blocks of tensors that stay in the cache (`step_in_blocks`).

Only optimizers named here or declared with `fusible` count, not classes derived from them: a derived class may do
anything in its step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from kexue.optim._tensor_lists import batches
from kexue.optim.stack import Group, Layer

_BLOCK = 1 << 21  # elements of several tensors in one call of foreach

# Each new element depends on no other element, and its change is proportional to lr.
_ELEMENTWISE: set[type[Optimizer]] = {
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
}
_LINEAR: set[type[Optimizer]] = set(_ELEMENTWISE)  # the change is proportional to lr, weight decay included

Kind = TypeVar("Kind", bound=type[Optimizer])


def fusible(*, elementwise: bool) -> Callable[[Kind], Kind]:
    """Class decorator: the step of this optimizer is proportional to lr, and maybe elementwise."""

    def declare(kind: Kind) -> Kind:
        _LINEAR.add(kind)
        if elementwise:
            _ELEMENTWISE.add(kind)
        return kind

    return declare


def is_elementwise(base: Optimizer) -> bool:
    """Return whether rows of a parameter may be updated by themselves."""
    return type(base) in _ELEMENTWISE


def is_linear(optimizer: Optimizer) -> bool:
    """Return whether scaling lr at the bottom is known to scale the whole change that this stack makes."""
    if isinstance(optimizer, Layer):
        return optimizer.is_linear
    return type(optimizer) in _LINEAR and all(group["lr"] is not None for group in optimizer.param_groups)


def is_fused(optimizer: Optimizer) -> bool:
    """Return whether the step at the bottom does all that this stack does, and nothing follows it."""
    return optimizer.is_fused if isinstance(optimizer, Layer) else True


def can_include_decay(base: Optimizer) -> bool:
    """Return whether p <- (1 - lr rate) p before the step gives the same as p <- p_new - lr rate p_old after it."""
    return is_elementwise(base) and all(
        not group.get("weight_decay") or _supports_decoupled_decay(base, group) for group in base.param_groups
    )


def has_coupled_decay(base: Optimizer) -> bool:
    """Return whether parameters enter the state, by weight decay that is added to the gradient."""
    return any(
        group.get("weight_decay")
        and type(base) is not torch.optim.AdamW
        and not (group.get("decoupled_weight_decay") or group.get("decoupled"))
        for group in base.param_groups
    )


def _supports_decoupled_decay(base: Optimizer, group: Group) -> bool:
    """Return whether the optimizer can carry out decoupled decay itself, in addition to any `weight_decay` it has."""
    if type(base) is torch.optim.AdamW:
        return True
    known = type(base) is torch.optim.Adam and "decoupled_weight_decay" in group
    return known and bool(not group["weight_decay"] or group["decoupled_weight_decay"])


def learning_rate(group: Group) -> Any:
    """The group's lr; ValueError where the optimizer chooses its own."""
    if group.get("lr") is None:
        raise ValueError("this wrapper needs a learning rate, and the inner optimizer has none; give it one (lr=...)")
    lr = group["lr"]
    return lr.squeeze() if isinstance(lr, Tensor) else lr


def split_group(
    base: Optimizer, group: Group, *, scale: float, decay: Mapping[Tensor, float], stand_ins: Mapping[Tensor, Tensor]
) -> Iterator[Group]:
    """The groups that `base` steps with in place of `group`: one for each rate of decay.

    Args:
        base: the optimizer at the bottom.
        group: one of its groups.
        scale: factor of the learning rate.
        decay: rate of decoupled decay by parameter; where `base` cannot do it, parameters are decayed here.
        stand_ins: tensors that are updated in place of parameters.
    """
    if scale != 1:
        group = {**group, "lr": learning_rate(group) * scale}
    by_rate: dict[float, list[Tensor]] = {}
    for p in group["params"]:
        by_rate.setdefault(decay.get(p, 0.0), []).append(stand_ins.get(p, p))
    for rate, params in by_rate.items():
        part = {**group, "params": params}
        if rate and _supports_decoupled_decay(base, group):
            part |= {"weight_decay": group["weight_decay"] + rate, "decoupled_weight_decay": True}
        elif rate:
            factor = 1 - learning_rate(group) * rate
            for batch in batches([p for p in params if p.grad is not None]):
                torch._foreach_mul_(batch[0], factor)
        yield part


def step_in_blocks(base: Optimizer) -> None:
    """Let `base` make its step: on a CPU with foreach on a block of tensors after the other.

    foreach makes intermediate results as large as all the parameters; those of a block stay in the cache. An
    optimizer with hooks makes one step for all, because a hook must be called once. The caller must put the groups of
    `base` back.
    """
    for groups in _blocks(base):
        base.param_groups = groups
        base.step()


def _blocks(base: Optimizer) -> Iterator[list[Group]]:
    """Lists of groups to step with, one after the other."""
    hooks = (
        base._optimizer_step_pre_hooks,
        base._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    if not is_elementwise(base) or any(hooks):
        yield base.param_groups
        return
    whole = []
    for group in base.param_groups:
        params = [p for p in group["params"] if p.grad is not None]
        if not group.get("foreach") or not params or any(p.device.type != "cpu" for p in params):
            whole.append(group)
            continue
        start, size = 0, 0
        for end, p in enumerate(params):
            if end > start and size + p.numel() > _BLOCK:
                yield [{**group, "params": params[start:end]}]
                start, size = end, 0
            size += p.numel()
        yield [{**group, "params": params[start:]}]
    if whole:
        yield whole
