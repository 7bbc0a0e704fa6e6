"""Weights in eight bits: each row of a matrix as integers from -127 to 127 and a scale.

w[i, j] = q[i, j] s[i] with s[i] = max_j |w[i, j]| / 127, so that no weight is wrong by more than s[i] / 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kexue.errors import CheckpointError

_SCALE = ".row_scale"  # after the name of a matrix
_LARGEST = 127


def compress_rows(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with each matrix as int8 and its scales, and everything else in float32."""
    compressed = {}
    for name, value in weights.items():
        exact = value.to(torch.float32)
        if value.ndim != 2:
            compressed[name] = exact
            continue
        scale = exact.abs().amax(1) / _LARGEST
        steps = exact / torch.where(scale > 0, scale, 1.0)[:, None]
        compressed[name], compressed[name + _SCALE] = steps.round().to(torch.int8), scale
    return compressed


def restore_rows(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with matrices of int8 multiplied by their scales, in float32; others as they are.

    Raises:
        CheckpointError: integers without a scale for each row, or a scale without integers.
    """
    restored = {}
    for name, value in weights.items():
        if name.endswith(_SCALE):
            matrix = weights.get(name.removesuffix(_SCALE))
            if matrix is None or matrix.dtype != torch.int8:
                raise CheckpointError(f"the weight {name} has no matrix of int8 beside it.", remedy=_REMEDY)
        elif value.dtype == torch.int8:
            scale = weights.get(name + _SCALE)
            if scale is None or scale.shape != value.shape[:1] or value.ndim != 2:
                raise CheckpointError(f"the weight {name} is int8 without a scale for each row.", remedy=_REMEDY)
            restored[name] = value * scale[:, None]
        else:
            restored[name] = value
    return restored


_REMEDY = "Use weights in float32, float16 or bfloat16, or those that RoFormerSim.save_pretrained has written."
