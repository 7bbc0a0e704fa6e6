"""Convolutional encoders and decoders of images (C, H, W) whose height and width are multiples of 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from kexue.generative.networks.mlp import as_shape, check_input


def check_image_shape(shape: Sequence[int], multiple: int = 4) -> tuple[int, int, int]:
    """Return an image shape (C, H, W); ValueError unless H and W are multiples of `multiple`."""
    sizes = as_shape(shape)
    if len(sizes) != 3 or sizes[1] % multiple or sizes[2] % multiple:
        raise ValueError(
            f"an image shape (channels, height, width) with height and width divisible by {multiple} is expected, "
            f"got {tuple(shape)}; resize the images: load_images(path, image_size=...)"
        )
    return sizes


class GridEncoder(nn.Module):
    """Encoder from an image to a grid of vectors: two convolutions of stride 2, then one of size 1.

    Args:
        shape: (C, H, W) of an image, H and W divisible by 4.
        dim: size of a vector of the grid, >= 1.
        channels: of the first convolution, >= 1; the second has twice as many.

    Raises:
        ValueError: a shape that is not of images, or not divisible by 4; on a call, an input of another shape.

    Example:
        >>> import torch
        >>> GridEncoder((1, 28, 28), 16)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 16, 7, 7])
    """

    def __init__(self, shape: Sequence[int], dim: int, *, channels: int = 32) -> None:
        super().__init__()
        self.shape = check_image_shape(shape)
        self.grid_shape = (*as_shape(dim, "dim"), self.shape[1] // 4, self.shape[2] // 4)
        as_shape(channels, "channels")
        self.layers = nn.Sequential(
            nn.Conv2d(self.shape[0], channels, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(channels, 2 * channels, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * channels, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return grids (B, dim, H/4, W/4) of images (B, C, H, W)."""
        check_input(x, self.shape)
        return cast(Tensor, self.layers(x))


class GridDecoder(nn.Module):
    """Decoder from a grid of vectors to an image: a convolution, then two transposed ones of stride 2.

    Args:
        dim: size of a vector of the grid, >= 1.
        shape: (C, H, W) of an image, H and W divisible by 4; C counts the numbers that describe a pixel.
        channels: of the layer before the last, >= 1; the one before has twice as many.

    Raises:
        ValueError: a shape that is not of images, or not divisible by 4; on a call, an input of another shape.

    Example:
        >>> import torch
        >>> GridDecoder(16, (1, 28, 28))(torch.zeros(5, 16, 7, 7)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(self, dim: int, shape: Sequence[int], *, channels: int = 32) -> None:
        super().__init__()
        self.shape = check_image_shape(shape)
        self.grid_shape = (*as_shape(dim, "dim"), self.shape[1] // 4, self.shape[2] // 4)
        as_shape(channels, "channels")
        self.layers = nn.Sequential(
            nn.Conv2d(dim, 2 * channels, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * channels, channels, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(channels, self.shape[0], 4, 2, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, C, H, W) of grids (B, dim, H/4, W/4)."""
        check_input(z, self.grid_shape)
        return cast(Tensor, self.layers(z))


class ConvEncoder(nn.Module):
    """Encoder from an image to one vector: a `GridEncoder`, SiLU, a linear layer.

    Args:
        shape: (C, H, W) of an image, H and W divisible by 4.
        dim: size of the vector, >= 1.
        channels: of the first convolution, >= 1.

    Raises:
        ValueError: as `GridEncoder`.

    Example:
        >>> import torch
        >>> ConvEncoder((3, 32, 32), 20)(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 20])
    """

    def __init__(self, shape: Sequence[int], dim: int, *, channels: int = 32) -> None:
        super().__init__()
        self.grid = GridEncoder(shape, 2 * channels, channels=channels)
        _, height, width = self.grid.grid_shape
        self.last = nn.Sequential(nn.SiLU(), nn.Flatten(), nn.Linear(2 * channels * height * width, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return vectors (B, dim) of images (B, C, H, W)."""
        return cast(Tensor, self.last(self.grid(x)))


class ConvDecoder(nn.Module):
    """Decoder from one vector to an image: a linear layer, SiLU, a `GridDecoder`.

    Args:
        dim: size of the vector, >= 1.
        shape: (C, H, W) of an image, H and W divisible by 4.
        channels: of the layer before the last, >= 1.

    Raises:
        ValueError: as `GridDecoder`.

    Example:
        >>> import torch
        >>> ConvDecoder(20, (3, 32, 32))(torch.zeros(5, 20)).shape
        torch.Size([5, 3, 32, 32])
    """

    def __init__(self, dim: int, shape: Sequence[int], *, channels: int = 32) -> None:
        super().__init__()
        self.grid = GridDecoder(2 * channels, shape, channels=channels)
        grid = self.grid.grid_shape
        self.first = nn.Sequential(nn.Linear(dim, grid[0] * grid[1] * grid[2]), nn.Unflatten(1, grid), nn.SiLU())

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, C, H, W) of vectors (B, dim)."""
        return cast(Tensor, self.grid(self.first(z)))
