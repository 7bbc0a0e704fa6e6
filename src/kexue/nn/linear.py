"""Linear layers, computed by the faster of PyTorch's two matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_FEW = 16  # rows below which the usual product is as fast


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x W' + b, (..., in) to (..., out): about twice as fast as usual on AMD processors under inference mode.

    In float32 PyTorch calls MKL, which there runs at half the speed of oneDNN (torch 2.13, Zen 5). oneDNN is reached
    through an operator of PyTorch's compiler that has no derivative, forward or backward; so it needs inference mode.
    Without that, and on other devices, dtypes or builds, this is the usual product, which differs by rounding.
    """
    if (
        weight.dtype == torch.float32
        and x.shape[:-1].numel() >= _FEW
        and not torch.compiler.is_compiling()
        and torch.is_inference_mode_enabled()
        and x.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return functional.linear(x, weight, bias)


class Affine(nn.Linear):
    """`torch.nn.Linear` by `affine`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return affine(input, self.weight, self.bias)
