"""The protocol of wrappers: what happens between `step` of the outermost layer and the optimizer at the bottom.

`Wrapper.step` makes an `Update` and hands it to `_advance`. A wrapper's `_advance` notes in it what it needs, calls
`_inner_step` once, which does the same with the next layer and at the bottom makes the step, and then edits the
parameters. `docs/howto/way-of-an-update.md` follows one update through a stack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kexue.optim._update import Update, only_prepares
from kexue.optim.stack import Layer, layers


class Wrapper(Layer):
    """A layer that adds one trick to every update of the optimizer `inner`.

    A subclass has a `name`, says in `_advance` what it adds to an update, and where it keeps tensors creates them in
    `_allocate`. Everything else, such as groups, state and checkpoints, comes from `Layer`.
    """

    _update: Update | None = None  # set by the next outer layer before it calls `step`

    def _advance(self, update: Update) -> None:
        """Make one update: call `_inner_step` once, or not at all where nothing is to be updated yet."""
        raise NotImplementedError

    def _allocate_all(self, params: list[Tensor]) -> None:
        """Create the wrapper's tensors of several parameters; for `Update.before`."""
        for p in params:
            self._allocate(p)

    @torch.inference_mode(False)  # state that is created now must serve later steps
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, weight: float | None = None) -> Any:
        """Make one step of the whole stack; return what `closure`, called once with gradients enabled, returns.

        Args:
            closure: computes the loss and its gradients.
            weight: weight of this micro-batch, >= 0, for `GradientAccumulation` somewhere in the stack.
        """
        update, self._update = self._update, None  # first: a step that raises leaves nothing for the next one
        self._refuse_swapped("step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.follow_replacements()
        if update is None:
            update = Update(weight=weight, allocate=only_prepares(self.param_groups), scratch=self._scratch)
        if update.allocate:
            self._inner_step(update)
            for p in update.params:
                self._allocate(p)
        else:
            self._advance(update)
        return loss

    def _inner_step(self, update: Update) -> None:
        """Hand the update to the next layer, or at the bottom make the step."""
        if isinstance(self.inner, Wrapper):
            self.inner._update = update
            self.inner.step()
        elif update.weight is not None:
            raise TypeError("weight= belongs to GradientAccumulation, and there is none in this stack")
        else:
            update.run(self.inner)

    @property
    def is_boundary(self) -> bool:
        """Whether the coming `step` updates; False only while gradients are still being accumulated."""
        return bool(getattr(self.inner, "is_boundary", True))

    def flush(self) -> None:
        """Update with what `GradientAccumulation`, anywhere in the stack, has accumulated so far, if anything."""
        if any(layer.name == "gradient_accumulation" for layer in layers(self)):
            self._update = Update(flush=True, scratch=self._scratch)
            self.step()

    def allocate_state(self) -> None:
        """Create the state of the whole stack by a step that no layer counts; the optimizer at the bottom makes it."""
        self._update = Update(allocate=True)
        self.step()
