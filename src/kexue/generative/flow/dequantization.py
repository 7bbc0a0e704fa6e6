"""Images with levels under a continuous density: noise fills the steps, bits per dimension count the levels.

Convention: images are floats in [-1, 1] with n levels, x = 2 k / (n - 1) - 1 for k = 0, ..., n - 1. Level k becomes
u = (k + noise) / n in [0, 1), so a step of u is 1 / n wide, and log P(k) >= E log p(u) - D log n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kexue._counts import check_count
from kexue._tensors import may_read
from kexue.generative.flow.chain import Chain
from kexue.generative.flow.coupling import AffineCoupling, checkerboard
from kexue.generative.flow.elementwise import log_logit_slope
from kexue.generative.flow.flow import Flow
from kexue.generative.flow.networks import CouplingConv
from kexue.generative.flow.transforms import sum_events
from kexue.generative.model import GenerativeModel, LossOutput, unpack_batch
from kexue.generative.noise import Noise


def to_levels(x: Tensor, levels: int) -> Tensor:
    """Return the levels k of images, as floats 0 to levels - 1.

    Args:
        x: floats in [-1, 1], which are 2 k / (levels - 1) - 1; or integers, the levels themselves.
        levels: n, >= 2.

    Raises:
        ValueError: values out of the range, NaN, or between two levels.

    Example:
        >>> to_levels(torch.tensor([-1.0, 0.0, 1.0]), 17)
        tensor([ 0.,  8., 16.])
    """
    levels = check_count(levels, "levels", 2)
    floats = x.is_floating_point()
    exact = (x + 1) * ((levels - 1) / 2) if floats else x.to(torch.get_default_dtype())
    k = exact.round()
    if may_read(x) and x.numel():
        low, high = (float(end) for end in exact.detach().aminmax())
        if not (low >= -0.01 and high <= levels - 0.99):
            got = tuple(float(end) for end in x.detach().aminmax())
            expected = "floats in [-1, 1]" if floats else f"integers from 0 to {levels - 1}"
            raise ValueError(f"x must be {expected}, got values in [{got[0]:.4g}, {got[1]:.4g}]")
        if floats and float((exact - k).detach().abs().max()) > 0.05:
            raise ValueError(
                f"x has values between the levels 2 k / {levels - 1} - 1 for k = 0, ..., {levels - 1}; round them, or "
                "give the number of levels that the data have"
            )
    return k


def from_levels(k: Tensor, levels: int) -> Tensor:
    """Return images in [-1, 1] of the levels k = 0, ..., levels - 1; others are moved to the nearest of these."""
    return k.clamp(0, levels - 1) * (2 / (levels - 1)) - 1


def dequantize(
    x: Tensor, levels: int, *, generator: torch.Generator | Sequence[torch.Generator] | int | None = None
) -> Tensor:
    """Return u = (k + uniform noise) / levels, in [0, 1), of images with levels k.

    Args:
        x: floats in [-1, 1], x = 2 k / (levels - 1) - 1; or integers k.
        levels: n, >= 2.
        generator: as for `GenerativeModel.sample`: a seed gives each image its own noise.

    Raises:
        ValueError: values out of the range, NaN, or between two levels.

    Example:
        >>> u = dequantize(torch.tensor([[0, 1, 2, 3]]), 4, generator=0)
        >>> (u * 4).floor()
        tensor([[0., 1., 2., 3.]])
    """
    k = to_levels(x, levels)
    return _fill(k, Noise(generator, len(x), x.device).uniform(x.shape[1:], k.dtype), levels)


def bits_per_dim(log_prob: Tensor, shape: Sequence[int], *, levels: int, scale: float = 1.0) -> float:
    """Return the mean bits that a dimension of an image costs: -log p / (D ln 2) + log2(levels / scale).

    Args:
        log_prob: log density (B,) of the dequantized images, in nats.
        shape: of an image; D is its number of values.
        levels: n of a value. 1: `log_prob` is already that of the levels, as `DequantizedFlow` gives it.
        scale: width of the interval that the density is over: 1 for [0, 1), as `dequantize` makes it, 2 for [-1, 1).

    The uniform density gives log2(levels): 8 for 256, 4.0875 for the 17 of scikit-learn's digits.

    Example:
        >>> bits_per_dim(torch.zeros(5), (1, 8, 8), levels=256)
        8.0
    """
    size = math.prod(shape)
    return float(-log_prob.detach().double().mean()) / (size * math.log(2)) + math.log2(levels / scale)


class Dequantizer(Protocol):
    """A distribution of the noise that fills the steps."""

    def __call__(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return noise in [0, 1) for images (B, *shape), and its log density (B,)."""
        ...


