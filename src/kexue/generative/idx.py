"""Files in the idx format, in which MNIST and sets like it are published, compressed or plain."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.corpus.open import open_bytes
from kexue.errors import DataError


class IdxPart(NamedTuple):
    """The training or the test part of a set: images (n, H, W) uint8, and labels (n,) int64 or None."""

    images: Array
    labels: Array | None


def read_idx(path: str | os.PathLike[str], dimensions: int) -> Array:
    """Return the bytes of an idx file as an array (n, ...) of uint8; the file may be compressed.

    Args:
        path: the file.
        dimensions: that are expected: 3 for images, 1 for labels.

    Raises:
        DataError: no such file, another format, other dimensions, a file cut short or too long.
    """
    with open_bytes(os.fspath(path)) as file:
        content = file.read()
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(
            f"not an idx file: it begins with {content[:4].hex(' ') or 'nothing'}, expected 00 00 08 {dimensions:02x}.",
            path=path,
            remedy="Name files of the MNIST format, or a folder of images.",
        )
    if content[2] != 8 or content[3] != dimensions:
        raise DataError(
            f"this idx file has type {content[2]:#04x} and {content[3]} dimensions, expected 0x08 (bytes) and "
            f"{dimensions}.",
            path=path,
            remedy="Images have 3 dimensions (number, height, width), labels 1.",
        )
    if len(content) < 4 + 4 * dimensions:
        raise DataError("the file ends within its header.", path=path, remedy="Fetch the file again.")
    shape = tuple(int(size) for size in np.frombuffer(content[4 : 4 + 4 * dimensions], ">u4"))
    values = np.frombuffer(content[4 + 4 * dimensions :], np.uint8)
    if len(values) != math.prod(shape):
        raise DataError(
            f"the header announces {' x '.join(map(str, shape))} bytes, the file has {len(values)}.",
            path=path,
            remedy="Fetch the file again.",
        )
    return values.reshape(shape)


def find_idx_files(folder: Path) -> dict[str, Path]:
    """Return the idx files of a folder: keys ``train``, ``test``, ``train-labels``, ``test-labels``, as far as present.

    Names are those of MNIST, such as ``train-images-idx3-ubyte.gz``; names of the test part begin with ``t10k`` or
    ``test``.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        part = "train" if path.name.startswith("train") else "test" if path.name.startswith(("t10k", "test")) else None
        if part and "images" in path.name and "idx3" in path.name:
            found.setdefault(part, path)
        elif part and "labels" in path.name and "idx1" in path.name:
            found.setdefault(f"{part}-labels", path)
    return found


def read_idx_part(images: Path, labels: Path | None) -> IdxPart:
    """Return the images of a file and the labels of another, None without one.

    Raises:
        DataError: as `read_idx`; no image; a different number of labels.
    """
    part = IdxPart(read_idx(images, 3), None if labels is None else read_idx(labels, 1).astype(np.int64))
    if not part.images.size:
        raise DataError(
            f"the file holds {' x '.join(map(str, part.images.shape))} pixels, expected at least 1 image of 1 x 1.",
            path=images,
            remedy="Fetch the file again, or name another folder.",
        )
    if part.labels is not None and len(part.labels) != len(part.images):
        raise DataError(
            f"the file holds {len(part.labels)} labels, expected {len(part.images)}, one for each image of {images}.",
            path=labels,
            remedy="Fetch both files again, or move the labels away.",
        )
    return part
