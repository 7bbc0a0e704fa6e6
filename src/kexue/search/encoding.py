"""Texts to vectors: the prompt for each role a text can have, and the check of what an encoder returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kexue.search.nearest import Vectors
from kexue.search.space import SupportsEncode, as_vectors

Role = Literal["query", "document", "pair"]
# The prompts of a model that fit a role, best first. The two texts of a pair are treated alike: without a prompt.
_PROMPTS: Mapping[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage"), "pair": ()}


def choose_prompt(encoder: Any, role: Role) -> str | None:
    """Return the name of the prompt that an encoder has for a role; None where it has none.

    Args:
        encoder: its ``prompts``, if any, map names to texts, as those of `kexue.text.Encoder` do.
        role: ``"query"``, ``"document"`` (stored in an index), or ``"pair"`` (one of two texts compared as equals).

    >>> from types import SimpleNamespace
    >>> e5 = SimpleNamespace(prompts={"query": "query: ", "passage": "passage: "})
    >>> [choose_prompt(e5, role) for role in ("query", "document", "pair")]
    ['query', 'passage', None]
    """
    prompts = getattr(encoder, "prompts", None) or ()
    return next((name for name in _PROMPTS[role] if name in prompts), None)


def encode_texts(encoder: SupportsEncode, texts: list[str], role: Role, *, dim: int | None = None) -> Vectors:
    """Encode texts with the prompt of their role, if the encoder has one.

    Args:
        encoder: has ``encode(texts) -> (n, dim)``.
        texts: n texts.
        role: see `choose_prompt`.
        dim: expected length of a vector; None accepts any.

    Returns:
        Vectors (n, dim) in float32, before whitening; finite.

    Raises:
        ValueError: not n vectors, or NaN or infinity in one. SpaceMismatchError: vectors of another length.
    """
    prompt = choose_prompt(encoder, role)
    options: dict[str, Any] = {} if prompt is None else {"prompt_name": prompt}
    vectors = encoder.encode(texts, **options)
    if len(vectors) != len(texts):
        raise ValueError(f"the encoder made {len(vectors)} vectors of {len(texts)} texts.")
    return as_vectors(vectors, dim=dim, what="the encoder's vectors")
