"""Images for training and for measurement, with values from -1 to 1: `load_images`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kexue._arrays import Array
from kexue._counts import check_count, is_whole
from kexue._optional import import_optional
from kexue._tensors import as_class_numbers, check_range
from kexue.errors import DataError
from kexue.generative.idx import IdxPart, find_idx_files, read_idx_part
from kexue.generative.pictures import find_parts, list_images, read_images, resize_grey

_SETS = {"digits": None, "mnist": "mnist", "fashion-mnist": "fashion_mnist"}  # name: folder in KEXUE_DATA/images
_HELD_OUT = 0.1  # share of a set without a test part that becomes its test part


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images in [-1, 1] for training and for test, with their labels.

    Attributes:
        train: images (n, *event_shape), float32. A pixel of level u is 2 u / (levels - 1) - 1.
        train_labels: class numbers (n,) int64; None where there are none.
        test: images held apart.
        test_labels: as `train_labels`.
        event_shape: (channels, height, width); 1 channel is grey, 3 are red, green, blue.
        levels: different values of a pixel: 256, of scikit-learn's digits 17.
        classes: names of the classes in the order of their numbers; () where they have none.
        train_files, test_files: name of the file of each image in its folder, with ``/``; () without such files.

    Raises:
        ValueError: images of another shape, not floats, not finite or outside [-1, 1]; another number of labels, or of
            names than of classes, or of files; fewer than 2 levels.
        TypeError: labels that are not whole numbers.
    """

    train: Tensor
    train_labels: Tensor | None
    test: Tensor
    test_labels: Tensor | None
    event_shape: tuple[int, ...]
    levels: int
    classes: tuple[str, ...] = ()
    train_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_count(self.levels, "levels", 2)
        if len(self.event_shape) != 3:
            raise ValueError(f"event_shape must be (channels, height, width), got {tuple(self.event_shape)}")
        for name, x, labels, files in (
            ("train", self.train, self.train_labels, self.train_files),
            ("test", self.test, self.test_labels, self.test_files),
        ):
            if tuple(x.shape[1:]) != tuple(self.event_shape) or not len(x):
                raise ValueError(f"{name} must be (n >= 1, *{tuple(self.event_shape)}), got {tuple(x.shape)}")
            low, high = (float(value) for value in torch.aminmax(x))
            if not x.is_floating_point() or not (low >= -1 and high <= 1):  # NaN, too, is not
                raise ValueError(f"{name} must be floats in [-1, 1], got {x.dtype} from {low:g} to {high:g}")
            if files and len(files) != len(x):
                raise ValueError(f"{name}_files must be {len(x)} names, or none, got {len(files)}")
            if labels is not None:
                numbers = as_class_numbers(labels, f"{name}_labels")
                if numbers.shape != (len(x),):
                    raise ValueError(f"{name}_labels must be ({len(x)},), got {tuple(numbers.shape)}")
                check_range(numbers, len(self.classes) or int(numbers.max()) + 1, None, f"{name}_labels")

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""
        if self.train_labels is None:
            return None
        rest = self.train_labels if self.test_labels is None else self.test_labels
        return int(max(self.train_labels.max(), rest.max())) + 1


def load_images(source: str | os.PathLike[str], *, image_size: int | tuple[int, int] | None = None) -> ImageData:
    """Return the images of a set: by its name, or from files of yours.

    - ``"digits"``: the 1,797 digits (1, 8, 8) that scikit-learn contains, 30 % of them for test.
    - ``"mnist"``, ``"fashion-mnist"``: idx files in the folder of data sets, ``KEXUE_DATA/images``.
    - path of a folder with idx files named as those of MNIST, compressed or not; the labels may be missing.
    - path of a folder of images in any format of Pillow, of 8 bits a channel: the names of sub-folders are the labels,
      unless there are none. Grey where every pixel is. Sub-folders ``train`` and ``test`` are the two parts.

    A name is always that of the set: of a folder of this name write ``"./digits"``. Where there is no test part, a
    random tenth of the images becomes it: the same one every time, with the same share of every class.

    Args:
        source: name or path.
        image_size: height and width to which every image is resized, whatever its proportions; one number is both;
            None: unchanged.

    Raises:
        DataError: no such set or file, a damaged one; images of several sizes; fewer than 2 images.
        MissingDependencyError: scikit-learn or Pillow is not installed.

    Example:
        >>> digits = load_images("digits")
        >>> digits.train.shape, digits.test.shape, digits.levels
        (torch.Size([1257, 1, 8, 8]), torch.Size([540, 1, 8, 8]), 17)
    """
    size = _check_size(image_size)
    if source == "digits":
        return _load_digits(size)
    folder = _find_folder(source)
    files = find_idx_files(folder)
    if "train" in files or "test" in files:
        return _load_idx(folder, files, size)
    return _load_pictures(folder, size)


