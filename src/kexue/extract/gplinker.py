"""Triples by three matrices of spans on an encoder: entities, pairs of first tokens, pairs of last tokens.

A triple (s, p, o) is found where the spans of s and o score as subject and as object, and p scores for the pair of
their first tokens and for that of their last ones. Every matrix is a `kexue.nn.GlobalPointer` in its efficient form,
with a loss for several labels (`kexue.losses.sparse_zlpr_loss`).

Source: kexue.fm/archives/8888, with the heads of 8877.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor

from kexue._devices import choose_device
from kexue.errors import CheckpointError
from kexue.extract.extractor import MOST_SUBJECTS, MOST_TRIPLES, Decoder, Extracted, Extractor, keep_likeliest
from kexue.extract.folder import RECORD, find_extractor, load_state, read_record, write_extractor
from kexue.extract.token_rows import TokenBatch, encode_tokens
from kexue.extract.triples import Span, Triple, TripleSchema
from kexue.losses.multilabel import sparse_zlpr_loss
from kexue.nn.pointer import GlobalPointer
from kexue.text.folder import read_model_folder
from kexue.text.models import find_model, model_id_of
from kexue.text.tokenizer import TextTokenizer
from kexue.text.trainable import open_trainable
from kexue.train.config import LossOutput

_CELLS = 1 << 19  # pairs of tokens that are scored at a time


class Scores(NamedTuple):
    """Scores of pairs of tokens: tensors (B, kinds, T, T), or of one text arrays (kinds, T, T).

    Attributes:
        entities: of two kinds, subjects and objects, first token to last token.
        firsts, lasts: of every predicate, first (last) token of the subject to that of the object.
    """

    entities: Any
    firsts: Any
    lasts: Any


class GPLinkerExtractor(Extractor):
    """Heads that find triples, on an encoder that is trained with them.

    Args:
        encoder: as `kexue.text.find_model` takes it: a Hugging Face folder, a name, or kexue's own.
        schema: the predicates.
        max_length: tokens of a text that are read, special ones included; None: as many as the encoder can.

    Raises:
        ModelNotFoundError: no such encoder. CheckpointError: one that cannot be read.
        ValueError: the encoder cannot read so many tokens.
    """

    kind: ClassVar[str] = "gplinker"
    head_threshold: ClassVar[float] = 0.5
    tail_threshold: ClassVar[float] = 0.5
    schema: TripleSchema

    def __init__(self, encoder: str | os.PathLike[str], schema: TripleSchema, *, max_length: int | None = None) -> None:
        super().__init__()
        folder = find_model(encoder)
        stack = read_model_folder(folder)
        self.encoder, self.encoder_id, self.schema = open_trainable(folder), model_id_of(folder), schema
        self.tokenizer = TextTokenizer(stack.transformer, lower=stack.lower)
        most = min(self.encoder.max_positions or 512, 512)
        self.max_length = most if max_length is None else max_length
        if self.max_length > most:
            raise ValueError(f"max_length must be at most {most} for {self.encoder_id}, got {max_length}")
        self.tokenizer.set_max_length(self.max_length)
        width, p = self.encoder.hidden_size, len(schema.predicates)
        self.entities = GlobalPointer(width, 2, efficient=True)
        self.firsts, self.lasts = (
            GlobalPointer(width, p, rotary=False, upper_only=False, efficient=True) for _ in range(2)
        )

    @classmethod
    def from_pretrained(cls, run: str | os.PathLike[str], *, device: str = "cpu") -> GPLinkerExtractor:
        """Open the model of a run of `train_extractor`, or of a folder of `save_pretrained`.

        Raises:
            CheckpointError: no such model there, or a damaged one. ModelNotFoundError: its encoder is gone.
        """
        folder = find_extractor(run)
        record = read_record(folder)
        try:
            if record["kind"] != cls.kind:
                raise ValueError(f"kind {record['kind']!r}, expected {cls.kind!r}")
            schema = TripleSchema(tuple(record["predicates"]))
            model = cls(record["encoder"], schema, max_length=record["max_length"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{folder / RECORD} cannot be used ({type(error).__name__}: {error}).", remedy="Train again."
            ) from error
        load_state(model, folder)
        return model.eval().to(choose_device(device))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write all weights (safetensors), and the name of the encoder, whose tokenizer is needed, into a folder.

        Raises:
            DataError: the folder holds other files.
        """
        record = {"encoder": self.encoder_id, "max_length": self.max_length, "predicates": self.schema.predicates}
        write_extractor(folder, self.kind, record, self.state_dict())

    def forward(self, token_ids: Tensor, mask: Tensor) -> Scores:
        """Score the pairs of tokens of texts, (B, T) int64 with a mask (B, T) bool; -inf at padding."""
        return self.score(self.encoder(token_ids, mask), mask)

    def score(self, states: Tensor, mask: Tensor) -> Scores:
        """Score the pairs of tokens of states (B, T, h)."""
        return Scores(self.entities(states, mask), self.firsts(states, mask), self.lasts(states, mask))

    def training_step(
        self, batch: TokenBatch, *, optimizer_index: int = 0, generator: torch.Generator | None = None
    ) -> LossOutput:
        """Compute the mean of the three losses, each summed over its kinds."""
        parts = {}
        for name, scores in self(batch.token_ids, batch.mask)._asdict().items():
            loss = sparse_zlpr_loss(scores.flatten(2), getattr(batch, name), reduction="none")
            parts[name] = loss.sum(1).mean()
        return LossOutput(torch.stack(list(parts.values())).mean(), parts)

    def count_long(self, texts: Sequence[str]) -> int:
        """Return how many texts are longer than `max_length` tokens."""
        counts = self.tokenizer.count(texts)
        return sum(count + self.tokenizer.specials > self.max_length for count in counts)

    def prepare(self, texts: Sequence[str]) -> Decoder:
        """Return the function that decodes texts; pairs of tokens are scored anew for it, few texts at a time."""
        coded = encode_tokens(self.tokenizer, texts)
        home = self.entities.qk.weight.device
        mask = coded.mask.to(home)
        states = self.encoder(coded.token_ids.to(home), mask)
        size = max(1, _CELLS // mask.shape[1] ** 2)

        def decode(head: float, tail: float) -> list[Extracted]:
            results = []
            for start in range(0, len(texts), size):
                part = slice(start, start + size)
                scores = [one.numpy(force=True) for one in self.score(states[part], mask[part])]
                for i, text in enumerate(texts[part]):
                    offsets = coded.offsets[start + i]
                    results.append(self._decode(text, offsets, Scores(*(one[i] for one in scores)), head, tail))
            return results

        return decode

    def _decode(self, text: str, offsets: dict[int, Span], scores: Scores, head: float, tail: float) -> Extracted:
        """Return the triples of one text, from scores (2, T, T), (P, T, T), (P, T, T), by limits of probabilities."""
        entities, firsts, lasts = scores
        limit, last_limit = logit(head), logit(tail)
        spans, cut = [], False
        for kind in entities:
            inside = [span for span in np.argwhere(kind > limit) if {*span} <= offsets.keys()]
            inside.sort(key=lambda span, kind=kind: -kind[tuple(span)])  # type: ignore[misc]
            cut = cut or len(inside) > MOST_SUBJECTS
            spans.append(sorted(tuple(map(int, span)) for span in inside[:MOST_SUBJECTS]))
        triples = []
        for a, b in spans[0]:
            for c, d in spans[1]:
                both = (firsts[:, a, c] > limit) & (lasts[:, b, d] > last_limit)
                for p in np.flatnonzero(both).tolist():
                    subject = offsets[a][0], offsets[b][1]
                    object = offsets[c][0], offsets[d][1]
                    four = entities[0, a, b], entities[1, c, d], firsts[p, a, c], lasts[p, b, d]
                    score = float(np.prod(expit(np.array(four, dtype=np.float64))) ** 0.25)
                    names = text[slice(*subject)], self.schema.predicates[p], text[slice(*object)]
                    triples.append(Triple(*names, subject, object, score))
        return Extracted(keep_likeliest(triples, MOST_TRIPLES), cut or len(triples) > MOST_TRIPLES)
