"""Folders of image files as arrays; sub-folders are labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue._files import system_error
from kexue._optional import import_optional
from kexue.errors import DataError

EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_PARTS = ("train", "training", "test", "testing", "val", "valid", "validation")


class ImageFiles(NamedTuple):
    """Image files in the order of their names, the class number of each, and the name of each class; or no labels."""

    paths: list[Path]
    labels: Array | None
    classes: list[str]


def list_images(folder: Path) -> ImageFiles:
    """Return the image files in a folder, or in its sub-folders, whose names in order have the numbers 0, 1, ...

    Hidden files and files of other kinds are left out.

    Raises:
        DataError: no image file; images beside sub-folders with images; images that lie deeper beside those.
    """
    own = _image_files(folder)
    subs = _sub_folders(folder)
    inner = {sub.name: paths for sub in subs if (paths := _image_files(sub))}
    deep = [below for sub in subs for below in _sub_folders(sub) if _image_files(below)]
    if deep and (own or inner):
        raise DataError(
            "this folder of images lies in a sub-folder of a sub-folder, where images are not read.",
            path=deep[0],
            remedy="Move its images up into a sub-folder whose name is their label, or move it away.",
        )
    if own and inner:
        raise DataError(
            f"this folder holds images ({own[0].name}) and folders of images ({next(iter(inner))}).",
            path=folder,
            remedy="Put every image into a sub-folder, whose name is its label, or none.",
        )
    if not own and not inner:
        raise DataError(
            "this folder holds neither images nor sub-folders with images.",
            path=folder,
            remedy="Name a folder of PNG, JPEG or other image files, or one with idx files of the MNIST format.",
        )
    if own:
        return ImageFiles(own, None, [])
    paths = [path for one in inner.values() for path in one]
    labels = np.repeat(np.arange(len(inner)), [len(one) for one in inner.values()])
    return ImageFiles(paths, labels, list(inner))


def find_parts(folder: Path) -> tuple[Path, Path] | None:
    """Return the sub-folders `train` and `test` of a folder; None unless both are there.

    Raises:
        DataError: other images beside both; sub-folders that are all named as parts, but not as these two.
    """
    parts = folder / "train", folder / "test"
    inner = [sub.name for sub in _sub_folders(folder) if any(map(_image_files, (sub, *_sub_folders(sub))))]
    if all(part.is_dir() for part in parts):
        beside = [path.name for path in _image_files(folder)]
        beside += [name for name in inner if name not in ("train", "test")]
        if beside:
            raise DataError(
                f"beside the parts train and test, this folder holds images that are not read: {', '.join(beside)}.",
                path=folder,
                remedy="Move them into train or test, or away.",
            )
        return parts
    if len(inner) > 1 and all(name.lower() in _PARTS for name in inner):
        raise DataError(
            f"the sub-folders {', '.join(inner)} are named as parts of a set, not as labels.",
            path=folder,
            remedy="Name the two parts train and test, in small letters.",
        )
    return None


def read_images(paths: Sequence[Path], *, image_size: tuple[int, int] | None = None) -> Array:
    """Return images (n, C, H, W) of uint8: C = 1 where every pixel of every image is grey, else 3 (RGB).

    Turned as their EXIF data say; transparent parts are on white; of an animation, the first frame.

    Args:
        paths: of image files in any format that Pillow reads, of 8 bits a channel.
        image_size: (height, width) to which every image is resized, whatever its proportions; None: all must have the
            size of the first.

    Raises:
        DataError: a file that is not an image, or damaged, or of more than 8 bits a channel; images of several sizes.
    """
    pillow = import_optional("PIL.Image", extra="generative")
    arrays = []
    for path in paths:
        image = _read_rgb(path)
        if image_size is not None:
            image = image.resize(image_size[::-1], pillow.Resampling.BILINEAR)
        arrays.append(np.asarray(image))
        if arrays[-1].shape != arrays[0].shape:
            (height, width, _), (first_height, first_width, _) = arrays[-1].shape, arrays[0].shape
            raise DataError(
                f"the image is {height} x {width} pixels (height x width), expected {first_height} x {first_width} "
                f"as {paths[0]}.",
                path=path,
                remedy=f"Resize all images: image_size={first_height} (--image-size {first_height}).",
            )
    stacked = np.stack(arrays)
    grey = bool((stacked == stacked[..., :1]).all())
    return np.ascontiguousarray(np.moveaxis(stacked[..., :1] if grey else stacked, -1, 1))


def resize_grey(images: Array, image_size: tuple[int, int]) -> Array:
    """Return grey images (n, H, W) of uint8, resized to (height, width)."""
    pillow = import_optional("PIL.Image", extra="generative")
    size, method = image_size[::-1], pillow.Resampling.BILINEAR
    return np.stack([np.asarray(pillow.fromarray(image).resize(size, method)) for image in images])


def _sub_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder by name, without hidden ones."""
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and sub.name[0] != ".")


def _image_files(folder: Path) -> list[Path]:
    """Return the files of a folder whose extension is that of an image, by name."""
    pillow = import_optional("PIL.Image", extra="generative")
    known = {extension for extension, kind in pillow.registered_extensions().items() if kind in pillow.OPEN}
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise system_error(error, folder) from error
    paths = (folder / name for name in names if name[0] != ".")
    return [path for path in paths if path.suffix.lower() in known and path.is_file()]


def _read_rgb(path: Path) -> Any:
    """Return an image of Pillow in mode RGB."""
    pillow, operations = (import_optional(f"PIL.{name}", extra="generative") for name in ("Image", "ImageOps"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path) as file:
                mode = file.mode
                image = operations.exif_transpose(file) if mode in EIGHT_BITS else None
    except Exception as error:  # of a damaged file decoders raise OSError, ValueError, RuntimeError, SyntaxError, ...
        if isinstance(error, OSError) and error.errno is not None:
            raise system_error(error, path) from error
        raise DataError(
            f"cannot be read as an image ({error}).", path=path, remedy="Convert it to PNG, or move it away."
        ) from error
    if image is None:
        raise DataError(
            f"the image has more than 8 bits a channel (mode {mode}).",
            path=path,
            remedy="Convert it to 8 bits a channel first.",
        )
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
