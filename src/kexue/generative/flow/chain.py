"""Transforms one after another, where two neighbours that are both linear are computed as one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kexue._tensors import explaining_precision
from kexue.generative.flow.elementwise import ActNorm
from kexue.generative.flow.linear import InvertibleConv1x1, apply_matrix, in_full_precision
from kexue.generative.flow.transforms import Mapped, Transform, count_places, spread


class Chain(Transform):
    """Transforms one after another; log-determinants add up.

    An `ActNorm` followed by an `InvertibleConv1x1` is computed as one matrix and one shift, with the same result.

    Args:
        transforms: from events to latents.

    Example:
        >>> from kexue.generative import Permutation
        >>> Chain([Permutation([1, 2, 0]), Permutation([1, 2, 0])])(torch.tensor([[5.0, 6.0, 7.0]]))[0]
        tensor([[7., 5., 6.]])
    """

    def __init__(self, transforms: Iterable[Transform]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(transforms)
        _join_pairs(self.parts)  # refuses what is no transform

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the result of the last transform, and the sum of the log-determinants."""
        total: Tensor | None = None
        with explaining_precision(self, x):
            for stage in _join_pairs(self.parts):
                x, logdet = stage(x, condition)
                total = logdet if total is None else total + logdet
        return x, spread(0.0, x) if total is None else total

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the result of the first transform's inverse, and the sum of the log-determinants."""
        total: Tensor | None = None
        with explaining_precision(self, z, "z"):
            for stage in reversed(_join_pairs(self.parts)):
                z, logdet = stage.inverse(z, condition)
                total = logdet if total is None else total + logdet
        return z, spread(0.0, z) if total is None else total

    @torch.no_grad()
    def initialize(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Set each transform from the results of those before it; return the batch's latents."""
        with explaining_precision(self, x):
            for part in self.parts:
                assert isinstance(part, Transform)
                x = part.initialize(x, condition)
        return x


class _NormalizedMixing:
    """W e^s (x + b) as one product with the matrix W e^s; it owns no weights."""

    def __init__(self, norm: ActNorm, mixing: InvertibleConv1x1) -> None:
        self._norm, self._mixing = norm, mixing

    def __call__(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        norm = self._norm
        with in_full_precision(x):
            matrix = self._mixing.matrix * norm.log_scale.exp()
            return apply_matrix(matrix, x, matrix @ norm.shift), spread(self._logdet(x), x)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        norm = self._norm
        with in_full_precision(z):
            matrix = (-norm.log_scale).exp()[:, None] * self._mixing.inverse_matrix
            return apply_matrix(matrix, z, -norm.shift), spread(-self._logdet(z), z)

    def _logdet(self, x: Tensor) -> Tensor:
        return count_places(x) * (self._norm.log_scale + self._mixing.log_scale).sum()


def _join_pairs(parts: Iterable[nn.Module]) -> list[Transform | _NormalizedMixing]:
    """Return the transforms in order, with an `ActNorm` and an `InvertibleConv1x1` that follows it as one."""
    stages: list[Transform | _NormalizedMixing] = []
    for part in parts:
        before = stages[-1] if stages else None
        if isinstance(part, InvertibleConv1x1) and isinstance(before, ActNorm):
            stages[-1] = _NormalizedMixing(before, part)
        elif isinstance(part, Transform):
            stages.append(part)
        else:
            raise TypeError(f"transforms must be of class Transform, got {type(part).__name__}")
    return stages
