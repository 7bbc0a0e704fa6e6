"""Invertible linear mixing of channels: Glow's 1 x 1 convolution, as a product of triangular matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor, nn

from kexue._counts import check_count
from kexue._tensors import as_floats, as_generator, without_autocast
from kexue.generative.flow.transforms import (
    Mapped,
    Transform,
    check_channels,
    count_places,
    find_scale_faults,
    is_permutation,
    spread,
)


class InvertibleConv1x1(Transform):
    """One invertible matrix W applied to the channels at every place: z = W x, log-determinant H W log |det W|.

    W = P L (U + diag(sign e^s)): P a fixed permutation, L lower triangular with ones on its diagonal, U strictly upper
    triangular. So log |det W| = sum s costs nothing, and W^-1 comes from two triangular systems; W can never become
    singular by training, only ill-conditioned.

    Args:
        channels: C of events (C,) or (C, H, W).
        generator: chooses the first W, a random rotation; None: torch's global generator.

    Attributes:
        lower, upper: (C, C); what is not below, or above, their diagonal is not used.
        log_scale: s (C,).
        sign: signs of the diagonal (C,), fixed.
        order: rows of P (C,), fixed: row i of W is row order[i] of L (U + diag).

    Source: kexue.fm/archives/5807.

    Example:
        >>> layer = InvertibleConv1x1(4, generator=0)
        >>> z, logdet = layer(torch.ones(2, 4, 3, 3))
        >>> tuple(z.shape), bool(torch.allclose(layer.inverse(z)[0], torch.ones(2, 4, 3, 3), atol=1e-5))
        ((2, 4, 3, 3), True)
    """

    order: Tensor
    sign: Tensor

    def __init__(self, channels: int, *, generator: torch.Generator | int | None = None) -> None:
        super().__init__()
        channels = check_count(channels, "channels", 1)
        stream = None if generator is None else as_generator(generator)
        rotation = torch.linalg.qr(torch.randn(channels, channels, generator=stream, dtype=torch.float64))[0]
        self._take(rotation, torch.get_default_dtype())

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> Self:
        """The transform of a given W (C, C).

        Raises:
            TypeError: not a tensor of floats.
            ValueError: not a square matrix of finite numbers, or one that is singular in its precision.
        """
        matrix = as_floats(matrix, "matrix")
        if matrix.ndim != 2 or not 0 < len(matrix) == matrix.shape[1] or not bool(matrix.isfinite().all()):
            raise ValueError(f"matrix must be square and finite, got shape {tuple(matrix.shape)}")
        sizes = torch.linalg.svdvals(matrix.detach().double())
        if float(sizes[-1]) <= len(matrix) * torch.finfo(matrix.dtype).eps * float(sizes[0]):
            raise ValueError(
                f"matrix must be invertible, got one with singular values from {float(sizes[0]):.3g} "
                f"to {float(sizes[-1]):.3g}"
            )
        made = cls(len(matrix), generator=0)
        made._take(matrix.detach().double(), matrix.dtype)
        return made

    @property
    def matrix(self) -> Tensor:
        """W (C, C)."""
        upper = self._upper().triu()
        return torch.addmm(upper, self.lower.tril(-1), upper)[self.order]  # section "Mixing"; L = I + lower

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return W x, H W sum s."""
        with in_full_precision(x):
            return apply_matrix(self.matrix, x), spread(count_places(x) * self.log_scale.sum(), x)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return W^-1 z, -H W sum s."""
        with in_full_precision(z):
            return apply_matrix(self.inverse_matrix, z), spread(-count_places(z) * self.log_scale.sum(), z)

    @property
    def inverse_matrix(self) -> Tensor:
        """W^-1 (C, C), from the triangular systems, which read their triangle alone."""
        unit = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        half = torch.linalg.solve_triangular(self.lower, unit, upper=False, unitriangular=True)
        whole: Tensor = torch.linalg.solve_triangular(self._upper(), half, upper=True)
        return whole[:, self.order]

    def find_faults(self, weights: Mapping[str, Tensor]) -> Iterator[str]:
        """Yield what makes W singular: a zero or infinite diagonal, a sign of 0, an order with gaps."""
        yield from find_scale_faults(weights["log_scale"])
        if not bool((weights["sign"].abs() == 1).all()):
            yield "sign has values other than 1 and -1"
        if not is_permutation(weights["order"]):
            yield "order is not a permutation"

    def _upper(self) -> Tensor:
        """Return a matrix whose upper triangle is that of U + diag(sign e^s)."""
        return self.upper.diagonal_scatter(self.sign * self.log_scale.exp())

    def _take(self, matrix: Tensor, dtype: torch.dtype) -> None:
        """Set all attributes to the factors of an invertible matrix (C, C) in float64."""
        P, lower, upper = torch.linalg.lu(matrix)
        diagonal = upper.diagonal()
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))
        self.log_scale = nn.Parameter(diagonal.abs().log().to(dtype))
        self.register_buffer("sign", diagonal.sign().to(dtype))
        self.register_buffer("order", P.argmax(1))


def in_full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Context in which matrix products are not in reduced precision; free where autocast is off."""
    return without_autocast(x) if torch.is_autocast_enabled(x.device.type) else nullcontext()


def apply_matrix(matrix: Tensor, x: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return matrix (C, C) applied to the channels of x (B, C, ...), plus shift (C,)."""
    check_channels(x, len(matrix))
    if x.ndim == 2:
        return nn.functional.linear(x, matrix, shift)
    places = x.flatten(2)  # a product for each image is faster than a convolution, and never in TF32 unasked
    stacked = matrix.expand(len(x), -1, -1)
    moved = torch.bmm(stacked, places) if shift is None else torch.baddbmm(shift[:, None], stacked, places)
    return moved.reshape(x.shape)
