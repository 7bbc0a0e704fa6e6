"""Roots of torch tensors, with derivatives of any order by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kexue.algebra._aberth import Array


class _Roots(torch.autograd.Function):
    """f(r) = 0 gives dr/da_k = -r^(n-k) / f'(r)."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, solve: Callable[[Array], Array]) -> Tensor:
        roots = torch.from_numpy(solve(coefficients.detach().cpu().numpy())).to(coefficients.device)
        ctx.save_for_backward(coefficients, roots)
        return roots

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        coefficients, r = ctx.saved_tensors  # r again as a function of the coefficients: second derivatives follow
        n = coefficients.shape[-1] - 1
        c = coefficients.to(r.dtype)[..., None, :]
        slope = torch.zeros_like(r)
        for k in range(n):
            slope = slope * r + (n - k) * c[..., k]
        powers = torch.stack([r ** (n - k) for k in range(n + 1)], -1)  # (..., n, n + 1)
        jacobian = -powers / slope[..., None]
        jacobian = torch.where(torch.isnan(r)[..., None], 0, jacobian)  # what is no root has no derivative
        total = (jacobian.conj() * torch.where(torch.isnan(r), 0, grad)[..., None]).sum(-2)
        return (total if coefficients.is_complex() else total.real).to(coefficients.dtype), None


def differentiable_roots(coefficients: Tensor, solve: Callable[[Array], Array]) -> Tensor:
    """What `solve` makes of the tensor's numbers, on its device, as a differentiable function of them."""
    if not (coefficients.is_floating_point() or coefficients.is_complex()):
        coefficients = coefficients.double()
    if coefficients.dtype in {torch.float16, torch.bfloat16}:
        coefficients = coefficients.float()
    return _Roots.apply(coefficients, solve)  # type: ignore[no-any-return, no-untyped-call]
