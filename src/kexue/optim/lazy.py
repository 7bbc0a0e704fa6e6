"""Lazy updates: embedding rows that a batch does not use stay as they are; kexue.fm/archives/6869."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue.optim._fusion import has_coupled_decay, is_elementwise, is_fused, is_linear
from kexue.optim._update import Update
from kexue.optim._wrapper import Wrapper
from kexue.optim.stack import parameters, unwrap

_PATIENCE = 10  # updates with every row active before the warning


class _StandIn(NamedTuple):
    """A tensor that the optimizer at the bottom updates in place of a parameter, and the numbers of the active rows."""

    tensor: Tensor
    rows: Tensor


class _Backup(NamedTuple):
    """Values that inactive rows get back after the step.

    Attributes:
        active: mask of the active rows, or of elements.
        old: the parameter.
        state: tensors of the inner state, in ``"strict"`` mode.
        grad: the gradient of the parameter, where the inner optimizer was shown another one.
    """

    active: Tensor
    old: Tensor
    state: dict[str, Tensor]
    grad: Tensor


class Lazy(Wrapper):
    """Wrapper that updates only the embedding rows used in the batch; without it momentum also moves the others.

    A row (index of dimension 0; an element of a vector) is active when its gradient has any entry other than 0.

    - ``"masked"``: p = where(active, p_new, p_old); the state of the inner optimizer is updated for all rows.
    - ``"strict"``: inactive rows keep parameter and state; shared counters, as of Adam's bias correction, go on. So
      does `torch.optim.SparseAdam`.

    Source: kexue.fm/archives/6869 (masked; strict in its footnote).

    Args:
        inner: any optimizer.
        params: parameters of the inner optimizer with lazy rows; all others are updated as usual.
        mode: ``"masked"`` or ``"strict"``.

    Raises:
        ValueError: a parameter that the inner optimizer does not have; an unknown mode.

    `mark` names the active rows exactly. Sparse gradients work with every inner optimizer: their rows are the active
    ones. Weight decay inside does not change inactive rows. Where an embedding is also the output layer of a softmax
    every row has a gradient, and the wrapper only warns. Around torch's elementwise optimizers only active rows are
    read and written in ``"strict"`` mode, which then costs less than the optimizer alone.
    """

    name: ClassVar[str] = "lazy"

    def __init__(
        self, inner: Optimizer, params: Tensor | Iterable[Tensor], *, mode: Literal["masked", "strict"] = "masked"
    ) -> None:
        if mode not in ("masked", "strict"):
            raise ValueError(f'mode must be "masked" or "strict", got {mode!r}')
        self.mode = mode
        self.params = [params] if isinstance(params, Tensor) else list(params)
        self._marks: dict[Tensor, list[Tensor]] = {}
        self._twins: dict[Tensor, Tensor] = {}
        self._stand_ins: dict[Tensor, _StandIn] = {}  # of the update under way
        self._backups: dict[Tensor, _Backup] = {}
        self._full = 0
        super().__init__(inner)
        known = set(parameters(self))
        for p in self.params:
            if p not in known:
                raise ValueError(
                    f"params: a tensor of shape {tuple(p.shape)} is none of the inner optimizer's parameters"
                )

    def mark(self, param: Tensor, ids: Tensor) -> None:
        """Name the rows of `param` that are active in the coming update, whatever the gradients are.

        Marks add up until an update is made.

        Args:
            param: one of `params`.
            ids: integers of any shape in [0, rows), such as the token ids of the batch.
        """
        self.follow_replacements()
        if not any(param is p for p in self.params):
            raise ValueError("mark: the parameter is none of those that this Lazy was built with")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise TypeError(f"mark: ids must be integers, got {ids.dtype}")
        rows = torch.unique(ids.detach())
        if rows.numel() and not 0 <= int(rows[0]) <= int(rows[-1]) < len(param):
            raise ValueError(f"mark: ids must be in [0, {len(param)}), got {int(rows[0])} to {int(rows[-1])}")
        self._marks.setdefault(param, []).append(rows.to(param.device))

    def _replace_parameters(self, new: Mapping[Tensor, Tensor]) -> None:
        self.params = [new.get(p, p) for p in self.params]
        self._marks = {new.get(p, p): rows for p, rows in self._marks.items()}
        self._twins = {p: twin for p, twin in self._twins.items() if p not in new}

    @property
    def is_linear(self) -> bool:
        """Whether scaling lr of the innermost optimizer scales the whole change of the inner one."""
        return is_linear(self.inner)

    def _advance(self, update: Update) -> None:
        update.before.append(lambda params: self._prepare(update))
        try:
            self._inner_step(update)
            for p, stand_in in self._stand_ins.items():
                self._copy_back(p, stand_in)
            for p, backup in self._backups.items():
                self._restore(p, backup)
        finally:
            for stand_in in self._stand_ins.values():  # after an error in the inner step
                unwrap(self).state.pop(stand_in.tensor, None)
            self._stand_ins, self._backups = {}, {}
        if update.applied:
            self._marks = {}

    def _prepare(self, update: Update) -> None:
        """Choose for each parameter between a stand-in, which is cheaper, and a backup."""
        base = unwrap(self)
        present = set(update.params)
        for p in self.params:
            if p not in present or p.numel() == 0:
                continue
            if is_elementwise(base) and is_fused(self.inner) and type(p.data) is Tensor and p.dim():
                stand_in = self._stand_ins[p] = self._make_stand_in(p, base)
                update.stand_ins[p] = stand_in.tensor
                every = len(stand_in.rows) == len(p)
            else:
                backup = self._backups[p] = self._make_backup(p, base)
                every = self._full < _PATIENCE and bool(backup.active.all())
            self._warn_if_idle(every and p.dim() > 1)

    def _rows(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the active rows, and the gradient."""
        assert p.grad is not None
        grad = p.grad.detach()
        if grad.is_sparse:
            if grad.sparse_dim() != 1:
                raise TypeError(f"Lazy takes gradients sparse in rows, got sparse_dim {grad.sparse_dim()}")
            grad = grad.coalesce()
        if p in self._marks:
            return torch.unique(torch.cat(self._marks[p])), grad
        return grad.indices()[0] if grad.is_sparse else _active_rows(grad).nonzero()[:, 0], grad

    def _make_stand_in(self, p: Tensor, base: Optimizer) -> _StandIn:
        """The active rows alone (strict), or a twin of the parameter (masked), with gradient and state.

        Other rows of the twin are read by nothing but weight decay that is added to the gradient.
        """
        rows, grad = self._rows(p)
        data = p.detach()
        if self.mode == "strict":
            tensor = data[rows]
            dense = grad if not grad.is_sparse or p in self._marks else None
            tensor.grad = grad.values() if dense is None else dense.index_select(0, rows).to_dense()
            base.state[tensor] = {
                name: value[rows] if isinstance(value, Tensor) and value.shape == p.shape else value
                for name, value in base.state.get(p, {}).items()
            }
            return _StandIn(tensor, rows)
        known = self._twins.get(p)
        fits = known is not None and known.shape == p.shape and known.dtype == p.dtype and known.device == p.device
        tensor = known if known is not None and fits else torch.zeros_like(data)
        self._twins[p] = tensor
        if has_coupled_decay(base):
            tensor.copy_(data)
        else:
            tensor[rows] = data[rows]
        tensor.grad = grad.to_dense() if grad.is_sparse else grad
        base.state[tensor] = base.state.get(p, {})
        return _StandIn(tensor, rows)

    def _copy_back(self, p: Tensor, stand_in: _StandIn) -> None:
        """Write active rows, and the state, of a stand-in into the parameter's."""
        base = unwrap(self)
        tensor, rows = stand_in
        # section "LazyOptimizer": p = where(active, p_new, p_old)
        p.detach().index_copy_(0, rows, tensor if self.mode == "strict" else tensor[rows])
        tensor.grad = None
        state = base.state.pop(tensor)
        if self.mode == "masked":
            base.state[p] = state
            return
        whole = base.state[p]
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == tensor.shape:
                if name not in whole:
                    whole[name] = value.new_zeros(p.shape)
                whole[name].index_copy_(0, rows, value)
            else:
                whole[name] = value

    def _make_backup(self, p: Tensor, base: Optimizer) -> _Backup:
        """Copies of what inactive rows get back, taken before the step."""
        given = p.grad
        assert given is not None
        grad = given
        if p.dim() and type(p.data) is Tensor:
            rows, grad = self._rows(p)
            active = torch.zeros(len(p), dtype=torch.bool, device=p.device).index_fill_(0, rows, True)
        else:  # a shard, or a single number
            active = _active_rows(grad)
        old = p.detach().clone()
        if grad.is_sparse:
            p.grad = grad.to_dense()
        copies = {}
        if self.mode == "strict":
            state = base.state.get(p, {})
            same = {n: v for n, v in state.items() if isinstance(v, Tensor) and v.shape == p.shape and p.dim()}
            copies = {name: value.clone() for name, value in same.items()}
            if not state and p in self._marks:
                assert p.grad is not None
                p.grad = torch.where(_spread_rows(active, p), p.grad, 0)
        return _Backup(active, old, copies, given)

    def _restore(self, p: Tensor, backup: _Backup) -> None:
        """Give inactive rows back what they were, and the parameter its gradient."""
        base = unwrap(self)
        active = _spread_rows(backup.active, p)
        p.copy_(torch.where(active, p, backup.old))  # section "LazyOptimizer"
        if self.mode == "strict" and p.dim():
            fresh = 0 if has_coupled_decay(base) else None  # without decay, zero gradients leave new state as it was
            for name, value in base.state.get(p, {}).items():
                old = backup.state.get(name, fresh)
                if isinstance(value, Tensor) and value.shape == p.shape and old is not None:
                    value.copy_(torch.where(active, value, old))
        p.grad = backup.grad

    def _warn_if_idle(self, every: bool) -> None:
        """Count updates with every row active, and warn at the tenth."""
        self._full = self._full + 1 if every else 0
        if self._full == _PATIENCE:
            warnings.warn(
                f"every row had a gradient in {_PATIENCE} updates: Lazy has no effect here. If the embedding is also "
                "the output layer, name the rows with mark().",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_stand_ins": {}, "_backups": {}, "_marks": {}, "_twins": {}}

    def _describe(self) -> str:
        return f"{len(self.params)} parameters, mode={self.mode!r}"


def _active_rows(grad: Tensor) -> Tensor:
    """Mask of rows with an entry other than 0; maximum and minimum are several times faster than `any`."""
    if grad.dim() < 2:
        return grad != 0
    rows = grad.flatten(1)
    return (rows.amax(1) != 0) | (rows.amin(1) != 0)


def _spread_rows(rows: Tensor, p: Tensor) -> Tensor:
    """A mask of rows in a shape that broadcasts to the parameter."""
    return rows.reshape(-1, *[1] * (p.dim() - 1)) if p.dim() else rows
