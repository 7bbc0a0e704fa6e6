"""Annotated texts as batches with labels: one subject of each is drawn anew each epoch, and some triples are replaced.

All draws of an epoch follow from the seed, the epoch and the number of the example, so a run that is resumed sees the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kexue.extract.config import DGCNNConfig
from kexue.extract.reader import CodedTexts, TextReader
from kexue.extract.supervision import DistantSupervision
from kexue.extract.triples import Span, Triple, TripleExample, TripleSchema, annotate

Random = np.random.Generator


class Batch(NamedTuple):
    """B texts, padded to T, with the labels of their subjects and of the objects of one subject each.

    Attributes:
        texts: the texts.
        subjects: (B, T, 2) bool: a subject begins, one ends.
        starts, lasts: (B,) first and last place of the subject of each text.
        objects: (B, T, P, 2) bool: an object of it begins, one ends.
        prior_subjects, prior_objects: features of the same shapes; None without them.
    """

    texts: CodedTexts
    subjects: Tensor
    starts: Tensor
    lasts: Tensor
    objects: Tensor
    prior_subjects: Tensor | None = None
    prior_objects: Tensor | None = None


class Augmentation:
    """Replacement of the subject and object of a triple, in text and triples, by those of another of its predicate.

    Args:
        examples: where the replacements come from.
        share: of the examples that are changed, in [0, 1].
    """

    def __init__(self, examples: Sequence[TripleExample], share: float) -> None:
        self.share = share
        self._of: dict[str, list[Triple]] = {}
        for triple in (triple for example in examples for triple in example.triples):
            self._of.setdefault(triple.predicate, []).append(triple)

    def __call__(self, example: TripleExample, random: Random) -> TripleExample:
        """Return an example, changed or as it was; a triple that is no longer in the text is left out."""
        if not example.triples or random.random() >= self.share:
            return example
        triples = [_quote(example.text, triple) for triple in example.triples]
        old = triples[random.integers(len(triples))]
        others = self._of[old.predicate]
        new = others[random.integers(len(others))]

        def replace(text: str) -> str:
            return text.replace(old.subject, new.subject).replace(old.object, new.object)

        text = replace(example.text)
        changed = (annotate(text, replace(t.subject), t.predicate, replace(t.object)) for t in triples)
        return TripleExample(text, tuple(triple for triple in changed if is_located(triple)))


def _quote(text: str, triple: Triple) -> Triple:
    """Return a triple with its subject and object in the letter case of the text."""
    subject, object = (
        name if span is None else text[slice(*span)]
        for name, span in ((triple.subject, triple.subject_span), (triple.object, triple.object_span))
    )
    return triple._replace(subject=subject, object=object)


class TripleRows(Dataset[Any]):
    """Examples as rows of batches.

    Args:
        examples: n of them.
        reader: of the model.
        schema: its predicates.
        config: its shape; texts are cut at `max_length` characters, with the triples behind.
        supervision: of which example i is source i; None: no features.
        augmentation: applied to each example, unless there are features, which a replaced triple would not have.
        seed: of the draws.
    """

    def __init__(
        self,
        examples: Sequence[TripleExample],
        reader: TextReader,
        schema: TripleSchema,
        config: DGCNNConfig,
        *,
        supervision: DistantSupervision | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.examples, self.reader, self.config, self.seed, self.epoch = list(examples), reader, config, seed, 0
        self.supervision, self.augmentation = supervision, augmentation
        self._numbers = {name: number for number, name in enumerate(schema.predicates)}
        self.sizes = np.array([min(len(example.text), config.max_length) for example in self.examples])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Return the batch of these numbers."""
        randoms = [np.random.default_rng((self.seed, self.epoch, row)) for row in rows]
        examples = [self.examples[row] for row in rows]
        if self.augmentation is not None and self.supervision is None:
            examples = [self.augmentation(one, random) for one, random in zip(examples, randoms, strict=True)]
        texts = self.reader.encode_batch([example.text for example in examples], self.config.max_length)
        b, t = texts.mask.shape
        subjects = np.zeros((b, t, 2), dtype=bool)
        objects = np.zeros((b, t, self.config.num_predicates, 2), dtype=bool)
        chosen: list[Span] = []
        for i, (example, random) in enumerate(zip(examples, randoms, strict=True)):
            answers = self._find_answers(example)
            for start, end in answers:
                subjects[i, start, 0] = subjects[i, end - 1, 1] = True
            length = min(len(example.text), self.config.max_length)
            chosen.append(draw_subject(list(answers), length, self.config.subject_sampling, random))
            for predicate, (start, end) in answers.get(chosen[-1], []):
                objects[i, start, predicate, 0] = objects[i, end - 1, predicate, 1] = True
        spans = torch.tensor(chosen)
        batch = Batch(texts, torch.from_numpy(subjects), spans[:, 0], spans[:, 1] - 1, torch.from_numpy(objects))
        return batch if self.supervision is None else self._add_prior(batch, rows, chosen, self.supervision)

    def _find_answers(self, example: TripleExample) -> dict[Span, list[tuple[int, Span]]]:
        """Return for the span of each subject the numbers of predicates and the spans of its objects."""
        answers: dict[Span, list[tuple[int, Span]]] = {}
        for triple in example.triples:
            subject, object = triple.subject_span, triple.object_span
            if subject and object and max(subject[1], object[1]) <= self.config.max_length:
                answers.setdefault(subject, []).append((self._numbers[triple.predicate], object))
        return answers

    def _add_prior(
        self, batch: Batch, rows: Sequence[int], chosen: list[Span], supervision: DistantSupervision
    ) -> Batch:
        """Return the batch with the features of known triples, without those that only the example itself has."""
        subjects, objects = batch.subjects.float().zero_(), batch.objects.float().zero_()
        for i, (row, span) in enumerate(zip(rows, chosen, strict=True)):
            text = self.examples[row].text[: self.config.max_length]
            features = supervision.features(text, exclude_source=row)
            subjects[i, : len(text)] = torch.from_numpy(features.subjects)
            objects[i, : len(text)] = torch.from_numpy(features.of_subject(span))
        return batch._replace(prior_subjects=subjects, prior_objects=objects)


def is_located(triple: Triple) -> bool:
    """Return whether subject and object of a triple are in its text."""
    return triple.subject_span is not None and triple.object_span is not None


def draw_subject(spans: Sequence[Span], length: int, sampling: str, random: Random) -> Span:
    """Return the span of a subject to learn from, see `DGCNNConfig.subject_sampling`; any span where there is none."""
    if not spans:
        start = int(random.integers(length))
        return start, start + 1
    if sampling == "gold":
        return spans[int(random.integers(len(spans)))]
    start = spans[int(random.integers(len(spans)))][0]
    ends = sorted({end for _, end in spans if end > start})
    return start, ends[int(random.integers(len(ends)))]
