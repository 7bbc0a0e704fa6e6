"""The texts of a run, numbered, and the examples as numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kexue.text.training.labels import GRADE, Kind, find_kind, to_class
from kexue.text.training.sources import Label, read_examples


@dataclass(frozen=True)
class Corpus:
    """Numbered examples.

    Attributes:
        texts: the different texts.
        examples: numbers of the texts of each example.
        labels: label of each example, None without.
        sources: number of the file or data set of each example.
    """

    texts: list[str]
    examples: list[tuple[int, ...]]
    labels: list[Label | None]
    sources: list[int]

    def digest(self) -> str:
        """Return a checksum of everything."""
        sha256 = hashlib.sha256()
        for part in (self.texts, self.examples, self.labels, self.sources):
            sha256.update(json.dumps(part, ensure_ascii=False).encode())
        return sha256.hexdigest()

    def kinds(self) -> dict[int, tuple[Kind, float]]:
        """Return the kind of the labels of each source that has labels, and the grade above which texts are alike."""
        found: dict[int, tuple[Kind, float]] = {}
        for source in dict.fromkeys(self.sources):
            if not (different := self.labels_of(source)):
                continue
            kind = find_kind(different)
            small = kind == "graded" and max(float(one) for one in different) <= 1  # grades from 0 to 1
            found[source] = kind, 0.5 if small else GRADE
        return found

    def labels_of(self, source: int) -> set[Label]:
        """Return the different labels of a source."""
        rows = zip(self.sources, self.labels, strict=True)
        return {label for one, label in rows if one == source and label is not None}

    def count_pairs(self, pairs: Iterable[tuple[str, str]]) -> int:
        """Return how many of these pairs are examples too, in any order."""
        known = {frozenset(self.texts[number] for number in numbers) for numbers in self.examples if len(numbers) == 2}
        return sum(frozenset(pair) in known for pair in pairs)

    def alike(self) -> Iterator[tuple[int, ...]]:
        """Yield the different texts of each example that mean the same; those of a pair that does not, one by one."""
        kinds = self.kinds()
        for numbers, label, source in zip(self.examples, self.labels, self.sources, strict=True):
            if label is not None and to_class(label, *kinds[source]) != 1:
                yield from ((number,) for number in numbers)
            else:
                yield tuple(dict.fromkeys(numbers))


def read_corpus(sources: Sequence[Any]) -> Corpus:
    """Read the examples of files and data sets; see `read_examples`."""
    numbers: dict[str, int] = {}
    corpus = Corpus([], [], [], [])
    for example in read_examples(sources):
        corpus.examples.append(tuple(numbers.setdefault(text, len(numbers)) for text in example.texts))
        corpus.labels.append(example.label)
        corpus.sources.append(example.source)
    corpus.texts.extend(numbers)
    return corpus


def ragged(groups: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return all members one after the other, and the number of members of each group."""
    sizes = np.fromiter(map(len, groups), np.int64, len(groups))
    members = np.fromiter((one for group in groups for one in group), np.int64, int(sizes.sum()))
    return members, sizes
