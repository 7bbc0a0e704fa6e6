"""Images of one shape: where they are read from and how they are written."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kexue._counts import check_count, is_whole
from kexue.corpus.vectors import read_array
from kexue.errors import DataError, NotSupported
from kexue.generative.data import ImageData, is_named_set, load_images
from kexue.generative.figures import draw_grid, grid_figure, trajectory_figure
from kexue.generative.idx import find_idx_files
from kexue.generative.pictures import find_parts, list_images, read_images
from kexue.generative.run.arrays import write_array
from kexue.generative.run.captions import Captions
from kexue.generative.run.medium import Medium, Parts

_SHARE = 10  # a tenth of the images chooses the best step,
_MOST = 2000  # but no more than this
_LARGEST = 10_000  # pixels in a row or a column, numbers in a vector
_EXPECTED, _SCALE = "expected floats in [-1, 1]", "Scale them: a byte u is 2 u / 255 - 1."


@dataclass(frozen=True)
class Images(Medium):
    """Images with values in [-1, 1].

    Attributes:
        event_shape: (C, H, W).
        levels: different values of a pixel, as of `ImageData`.
        image_size: height and width to which images are resized; None: they must have that of `event_shape`.
        classes: names of the classes; () without.
        class_shares: which share of the images to train on each class has.
        encoder: of the captions, as of `Captions`; None without captions.
    """

    event_shape: tuple[int, ...]
    levels: int
    image_size: int | None = None
    classes: tuple[str, ...] = ()
    class_shares: tuple[float, ...] = ()
    encoder: Mapping[str, Any] | None = None
    sheet = "samples.png"
    files = (".png", ".npy")
    walks = (".png", ".gif", ".webp")

    def __post_init__(self) -> None:
        check_count(self.levels, "levels", 2)
        if self.levels > 256:
            raise ValueError(f"levels must be at most 256, the values of a byte, got {self.levels}")
        channels, *sides = self.event_shape
        if channels not in (1, 3) or len(sides) != 2 or not all(is_whole(n) and 1 <= n <= _LARGEST for n in sides):
            raise ValueError(
                f"images must have 1 or 3 channels, heights and widths up to {_LARGEST:,}, got {self.event_shape}"
            )
        if self.image_size is not None and sides != [self.image_size] * 2:
            raise ValueError(f"images of {sides} pixels cannot have been resized to {self.image_size!r}")
        if len(self.classes) != len(self.class_shares):
            raise ValueError(f"{len(self.classes)} classes must have as many shares, got {len(self.class_shares)}")
        if self.encoder is not None and check_count(self.encoder["dim"], "dim", 1) > _LARGEST:
            raise ValueError(f"the vectors of captions must have at most {_LARGEST:,} numbers, got {self.encoder}")

    @classmethod
    def load(
        cls, source: str | os.PathLike[str], image_size: int | None, captions: Captions | None = None
    ) -> tuple[Self, Parts]:
        """Return the kind of the images of a set, and its parts; a random tenth of `train` is for validation.

        Raises:
            DataError: as `load_images` and `Captions.to_vectors`; fewer than 4 images; images of one number, or that
                are all the same.
        """
        data = load_images(source, image_size=image_size)
        if len(data.train) < 4:
            raise DataError(
                f"holds {len(data.train)} images for training, expected at least 4.",
                path=source,
                remedy="Add images; a model of use needs hundreds.",
            )
        if math.prod(data.event_shape) == 1:
            raise DataError(
                "the images are grey and have one pixel, expected two at least.",
                path=source,
                remedy="Name larger images, or resize them to more: --image-size 8 (image_size=8).",
            )
        if bool((data.train == data.train[0]).all()):
            raise DataError(
                "all images are the same, so there is nothing to learn.", path=source, remedy="Name other images."
            )
        kind = cls(data.event_shape, data.levels, image_size, *_name_classes(data))
        if captions is None:
            return kind, split_images(data)
        return replace(kind, encoder=captions.encoder), split_images(data, captions.to_vectors(data, source))

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Return the kind that `facts` has written."""
        classes = tuple(str(name) for name in facts.get("classes", ()))
        shares = tuple(float(share) for share in facts.get("class_shares", ()))
        size, encoder = facts["image_size"], facts.get("encoder")
        return cls(tuple(facts["event_shape"]), facts["levels"], size, classes, shares, encoder)

    def facts(self) -> dict[str, Any]:
        """Return shape, levels, size and classes by name."""
        return {
            "event_shape": list(self.event_shape),
            "levels": self.levels,
            "image_size": self.image_size,
            "classes": list(self.classes),
            "class_shares": list(self.class_shares),
            "encoder": None if self.encoder is None else dict(self.encoder),
        }

    def find_class(self, name: str) -> int:
        """Return the number of a class.

        Raises:
            NotSupported: there are no classes. ValueError: an unknown name; the message lists those known.
        """
        if not self.classes:
            raise NotSupported("a condition is the class of an image, and the images of this model have no classes.")
        if name not in self.classes:
            raise ValueError(f"the class must be one of {', '.join(self.classes)}, got {name!r}")
        return self.classes.index(name)

    def read(self, source: str | os.PathLike[str]) -> Tensor:
        """Return images (n, C, H, W); for a model of colours, grey ones in three equal channels.

        Args:
            source: an image file, a folder of images, a file .npy (n, C, H, W) of floats in [-1, 1], or the name of a
                set, of which the test part is read.

        Raises:
            DataError: no such file, a damaged one, images of another shape or outside [-1, 1].
        """
        path = Path(source)
        if path.suffix == ".npy":
            array = read_array(path)
            if array.dtype.kind != "f":
                raise DataError(f"numbers of type {array.dtype}, {_EXPECTED}.", path=source, remedy=_SCALE)
            return self._fit(torch.from_numpy(np.array(array, np.float32)), source)
        if path.is_file() or _is_folder_of_images(source):
            size = self.image_size
            paths = [path] if path.is_file() else list_images(path).paths
            images = read_images(paths, image_size=None if size is None else (size, size))
            return self._fit(torch.from_numpy(images.astype(np.float32)) / 127.5 - 1, source)
        if path.suffix and not path.exists():
            raise DataError(
                "there is no such file.", path=source, remedy="Name an image file, a folder, a .npy file or a set."
            )
        return self._fit(load_images(source, image_size=self.image_size).test, source)

    def read_one(self, source: str) -> Tensor:
        """Return the image (C, H, W) of an image file, or the first of a folder, a .npy file or a named set."""
        return self.read(source)[0]

    def _fit(self, x: Tensor, source: str | os.PathLike[str]) -> Tensor:
        """Return images with the channels of the model; DataError where they do not fit."""
        if x.ndim == 4 and (x.shape[1], self.event_shape[0]) == (1, 3):
            x = x.expand(-1, 3, -1, -1)
        if tuple(x.shape[1:]) != self.event_shape or not len(x):
            expected = " x ".join(map(str, self.event_shape))
            raise DataError(
                f"images of shape {' x '.join(map(str, x.shape[1:]))} (channels, height, width), the model takes "
                f"{expected}.",
                path=source,
                remedy="Resize them, or name images of the kind that the model was trained on.",
            )
        low, high = (float(end) for end in x.aminmax())
        if not (low >= -1 and high <= 1):
            raise DataError(f"values from {low:g} to {high:g}, {_EXPECTED}.", path=source, remedy=_SCALE)
        return x

    def measure_difference(self, items: Tensor, again: Tensor) -> float:
        """Return the root of the mean square of the difference, in units of the pixels."""
        return float((again - items).double().square().mean().sqrt())

    def write(self, items: Tensor, path: Path) -> None:
        """Write images to a file .png, a sheet of rows and columns, or to a file .npy, (n, C, H, W)."""
        if path.suffix.lower() == ".npy":
            write_array(items, path)
        else:
            grid_figure(items, path)

    def write_walk(self, items: Tensor, path: Path) -> None:
        """Write a series of images to a file .png, in one row, or .gif or .webp, to and fro."""
        if path.suffix.lower() == ".png":
            grid_figure(items, path, columns=len(items))
        else:
            trajectory_figure(torch.cat([items, items.flip(0)[1:-1]])[:, None], path)

    def draw(self, items: Tensor) -> bytes | None:
        """Return a sheet of images as a PNG file."""
        return draw_grid(items)


def split_images(data: ImageData, vectors: Tensor | None = None) -> Parts:
    """Return the parts of a set of images; a random tenth of `train`, the same one every time, is for validation.

    With vectors, those of the captions of `train`, they take the place of the labels.
    """
    held = max(1, min(len(data.train) // _SHARE, _MOST))
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    train, validation = order[held:], order[:held]
    labels = data.train_labels if vectors is None else vectors
    classes = (None, None) if labels is None else (labels[train], labels[validation])
    return Parts(data.train[train], data.train[validation], data.test, *classes)


def _name_classes(data: ImageData) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return the names of the classes, and the share of each in the images to train on."""
    if data.num_classes is None or data.train_labels is None:
        return (), ()
    counts = data.train_labels.bincount(minlength=data.num_classes).double()
    names = data.classes or tuple(map(str, range(data.num_classes)))
    return names, tuple((counts / counts.sum()).tolist())


def _is_folder_of_images(source: str | os.PathLike[str]) -> bool:
    """Return whether this is a folder of images without parts, not a set or a folder of idx files."""
    if is_named_set(source) or not os.fspath(source) or not Path(source).is_dir():
        return False
    return not find_idx_files(Path(source)) and find_parts(Path(source)) is None
