"""How an index splits long texts into passages: what was chosen, recorded, and applied to texts that are added."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from kexue.errors import DataError, NotSupported
from kexue.search.spool import Spool
from kexue.search.store.base import Span, Value
from kexue.text.roles import choose_prompt

Truncate = Literal["allow", "error"]
ENTRY = "passages"  # of the metadata of a store
_BATCH = 512  # texts whose length is checked at a time
_FORM = re.compile(r"([1-9][0-9]*)(?::([0-9]+))?")


@dataclass(frozen=True)
class Splitting:
    """How long texts are split.

    Attributes:
        mode: ``"auto"`` splits a text that is longer than the encoder reads, into passages as long as it reads (with
            those of 128 tokens it was found as often, with twice the vectors: benchmarks/passages.py). ``"tokens"``
            splits what has more than `tokens`, ``"none"`` nothing.
        tokens: tokens of a passage in the mode ``"tokens"``.
        overlap: tokens that a passage may repeat of the one before.
    """

    mode: Literal["auto", "tokens", "none"]
    tokens: int | None = None
    overlap: int = 0

    @classmethod
    def parse(cls, given: str | int | None) -> Self:
        """Parse what a user gives: ``"auto"``, ``"none"``, or the tokens of a passage, such as 200 or ``"200:20"``.

        Raises:
            ValueError: anything else, or an overlap of more than half of a passage.

        >>> Splitting.parse("200:20")
        Splitting(mode='tokens', tokens=200, overlap=20)
        """
        if given in ("auto", "none", None):
            return cls("auto" if given == "auto" else "none")
        match = _FORM.fullmatch(str(given))
        if match is None or isinstance(given, bool):
            raise ValueError(
                f"passages must be 'auto', 'none', or TOKENS or TOKENS:OVERLAP such as 200:20, got {given!r}"
            )
        tokens, overlap = int(match[1]), int(match[2] or 0)
        if overlap > tokens // 2:
            raise ValueError(f"passages of {tokens} tokens can overlap by at most {tokens // 2}, got {overlap}")
        return cls("tokens", tokens, overlap)

    def dump(self) -> dict[str, Value]:
        """Return it as metadata of a store."""
        return {ENTRY: json.dumps(asdict(self))}

    @classmethod
    def load(cls, metadata: Mapping[str, Value]) -> Self:
        """Read it from the metadata of a store; nothing is split in an index that records nothing."""
        return cls(**json.loads(metadata.get(ENTRY, '{"mode": "none"}')))

    def check(self, encoder: object) -> None:
        """Raise an error where texts cannot be split like this with an encoder.

        Raises:
            NotSupported: it does not tell its tokens. ValueError: it reads fewer tokens than a passage has.
        """
        if self.mode == "tokens":
            self.split(encoder, [""])

    def split(self, encoder: Any, texts: Sequence[str]) -> list[list[Span]]:
        """Return the passages of each text; one, the whole text, where it is not split.

        Args:
            encoder: has ``split(texts, tokens, overlap, prompt_name=...)``, as `kexue.text.Encoder`. One without it
                can split nothing, which is an error where a number of tokens was chosen.
            texts: n texts.
        """
        whole = [[(0, len(text))] for text in texts]
        if self.mode == "none":
            return whole
        if not hasattr(encoder, "split"):
            if self.mode == "auto":
                return whole
            raise _blind_error(encoder)
        spans: list[list[Span]] = encoder.split(
            texts, self.tokens, self.overlap, prompt_name=choose_prompt(encoder, "document")
        )
        return spans


def _blind_error(encoder: object) -> NotSupported:
    """Return the error for an encoder that has no ``split``."""
    return NotSupported(
        f"{type(encoder).__name__} cannot split texts: it does not say where their tokens are.",
        remedy="Use kexue.text.Encoder; or passages='none' (--passages none), and truncate='allow' (--truncate allow).",
    )


def refuse_cut(spool: Spool, encoder: Any, splitting: Splitting) -> None:
    """Raise DataError where the encoder would not read the end of a record: it is longer, and is not split."""
    if not hasattr(encoder, "split"):
        raise _blind_error(encoder)
    if splitting.mode != "none":
        return
    long = 0
    first: tuple[str, int] | None = None
    for rows in spool.batches(_BATCH):
        spans = Splitting("auto").split(encoder, [row.text for row in rows])
        for row, some in zip(rows, spans, strict=True):
            if len(some) > 1:
                long, first = long + 1, first or spool.locate(row.id)
    if first is not None:
        raise DataError(
            f"{long} {'text is' if long == 1 else 'texts are'} longer than the {encoder.max_length} tokens that the "
            "encoder reads, the first here.",
            remedy="Let them be split (--passages auto), shorten them, or allow the cut (--truncate allow).",
            path=first[0],
            line=first[1],
        )
