"""Pooling: one vector from the token vectors of a text.

Source: kexue.fm/archives/8321, poolings P1 to P4; the formulas are in the docstring of `pool`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from kexue._tensors import at_least_float32

POOLINGS = ("cls", "pooler", "last-avg", "first-last-avg", "max")
Array = TypeVar("Array", np.ndarray, torch.Tensor)


def canonical_pooling(mode: str) -> str:
    """Return the canonical name of a pooling (``"mean"`` is ``"last-avg"``); ValueError for an unknown one."""
    mode = "last-avg" if mode == "mean" else mode
    if mode not in POOLINGS:
        raise ValueError(f"unknown pooling {mode!r}, expected one of {', '.join(POOLINGS)} (or mean for last-avg).")
    return mode


def pool(
    hidden_states: Sequence[Array],
    mask: Array,
    mode: str,
    *,
    pooler: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Array:
    """Pool token vectors into one vector per text.

    With H(l) the output of transformer block l = 1..L, and the mean over the T kept tokens of a text:

        cls             H(L)[first kept token]                                  P1
        pooler          A H(L)[first kept token] + b, without the tanh          P2
        last-avg        1/T sum_t H(L)[t]                     (alias mean)      P3
        first-last-avg  (1/T sum_t H(1)[t] + 1/T sum_t H(L)[t]) / 2             P4
        max             max_t H(L)[t], for each coordinate

    "First" in P4 is the first *block*, not the embedding layer, hence ``hidden_states[1]``.

    Source: kexue.fm/archives/8321.

    Args:
        hidden_states: L + 1 arrays (B, T, h), as transformers returns them: ``[0]`` the embedding output, ``[1]`` the
            first block, ``[-1]`` the last. All but first-last-avg look at ``[-1]`` only.
        mask: (B, T), True or 1 = keep. Special tokens count; padding does not.
        mode: one of the names above.
        pooler: the pooler's linear map, (B, h) -> (B, h'); required by ``"pooler"``, otherwise unused.

    Returns:
        (B, h), same library, device and dtype as the input; half precision is averaged in float32.

    Raises:
        ValueError: an unknown mode, shapes that do not fit, a text without a kept token, or a missing pooler.

    Example:
        >>> import numpy as np
        >>> states = [np.zeros((1, 3, 2)), np.array([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])]
        >>> pool(states, np.array([[True, True, False]]), "mean")
        array([[2., 3.]])

    Cost: one pass over the states it uses.
    """
    mode = canonical_pooling(mode)
    if isinstance(mask, np.ndarray):
        states = [torch.from_numpy(np.ascontiguousarray(state)) for state in hidden_states]
        return pool(states, torch.from_numpy(np.ascontiguousarray(mask)), mode, pooler=pooler).numpy(force=True)
    if len(hidden_states) < (2 if mode == "first-last-avg" else 1):
        raise ValueError(
            f"{mode} pooling needs the embedding output and the output of every block, "
            f"got {len(hidden_states)} hidden states; ask the model for output_hidden_states=True."
        )
    last = hidden_states[-1]
    if last.ndim != 3 or tuple(mask.shape) != tuple(last.shape[:2]):
        raise ValueError(
            f"expected hidden states (B, T, h) and a mask (B, T), got {tuple(last.shape)} and {tuple(mask.shape)}."
        )
    keep = mask.bool()
    if not bool(keep.any(dim=1).all()):
        empty = int((~keep.any(dim=1)).nonzero()[0, 0])
        raise ValueError(f"text {empty} of the batch has no kept token: each row of the mask needs one True.")
    if mode in ("cls", "pooler"):  # P1, P2
        first = last[torch.arange(len(last), device=last.device), keep.int().argmax(dim=1)]
        if mode == "cls":
            return first
        if pooler is None:
            raise ValueError("pooler pooling needs the model's linear pooler: pass pooler=.")
        return pooler(first)
    if mode == "max":
        return last.masked_fill(~keep[..., None], -torch.inf).amax(dim=1)
    if mode == "last-avg":  # P3
        return _mean(last, keep)
    # P4
    return (_mean(hidden_states[1], keep) + _mean(last, keep)) / 2


def _mean(state: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Return the mean (B, h) over the kept tokens."""
    total = at_least_float32(state).masked_fill(~keep[..., None], 0.0).sum(dim=1)  # a masked NaN has no effect
    return (total / keep.sum(dim=1, keepdim=True)).to(state.dtype)
