"""Critics of images: one score for each, of piecewise linear layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from kexue.generative.networks.convolution import check_image_shape
from kexue.generative.networks.mlp import is_small

_HIDDEN, _CHANNELS = 256, 64  # width of the hidden layers; channels of the first convolution, later twice as many
_SLOPE = 0.2  # of the activation below 0


def build_critic(shape: Sequence[int]) -> nn.Sequential:
    """Return a critic from images (B, C, H, W) to scores (B, 1), without normalisation.

    Small images (`is_small`) have two hidden layers; larger ones three convolutions, of which two halve height and
    width. The slopes of the activation are 0.2 and 1, so that the norms of the layers bound that of the critic.

    Args:
        shape: (C, H, W); of larger images H and W must be divisible by 4.

    Raises:
        ValueError: another shape.
    """
    if is_small(shape):
        first, second = nn.Linear(math.prod(shape), _HIDDEN), nn.Linear(_HIDDEN, _HIDDEN)
        layers = [nn.Flatten(), first, nn.LeakyReLU(_SLOPE), second, nn.LeakyReLU(_SLOPE)]
        return nn.Sequential(*layers, nn.Linear(_HIDDEN, 1))
    c, height, width = check_image_shape(shape)
    return nn.Sequential(
        nn.Conv2d(c, _CHANNELS, 4, 2, 1),
        nn.LeakyReLU(_SLOPE),
        nn.Conv2d(_CHANNELS, 2 * _CHANNELS, 4, 2, 1),
        nn.LeakyReLU(_SLOPE),
        nn.Conv2d(2 * _CHANNELS, 2 * _CHANNELS, 3, 1, 1),
        nn.LeakyReLU(_SLOPE),
        nn.Flatten(),
        nn.Linear(2 * _CHANNELS * (height // 4) * (width // 4), 1),
    )