class UniformDequantizer(nn.Module):
    """Uniform noise, whatever the image: the density of the noise is 1."""

    def forward(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return noise (B, *shape) and its log density, 0."""
        return noise.uniform(x.shape[1:], x.dtype), x.new_zeros(len(x))


class VariationalDequantizer(nn.Module):
    """Noise from a small flow that sees the image, trained together with the model: the bound gets tighter.

    Uniform noise goes through a logit, affine couplings on a checkerboard and a sigmoid. It starts as uniform noise.

    Args:
        shape: (C, H, W) of an image.
        hidden: channels of the networks.
        couplings: number of couplings.

    Example:
        >>> filler = VariationalDequantizer((1, 4, 4), hidden=8)
        >>> v, log_density = filler(torch.zeros(2, 1, 4, 4), Noise(0, 2))
        >>> tuple(v.shape), bool(log_density.abs().max() < 1e-4)
        ((2, 1, 4, 4), True)
    """

    def __init__(self, shape: Sequence[int], *, hidden: int = 32, couplings: int = 4) -> None:
        super().__init__()
        channels = shape[0]
        self.transforms = Chain(
            AffineCoupling(
                CouplingConv(channels, 2 * channels, hidden, condition=nn.Conv2d(channels, hidden, 3, padding=1)),
                mask=checkerboard(shape, swap=i % 2 == 1),
            )
            for i in range(couplings)
        )

    def forward(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return noise (B, C, H, W) in [0, 1), and its log density (B,)."""
        edge = torch.finfo(x.dtype).eps
        start = torch.logit(noise.uniform(x.shape[1:], x.dtype).clamp(edge, 1 - edge))
        end, logdet = self.transforms(start, x)
        return end.sigmoid(), sum_events(log_logit_slope(end) - log_logit_slope(start)) - logdet


class DequantizedFlow(GenerativeModel):
    """The probability of images with levels, through a flow of the dequantized images.

    Images are floats in [-1, 1], x = 2 k / (n - 1) - 1. The flow sees u = (k + noise) / n in [0, 1), so it begins with
    `Logit`, or another map of that interval. Only a bound of log P(k) can be computed, by sampling the noise.

    Args:
        flow: of u; its event shape is that of the images.
        levels: n of the images, >= 2: 256 for 8 bits, 17 for scikit-learn's digits.
        dequantizer: of the noise; None is `UniformDequantizer`.

    Example:
        >>> from kexue.generative import realnvp
        >>> model = DequantizedFlow(realnvp((1, 8, 8), hidden=(8,), margin=0.05), 17)
        >>> images = model.sample(2, generator=0)
        >>> tuple(images.shape), bool(torch.equal(images * 8, (images * 8).round()))
        ((2, 1, 8, 8), True)
    """

    def __init__(self, flow: Flow, levels: int, *, dequantizer: nn.Module | None = None) -> None:
        super().__init__()
        self.event_shape = flow.event_shape
        self.flow = flow
        self.levels = check_count(levels, "levels", 2)
        self.dequantizer = UniformDequantizer() if dequantizer is None else dequantizer

    def log_prob_bound(  # type: ignore[override]
        self,
        x: Tensor,
        *,
        draws: int = 1,
        condition: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | int | None = None,
    ) -> Tensor:
        """Return the mean over the noise of log p(u) - log q(noise) - D log n (B,), a lower bound of log P, in nats.

        Args:
            x: images (B, *event_shape).
            draws: of the noise, >= 1.
            condition: classes (B,), for a conditional flow.
            generator: of the noise; a seed gives each image its own.
        """
        draws = check_count(draws, "draws", 1)
        self.check_events(x)
        k = to_levels(x, self.levels)
        noise = Noise(generator, len(x), x.device)
        total = x.new_zeros(len(x))
        for _ in range(draws):
            v, log_density = self.dequantizer(x, noise)
            total = total + self.flow.log_prob(_fill(k, v, self.levels), condition=condition) - log_density
        return total / draws - math.prod(self.event_shape) * math.log(self.levels)  # section "From densities to bits"

    def loss(self, batch: Any, *, generator: torch.Generator | int | None = None) -> LossOutput:
        """Return minus the mean bound, in nats an image; the part is in bits per dimension."""
        x, condition = unpack_batch(batch, self.flow.num_classes)
        loss = -self.log_prob_bound(x, condition=condition, generator=generator).mean()
        return LossOutput(loss, {"bits_per_dim": loss.detach() / (math.prod(self.event_shape) * math.log(2))})

    @torch.no_grad()
    def initialize(self, batch: Any, *, generator: torch.Generator | int | None = 0) -> None:
        """Set what depends on data from one batch of >= 2 images; call it once, before training."""
        x, condition = unpack_batch(batch, self.flow.num_classes)
        self.check_events(x)
        u = dequantize(x, self.levels, generator=generator)
        self.flow.initialize(u if condition is None else (u, condition))

    def draw(  # type: ignore[override]
        self, noise: Noise, *, condition: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Return len(noise) images; latents have the standard deviation `temperature`, >= 0."""
        return self._to_image(self.flow.draw(noise, condition=condition, temperature=temperature))

    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return the latents of images, with each value in the middle of its step."""
        self.check_events(x)
        return self.flow.encode((to_levels(x, self.levels) + 0.5) / self.levels, condition=condition)

    def decode(self, z: Tensor, *, condition: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return the images of latents; there is no gradient, as they have levels."""
        return self._to_image(self.flow.decode(z, condition=condition))

    def _to_image(self, u: Tensor) -> Tensor:
        return from_levels((u * self.levels).floor(), self.levels)


def _fill(k: Tensor, v: Tensor, levels: int) -> Tensor:
    """Return (k + v) / levels, below 1 in spite of rounding."""
    return ((k + v) / levels).clamp(max=1 - torch.finfo(k.dtype).eps / 2)
