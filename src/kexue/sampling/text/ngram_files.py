"""Folders of models of n-grams: counts as safetensors in the smallest types that hold them, tokens as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue.errors import CheckpointError
from kexue.sampling.text.folders import read_folder, write_folder
from kexue.sampling.text.trie import UNKNOWN, Counts

_FILES = "ngram.json", "model.safetensors"
_FORMAT = 2


def write_counts(path: str | os.PathLike[str], counts: Counts, settings: Mapping[str, Any]) -> None:
    """Write a folder, completely or not at all.

    A node is its token, the number of its children and its count; nodes lie in the order of the trie, so their parents
    need no numbers. Arrays are cut by depth, since counts of long n-grams fit one byte.
    """
    V = counts.vocabulary
    parents = counts.keys // V
    children = np.bincount(parents, minlength=len(counts.keys) + 1)
    arrays = {"discounts": counts.discounts, "totals": _small(counts.totals[children > 0])}
    start, stop = 1, 1 + int(children[0])
    for depth in range(1, len(counts.discounts) + 1):
        nodes = slice(start - 1, stop - 1)
        arrays[f"tokens.{depth}"] = _small(counts.keys[nodes] % V)
        arrays[f"counts.{depth}"] = _small(counts.counts[nodes])
        arrays[f"children.{depth}"] = _small(children[start:stop])
        start, stop = stop, stop + int(children[start:stop].sum())
    write_folder(path, _FILES, {"format": _FORMAT, **settings}, arrays, beside={"README.md"})


def is_ngrams(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a model of n-grams."""
    return (Path(path) / _FILES[0]).is_file()


def read_counts(path: str | os.PathLike[str]) -> tuple[Counts, dict[str, Any]]:
    """Return the counts and the settings of a folder; CheckpointError where it is missing or damaged."""
    if not is_ngrams(path):
        raise CheckpointError(
            f"{path} holds no model of n-grams: it has no {_FILES[0]}.",
            remedy="Train one with `kexue sample lm-train CORPUS --out FOLDER`.",
        )
    settings, arrays = read_folder(path, _FILES, _FORMAT)
    return _unpack(arrays, settings["order"], len(settings["tokens"]) + UNKNOWN + 1), settings


def _unpack(arrays: Mapping[str, Array], order: int, vocabulary: int) -> Counts:
    """Return counts from the arrays of a file."""
    tokens, counts, children = (
        np.concatenate([arrays[f"{name}.{depth}"].astype(np.int64) for depth in range(1, order + 1)])
        for name in ("tokens", "counts", "children")
    )
    children = np.concatenate([[vocabulary], children])
    keys = np.repeat(np.arange(len(children)), children) * vocabulary + tokens
    totals = np.zeros(len(children), dtype=np.int64)
    totals[children > 0] = arrays["totals"]
    return Counts(keys, counts, totals, arrays["discounts"].astype(np.float64), vocabulary)


def _small(numbers: Array) -> Array:
    """Return whole numbers >= 0 in the smallest type that holds them."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))
