"""The prompt for each role that a text can have: query, document, or one of two texts that are compared as equals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Role = Literal["query", "document", "pair"]
# The prompts of a model that fit a role, best first. Both texts of a pair are treated alike, as its authors advise.
_PROMPTS: Mapping[Role, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage"),
    "pair": ("query",),
}


def choose_prompt(encoder: Any, role: Role) -> str | None:
    """Return the name of the prompt that an encoder has for a role; None where it has none.

    Args:
        encoder: its ``prompts``, if any, map names to texts, as those of `kexue.text.Encoder` do.
        role: ``"query"``, ``"document"`` (stored in an index), or ``"pair"`` (one of two texts compared as equals).

    >>> from types import SimpleNamespace
    >>> e5 = SimpleNamespace(prompts={"query": "query: ", "passage": "passage: "})
    >>> [choose_prompt(e5, role) for role in ("query", "document", "pair")]
    ['query', 'passage', 'query']
    """
    prompts = getattr(encoder, "prompts", None) or ()
    return next((name for name in _PROMPTS[role] if name in prompts), None)
