"""Base of our own optimizers: checked groups, dense real gradients, moments that stay in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue.optim.kind import check_kind
from kexue.optim.stack import Group, parameters


class DenseOptimizer(Optimizer):
    """An optimizer of dense real gradients; a subclass checks groups and updates parameters.

    Moments are float32 for half precision parameters, and stay so when a checkpoint is loaded, where torch would cast
    them to the parameter's type. `state["step"]` is a scalar on the CPU. Sums over a sharded dimension are computed by
    DTensor, so that shards give the same step as the whole.
    """

    def check(self, group: Group) -> None:
        """Raise ValueError for a setting out of its range."""
        raise NotImplementedError

    def update(self, group: Group, params: list[Tensor], steps: int) -> None:
        """Update `params`, all of one `kind`, with their gradients, in their step number `steps`."""
        raise NotImplementedError

    def kind(self, group: Group, param: Tensor) -> Hashable:
        """Key of the parameters that are updated in one call; None: this one alone."""
        foreach = group["foreach"]
        return (param.device, param.dtype, type(param)) if foreach or (foreach is None and param.is_cuda) else None

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its values override the defaults, and are checked like these."""
        self.check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.inference_mode(False)  # state that is made now must serve later steps
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; return what `closure`, called once with gradients enabled, returns.

        Raises:
            TypeError: a gradient that is sparse, or a parameter that is complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            batches: dict[tuple[Hashable, int], list[Tensor]] = {}
            for number, param in enumerate(group["params"]):
                if param.grad is None or param.numel() == 0:
                    continue
                _check_dense(param, type(self).__name__)
                state = self.state[param]
                if "step" not in state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
                state["step"] += 1
                batches.setdefault((self.kind(group, param) or number, int(state["step"])), []).append(param)
            for (_, steps), params in batches.items():
                self.update(group, params, steps)
        return loss

    @torch.inference_mode(False)
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as `torch.optim.Optimizer.load_state_dict` does, but copy it, and keep the type of all tensors.

        Raises:
            CheckpointError: the state of another kind of optimizer; nothing is changed then.
        """
        seen: dict[str, Any] = {}

        def look(_: Optimizer, read: dict[str, Any]) -> None:
            check_kind(read, self)
            seen.update(read)

        handle = self.register_load_state_dict_pre_hook(look)  # runs after the hooks of the user
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        saved = chain.from_iterable(group["params"] for group in seen["param_groups"])
        for key, param in zip(saved, parameters(self), strict=True):
            for name, value in seen["state"].get(key, {}).items():
                if isinstance(value, Tensor):
                    self.state[param][name] = value.to(self.state[param][name].device, copy=True)

    def moments(self, params: Iterable[Tensor], name: str, like: list[Tensor]) -> list[Tensor]:
        """The state `name` of each parameter; zeros of the shape and placement of `like` where there is none yet."""
        for param, example in zip(params, like, strict=True):
            if name not in self.state[param]:
                self.state[param][name] = torch.zeros_like(example)
        return [self.state[param][name] for param in params]


def put_back(params: list[Tensor], values: list[Tensor]) -> None:
    """Round updated float32 values back into the half precision parameters that they were made from."""
    for param, value in zip(params, values, strict=True):
        if value is not param:
            param.copy_(value)


def sum_shards(x: Tensor) -> Tensor:
    """A DTensor with its pending sums over shards computed; a plain tensor as it is."""
    placements = getattr(x, "placements", ())
    if not any(placement.is_partial() for placement in placements):
        return x
    from torch.distributed.tensor import Replicate

    summed = [Replicate() if placement.is_partial() else placement for placement in placements]
    return x.redistribute(placements=summed)  # type: ignore[attr-defined,no-any-return]


def check_rate(lr: float | Tensor | None, weight_decay: float) -> None:
    """Raise ValueError unless lr, a number, a tensor of one or None, and weight_decay are finite and >= 0."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must be one number, got a tensor of shape {tuple(lr.shape)}")
    for name, value in (("lr", 0.0 if lr is None else float(lr)), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be >= 0, got {value}")


def _check_dense(param: Tensor, name: str) -> None:
    if param.is_complex():
        raise TypeError(f"{name} takes real parameters, got {param.dtype}; optimise torch.view_as_real of it instead")
    if param.grad is not None and param.grad.layout != torch.strided:
        raise TypeError(f"{name} takes dense gradients, got layout {param.grad.layout}; use sparse=False")