def _check_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (height, width), or None."""
    if image_size is None:
        return None
    size = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(size) != 2 or not all(is_whole(one) and one >= 1 for one in size):
        raise ValueError(f"image_size must be one size >= 1, or (height, width), got {image_size!r}")
    return int(size[0]), int(size[1])


def is_named_set(source: str | os.PathLike[str]) -> bool:
    """Return whether this is the name of a set, not a path."""
    return isinstance(source, str) and source in _SETS


def _find_folder(source: str | os.PathLike[str]) -> Path:
    """Return the folder of a named set, or the one at a path."""
    if isinstance(source, str) and (name := _SETS.get(source)):
        root = os.environ.get("KEXUE_DATA")
        folder = None if root is None else Path(root, "images", name)
        if folder is None or not folder.is_dir():
            where = "KEXUE_DATA is not set" if folder is None else f"{folder} does not exist"
            raise DataError(
                f"the set {source!r} is not there: {where}.",
                remedy=f"Put its idx files into images/{name} of a folder and set KEXUE_DATA to that folder, "
                f"or give the path of the folder that has them, such as ./{source}; digits needs no file.",
            )
        return folder
    path = Path(source)
    if not os.fspath(source) or not path.is_dir():
        what = "is a file, not a folder" if path.is_file() else "is neither the name of a set nor a folder"
        raise DataError(f"{os.fspath(source)!r} {what}.", remedy="Give digits, mnist, fashion-mnist or a folder.")
    return path


def _load_digits(size: tuple[int, int] | None) -> ImageData:
    """Return scikit-learn's digits, 70 % for training."""
    bunch = import_optional("sklearn.datasets", extra="generative").load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    images = (images if size is None else resize_grey(images, size))[:, None]
    return _assemble(images, labels, levels=17, share=0.3)


def _load_idx(folder: Path, files: dict[str, Path], size: tuple[int, int] | None) -> ImageData:
    """Return the images of idx files, whose names `find_idx_files` has listed."""
    if "train" not in files:
        raise DataError(
            f"{files['test'].name} has no training images beside it.",
            path=folder,
            remedy="Add a file named as train-images-idx3-ubyte.",
        )
    parts = {
        name: read_idx_part(files[name], files.get(f"{name}-labels")) for name in ("train", "test") if name in files
    }
    sizes = {part.images.shape[1:] for part in parts.values()}
    if len(sizes) > 1 and size is None:
        raise DataError(
            f"the training and the test images have different sizes: {sorted(sizes)}.",
            path=folder,
            remedy="Resize all images: image_size=28 (--image-size 28).",
        )
    train, test = (
        IdxPart((part.images if size is None else resize_grey(part.images, size))[:, None], part.labels)
        if (part := parts.get(name)) is not None
        else None
        for name in ("train", "test")
    )
    assert train is not None
    if test is None:
        return _assemble(train.images, train.labels, path=folder)
    return _join(train.images, train.labels, test.images, test.labels)


def _load_pictures(folder: Path, size: tuple[int, int] | None) -> ImageData:
    """Return the images of a folder of image files."""
    parts = find_parts(folder)
    if parts is None:
        files = list_images(folder)
        images = read_images(files.paths, image_size=size)
        names = _name_files(files.paths, folder)
        return _assemble(images, files.labels, classes=files.classes, files=names, path=folder)
    train, test = (list_images(part) for part in parts)
    if train.classes != test.classes:
        different = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"train and test have different sub-folders: {', '.join(different)}.",
            path=folder,
            remedy="Make both parts of the same classes, or put all images into one folder.",
        )
    images = read_images([*train.paths, *test.paths], image_size=size)
    n = len(train.paths)
    data = _join(images[:n], train.labels, images[n:], test.labels, classes=train.classes)
    train_files, test_files = (_name_files(part.paths, folder) for part in (train, test))
    return replace(data, train_files=train_files, test_files=test_files)


def _name_files(paths: Iterable[Path], folder: Path) -> tuple[str, ...]:
    """Return the names of files in a folder."""
    return tuple(path.relative_to(folder).as_posix() for path in paths)


def _assemble(
    images: Array,
    labels: Array | None,
    *,
    levels: int = 256,
    share: float = _HELD_OUT,
    classes: list[str] | None = None,
    files: tuple[str, ...] = (),
    path: Path | None = None,
) -> ImageData:
    """Return images (n, C, H, W) of uint8 with a share of them, the same of every class, as the test part."""
    n = len(images)
    if n < 2:
        raise DataError(
            "holds 1 image, expected at least 2: one for training, one for test.", path=path, remedy="Add images."
        )
    held = math.ceil(n * share)
    counts = np.unique(labels, return_counts=True)[1] if labels is not None else np.array([0])
    even = counts.min() >= 2 and held >= len(counts) and n - held >= len(counts)  # else a class has too few images
    split = import_optional("sklearn.model_selection", extra="generative").train_test_split
    rows, held_rows = split(np.arange(n), test_size=held, random_state=0, stratify=labels if even else None)
    train_labels, test_labels = (None, None) if labels is None else (labels[rows], labels[held_rows])
    data = _join(images[rows], train_labels, images[held_rows], test_labels, levels=levels, classes=classes)
    train_files, test_files = (tuple(files[i] for i in part) if files else () for part in (rows, held_rows))
    return replace(data, train_files=train_files, test_files=test_files)


def _join(
    train: Array,
    train_labels: Array | None,
    test: Array,
    test_labels: Array | None,
    *,
    levels: int = 256,
    classes: list[str] | None = None,
) -> ImageData:
    """Return an `ImageData` of images of uint8."""
    train_x, test_x = (torch.from_numpy(x.astype(np.float32)).mul_(2 / (levels - 1)).sub_(1) for x in (train, test))
    train_y, test_y = (None if y is None else torch.from_numpy(y) for y in (train_labels, test_labels))
    return ImageData(train_x, train_y, test_x, test_y, tuple(train.shape[1:]), levels, tuple(classes or ()))
