"""Critics of images: one score for each, of piecewise linear layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from kexue.generative.networks.convolution import check_image_shape
from kexue.generative.networks.mlp import as_shape, is_small

_SLOPE = 0.2  # of the activation below 0


def build_critic(shape: Sequence[int], *, hidden: int = 256, channels: int = 64) -> nn.Sequential:
    """Return a critic from images (B, C, H, W) to scores (B, 1), without normalisation.

    Small images (`is_small`) have two hidden layers; larger ones three convolutions, of which two halve height and
    width. Slopes of the activation are 0.2 and 1, so that the norms of the layers bound those of the critic.

    Args:
        shape: (C, H, W); of larger images H and W must be divisible by 4.
        hidden: width of the hidden layers.
        channels: of the first convolution; the others have twice as many.

    Raises:
        ValueError: an argument outside its range.
    """
    as_shape((hidden, channels), "hidden and channels")
    if is_small(shape):
        first, second = nn.Linear(math.prod(shape), hidden), nn.Linear(hidden, hidden)
        layers = [nn.Flatten(), first, nn.LeakyReLU(_SLOPE), second, nn.LeakyReLU(_SLOPE)]
        return nn.Sequential(*layers, nn.Linear(hidden, 1))
    c, height, width = check_image_shape(shape)
    return nn.Sequential(
        nn.Conv2d(c, channels, 4, 2, 1),
        nn.LeakyReLU(_SLOPE),
        nn.Conv2d(channels, 2 * channels, 4, 2, 1),
        nn.LeakyReLU(_SLOPE),
        nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1),
        nn.LeakyReLU(_SLOPE),
        nn.Flatten(),
        nn.Linear(2 * channels * (height // 4) * (width // 4), 1),
    )
