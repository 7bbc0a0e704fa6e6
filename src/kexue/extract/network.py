"""The network of the extractor: states by dilated gated convolutions, a head for subjects, and one for objects.

    P(s, p, o | x) = P(s | x) P(p, o | s, x)

Heads and tails of subjects, and given a subject those of objects for every predicate, are independent events. Each is a
product of sigmoids, of the place itself and of gates that several places share; see `kexue.extract.probabilities`.

Source: kexue.fm/archives/6671, whose code reads the code of a subject by a GRU where the text says LSTM.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue._tensors import clear_padding
from kexue.extract.config import DILATIONS, DGCNNConfig
from kexue.extract.reader import CodedTexts
from kexue.nn.dgcnn import DGCNN

_PLACES = 6  # places of a subject that its code is made of

Factors = tuple[Tensor, ...]
"""Logits that broadcast; the probability of the event is the product of their sigmoids."""


class Encoded(NamedTuple):
    """What the heads need of a batch of B texts.

    Attributes:
        states: (B, T, d).
        mask: (B, T) bool.
        subjects: factors of the heads and tails of subjects, (B, T, 2).
        shared: (B, T, d), the part of the object head that does not depend on the subject.
        entity: (B, T, 2) logits that an entity begins and ends, whatever it is.
        predicate: (B, P) logits that the text has a triple with each predicate.
    """

    states: Tensor
    mask: Tensor
    subjects: Factors
    shared: Tensor
    entity: Tensor
    predicate: Tensor


class SelfAttention(nn.Module):
    """Attention of states (B, T, d) to each other, without biases and without a map of the result."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the attended states (B, T, d), zeros at padding."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return clear_padding(attended.transpose(1, 2).flatten(2), mask)


class Convolution(nn.Module):
    """Convolution of three neighbours, of (B, T, in) to (B, T, out); padding must be zeros."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution."""
        y: Tensor = self.conv(x.transpose(1, 2).contiguous()).transpose(1, 2)
        return y


def _two_layers(dim: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, outputs))


class DGCNNNetwork(nn.Module):
    """Layers of the extractor, from numbers of characters and words to factors of probabilities.

    Args:
        config: shape of the network.
    """

    words: Tensor

    def __init__(self, config: DGCNNConfig) -> None:
        super().__init__()
        self.config = config
        d, p, prior = config.dim, config.num_predicates, config.prior
        self.characters = nn.Embedding(config.num_characters, d, padding_idx=0)
        self.positions = nn.Embedding(config.max_length, d)  # of places and of distances
        nn.init.zeros_(self.positions.weight)
        self.register_buffer("words", torch.zeros(config.num_words + 1, config.word_dim))
        self.word_map = nn.Linear(config.word_dim, d, bias=False) if config.word_dim else None
        self.dropout = nn.Dropout(config.dropout)
        self.convolutions = DGCNN(d, dilations=DILATIONS[: config.num_layers], dropout=config.gate_dropout)
        self.entity_head, self.entity_tail = _two_layers(d, 1), _two_layers(d, 1)
        self.predicate = _two_layers(d, p)
        self.subject_attention = SelfAttention(d, config.num_heads)
        self.subject_conv = Convolution(2 * d + 2 * prior, d)
        self.subject_ends = nn.Linear(d, 2)
        self.subject_code = nn.GRU(d, d, batch_first=True, bidirectional=True)
        self.object_attention = SelfAttention(d, config.num_heads)
        self.object_conv = Convolution(2 * d + 2 * prior, d)
        self.object_conv_of_subject = Convolution(2 * d + 2 * p * prior, d, bias=False)
        self.object_any = nn.Linear(d, 1)
        self.object_ends = nn.Linear(d, 2 * p)

    def forward(self, texts: CodedTexts, prior: Tensor | None = None) -> Encoded:
        """Encode a batch.

        Args:
            texts: B texts.
            prior: (B, T, 2) features of known subjects, where the network takes them.
        """
        mask = texts.mask
        x = self.characters(texts.characters) + self.positions.weight[: mask.shape[1]]
        if self.word_map is not None:
            x = x + self.word_map(functional.embedding(texts.words, self.words))
        states = self.convolutions(clear_padding(self.dropout(x), mask), mask)
        extra = [] if prior is None else [prior]
        entity = torch.cat((self.entity_head(states), self.entity_tail(states)), -1)
        own = torch.cat((states, self.subject_attention(states, mask), *extra), -1)
        ends = self.subject_ends(self.subject_conv(own).relu())
        largest = states.masked_fill(~mask[..., None], -torch.inf).amax(1)
        shared = self.object_conv(torch.cat((states, self.object_attention(states, mask), *extra), -1))
        return Encoded(states, mask, (ends, entity), shared, entity, self.predicate(largest))

    def score_objects(
        self, encoded: Encoded, rows: Tensor, starts: Tensor, lasts: Tensor, prior: Tensor | None = None
    ) -> Factors:
        """Return the factors of the heads and tails of the objects of N subjects, (N, T, P, 2).

        Args:
            encoded: the texts.
            rows: (N,) number of the text of each subject.
            starts, lasts: (N,) its first and last place.
            prior: (N, T, P, 2) features of its known objects, where the network takes them.
        """
        mask = encoded.mask[rows]
        code = self._encode_subjects(encoded.states, rows, starts, lasts)
        places = torch.arange(mask.shape[1], device=mask.device)
        distances = (places[None, :, None] - torch.stack((starts, lasts), -1)[:, None]).abs()
        sequence = self.positions(distances).flatten(2) + code[:, None]
        extra = [] if prior is None else [prior.flatten(2)]
        sequence = clear_padding(torch.cat((sequence, *extra), -1), mask)
        hidden = (encoded.shared[rows] + self.object_conv_of_subject(sequence)).relu()
        return (
            self.object_any(hidden)[..., None],
            encoded.entity[rows][:, :, None],
            encoded.predicate[rows][:, None, :, None],
            self.object_ends(hidden).unflatten(-1, (-1, 2)),
        )

    def _encode_subjects(self, states: Tensor, rows: Tensor, starts: Tensor, lasts: Tensor) -> Tensor:
        """Return the codes (N, 2d) of subjects, read from six places between their ends by a GRU in both directions."""
        share = torch.linspace(0, 1, _PLACES, device=states.device)
        places = (starts[:, None] * share + lasts[:, None] * (1 - share)).round().long()
        _, last = self.subject_code(states[rows[:, None], places])
        return torch.cat((last[0], last[1]), -1)
