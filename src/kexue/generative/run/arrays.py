"""Tensors as .npy files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from kexue._files import replacing


def write_array(items: Tensor, path: Path) -> None:
    """Write a tensor to a file .npy."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, items.numpy(), allow_pickle=False)
