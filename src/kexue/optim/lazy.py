"""Rows that a batch does not touch stay: kexue.fm/archives/6869."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue.optim._update import Update, couples_decay, is_elementwise
from kexue.optim._wrapper import Wrapper, bottom, folds, is_linear

_PATIENCE = 10  # updates with every row active before the warning


@dataclass
class _Visit:
    """What one update needs to know of one parameter."""

    active: Tensor  # rows (bool) or, where a stand-in is updated, their numbers
    stand_in: Tensor | None = None
    old: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    grad: Tensor | None = None  # to put back, where another one was shown to the inner optimizer


class Lazy(Wrapper):
    """Update only the rows of an embedding that the batch used, where momentum would move all others too.

    A row (index of dimension 0; an element of a vector) is active when its gradient has any entry other than 0.

    - ``"masked"``: p = where(active, p_new, p_old); the state of the inner optimizer goes on for all rows.
    - ``"strict"``: inactive rows keep parameter and state; shared counters, as of Adam's bias correction, go on. So
      does `torch.optim.SparseAdam`.

    Source: kexue.fm/archives/6869 (masked; the footnote tells of the other).

    Args:
        inner: any optimizer.
        params: parameters of it to treat so; all others are updated as ever.
        mode: ``"masked"`` or ``"strict"``.

    Raises:
        ValueError: a parameter that the inner optimizer does not have; another mode.

    `mark` names the active rows exactly. Sparse gradients are taken whatever the inner optimizer: their rows are the
    active ones. Weight decay inside does not touch inactive rows. Where an embedding is also the output layer of a
    softmax every row has a gradient, and the wrapper does nothing but warn. Beside torch's element-wise optimizers only
    active rows are read and written in ``"strict"``, which then costs less than the optimizer alone.
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
        self._visits: dict[Tensor, _Visit] = {}
        self._full = 0
        super().__init__(inner)
        known = set(self._params())
        for p in self.params:
            if p not in known:
                raise ValueError(f"params: one of shape {tuple(p.shape)} is none of the inner optimizer's parameters")

    def mark(self, param: Tensor, ids: Tensor) -> None:
        """Say which rows of `param` the coming update shall move: these, whatever the gradients are.

        Marks add up until an update is made.

        Args:
            param: one of `params`.
            ids: integers of any shape in [0, rows), such as the token ids of the batch.
        """
        self.follow()
        if not any(param is p for p in self.params):
            raise ValueError("mark: the parameter is none of those this Lazy was given")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise TypeError(f"mark: ids must be integers, got {ids.dtype}")
        rows = torch.unique(ids.detach())
        if rows.numel() and not 0 <= int(rows[0]) <= int(rows[-1]) < len(param):
            raise ValueError(f"mark: ids must be in [0, {len(param)}), got {int(rows[0])} to {int(rows[-1])}")
        self._marks.setdefault(param, []).append(rows.to(param.device))

    def _rename(self, new: Mapping[Tensor, Tensor]) -> None:
        self.params = [new.get(p, p) for p in self.params]
        self._marks = {new.get(p, p): rows for p, rows in self._marks.items()}
        self._twins = {p: twin for p, twin in self._twins.items() if p not in new}

    @property
    def _linear(self) -> bool:
        return is_linear(self.inner)

    def _advance(self, update: Update) -> None:
        update.before.append(lambda params: self._enter(update))
        try:
            self._inner_step(update)
            for p, visit in self._visits.items():
                self._leave(p, visit)
        finally:
            for visit in self._visits.values():  # after an error in the inner step
                if visit.stand_in is not None:
                    bottom(self).state.pop(visit.stand_in, None)
            self._visits = {}
        if update.applied:
            self._marks = {}

    def _enter(self, update: Update) -> None:
        base = bottom(self)
        present = set(update.params)
        for p in self.params:
            if p not in present or p.numel() == 0:
                continue
            if is_elementwise(base) and folds(self.inner) and type(p.data) is Tensor and p.dim():
                visit = self._replace(p, base)
                assert visit.stand_in is not None
                update.stand_ins[p] = visit.stand_in
                full = len(visit.active) == len(p)
            else:
                visit = self._remember(p, base)
                full = self._full < _PATIENCE and bool(visit.active.all())
            self._visits[p] = visit
            self._watch(full and p.dim() > 1)

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
        return grad.indices()[0] if grad.is_sparse else _touched(grad).nonzero()[:, 0], grad

    def _replace(self, p: Tensor, base: Optimizer) -> _Visit:
        """Let `base` update something else: the active rows alone, or a twin.

        Other rows of the twin are read by nobody but weight decay that is added to the gradient.
        """
        rows, grad = self._rows(p)
        data = p.detach()
        if self.mode == "strict":
            stand_in = data[rows]
            dense = grad if not grad.is_sparse or p in self._marks else None
            stand_in.grad = grad.values() if dense is None else dense.index_select(0, rows).to_dense()
            base.state[stand_in] = {
                name: value[rows] if isinstance(value, Tensor) and value.shape == p.shape else value
                for name, value in base.state.get(p, {}).items()
            }
        else:
            known = self._twins.get(p)
            fits = known is not None and known.shape == p.shape and known.dtype == p.dtype and known.device == p.device
            stand_in = known if known is not None and fits else torch.zeros_like(data)
            self._twins[p] = stand_in
            if couples_decay(base):
                stand_in.copy_(data)
            else:
                stand_in[rows] = data[rows]
            stand_in.grad = grad.to_dense() if grad.is_sparse else grad
            base.state[stand_in] = base.state.get(p, {})
        return _Visit(rows, stand_in=stand_in)

    def _remember(self, p: Tensor, base: Optimizer) -> _Visit:
        """Keep what inactive rows shall get back."""
        grad = p.grad
        assert grad is not None
        if p.dim() and type(p.data) is Tensor:
            rows, grad = self._rows(p)
            active = torch.zeros(len(p), dtype=torch.bool, device=p.device).index_fill_(0, rows, True)
        else:  # a shard, or a single number
            active = _touched(grad)
        visit = _Visit(active, old=p.detach().clone(), grad=p.grad)
        if grad.is_sparse:
            p.grad = grad.to_dense()
        if self.mode == "strict":
            state = base.state.get(p, {})
            same = {n: v for n, v in state.items() if isinstance(v, Tensor) and v.shape == p.shape and p.dim()}
            visit.state = {name: value.clone() for name, value in same.items()}
            if not state and p in self._marks:
                assert p.grad is not None
                p.grad = torch.where(_along(active, p), p.grad, 0)
        return visit

    def _leave(self, p: Tensor, visit: _Visit) -> None:
        base = bottom(self)
        rows, twin = visit.active, visit.stand_in
        if twin is None:
            active = _along(visit.active, p)
            assert visit.old is not None
            p.copy_(torch.where(active, p, visit.old))
            if self.mode == "strict" and p.dim():
                fresh = 0 if couples_decay(base) else None  # without decay gradients of 0 leave new state as it begins
                for name, value in base.state.get(p, {}).items():
                    kept = visit.state.get(name, fresh)
                    if isinstance(value, Tensor) and value.shape == p.shape and kept is not None:
                        value.copy_(torch.where(active, value, kept))
            p.grad = visit.grad
            return
        p.detach().index_copy_(0, rows, twin if self.mode == "strict" else twin[rows])
        twin.grad = None
        state = base.state.pop(twin)
        if self.mode == "masked":
            base.state[p] = state
            return
        whole = base.state[p]
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == twin.shape:
                if name not in whole:
                    whole[name] = value.new_zeros(p.shape)
                whole[name].index_copy_(0, rows, value)
            else:
                whole[name] = value

    def _watch(self, full: bool) -> None:
        self._full = self._full + 1 if full else 0
        if self._full == _PATIENCE:
            warnings.warn(
                f"every row had a gradient in {_PATIENCE} updates: Lazy does nothing here. Is the embedding also the "
                "output layer? Then name the rows with mark().",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_visits": {}, "_marks": {}, "_twins": {}}

    def _describe(self) -> str:
        return f"{len(self.params)} parameters, mode={self.mode!r}"


def _touched(grad: Tensor) -> Tensor:
    """Which rows have an entry other than 0; largest and least are found several times faster than `any`."""
    if grad.dim() < 2:
        return grad != 0
    rows = grad.flatten(1)
    return (rows.amax(1) != 0) | (rows.amin(1) != 0)


def _along(rows: Tensor, p: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (p.dim() - 1)) if p.dim() else rows
