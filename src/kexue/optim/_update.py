"""Record of one update, shared by all wrappers of a stack: one snapshot, one step of the optimizer at the bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue.optim._fusion import split_group, step_in_blocks
from kexue.optim._tensor_lists import snapshot
from kexue.optim.stack import Group


class Update:
    """The record that goes from layer to layer during one update, from the outermost to the bottom and back.

    Before the step a layer may ask for:

    - `keep(choose)`: a snapshot of parameters, in `old` afterwards;
    - `before`: functions called with the parameters that have a gradient, just before the step at the bottom, since an
      accumulation further in decides what the gradients are;
    - `scale`, `decay`, `stand_ins`: work for the step at the bottom, see `_fusion`.

    After the step it changes the parameters in place. `applied` says whether there was a step at all, `params` which
    parameters it moved.

    Args:
        weight: of the micro-batch, for `GradientAccumulation`.
        flush: update with what was accumulated so far.
        allocate: create the state and do nothing else: no parameter moves, no counter increases.
        scratch: memory of snapshots, kept from one update to the next.
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
        self.allocate = allocate
        self.scratch = {} if scratch is None else scratch
        self.before: list[Callable[[list[Tensor]], None]] = []
        self.needs_snapshot: Callable[[Tensor], bool] | None = None
        self.scale = 1.0
        self.decay: dict[Tensor, float] = {}
        self.stand_ins: dict[Tensor, Tensor] = {}
        self.applied = False
        self.params: list[Tensor] = []
        self.old: dict[Tensor, Tensor] = {}

    def keep(self, choose: Callable[[Tensor], bool]) -> None:
        """Ask for a snapshot of the parameters for which `choose` is true."""
        others = self.needs_snapshot
        self.needs_snapshot = choose if others is None else lambda p: choose(p) or others(p)

    def groups(self, optimizer: Optimizer) -> Iterator[tuple[Group, list[Tensor]]]:
        """Each group with those of its parameters that this update moved."""
        moved = set(self.params)
        for group in optimizer.param_groups:
            yield group, [p for p in group["params"] if p in moved]

    def run(self, base: Optimizer) -> None:
        """Make the step of the optimizer at the bottom, as the layers asked for it."""
        self.params = [p for group in base.param_groups for p in group["params"] if p.grad is not None]
        if self.needs_snapshot is not None:
            self.old = {p: snapshot(p, self.scratch) for p in self.params if self.needs_snapshot(p)}
        for look in self.before:
            look(self.params)
        groups = base.param_groups
        try:
            if self.scale != 1 or self.decay or self.stand_ins:
                base.param_groups = [
                    part
                    for group in groups
                    for part in split_group(base, group, scale=self.scale, decay=self.decay, stand_ins=self.stand_ins)
                ]
            step_in_blocks(base)
        finally:
            base.param_groups = groups
        self.applied = True


def only_prepares(groups: list[Group]) -> bool:
    """Return whether a step with these groups moves nothing: every lr is 0 and every gradient is zero.

    `torch.distributed.checkpoint` makes such a step to create the state of an optimizer that it is about to load.
    """
    for group in groups:
        lr = group.get("lr", 1)
        if lr is None or (isinstance(lr, Tensor) and lr.device.type != "cpu") or float(lr) != 0:
            return False
    grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return bool(grads) and not any(_has_nonzero(grad) for grad in grads)


def _has_nonzero(grad: Tensor) -> bool:
    if grad.is_sparse:
        return bool(grad.coalesce().values().any())
    norm = torch.linalg.vector_norm(grad, 1)
    return bool((norm.full_tensor() if hasattr(norm, "full_tensor") else norm) != 0)
