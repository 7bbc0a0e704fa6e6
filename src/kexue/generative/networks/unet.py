"""A small U-Net for images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue.generative.networks.convolution import check_image_shape
from kexue.generative.networks.denoiser import Denoised, TimeAndClass
from kexue.generative.networks.mlp import as_shape, check_input


class TinyUNet(nn.Module):
    """U-Net for small images: two residual blocks at each size, attention at the smallest, skip connections back.

    It is called as a network of the diffusers library: ``net(sample, timestep, class_labels=None,
    encoder_hidden_states=None, return_dict=True)`` returns an object with `sample`, or the tuple (sample,). The last
    convolution starts at zero, so that an untrained network returns zeros.

    Args:
        shape: (C, H, W) of an image; H and W divisible by 2^(len(mult) - 1).
        channels: at the full size, >= 1.
        mult: channels at each size, from the full one to the smallest, as multiples of `channels`; each size is half
            of the one before.
        num_classes: number of classes, >= 1; None: no labels are accepted.
        condition_dim: size of vectors as conditions, such as encoded texts; None: none are accepted.

    Raises:
        ValueError: a shape that cannot be halved so often; on a call, another shape, a label out of range, labels
            without classes.

    Example:
        >>> net = TinyUNet((1, 8, 8), num_classes=10)
        >>> net(torch.zeros(5, 1, 8, 8), torch.rand(5)).sample.shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        channels: int = 32,
        mult: Sequence[int] = (1, 2),
        num_classes: int | None = None,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        widths = [channels * factor for factor in as_shape(mult, "mult")]
        self.event_shape = check_image_shape(shape, 2 ** (len(widths) - 1))
        self.num_classes = num_classes
        self.condition = TimeAndClass(4 * channels, num_classes, condition_dim)
        self.no_condition = self.condition.no_condition
        self.first = nn.Conv2d(self.event_shape[0], channels, 3, padding=1)
        self.down, self.shrink, self.up, self.enlarge = (nn.ModuleList() for _ in range(4))
        before = channels
        for i, width in enumerate(widths):
            self.down.append(_ResidualBlock(before, width, 4 * channels))
            last = i == len(widths) - 1
            self.shrink.append(nn.Identity() if last else nn.Conv2d(width, width, 3, 2, 1))
            before = width
        self.attention = _Attention(before)
        self.middle = _ResidualBlock(before, before, 4 * channels)
        for i, width in reversed(list(enumerate(widths))):
            self.up.append(_ResidualBlock(before + width, width, 4 * channels))
            self.enlarge.append(nn.Conv2d(width, width, 3, padding=1) if i else nn.Identity())
            before = width
        self.norm = _group_norm(before)
        self.last = nn.Conv2d(before, self.event_shape[0], 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(Tensor, self.last.bias))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        *,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = True,
    ) -> Denoised | tuple[Tensor]:
        """Return the output, of the shape of `sample`.

        Args:
            sample: (B, C, H, W).
            timestep: a number, or one for each item (B,): floats are times in [0, 1], integers numbers of steps.
            class_labels: (B,) in [0, num_classes], the last of which is "no class"; None is that.
            encoder_hidden_states: (B, condition_dim); None and zeros are "no condition".
            return_dict: False returns the tuple (sample,).
        """
        check_input(sample, self.event_shape)
        context = functional.silu(self.condition(len(sample), timestep, class_labels, encoder_hidden_states))
        h: Tensor = self.first(sample)
        skipped = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            h = block(h, context)
            skipped.append(h)
            h = shrink(h)
        h = self.middle(self.attention(h), context)
        for i, (block, enlarge) in enumerate(zip(self.up, self.enlarge, strict=True)):
            h = block(torch.cat([h, skipped.pop()], 1), context)
            if i < len(self.up) - 1:
                h = enlarge(functional.interpolate(h, scale_factor=2.0, mode="nearest"))
        out: Tensor = self.last(functional.silu(self.norm(h)))
        return Denoised(out) if return_dict else (out,)


class _ResidualBlock(nn.Module):
    """Residual block: GroupNorm, SiLU, convolution, twice; the context is added between."""

    def __init__(self, before: int, after: int, context: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([_group_norm(before), _group_norm(after)])
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)]
        )
        self.context = nn.Linear(context, after)
        self.straight = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h: Tensor = self.convolutions[0](functional.silu(self.norms[0](x)))
        h = h + self.context(context)[:, :, None, None]
        return cast(Tensor, self.straight(x) + self.convolutions[1](functional.silu(self.norms[1](h))))


class _Attention(nn.Module):
    """Self-attention of one head among the places of an image, added to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.parts = nn.Conv1d(channels, 3 * channels, 1)
        self.last = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = cast(Tensor, self.parts(self.norm(x).flatten(2))).transpose(1, 2)
        query, key, value = parts.chunk(3, -1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return x + cast(Tensor, self.last(mixed.transpose(1, 2))).reshape(x.shape)


def _group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm of 8 groups, or as many as divide the channels."""
    return nn.GroupNorm(math.gcd(8, channels), channels)
