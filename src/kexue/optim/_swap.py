"""Temporary exchange of the parameters' values for other tensors, such as averages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def swap_weights(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Swap parameters with other tensors within the `with`; no second copy is made where the types agree.

    Args:
        pairs: (parameter, tensor shown in its place). A tensor of another type is rounded to the parameter's.
    """
    rounded = {p: p.detach().clone() for p, t in pairs if p.dtype != t.dtype}

    def swap() -> None:
        for p, t in pairs:
            if p not in rounded:
                trained = p.detach().clone()
                p.copy_(t)
                t.copy_(trained)

    with torch.no_grad():
        swap()
        for p, t in pairs:
            if p in rounded:
                p.copy_(t)
    try:
        yield
    finally:
        with torch.no_grad():
            swap()
            for p, trained in rounded.items():
                p.copy_(trained)
