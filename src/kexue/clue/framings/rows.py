"""Texts to rows of token ids: ``[CLS] a [SEP] b [SEP] ...``, with segment 0 for all parts.

Models in the manner of RoBERTa have never trained segment 1, and those that have lose nothing without it.

Source: kexue.fm/archives/8739.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kexue.errors import CheckpointError, DataError
from kexue.text.folder import read_model_folder
from kexue.text.models import find_model
from kexue.text.tokenizer import TextTokenizer

_NO_LIMIT = 1 << 20  # tokens; rows are cut by what their framing keeps
_BLANK = "[unused1]"


class Pieces(NamedTuple):
    """Tokens of a text, special ones left out.

    Attributes:
        ids: (t,) int32.
        offsets: (t, 2) first character of each token and the one after its last, in the text as it was given.
    """

    ids: np.ndarray
    offsets: np.ndarray


class RowTokenizer:
    """Tokenizer of a model, for rows of several parts.

    Args:
        model: folder or name, as `kexue.text.find_model` takes it.

    Attributes:
        pad_id: id that fills rows up.
        mask_id: id of [MASK], of the unknown token where the model has none.
        blank_id: id of [unused1], the mark of a blank to fill; of the unknown token where the vocabulary lacks it.

    Raises:
        ModelNotFoundError: no such model. CheckpointError: it has no tokenizer, or none with [CLS] and [SEP].
    """

    def __init__(self, model: str | os.PathLike[str]) -> None:
        stack = read_model_folder(find_model(model))
        tokenizer = TextTokenizer(stack.transformer, lower=stack.lower)
        if tokenizer.cls_id is None or tokenizer.sep_id is None:
            raise CheckpointError(
                f"{os.fspath(model)} has no tokens for [CLS] and [SEP], which separate the parts of a row.",
                remedy="Use an encoder such as BERT, RoBERTa or RoFormer.",
            )
        tokenizer.set_max_length(_NO_LIMIT)
        unknown = tokenizer.sep_id if tokenizer.unknown_id is None else tokenizer.unknown_id
        self._tokenizer, self._cls, self._sep = tokenizer, tokenizer.cls_id, tokenizer.sep_id
        self.pad_id = tokenizer.pad_id
        self.mask_id = unknown if tokenizer.mask_id is None else tokenizer.mask_id
        self.blank_id = tokenizer.tokens.index(_BLANK) if _BLANK in tokenizer.tokens else unknown

    def read(self, texts: Sequence[str]) -> list[Pieces]:
        """Return the tokens of texts."""
        pieces = []
        for record in self._tokenizer.encode_with_offsets(texts):
            own = np.array(record.special_tokens_mask) == 0
            offsets = np.array(record.offsets, dtype=np.int64).reshape(-1, 2)
            pieces.append(Pieces(np.array(record.ids, dtype=np.int32)[own], offsets[own]))
        return pieces

    def read_one(self, text: str, example: str, what: str = "text") -> Pieces:
        """Return the tokens of one text; DataError, which names the example, where there are none."""
        [pieces] = self.read([text])
        if not len(pieces.ids):
            raise DataError(
                f"example {example!r} has an empty {what}: {text!r:.40} has no token.", remedy="Leave the example out."
            )
        return pieces

    def join(self, *parts: np.ndarray) -> np.ndarray:
        """Return the row ``[CLS] part [SEP] part [SEP] ...`` (T,) int32."""
        row = [np.array([self._cls])]
        for part in parts:
            row += [part, np.array([self._sep])]
        return np.concatenate(row).astype(np.int32)


def share_room(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two parts are kept, so that they fit: those of the longer one are dropped first.

    >>> share_room(10, 3, 8), share_room(10, 9, 8), share_room(2, 3, 8)
    ((5, 3), (4, 4), (2, 3))
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (room - shorter, shorter) if first > second else (shorter, room - shorter)
