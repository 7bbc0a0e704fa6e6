"""Identity of an encoder: what decides the space of its vectors. Needs neither torch nor transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from kexue.errors import SpaceMismatchError


@dataclass(frozen=True)
class ModelIdentity:
    """Identity of an encoder. Equal fingerprints mean equal vectors.

    A field is None where the encoder does not state it. Two records are equal where the first four fields are.

    Attributes:
        model_id: hub id, absolute path of a folder, or the class name of an encoder that has neither.
        fingerprint: sha256 over everything in the folder that changes a vector, in hexadecimal: weights, tokenizer,
            configuration, pooling, dense stages, prompts.
        dim: width of a vector.
        pooling: ``"cls"``, ``"pooler"``, ``"last-avg"``, ``"first-last-avg"`` or ``"max"``.
        reference: folder or hub id that opens the encoder again; None for an object made by the caller.
        max_length: tokens read of a text, special ones included.
        normalize: True where its vectors have unit length.
        prompts: text put before an input, by name.
    """

    model_id: str | None = None
    fingerprint: str | None = None
    dim: int | None = None
    pooling: str | None = None
    reference: str | None = field(default=None, compare=False)
    max_length: int | None = field(default=None, compare=False)
    normalize: bool | None = field(default=None, compare=False)
    prompts: dict[str, str] | None = field(default=None, compare=False)

    def settings(self) -> dict[str, Any]:
        """Return the arguments of `Encoder` that, beside `reference`, open the encoder as it was."""
        settings = {name: getattr(self, name) for name in ("pooling", "max_length", "normalize", "prompts")}
        return {name: value for name, value in settings.items() if value is not None}

    def check(self, other: ModelIdentity, *, whitened: bool = False) -> None:
        """Refuse an encoder whose vectors lie in another space. A field that either does not state is not compared.

        Args:
            other: identity of the encoder to compare.
            whitened: a whitening follows, so that the length of the raw vectors matters, too.

        Raises:
            SpaceMismatchError: the fields `dim`, `fingerprint`, `prompts`, or `normalize` if `whitened`, differ; or
                the ids, where a fingerprint is missing.
        """
        names = {"dim": "dim", "fingerprint": "fingerprint", "prompts": "prompts"}
        if whitened:
            names["normalize"] = "normalize"
        if self.fingerprint is None or other.fingerprint is None:
            names["model_id"] = "id"
        for name, label in names.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None and theirs is not None and mine != theirs:
                raise SpaceMismatchError(
                    f"the index holds vectors of {self.describe()}, not of {other.describe()}: "
                    f"{label} {mine} is not {theirs}.",
                    expected=mine,
                    received=theirs,
                    remedy="Use the index's own encoder, or build a new index with this one (kexue index build).",
                )

    def describe(self) -> str:
        """Return the name and width for a message."""
        return f"{self.model_id or 'an unnamed encoder'} ({self.dim or '?'} dimensions)"

    def to_record(self) -> dict[str, Any]:
        """Return the JSON object that indexes and shards hold; `model_id` is its ``id``."""
        values = asdict(self)
        return {"reference": values.pop("reference"), "id": values.pop("model_id"), **values}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read what `to_record` returned; a missing key is None, an unknown one a TypeError."""
        values = dict(record)
        return cls(model_id=values.pop("id", None), **values)


def identify(encoder: object, *, reference: str | None = None) -> ModelIdentity:
    """Return the identity of any encoder: its own `identity` if it has one, else what its attributes state.

    Args:
        encoder: a `kexue.text.Encoder`, or an object of the caller. Of the latter the attributes `model_id`,
            `fingerprint`, `dim`, `pooling`, `max_length`, `normalize` and `prompts` are read where they exist.
        reference: folder or hub id that the encoder was opened from, if the caller knows one.
    """
    identity = getattr(encoder, "identity", None)
    if not isinstance(identity, ModelIdentity):
        name, mark, dim = (getattr(encoder, field, None) for field in ("model_id", "fingerprint", "dim"))
        identity = ModelIdentity(
            type(encoder).__qualname__ if name is None else str(name),
            None if mark is None else str(mark),
            None if dim is None else int(dim),
            **{field: getattr(encoder, field, None) for field in ("pooling", "max_length", "normalize", "prompts")},
        )
    reference = reference if reference is not None else identity.reference
    if reference is not None and os.path.isdir(reference):
        reference = os.path.abspath(reference)
    return replace(identity, reference=reference)
