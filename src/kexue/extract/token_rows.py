"""Annotated texts as tokens, with the pairs of tokens that `GPLinkerExtractor` has to find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kexue.extract.rows import Augmentation
from kexue.extract.triples import Span, TripleExample, TripleSchema
from kexue.text.tokenizer import TextTokenizer

_CHUNK = 1024  # texts that are read at a time


class CodedTokens(NamedTuple):
    """Texts as tokens: `token_ids` (B, T), `mask` (B, T), and for each text the span of characters of each token.

    Special tokens have no span.
    """

    token_ids: Tensor
    mask: Tensor
    offsets: list[dict[int, Span]]


class TokenBatch(NamedTuple):
    """A batch with its labels, numbers of cells of flattened (T, T) matrices, -1 as padding.

    Attributes:
        token_ids, mask: (B, T).
        entities: (B, 2, N): spans of subjects, and of objects.
        firsts, lasts: (B, P, N): first tokens of the subject and object of a predicate, and last ones.
    """

    token_ids: Tensor
    mask: Tensor
    entities: Tensor
    firsts: Tensor
    lasts: Tensor


def encode_tokens(tokenizer: TextTokenizer, texts: Sequence[str]) -> CodedTokens:
    """Return texts as tokens, cut at the limit of the tokenizer."""
    records = tokenizer.encode_with_offsets(texts)
    longest = max(len(record.ids) for record in records)
    ids = np.full((len(texts), longest), tokenizer.pad_id, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=bool)
    offsets = []
    for row, record in enumerate(records):
        ids[row, : len(record.ids)], mask[row, : len(record.ids)] = record.ids, True
        spans = zip(record.offsets, record.special_tokens_mask, strict=True)
        offsets.append({place: tuple(span) for place, (span, special) in enumerate(spans) if not special})
    return CodedTokens(torch.from_numpy(ids), torch.from_numpy(mask), offsets)


class TokenRows(Dataset[Any]):
    """Examples as rows of batches.

    Args:
        examples: n of them.
        tokenizer: of the encoder.
        schema: the predicates.
        augmentation: applied to each example; None: none.
        seed: of its draws.
    """

    def __init__(
        self,
        examples: Sequence[TripleExample],
        tokenizer: TextTokenizer,
        schema: TripleSchema,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.examples, self.tokenizer, self.augmentation = list(examples), tokenizer, augmentation
        self.seed, self.epoch = seed, 0
        self._numbers = {name: number for number, name in enumerate(schema.predicates)}
        self.sizes = np.array([len(example.text) for example in self.examples])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, rows: Sequence[int]) -> TokenBatch:
        """Return the batch of these numbers."""
        examples = [self.examples[row] for row in rows]
        if self.augmentation is not None:
            randoms = (np.random.default_rng((self.seed, self.epoch, row)) for row in rows)
            examples = [self.augmentation(one, random) for one, random in zip(examples, randoms, strict=True)]
        coded = encode_tokens(self.tokenizer, [example.text for example in examples])
        t = coded.token_ids.shape[1]
        sizes = {"entities": 2, "firsts": len(self._numbers), "lasts": len(self._numbers)}
        cells = {name: [[set[int]() for _ in range(size)] for _ in examples] for name, size in sizes.items()}
        for i, (example, offsets) in enumerate(zip(examples, coded.offsets, strict=True)):
            for triple in example.triples:
                subject, object = (find_tokens(offsets, one) for one in (triple.subject_span, triple.object_span))
                if subject is None or object is None:  # behind the end of a long text
                    continue
                number = self._numbers[triple.predicate]
                cells["entities"][i][0].add(subject[0] * t + subject[1])
                cells["entities"][i][1].add(object[0] * t + object[1])
                cells["firsts"][i][number].add(subject[0] * t + object[0])
                cells["lasts"][i][number].add(subject[1] * t + object[1])
        return TokenBatch(coded.token_ids, coded.mask, **{name: _pad(one) for name, one in cells.items()})


def find_tokens(offsets: dict[int, Span], span: Span | None) -> Span | None:
    """Return the first and last token that have a part in a span of characters; None where none has, or it goes on.

    A text goes on behind the last token that was read; characters that the tokenizer drops are in no token.
    """
    if span is None:
        return None
    inside = [place for place, (start, end) in offsets.items() if start < span[1] and end > span[0]]
    goes_on = span[1] > max((end for _, end in offsets.values()), default=0)
    return None if goes_on or not inside else (inside[0], inside[-1])


def count_split(tokenizer: TextTokenizer, examples: Sequence[TripleExample]) -> int:
    """Return how many subjects and objects of triples begin or end inside a token: they are read with all of it."""
    split = 0
    for start in range(0, len(examples), _CHUNK):
        part = examples[start : start + _CHUNK]
        coded = encode_tokens(tokenizer, [example.text for example in part])
        for example, offsets in zip(part, coded.offsets, strict=True):
            for span in (span for triple in example.triples for span in (triple.subject_span, triple.object_span)):
                if span is not None and (tokens := find_tokens(offsets, span)) is not None:
                    wide = example.text[offsets[tokens[0]][0] : offsets[tokens[1]][1]]
                    split += wide.strip() != example.text[slice(*span)].strip()
    return split


def _pad(cells: list[list[set[int]]]) -> Tensor:
    """Return numbers of cells (B, kinds, N), filled up with -1."""
    most = max((len(one) for row in cells for one in row), default=0)
    padded = np.full((len(cells), len(cells[0]), max(most, 1)), -1, dtype=np.int64)
    for i, row in enumerate(cells):
        for kind, one in enumerate(row):
            padded[i, kind, : len(one)] = sorted(one)
    return torch.from_numpy(padded)
