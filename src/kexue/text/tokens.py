"""Tokens of single texts: their vectors, those unknown to the model, and the text up to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue.text.batches import split_by_tokens
from kexue.text.loaded import LoadedModel
from kexue.text.tokenizer import Tokens, cut_text


class TokenVectors(NamedTuple):
    """The tokens of one text, without the special ones.

    Attributes:
        tokens: t strings, as the vocabulary spells them (``"##ing"``).
        offsets: t pairs; token j is ``text[start:end]``, counted in characters.
        vectors: (t, h) float32, output of the last layer.
    """

    tokens: list[str]
    offsets: list[tuple[int, int]]
    vectors: np.ndarray


class TokenIds(list[np.ndarray]):
    """Token ids of n texts: n arrays (t,) int32, special tokens included; `truncated` of the texts were cut."""

    truncated: int = 0


def list_token_ids(tokens: Tokens) -> TokenIds:
    """Return the ids of each text as an array of its own."""
    sequences = TokenIds(np.split(tokens.ids, tokens.starts[1:-1]) if len(tokens.starts) > 1 else [])
    sequences.truncated = tokens.truncated
    return sequences


def join_token_ids(sequences: Sequence[np.ndarray]) -> Tokens:
    """Return the ids of n texts one after the other; cut and unknown ones are not counted."""
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in sequences], dtype=np.int64)])
    ids = np.concatenate(sequences) if len(sequences) else np.empty(0, dtype=np.int32)
    return Tokens(ids, starts, 0, 0.0)


def compute_token_vectors(model: LoadedModel, texts: Sequence[str], pass_tokens: int) -> tuple[list[TokenVectors], int]:
    """Return the token vectors of each text, and how many texts were cut.

    Args:
        model: reads the texts.
        texts: n texts, read without a prompt.
        pass_tokens: limit of tokens in one forward pass, padding included.
    """
    records = model.tokenizer.encode_with_offsets(texts)
    tokens = join_token_ids([np.array(record.ids, dtype=np.int32) for record in records])
    results: list[Any] = [None] * len(records)
    for rows in split_by_tokens(tokens.lengths, pass_tokens):
        states, _ = model.network.states(tokens.pad(rows, model.tokenizer.pad_id))
        for row, state in zip(rows.tolist(), states[-1].float().numpy(force=True), strict=True):
            record = records[row]
            kept = np.flatnonzero(np.array(record.special_tokens_mask) == 0)
            results[row] = TokenVectors(
                [record.tokens[j] for j in kept], [record.offsets[j] for j in kept], state[kept]
            )
    return results, sum(1 for record in records if record.overflowing)


def list_unknown(model: LoadedModel, texts: Sequence[str]) -> list[list[str]]:
    """Return the parts of each text that are no token of the model."""
    unknown = model.tokenizer.unknown_id
    return [
        [text[start:end] for (start, end), i in zip(record.offsets, record.ids, strict=True) if i == unknown]
        for text, record in zip(texts, model.tokenizer.encode_with_offsets(texts), strict=True)
    ]


def cut_texts(model: LoadedModel, texts: Sequence[str], tokens: int) -> list[str]:
    """Return each text up to the end of its first `tokens` tokens, special ones not counted; ValueError if < 1."""
    if tokens < 1:
        raise ValueError(f"tokens must be >= 1, got {tokens}.")
    short = []
    for text, record in zip(texts, model.tokenizer.encode_with_offsets(texts), strict=True):
        offsets = [at for at, special in zip(record.offsets, record.special_tokens_mask, strict=True) if not special]
        short.append(cut_text(text, offsets, tokens))
    return short
