"""A stack of optimizers: layers around an optimizer, with groups, state and checkpoints that hold all of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from operator import is_
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue.errors import CheckpointError, NotSupported
from kexue.optim._state import State
from kexue.optim._swap import swap_weights
from kexue.optim.kind import check_kind

STACK, BASE = "kexue.stack", "kexue.base"  # keys in a group: names of the layers, class of the optimizer at the bottom
Group = dict[str, Any]


class Layer(Optimizer):
    """An optimizer around `inner` with the complete interface of `torch.optim.Optimizer`.

    `param_groups`, `defaults` and `state` are those of the inner optimizer. `state` and `state_dict()` show the tensors
    of a layer under ``kexue.<name>.<tensor>`` next to the inner ones, and its counters are in every group. Writing
    into `state` changes the tensors of their owner. A parameter that takes the place of another in its group, as a
    shard does, is treated as the other one was.

    See `Wrapper` for how a step is made.

    Attributes:
        inner: the optimizer inside.
        prefix: prefix of the names of this layer's tensors and counters.
        tensors: parameter -> name -> tensor, those of this layer alone.
    """

    name: ClassVar[str]
    _counters: ClassVar[dict[str, Any]] = {}  # those in the groups, with their first value

    def __init__(self, inner: Optimizer) -> None:
        if not isinstance(inner, Optimizer):
            raise TypeError(f"expected a torch.optim.Optimizer to wrap, got {type(inner).__name__}")
        if isinstance(inner, torch.optim.LBFGS):
            raise NotSupported("LBFGS takes many steps in one call, and a wrapper sees only one.")
        self.inner = inner
        same = sum(layer.name == self.name for layer in layers(inner))
        self.prefix = f"kexue.{self.name}{same + 1 if same else ''}."
        self.tensors: dict[Tensor, dict[str, Tensor]] = {}
        self._scratch: dict[Tensor, Tensor] = {}
        self._swapped = False
        self._last_params: list[list[Tensor]] = []  # parameters of each group when they were last looked at
        super().__setstate__({})  # hooks alone: the constructor would create groups and state of its own
        for group in self.param_groups:
            self._check_group(group)
        self._write_counters(self._counters)
        self.follow_replacements()

    # methods for subclasses

    def _check_group(self, group: Group) -> None:
        """Raise TypeError or ValueError for a group that this layer cannot work on."""
        for p in group["params"]:
            if p.is_complex():
                raise TypeError(f"{type(self).__name__} takes real parameters, got one of {p.dtype}; use view_as_real")

    def _allocate(self, param: Tensor) -> None:
        """Create the layer's tensors of a parameter, unless they exist."""

    def _tensor_dtype(self, name: str, param: Tensor) -> torch.dtype:
        """The type of the layer's tensor `name` of a parameter."""
        return param.dtype

    def _adopt(self, name: str, param: Tensor, value: Tensor) -> Tensor:
        """A loaded tensor, copied and converted to be the layer's tensor `name` of a parameter."""
        return value.detach().to(device=param.device, dtype=self._tensor_dtype(name, param), copy=True)

    def _replace_parameters(self, new: Mapping[Tensor, Tensor]) -> None:
        """Carry settings of old parameters over to the new ones in their places (old -> new)."""

    @property
    def is_linear(self) -> bool:
        """Whether scaling lr of the optimizer at the bottom scales the change that this layer makes (see `_fusion`)."""
        return False

    @property
    def is_fused(self) -> bool:
        """Whether the step at the bottom does all that this layer and those inside do (see `_fusion`)."""
        return False

    def _describe(self) -> str:
        return ""

    # the contract of an optimizer

    @property
    def param_groups(self) -> list[Group]:
        """The groups of the inner optimizer."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:
        self.inner.param_groups = groups

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The defaults of the inner optimizer."""
        return self.inner.defaults

    @property
    def state(self) -> Any:
        """The state of the inner optimizer together with the layer's own tensors."""
        has_tensors = type(self)._allocate is not Layer._allocate
        return State(self.inner.state, self.tensors, self.prefix) if has_tensors else self.inner.state

    @state.setter
    def state(self, values: Mapping[Any, Mapping[str, Any]]) -> None:
        values = {key: dict(entry) for key, entry in values.items()}
        self.state.clear()
        self.state.update(values)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group to the inner optimizer; it joins the counters at their present values."""
        counters = {name: self._counter(name) for name in self._counters}
        self.inner.add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._write_counters(counters)
        self.follow_replacements()

    def state_dict(self) -> dict[str, Any]:
        """The inner `state_dict()` with the layer's tensors and counters, and the names of the stack."""
        self._refuse_swapped("state_dict")
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        packed = self.inner.state_dict()
        state = {key: dict(values) for key, values in packed["state"].items()}
        for key, p in enumerate(parameters(self)):
            if self.tensors.get(p):
                state.setdefault(key, {}).update({self.prefix + n: t for n, t in self.tensors[p].items()})
        groups = [{**group, STACK: self._stack} for group in packed["param_groups"]]
        packed = {**packed, "state": state, "param_groups": groups}
        for after in self._optimizer_state_dict_post_hooks.values():
            packed = after(self, packed) or packed
        return packed

    @torch.inference_mode(False)
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the `state_dict()` of an equal stack.

        The state of the bare inner optimizer is taken too, with a warning; the layers then start from scratch.

        Raises:
            CheckpointError: the state of another stack or another inner optimizer; nothing is changed then.
        """
        self._refuse_swapped("load_state_dict")
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        groups = state_dict["param_groups"]
        saved = groups[0].get(STACK) if groups else None
        if saved not in (None, self._stack):
            raise CheckpointError(
                f"the state is that of the stack {saved!r}, this optimizer is {self._stack!r} (innermost first).",
                remedy="Build the stack it was saved from, or load the state into its `.inner`.",
            )
        check_kind(state_dict, unwrap(self), name=groups[0].get(BASE) if groups else None)
        if saved is None:
            warnings.warn(
                f"the saved state has no wrappers: {self._stack} starts from the beginning with this step", stacklevel=2
            )
            groups = [{k: v for k, v in group.items() if not k.startswith("kexue.")} for group in groups]
        own, inner = self._split_state({**state_dict, "param_groups": groups}, bare=saved is None)
        self.inner.load_state_dict(inner)
        keys = chain.from_iterable(group["params"] for group in groups)
        self.tensors = {
            p: {n: self._adopt(n, p, value) for n, value in own[key].items()}
            for key, p in zip(keys, parameters(self), strict=True)
            if saved is not None and own.get(key)
        }
        first: Group = groups[0] if groups else {}
        self._write_counters({name: first.get(self.prefix + name, start) for name, start in self._counters.items()})
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _split_state(
        self, state_dict: dict[str, Any], *, bare: bool
    ) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
        """The layer's own tensors by key of the parameter, and the state dict for the inner optimizer."""
        inner_stack = {STACK: self.inner._stack} if isinstance(self.inner, Layer) else {}
        theirs = self.prefix if inner_stack and not bare else "kexue."  # what the inner optimizer does not get
        own: dict[Any, dict[str, Any]] = {}
        state: dict[Any, Any] = {}
        for key, values in state_dict["state"].items():
            own[key] = {n.removeprefix(self.prefix): v for n, v in values.items() if n.startswith(self.prefix)}
            others = {n: v for n, v in values.items() if not n.startswith(theirs)}
            if others:
                state[key] = others
        groups = [{k: v for k, v in g.items() if k != STACK} | inner_stack for g in state_dict["param_groups"]]
        return own, {**state_dict, "state": state, "param_groups": groups}

    def __getstate__(self) -> dict[str, Any]:
        hooks = ("_optimizer_", "_zero_grad")
        attributes = {n: v for n, v in self.__dict__.items() if not n.startswith(hooks) and n != "step"}
        return attributes | {"_scratch": {}}  # a scheduler sets `step` on the object

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()}) of {self.inner!r}"

    # parameters that are replaced

    def follow_replacements(self) -> None:
        """Carry settings over to parameters that took the places of others in their groups; `step` calls this."""
        if type(self)._replace_parameters is Layer._replace_parameters:
            return
        groups = [group["params"] for group in self.param_groups]
        pairs = zip(self._last_params, groups, strict=False)
        if len(groups) == len(self._last_params) and all(len(a) == len(b) and all(map(is_, a, b)) for a, b in pairs):
            return
        for before, after in zip(self._last_params, groups, strict=False):
            if len(before) == len(after):
                gone, new = set(before) - set(after), set(after) - set(before)
                places = zip(before, after, strict=True)
                self._replace_parameters({old: now for old, now in places if old in gone and now in new})
        self._last_params = [list(params) for params in groups]

    # for subclasses

    def _tensors_named(self, name: str) -> dict[Tensor, Tensor]:
        """The layer's tensors of one name, by parameter."""
        return {p: tensors[name] for p, tensors in self.tensors.items() if name in tensors}

    def _counter(self, name: str) -> Any:
        return self.param_groups[0][self.prefix + name]

    def _set_counter(self, name: str, value: Any) -> None:
        for group in self.param_groups:
            group[self.prefix + name] = value

    def _write_counters(self, counters: dict[str, Any]) -> None:
        """Write counters and the names of the stack into every group."""
        for group in self.param_groups:
            group.update({self.prefix + name: value for name, value in counters.items()})
            group[STACK], group[BASE] = self._stack, type(unwrap(self)).__name__

    @property
    def _stack(self) -> str:
        return " ".join(layer.name for layer in reversed([*layers(self)]))

    def _refuse_swapped(self, call: str) -> None:
        if self._swapped:
            raise RuntimeError(f"{call} was called while the parameters show other weights; leave the `with` first")

    @contextmanager
    def _show(self, name: str) -> Iterator[None]:
        """Swap the layer's tensors `name` into the parameters within the `with`."""
        self._refuse_swapped("another swap of weights")
        with swap_weights([*self._tensors_named(name).items()]):
            self._swapped = True
            try:
                yield
            finally:
                self._swapped = False


def layers(optimizer: Optimizer) -> Iterator[Layer]:
    """The layers of a stack, from the outermost inwards."""
    while isinstance(optimizer, Layer):
        yield optimizer
        optimizer = optimizer.inner


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimizer, of all its groups in order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def unwrap(optimizer: Optimizer) -> Optimizer:
    """The optimizer at the bottom of a stack; an unwrapped one itself."""
    while isinstance(optimizer, Layer):
        optimizer = optimizer.inner
    return optimizer
