"""Modes of a search: by meaning, by words, or by both."""

from __future__ import annotations

from typing import Literal, get_args

from kexue.search.space import Space
from kexue.search.store.base import Store

Mode = Literal["auto", "dense", "lexical", "hybrid"]
ChosenMode = Literal["dense", "lexical", "hybrid"]


def corrects_after(dehub: str | None, space: Space) -> bool:
    """Return whether a search with this `dehub` corrects the nearest documents for hubs after it has found them."""
    return dehub == "csls" != space.dehub


def choose_mode(
    mode: Mode, store: Store, *, texts: bool = True, weight: float | None = None, reorder: bool = False
) -> ChosenMode:
    """Return the mode that a search uses.

    ``"auto"`` is ``"hybrid"`` where that is possible: queries are texts, the store searches words, and the order is not
    corrected for hubs afterwards; else ``"dense"``.

    Args:
        mode: what was asked for.
        store: store of the index.
        texts: whether the queries are given as texts.
        weight: of the words, as in `Index.search`.
        reorder: `corrects_after`.

    Raises:
        ValueError: an unknown mode, or one that these queries, this weight or this correction exclude.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}.")
    if weight is not None and not 0 <= weight <= 1:
        raise ValueError(f"weight must be a number from 0 (only meaning) to 1 (only words), got {weight!r}.")
    if mode == "auto":
        mode = "hybrid" if texts and store.searches_words and not reorder else "dense"
    if mode != "dense" and not texts:
        raise ValueError(f"mode={mode!r} needs queries as texts, got vectors.")
    if mode == "hybrid" and reorder:
        raise ValueError(
            "dehub='csls' reorders a search by meaning only in this index: pass mode='dense', or build the index with "
            "dehub='csls'."
        )
    if mode != "hybrid" and weight is not None:
        raise ValueError(f"weight={weight!r} has a meaning only in a hybrid search; this one is {mode}.")
    return mode
