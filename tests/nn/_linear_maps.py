"""Seeded numbers and modules, and the dense matrix of a linear map, for the tests of norms and bounds."""

import math

import torch
from torch import nn


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(make, seed=0):
    """A module whose initial weights follow from the seed, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def dense(layer, shape):
    """The matrix of a linear map between tensors, column by column."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return (layer(basis) - layer(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1).T


def number(x):
    return float(x.detach())


def largest(matrix):
    return torch.linalg.matrix_norm(matrix, 2)


def network(seed=0):
    return seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)), seed)


def convolutional():
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding="same"), nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.Conv2d(3, 2, 3, dilation=1),
            nn.ReLU(), nn.Flatten(), nn.Linear(8, 2),
        )
    )  # fmt: skip
