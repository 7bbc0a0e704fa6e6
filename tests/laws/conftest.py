"""Fixtures shared by the laws of losses and of layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Widths(TorchDispatchMode):
    """Records the names of operations that return floats narrower than float64."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor) and x.dtype in {torch.float32, torch.float16, torch.bfloat16}:
                self.narrow.add(str(operation))
        return out


@pytest.fixture
def widths() -> Widths:
    """A fresh record; operations are recorded inside ``with widths:``."""
    return Widths()
