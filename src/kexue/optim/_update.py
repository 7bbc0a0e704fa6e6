"""One update as a whole stack of wrappers sees it: one snapshot, one step of the optimizer at the bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

Group = dict[str, Any]

_CACHED = 1 << 17  # numbers of one tensor that several passes can find in the cache
_BLOCK = 1 << 21  # numbers of several tensors in one call of foreach

# What each number becomes depends on no other number, and the change is proportional to lr.
_ELEMENTWISE = {
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


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether rows may be updated by themselves: true of optimizers known here, not of classes derived from them."""
    return type(optimizer) in _ELEMENTWISE or _is_ours(optimizer, "AdaX")


def is_linear(optimizer: Optimizer) -> bool:
    """Whether the change is known to be proportional to the learning rate, weight decay included."""
    if _is_ours(optimizer, "Adafactor"):
        return all(group["lr"] is not None for group in optimizer.param_groups)
    return is_elementwise(optimizer)


def takes_decay(optimizer: Optimizer) -> bool:
    """Whether p <- (1 - lr rate) p before the step is the same as p <- p_new - lr rate p_old after it."""
    return is_elementwise(optimizer) and all(
        not group.get("weight_decay") or _decouples(optimizer, group) for group in optimizer.param_groups
    )


def couples_decay(optimizer: Optimizer) -> bool:
    """Whether the parameters themselves enter the state, by weight decay that is added to the gradient."""
    return any(
        group.get("weight_decay")
        and type(optimizer) is not torch.optim.AdamW
        and not (group.get("decoupled_weight_decay") or group.get("decoupled"))
        for group in optimizer.param_groups
    )


def _decouples(optimizer: Optimizer, group: Group) -> bool:
    """Whether the optimizer itself can carry out decoupled decay, beside that of its own that it may have."""
    if type(optimizer) is torch.optim.AdamW:
        return True
    known = type(optimizer) is torch.optim.Adam and "decoupled_weight_decay" in group
    return known and bool(not group["weight_decay"] or group["decoupled_weight_decay"])


def _is_ours(optimizer: Optimizer, name: str) -> bool:
    return type(optimizer).__name__ == name and type(optimizer).__module__.startswith("kexue.optim.")


def learning_rate(group: Group) -> Any:
    """The group's lr; ValueError where the optimizer chooses its own."""
    if group.get("lr") is None:
        raise ValueError("this wrapper needs a learning rate, and the inner optimizer has none; give it one (lr=...)")
    lr = group["lr"]
    return lr.squeeze() if isinstance(lr, Tensor) else lr


class Update:
    """What the layers of a stack tell one another during one update.

    On the way in, a layer may ask for a snapshot (`keep`), for decay (`decay`), for another learning rate (`scale`), or
    for a look at the gradients (`before`), since accumulation decides what they are. On the way out it changes the
    parameters in place; `old` holds what they were, and `params` those that had a gradient.
    """

    def __init__(
        self,
        *,
        weight: float | None = None,
        flush: bool = False,
        allocate: bool = False,
        scratch: dict[Tensor, Tensor] | None = None,
    ) -> None:
        self.weight = weight
        self.flush = flush
        self.allocate = allocate  # only make the state: nothing moves, nothing counts
        self.scratch = {} if scratch is None else scratch  # memory that is used again
        self.applied = False
        self.scale = 1.0
        self.decay: dict[Tensor, float] = {}
        self.before: list[Callable[[list[Tensor]], None]] = []
        self.stand_ins: dict[Tensor, Tensor] = {}  # updated in place of a parameter
        self.kept: Callable[[Tensor], bool] | None = None
        self.old: dict[Tensor, Tensor] = {}
        self.params: list[Tensor] = []

    def keep(self, wanted: Callable[[Tensor], bool]) -> None:
        """Ask for a snapshot of the parameters that `wanted` picks."""
        others = self.kept
        self.kept = wanted if others is None else lambda p: wanted(p) or others(p)

    def groups(self, optimizer: Optimizer) -> Iterator[tuple[Group, list[Tensor]]]:
        """Each group with those of its parameters that this update moved."""
        moved = set(self.params)
        for group in optimizer.param_groups:
            yield group, [p for p in group["params"] if p in moved]

    def run(self, base: Optimizer) -> None:
        """One step of the optimizer at the bottom, as the layers asked for it."""
        self.params = [p for group in base.param_groups for p in group["params"] if p.grad is not None]
        if self.kept is not None:
            self.old = {p: snapshot(p, self.scratch) for p in self.params if self.kept(p)}
        for look in self.before:
            look(self.params)
        groups = base.param_groups
        if self.scale != 1 or self.decay or self.stand_ins:
            base.param_groups = [part for group in groups for part in self._parts(base, group)]
        try:
            for parts in _blocks(base):
                base.param_groups = parts
                base.step()
        finally:
            base.param_groups = groups
        self.applied = True

    def _parts(self, base: Optimizer, group: Group) -> Iterator[Group]:
        """The group as `base` shall see it in this step: one part for each rate of decay."""
        if self.scale != 1:
            group = {**group, "lr": learning_rate(group) * self.scale}
        by_rate: dict[float, list[Tensor]] = {}
        for p in group["params"]:
            by_rate.setdefault(self.decay.get(p, 0.0), []).append(self.stand_ins.get(p, p))
        for rate, params in by_rate.items():
            part = {**group, "params": params}
            if rate and _decouples(base, group):
                part |= {"weight_decay": group["weight_decay"] + rate, "decoupled_weight_decay": True}
            elif rate:
                factor = 1 - learning_rate(group) * rate
                for batch in batches([p for p in params if p.grad is not None]):
                    torch._foreach_mul_(batch[0], factor)
            yield part


def _blocks(base: Optimizer) -> Iterator[list[Group]]:
    """The groups to step with, one after the other: some tensors at a time where that saves memory traffic.

    On a CPU foreach makes intermediate results as large as all the parameters; in blocks they stay in the cache. Hooks
    of the optimizer are promised one step, and then get it.
    """
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


def batches(*lists: Iterable[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Equally long lists of tensors, cut up by device and type of the members, as `torch._foreach` likes them."""
    kinds: dict[Any, list[tuple[Tensor, ...]]] = {}
    for row in zip(*lists, strict=True):
        kinds.setdefault(tuple((type(t), t.device, t.dtype) for t in row), []).append(row)
    for rows in kinds.values():
        yield tuple(list(column) for column in zip(*rows, strict=True))


def snapshot(p: Tensor, scratch: dict[Tensor, Tensor]) -> Tensor:
    """A copy of a parameter; on a CPU in memory kept for it, since fresh pages cost more than the copy."""
    if p.device.type != "cpu" or type(p.data) is not Tensor:
        return p.detach().clone()
    kept = scratch.get(p)
    if kept is None or kept.shape != p.shape or kept.dtype != p.dtype:
        kept = scratch[p] = torch.empty_like(p.detach())
    return kept.copy_(p.detach())


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views that together cover tensors of one shape, on a CPU short enough for several passes in the cache."""
    first = tensors[0]
    plain = first.device.type == "cpu" and all(type(t.data) is Tensor and t.is_contiguous() for t in tensors)
    if not plain or first.numel() <= _CACHED:
        yield tensors
        return
    yield from zip(*(torch.split(t.view(-1), _CACHED) for t in tensors), strict=True)
