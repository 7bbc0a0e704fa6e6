"""Roots of torch tensors, with derivatives of any order by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kexue._tensors import at_least_float32, float32_or_wider, forward_levels
from kexue.algebra.coefficients import Array
from kexue.errors import NotSupported


class _Roots(torch.autograd.Function):
    """Roots as a function of the coefficients: f(r) = 0 gives dr/da_k = -r^(n-k) / f'(r)."""

    @staticmethod
    def forward(coefficients: Tensor, solve: Callable[[Array], Array]) -> Tensor:
        return torch.from_numpy(solve(coefficients.detach().cpu().numpy())).to(coefficients.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0])
        ctx.solve = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        coefficients, r = ctx.saved_tensors  # r again as a function of the coefficients: second derivatives follow
        jacobian = _jacobian(coefficients, r)
        total = (jacobian.conj() * torch.where(torch.isnan(r), 0, grad)[..., None]).sum(-2)
        return (total if coefficients.is_complex() else total.real).to(coefficients.dtype), None

    @staticmethod
    def jvp(ctx: Any, move: Tensor, _: None) -> Tensor:
        [coefficients] = ctx.saved_tensors
        r = _Roots.apply(coefficients, ctx.solve)  # type: ignore[no-untyped-call]
        return (_jacobian(coefficients, r) * move.to(r.dtype)[..., None, :]).sum(-1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], coefficients: Tensor, solve: Any) -> tuple[Tensor, int]:
        return _Roots.apply(coefficients.movedim(in_dims[0], 0), solve), 0  # type: ignore[no-untyped-call]


def _jacobian(coefficients: Tensor, r: Tensor) -> Tensor:
    """dr/da, (..., n, n + 1); 0 for places without a root."""
    n = coefficients.shape[-1] - 1
    c = coefficients.to(r.dtype)[..., None, :]
    slope = torch.zeros_like(r)
    for k in range(n):
        slope = slope * r + (n - k) * c[..., k]
    powers = torch.stack([r ** (n - k) for k in range(n + 1)], -1)
    return torch.where(torch.isnan(r)[..., None], 0, -powers / slope[..., None])


def in_double(x: Tensor) -> tuple[Tensor, torch.dtype]:
    """The tensor in float64 or complex128, and the dtype of its results: its own, float32 for half precision."""
    if x.is_complex():
        return x.to(torch.complex128), x.dtype
    if not x.is_floating_point():
        return x.double(), torch.float64
    return x.double(), float32_or_wider(x.dtype)


def differentiable_roots(coefficients: Tensor, solve: Callable[[Array], Array]) -> Tensor:
    """The roots that `solve` computes from the tensor's values, on its device, differentiable in the coefficients."""
    if not (coefficients.is_floating_point() or coefficients.is_complex()):
        coefficients = coefficients.double()
    coefficients = at_least_float32(coefficients)
    if coefficients.is_meta:
        return torch.empty(*coefficients.shape[:-1], coefficients.shape[-1] - 1, dtype=torch.complex128, device="meta")
    if forward_levels() > 1:  # torch drops the outer derivative of a function with a forward rule of its own
        raise NotSupported(
            "roots have no second derivative by forward mode inside forward mode.",
            remedy="Use torch.func.hessian, or jacrev for one of the two.",
        )
    return _Roots.apply(coefficients, solve)  # type: ignore[no-any-return, no-untyped-call]
