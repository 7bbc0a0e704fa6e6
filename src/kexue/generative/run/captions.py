"""Captions of images, which a diffusion is told as vectors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kexue._text import say_count
from kexue.errors import DataError
from kexue.generative.data import ImageData

_NAMED = 3  # files in a message


@dataclass(frozen=True, eq=False)
class Captions:
    """A text for each image of a folder, and the encoder that makes vectors of them.

    Attributes:
        texts: by the name of the image's file in the folder, such as ``"1.png"`` or ``"train/1.png"``.
        encoder: what a run remembers of the encoder, JSON-ready; `dim` among it is the width d of a vector.
        encode: called with the different texts once it is known that they fit; returns vectors (n, d), floats of
            about 1.
    """

    texts: Mapping[str, str]
    encoder: Mapping[str, Any]
    encode: Callable[[Sequence[str]], Tensor]

    def hash(self) -> str:
        """Return the SHA-256 of the texts and the encoder."""
        return hashlib.sha256(json.dumps([sorted(self.texts.items()), self.encoder]).encode()).hexdigest()

    def to_vectors(self, data: ImageData, source: str | os.PathLike[str]) -> Tensor:
        """Return the vector of each image to train on, (n, d).

        Raises:
            DataError: the images have no files, or labels already; an image without a caption, or the reverse.
        """
        files = {*data.train_files, *data.test_files}
        if not files or data.train_labels is not None:
            what = "sub-folders, which are labels" if files else "no files of their own"
            raise DataError(
                f"the images have {what}, so captions cannot be told for them.",
                path=source,
                remedy="Put the image files into one folder, or into train and test; or leave captions out.",
            )
        _refuse(files - self.texts.keys(), "image", "without a caption", source)
        _refuse(self.texts.keys() - files, "caption", "of no image", source)
        texts = [self.texts[file] for file in data.train_files]
        numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        return self.encode(list(numbers))[[numbers[text] for text in texts]]


def _refuse(files: Set[str], what: str, why: str, source: str | os.PathLike[str]) -> None:
    """Raise a DataError that names the first of these files, unless there are none."""
    if files:
        named = ", ".join(sorted(files)[:_NAMED]) + ", ..." * (len(files) > _NAMED)
        raise DataError(
            f"{say_count(len(files), what)} {why}: {named}.",
            path=source,
            remedy="Give each image one caption, under the name of its file in the folder.",
        )
