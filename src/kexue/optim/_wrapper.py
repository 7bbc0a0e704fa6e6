"""What every wrapper is: an optimizer around another one that keeps the whole contract of `torch.optim.Optimizer`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from operator import is_
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue.errors import CheckpointError, NotSupported
from kexue.optim._kind import check_kind
from kexue.optim._state import State
from kexue.optim._update import Group, Update, is_linear as bottom_is_linear

STACK, BASE = "kexue.stack", "kexue.base"  # names of the wrappers, and of the optimizer at the bottom
Exclude = str | Tensor | Iterable[str | Tensor] | Callable[[str, Tensor], bool] | None


class Wrapper(Optimizer):
    """An optimizer around `inner`; a subclass says in `_advance` what it adds to an update.

    `param_groups`, `defaults` and `state` are those of the inner optimizer; `state` and `state_dict()` show the tensors
    of a wrapper under ``kexue.<name>.<tensor>``, beside the inner ones, and its counters stand in every group. What is
    written into `state` counts. A parameter that takes the place of another in its group, as a shard does, is treated
    as the other one was.
    A step whose learning rates are all 0 and whose gradients are all zero makes the state and moves no counter: so
    `torch.distributed.checkpoint` prepares an optimizer for what it is about to load.
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
        self._prefix = f"kexue.{self.name}{same + 1 if same else ''}."
        self._tensors: dict[Tensor, dict[str, Tensor]] = {}
        self._scratch: dict[Tensor, Tensor] = {}
        self._shared: Update | None = None
        self._swapped = False
        self._known: list[list[Tensor]] = []  # the parameters of each group when they were last looked at
        super().__setstate__({})  # hooks, and nothing else: the constructor would make groups and state of its own
        for group in self.param_groups:
            self._check(group)
        self._sign(self._counters)
        self.follow()

    # what a subclass fills in

    def _advance(self, update: Update) -> None:
        """One update; calls `_inner_step` once, or not at all where nothing is to be updated yet."""
        raise NotImplementedError

    def _allocate(self, param: Tensor) -> None:
        """Make the wrapper's tensors of a parameter, unless they are there."""

    def _dtype(self, name: str, param: Tensor) -> torch.dtype:
        """The type in which a loaded tensor is kept."""
        return param.dtype

    def _check(self, group: Group) -> None:
        for p in group["params"]:
            if p.is_complex():
                raise TypeError(f"{type(self).__name__} takes real parameters, got one of {p.dtype}; use view_as_real")

    def _rename(self, new: Mapping[Tensor, Tensor]) -> None:
        """Let what was said of old parameters hold for the new ones in their places."""

    @property
    def _linear(self) -> bool:
        """Whether scaling the learning rate of the optimizer at the bottom scales the change that this layer makes."""
        return False

    @property
    def _folds(self) -> bool:
        """Whether all that this layer and those within do is asked of the bottom step, and none of it follows."""
        return False

    @property
    def is_boundary(self) -> bool:
        """Whether the coming `step` updates; False only while gradients are still being accumulated."""
        return bool(getattr(self.inner, "is_boundary", True))

    def follow(self) -> None:
        """See which parameters took the places of others in their groups; `step` does so by itself."""
        if type(self)._rename is Wrapper._rename:
            return
        groups = [group["params"] for group in self.param_groups]
        pairs = zip(self._known, groups, strict=False)
        if len(groups) == len(self._known) and all(len(a) == len(b) and all(map(is_, a, b)) for a, b in pairs):
            return
        for before, after in zip(self._known, groups, strict=False):
            if len(before) == len(after):
                gone, new = set(before) - set(after), set(after) - set(before)
                places = zip(before, after, strict=True)
                self._rename({old: now for old, now in places if old in gone and now in new})
        self._known = [list(params) for params in groups]

    # the contract of an optimizer

    @torch.inference_mode(False)  # state that is made now must serve later steps
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, weight: float | None = None) -> Any:
        """One step of the whole stack; returns what `closure`, called once with gradients enabled, gives.

        Args:
            closure: computes the loss and its gradients.
            weight: of this micro-batch, for `GradientAccumulation` somewhere in the stack.
        """
        self._refuse_swapped("step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.follow()
        update, self._shared = self._shared, None
        if update is None:
            update = Update(weight=weight, allocate=_only_prepares(self.param_groups), scratch=self._scratch)
        if update.allocate:
            self._inner_step(update)
            for p in update.params:
                self._allocate(p)
        else:
            self._advance(update)
        return loss

    def flush(self) -> None:
        """Update with what `GradientAccumulation`, anywhere in the stack, has gathered so far, if anything."""
        if any(layer.name == "gradient_accumulation" for layer in layers(self)):
            self._shared = Update(flush=True, scratch=self._scratch)
            self.step()

    def _inner_step(self, update: Update) -> None:
        if isinstance(self.inner, Wrapper):
            self.inner._shared = update
            self.inner.step()
        elif update.weight is not None:
            raise TypeError("weight= belongs to GradientAccumulation, and there is none in this stack")
        else:
            update.run(self.inner)

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
        """The state of the inner optimizer, with the wrapper's own tensors among it."""
        keeps = type(self)._allocate is not Wrapper._allocate
        return State(self.inner.state, self._tensors, self._prefix) if keeps else self.inner.state

    @state.setter
    def state(self, values: Mapping[Any, Mapping[str, Any]]) -> None:
        values = {key: dict(entry) for key, entry in values.items()}
        self.state.clear()
        self.state.update(values)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group to the inner optimizer; it joins the counters where they are."""
        counters = {name: self._get(name) for name in self._counters}
        self.inner.add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._sign(counters)
        self.follow()

    def state_dict(self) -> dict[str, Any]:
        """The inner `state_dict()`, with the wrapper's tensors and counters, and the names of the stack."""
        self._refuse_swapped("state_dict")
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        packed = self.inner.state_dict()
        state = {key: dict(values) for key, values in packed["state"].items()}
        for key, p in enumerate(self._params()):
            if self._tensors.get(p):
                state.setdefault(key, {}).update({self._prefix + n: t for n, t in self._tensors[p].items()})
        groups = [{**group, STACK: self._stack} for group in packed["param_groups"]]
        packed = {**packed, "state": state, "param_groups": groups}
        for after in self._optimizer_state_dict_post_hooks.values():
            packed = after(self, packed) or packed
        return packed

    @torch.inference_mode(False)
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` of the same stack gave.

        The state of the bare inner optimizer is taken too, with a warning; the wrappers then begin anew.

        Raises:
            CheckpointError: the state is that of another stack or another inner optimizer; nothing is changed then.
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
        check_kind(state_dict, bottom(self), name=groups[0].get(BASE) if groups else None)
        if saved is None:
            warnings.warn(
                f"the state is that of a bare optimizer: {self._stack} begins anew with this step", stacklevel=2
            )
            groups = [{k: v for k, v in group.items() if not k.startswith("kexue.")} for group in groups]
        inner = self.inner._stack if isinstance(self.inner, Wrapper) else None
        passed: list[Group] = [
            {k: v for k, v in g.items() if k != STACK} | ({STACK: inner} if inner else {}) for g in groups
        ]
        own: dict[Any, dict[str, Any]] = {}
        state: dict[Any, Any] = {}
        for key, values in state_dict["state"].items():
            own[key] = {n.removeprefix(self._prefix): v for n, v in values.items() if n.startswith(self._prefix)}
            others = {
                n: v
                for n, v in values.items()
                if not n.startswith(self._prefix if saved is not None and inner else "kexue.")
            }
            if others:
                state[key] = others
        self.inner.load_state_dict({**state_dict, "state": state, "param_groups": passed})
        keys = chain.from_iterable(group["params"] for group in groups)
        self._tensors = {
            p: {n: self._loaded(n, p, value) for n, value in own[key].items()}
            for key, p in zip(keys, self._params(), strict=True)
            if saved is not None and own.get(key)
        }
        first: Group = groups[0] if groups else {}
        self._sign({name: first.get(self._prefix + name, start) for name, start in self._counters.items()})
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        hooks = ("_optimizer_", "_zero_grad")
        kept = {n: v for n, v in self.__dict__.items() if not n.startswith(hooks) and n != "step"}  # a scheduler's step
        return kept | {"_scratch": {}}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()}) of {self.inner!r}"

    def _describe(self) -> str:
        return ""

    # for the subclasses

    def _params(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    @property
    def _stack(self) -> str:
        return " ".join(layer.name for layer in reversed([*layers(self)]))

    def _sign(self, counters: dict[str, Any]) -> None:
        """Write counters and the names of the stack into every group."""
        for group in self.param_groups:
            group.update({self._prefix + name: value for name, value in counters.items()})
            group[STACK], group[BASE] = self._stack, type(bottom(self)).__name__

    def _get(self, name: str) -> Any:
        return self.param_groups[0][self._prefix + name]

    def _set(self, name: str, value: Any) -> None:
        for group in self.param_groups:
            group[self._prefix + name] = value

    def _held(self, name: str) -> dict[Tensor, Tensor]:
        """The wrapper's tensors of one name, by parameter."""
        return {p: tensors[name] for p, tensors in self._tensors.items() if name in tensors}

    def _loaded(self, name: str, param: Tensor, value: Tensor) -> Tensor:
        return value.detach().to(device=param.device, dtype=self._dtype(name, param), copy=True)

    def _refuse_swapped(self, what: str) -> None:
        if self._swapped:
            raise RuntimeError(f"{what} was called while other weights stand in the parameters; leave the `with` first")

    @contextmanager
    def _showing(self, name: str) -> Iterator[None]:
        """The wrapper's tensors `name` in the place of the parameters; no second copy of them where types agree."""
        self._refuse_swapped("this")
        pairs = [*self._held(name).items()]
        rounded = {p: p.detach().clone() for p, t in pairs if p.dtype != t.dtype}

        def swap() -> None:
            for p, t in pairs:
                if p not in rounded:
                    passing = p.detach().clone()
                    p.copy_(t)
                    t.copy_(passing)

        with torch.no_grad():
            swap()
            for p, t in pairs:
                if p in rounded:
                    p.copy_(t)
        self._swapped = True
        try:
            yield
        finally:
            self._swapped = False
            with torch.no_grad():
                swap()
                for p, kept in rounded.items():
                    p.copy_(kept)


class Excluding(Wrapper):
    """A wrapper that leaves the parameters which `exclude` names as the inner optimizer makes them."""

    def __init__(self, inner: Optimizer, exclude: Exclude) -> None:
        self.exclude = exclude
        self._excluded: set[Tensor] = set()
        super().__init__(inner)

    def _check(self, group: Group) -> None:
        super()._check(group)
        self._excluded |= excluded(self.exclude, group, type(self).__name__)

    def _rename(self, new: Mapping[Tensor, Tensor]) -> None:
        self._excluded = {new.get(p, p) for p in self._excluded}


def layers(optimizer: Optimizer) -> Iterator[Wrapper]:
    """The wrappers of a stack, from the outermost inwards."""
    while isinstance(optimizer, Wrapper):
        yield optimizer
        optimizer = optimizer.inner


def is_linear(optimizer: Optimizer) -> bool:
    """Whether scaling the learning rate at the bottom is known to scale the whole change."""
    return optimizer._linear if isinstance(optimizer, Wrapper) else bottom_is_linear(optimizer)


def folds(optimizer: Optimizer) -> bool:
    """Whether nothing follows the step of the optimizer at the bottom."""
    return optimizer._folds if isinstance(optimizer, Wrapper) else True


def bottom(optimizer: Optimizer) -> Optimizer:
    """The optimizer at the bottom of a stack."""
    while isinstance(optimizer, Wrapper):
        optimizer = optimizer.inner
    return optimizer


def excluded(exclude: Exclude, group: Group, wrapper: str) -> set[Tensor]:
    """The parameters of a group that `exclude` names.

    Args:
        exclude: a part of a name, a parameter, several of these, or a function of name and parameter; names are those
            of `named_parameters()`, where the inner optimizer was given these, else "".
        group: of the inner optimizer.
        wrapper: for the message.
    """
    names = group.get("param_names", [""] * len(group["params"]))
    if callable(exclude) and not isinstance(exclude, Tensor):
        return {p for name, p in zip(names, group["params"], strict=True) if exclude(name, p)}
    wanted = [] if exclude is None else [exclude] if isinstance(exclude, str | Tensor) else list(exclude)
    parts = [item for item in wanted if isinstance(item, str)]
    if parts and "param_names" not in group:
        raise ValueError(
            f"{wrapper} was given names to exclude, {parts}, and the inner optimizer knows no names; "
            "build it from model.named_parameters(), or exclude by a function of (name, parameter)"
        )
    tensors = {item for item in wanted if isinstance(item, Tensor)}
    pairs = zip(names, group["params"], strict=True)
    return {p for name, p in pairs if p in tensors or any(part in name for part in parts)}


def _only_prepares(groups: list[Group]) -> bool:
    for group in groups:
        lr = group.get("lr", 1)
        if lr is None or (isinstance(lr, Tensor) and lr.device.type != "cpu") or float(lr) != 0:
            return False
    grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return bool(grads) and not any(_any(grad) for grad in grads)


def _any(grad: Tensor) -> bool:
    if grad.is_sparse:
        return bool(grad.coalesce().values().any())
    found = torch.linalg.vector_norm(grad, 1)
    return bool((found.full_tensor() if hasattr(found, "full_tensor") else found) != 0)
