"""What every extractor does: texts in batches of similar lengths, in their order, with the limits reported."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from kexue._counts import check_count
from kexue._progress import Progress
from kexue._tensors import evaluating
from kexue._text import say_count
from kexue.extract.decoding import check_thresholds
from kexue.extract.triples import Triple, TripleSchema
from kexue.text.tokenizer import list_texts

MOST_SUBJECTS, MOST_TRIPLES = 32, 256  # of a text; a model that has learned little would find thousands


class Extracted(NamedTuple):
    """The triples of a text, and whether more were found than the limits allow."""

    triples: list[Triple]
    cut: bool = False


Decoder = Callable[[float, float], list[Extracted]]
"""Thresholds of heads and of tails -> what is found in each text of a batch."""


class Extractor(nn.Module):
    """A model that finds triples in texts.

    Attributes:
        kind: name of the kind of model in files.
        head_threshold, tail_threshold: those that are used where a caller names none.
        schema: predicates that it finds; None for a bare network.
        max_length: characters or tokens of a text that it reads.
    """

    kind: ClassVar[str]
    head_threshold: ClassVar[float]
    tail_threshold: ClassVar[float]
    schema: TripleSchema | None
    max_length: int

    def extract(
        self,
        texts: Iterable[str],
        *,
        head_threshold: float | None = None,
        tail_threshold: float | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> list[list[Triple]]:
        """Find the triples of texts.

        Args:
            texts: n strings; one plain string counts as a list of one. A blank text has no triple.
            head_threshold, tail_threshold: probabilities that a beginning and an end must exceed, in [0, 1); None:
                those of the kind of model.
            batch_size: texts in one forward pass, at least 1; the result does not depend on it.
            progress: called as ``progress(texts_done, n)``.

        Returns:
            The triples of each text, spans in the text as it was given; at most 256, from 32 subjects.

        Warns:
            UserWarning: texts that are longer than the model reads; texts with more triples than the limits.

        Raises:
            TypeError: an element is not a string. ValueError: a threshold outside [0, 1), `batch_size` < 1.
        """
        found, notes = self.extract_with_warnings(
            texts,
            head_threshold=head_threshold,
            tail_threshold=tail_threshold,
            batch_size=batch_size,
            progress=progress,
        )
        for note in notes:
            warnings.warn(note, stacklevel=2)
        return found

    def extract_with_warnings(
        self,
        texts: Iterable[str],
        *,
        head_threshold: float | None = None,
        tail_threshold: float | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> tuple[list[list[Triple]], list[str]]:
        """Find triples as `extract` does, and return its warnings instead of raising them."""
        head = self.head_threshold if head_threshold is None else head_threshold
        tail = self.tail_threshold if tail_threshold is None else tail_threshold
        [found], notes = self.extract_by([(head, tail)], texts, batch_size=batch_size, progress=progress)
        return found, notes

    def extract_by(
        self,
        thresholds: Sequence[tuple[float, float]],
        texts: Iterable[str],
        *,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> tuple[list[list[list[Triple]]], list[str]]:
        """Find triples by each pair of thresholds, (head, tail), with the warnings; every text is encoded once."""
        for head, tail in thresholds:
            check_thresholds(head, tail)
        check_count(batch_size, "batch_size", 1)
        texts = list_texts(texts)
        found: list[list[list[Triple]]] = [[[] for _ in texts] for _ in thresholds]
        rows = [row for row, text in enumerate(texts) if text and not text.isspace()]
        rows.sort(key=lambda row: len(texts[row]))
        cut: set[int] = set()
        with evaluating(self), torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                decode = self.prepare([texts[row] for row in part])
                for results, (head, tail) in zip(found, thresholds, strict=True):
                    for row, extracted in zip(part, decode(head, tail), strict=True):
                        results[row] = extracted.triples
                        cut |= {row} if extracted.cut else set()
                if progress is not None:
                    progress(start + len(part), len(rows))
        return found, list(self.describe_limits(self.count_long([texts[row] for row in rows]), len(cut)))

    @abstractmethod
    def prepare(self, texts: Sequence[str]) -> Decoder:
        """Return the function that decodes texts, none of them blank, which are encoded in one forward pass."""

    @abstractmethod
    def count_long(self, texts: Sequence[str]) -> int:
        """Return how many texts are longer than the model reads."""

    def describe_limits(self, long: int, cut: int = 0) -> Iterator[str]:
        """Yield what is to be known of texts, of which `long` are too long and `cut` have too many triples."""
        if long:
            yield (
                f"{say_count(long, 'text')} longer than {self.max_length}, the rest of which is not read; split long "
                "texts into sentences."
            )
        if cut:
            yield (
                f"{say_count(cut, 'text')} with more than {MOST_SUBJECTS} subjects or {MOST_TRIPLES} triples, of which "
                "the likeliest were kept: the model has learned little yet, or the thresholds are low."
            )


def keep_likeliest(triples: list[Triple], most: int) -> list[Triple]:
    """Return the triples with the highest scores, in their order."""
    if len(triples) <= most:
        return triples
    kept = np.argsort([-triple.score for triple in triples], kind="stable")[:most]
    return [triples[i] for i in sorted(kept)]
