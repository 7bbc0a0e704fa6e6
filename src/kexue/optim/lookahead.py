"""Lookahead: every k steps, go back to a point between the old and the new weights.

Source: kexue.fm/archives/6869; Zhang et al. 2019, arXiv:1907.08610.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue._tensors import float32_or_wider
from kexue.optim._tensor_lists import batches, pieces
from kexue.optim._update import Update
from kexue.optim._wrapper import Wrapper
from kexue.optim.stack import unwrap

_MOMENTA = ("momentum_buffer", "exp_avg")  # names of the first moment in torch's optimizers and ours


class Lookahead(Wrapper):
    """Wrapper that every k updates moves the weights back to a point between the slow weights and the current ones.

    After update number k, 2k, ...: phi <- phi + alpha (p - phi), then p <- phi, with phi = p before the first update.

    Source: kexue.fm/archives/6869; arXiv:1907.08610, algorithm 1. Differences: bert4keras starts phi at 0 and
    synchronises at the first update, which shrinks the weights; here the first synchronisation follows update k.

    Args:
        inner: any optimizer.
        k: >= 1, updates between synchronisations.
        alpha: in (0, 1]; 1 is the inner optimizer alone.
        momentum: first moment of the optimizer at the bottom when p goes back: ``"keep"`` it (the paper's choice),
            ``"reset"`` it to 0, or ``"pullback"``: treat it as the weights, with slow ones that start at 0.

    Raises:
        ValueError: k, alpha or momentum out of range.

    phi is created just before the first update, so that weights loaded after construction count. Keeps a copy of the
    parameters, in float32 for half precision, whose rounding would hold phi still. `slow_weights()` shows phi for
    evaluation, as the paper does.
    """

    name: ClassVar[str] = "lookahead"
    _counters: ClassVar[dict[str, Any]] = {"step": 0}

    def __init__(
        self,
        inner: Optimizer,
        k: int = 5,
        alpha: float = 0.5,
        *,
        momentum: Literal["keep", "reset", "pullback"] = "keep",
    ) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a whole number >= 1, got {k!r}")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], got {alpha}")
        if momentum not in ("keep", "reset", "pullback"):
            raise ValueError(f'momentum must be "keep", "reset" or "pullback", got {momentum!r}')
        self.k = k
        self.alpha = alpha
        self.momentum = momentum
        super().__init__(inner)

    def slow_weights(self) -> AbstractContextManager[None]:
        """The slow weights in the place of the parameters, within the `with`; before the first update nothing changes.

        Raises:
            RuntimeError: `step`, `state_dict` or `load_state_dict` is called within.
        """
        return self._show("slow")

    @torch.no_grad()
    def reset_slow(self) -> None:
        """Start a new cycle at the present parameters; for use after editing them by hand."""
        for p, slow in self._tensors_named("slow").items():
            slow.copy_(p)
        self._set_counter("step", 0)

    def _advance(self, update: Update) -> None:
        update.before.append(self._allocate_all)
        self._inner_step(update)  # section "Lookahead": the inner optimizer takes a step from theta
        if not update.applied:
            return
        step = self._counter("step") + 1
        self._set_counter("step", step)
        if self.momentum == "pullback":
            self._allocate_all(update.params)  # the moments exist now
        if step % self.k == 0:
            self._synchronise()

    def _synchronise(self) -> None:
        slow = self._tensors_named("slow")
        _pull_back(slow, slow.values(), self.alpha)
        if self.momentum == "reset":
            for _, moment in self._moments():
                moment.zero_()
        elif self.momentum == "pullback":
            slow = self._tensors_named("momentum")
            pairs = [(moment, slow[p]) for p, moment in self._moments() if p in slow]
            _pull_back([fast for fast, _ in pairs], [slow for _, slow in pairs], self.alpha)

    def _allocate(self, param: Tensor) -> None:
        tensors = self.tensors.setdefault(param, {})
        if "slow" not in tensors:
            tensors["slow"] = param.detach().to(self._tensor_dtype("slow", param), copy=True)
        if self.momentum == "pullback" and "momentum" not in tensors:
            for moment in self._moments_of(param):
                tensors["momentum"] = torch.zeros_like(moment, dtype=float32_or_wider(moment.dtype))

    def _moments(self) -> Iterator[tuple[Tensor, Tensor]]:
        for p in self.tensors:
            for moment in self._moments_of(p):
                yield p, moment

    def _moments_of(self, param: Tensor) -> list[Tensor]:
        state = unwrap(self).state.get(param, {})
        return [state[name] for name in _MOMENTA if isinstance(state.get(name), Tensor)]

    def _tensor_dtype(self, name: str, param: Tensor) -> torch.dtype:
        return float32_or_wider(param.dtype)

    def _adopt(self, name: str, param: Tensor, value: Tensor) -> Tensor:
        if name == "momentum":  # of the moment's type, not the parameter's
            return value.detach().to(device=param.device, dtype=float32_or_wider(value.dtype), copy=True)
        return super()._adopt(name, param, value)

    def _describe(self) -> str:
        return f"k={self.k}, alpha={self.alpha}, momentum={self.momentum!r}"


def _pull_back(fast: Any, slow: Any, alpha: float) -> None:
    """slow <- slow + alpha (fast - slow), then fast <- slow, for lists of tensors."""
    for fasts, slows in batches(fast, slow):
        if fasts[0].is_cuda and fasts[0].dtype == slows[0].dtype:
            torch._foreach_lerp_(slows, fasts, alpha)  # section "Lookahead"
            torch._foreach_copy_(fasts, slows)
            continue
        for f, s in zip(fasts, slows, strict=True):
            for a, b in pieces(f.detach(), s):
                b.lerp_(a.to(b.dtype), alpha)  # section "Lookahead": theta <- theta + alpha (theta~ - theta)
                a.copy_(b)
