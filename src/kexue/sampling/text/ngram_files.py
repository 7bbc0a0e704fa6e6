"""Folders of models of n-grams: counts as safetensors in the smallest types that hold them, tokens as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue._files import replacing_folder
from kexue.errors import CheckpointError
from kexue.sampling.text.trie import UNKNOWN, Counts

_COUNTS, _SETTINGS = "model.safetensors", "ngram.json"
_FORMAT = 1
_KINDS = {"order": int, "level": str, "min_count": int, "fitted_on": int, "tokens": list}


def write_counts(path: str | os.PathLike[str], counts: Counts, settings: Mapping[str, Any]) -> None:
    """Write a folder, completely or not at all.

    A node is its token, the number of its children and its count; nodes lie in the order of the trie, so their parents
    need no numbers. Arrays are cut by depth, since counts of long n-grams fit one byte.
    """
    from safetensors.numpy import save_file

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
    with replacing_folder(path, foreign=_list_foreign) as folder:
        save_file(arrays, folder / _COUNTS)
        text = json.dumps({"format": _FORMAT, **settings}, ensure_ascii=False)
        (folder / _SETTINGS).write_text(text, encoding="utf-8", errors="surrogatepass")


def is_ngrams(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a model of n-grams."""
    return (Path(path) / _SETTINGS).is_file()


def read_counts(path: str | os.PathLike[str]) -> tuple[Counts, dict[str, Any]]:
    """Return the counts and the settings of a folder; CheckpointError where it is missing or damaged."""
    from safetensors.numpy import load_file

    folder = Path(path)
    if not is_ngrams(folder):
        raise CheckpointError(
            f"{folder} holds no model of n-grams: it has no {_SETTINGS}.",
            remedy="Train one with `kexue sample lm-train CORPUS --out FOLDER`.",
        )
    try:
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8", errors="surrogatepass"))
        if settings["format"] != _FORMAT or any(type(settings[key]) is not kind for key, kind in _KINDS.items()):
            raise ValueError(f"{_SETTINGS} is of another format")
        return _unpack(load_file(folder / _COUNTS), settings["order"], len(settings["tokens"]) + UNKNOWN + 1), settings
    except Exception as error:  # damaged files raise many types of errors
        raise CheckpointError(
            f"{folder} cannot be loaded: {type(error).__name__}: {error}", remedy="Copy the whole folder again."
        ) from error


def _unpack(arrays: Mapping[str, Array], order: int, vocabulary: int) -> Counts:
    """Return counts from the arrays of a file; ValueError where they do not make a trie."""
    tokens, counts, children = (
        np.concatenate([arrays[f"{name}.{depth}"].astype(np.int64) for depth in range(1, order + 1)])
        for name in ("tokens", "counts", "children")
    )
    children = np.concatenate([[vocabulary], children])
    if children.sum() != len(tokens) or len(counts) != len(tokens) or len(children) != len(tokens) + 1:
        raise ValueError("the numbers of tokens, counts and children differ")
    keys = np.repeat(np.arange(len(children)), children) * vocabulary + tokens
    if not (np.diff(keys) > 0).all() or not (keys[:vocabulary] == np.arange(vocabulary)).all():
        raise ValueError("the n-grams are not in order")
    totals = np.zeros(len(children), dtype=np.int64)
    totals[children > 0] = arrays["totals"]
    return Counts(keys, counts, totals, arrays["discounts"].astype(np.float64), vocabulary)


def _small(numbers: Array) -> Array:
    """Return whole numbers >= 0 in the smallest type that holds them."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def _list_foreign(folder: Path) -> list[str]:
    """Return the names in a folder that `write_counts` has not written."""
    return sorted(set(os.listdir(folder)) - {_COUNTS, _SETTINGS, "README.md"})
