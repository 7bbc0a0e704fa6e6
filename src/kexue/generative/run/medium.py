"""What a model makes, images or texts: where they are read from and how they are shown."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor

from kexue.train.state import hash_tensors


class Parts(NamedTuple):
    """Items of a data set, as a model takes them: to train, to choose the best step, and to judge.

    Attributes:
        train, validation, test: the items.
        train_classes, validation_classes: their class numbers (n,), or the vectors (n, d) of their captions; None
            without.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    train_classes: Tensor | None = None
    validation_classes: Tensor | None = None

    def without_classes(self) -> Parts:
        """Return the items alone."""
        return self._replace(train_classes=None, validation_classes=None)

    def hash(self) -> str:
        """Return the SHA-256 of the items, and of the classes where there are some."""
        return hash_tensors({name: value for name, value in self._asdict().items() if value is not None})


class Medium(ABC):
    """Images or texts of one kind.

    Attributes:
        sheet: name of the file of samples in a run.
        files, walks: endings of the files to which items, and series of items, are written.
        image_size: height and width to which images are resized; None: unchanged.
    """

    sheet: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    walks: ClassVar[tuple[str, ...]]
    image_size: int | None

    @classmethod
    @abstractmethod
    def load(cls, source: str | os.PathLike[str], image_size: int | None) -> tuple[Self, Parts]:
        """Return the kind of the items of a data set, and its parts."""

    @classmethod
    @abstractmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Return the kind that `facts` has written; KeyError, TypeError or ValueError where it is damaged."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what a model is built for, JSON-ready."""

    @abstractmethod
    def read(self, source: str | os.PathLike[str]) -> Tensor:
        """Return the items of a file, a folder or a named set; DataError where they are not of this kind."""

    @abstractmethod
    def read_one(self, source: str) -> Tensor:
        """Return the item of a file or, of texts, a text; DataError where it is not of this kind."""

    @abstractmethod
    def measure_difference(self, items: Tensor, again: Tensor) -> float:
        """Return how far items differ from others of as many: 0 where they are the same."""

    @abstractmethod
    def write(self, items: Tensor, path: Path) -> None:
        """Write items to a file whose ending says how."""

    @abstractmethod
    def write_walk(self, items: Tensor, path: Path) -> None:
        """Write a series of items to a file whose ending says how."""

    @abstractmethod
    def draw(self, items: Tensor) -> bytes | None:
        """Return a picture of items as PNG for TensorBoard; None where there is none."""
