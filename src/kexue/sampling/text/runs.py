"""Runs on the disk: all states of chains that wrote sentences, to be judged later."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kexue.errors import CheckpointError
from kexue.sampling import MCMCResult, diagnose
from kexue.sampling.convergence import LEAST
from kexue.sampling.text.folders import read_folder, write_folder
from kexue.sampling.text.laws import LanguageModel, Tokens

_FILES = "run.json", "chains.safetensors"
_FORMAT = 2


def measures_of(words: Sequence[str] = ()) -> list[Callable[[str], float]]:
    """Return the numbers by which chains of texts are judged beside log rho: the length, the place of each word.

    Chains may agree on log rho long before they agree on the order of words.
    """
    return [len, *(partial(_place, word) for word in words)]


def _place(word: str, text: str) -> int:
    return text.find(word)


def judge_chains(
    result: MCMCResult[Tokens], decode: Callable[[Tokens], str], words: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what is told of chains beside their sentences, JSON-ready: what `diagnose` says of them, in part.

    Args:
        result: states of chains.
        decode: turns them into texts.
        words: those that all texts contain; see `measures_of`.
    """
    if result.log_rho.shape[1] < LEAST:
        flags = ["too few steps to compare the chains"]
        acceptance = float(result.accepted.mean())
        return {"acceptance": acceptance, "acceptance_by_move": {}, "rhat": None, "ess": None, "flags": flags}
    texts = [[decode(state) for state in chain] for chain in result.states]
    judged = MCMCResult(texts, result.log_rho, result.accepted, result.moves)
    report = diagnose(judged, *measures_of(words)).record()
    return {
        "ess": report["ess_bulk"],
        **{key: report[key] for key in ("acceptance", "acceptance_by_move", "rhat", "flags")},
    }


def write_run(
    path: str | os.PathLike[str], result: MCMCResult[Tokens], lm: LanguageModel, record: Mapping[str, Any]
) -> None:
    """Write a folder, completely or not at all; a run that is there is replaced.

    Args:
        path: the folder.
        result: states of chains.
        lm: turns them into texts.
        record: what else is to be known of the run, as JSON.

    Raises:
        DataError: the folder holds other files.
    """
    texts, states = _number([lm.decode(state) for chain in result.states for state in chain])
    tags, moves = _number([tag for chain in result.moves for tag in chain])
    arrays = {
        "log_rho": result.log_rho,
        "accepted": result.accepted,
        "states": states.reshape(result.log_rho.shape),
        "moves": moves.reshape(result.accepted.shape),
    }
    write_folder(path, _FILES, {"format": _FORMAT, "record": record, "texts": texts, "moves": tags}, arrays)


def read_run(path: str | os.PathLike[str]) -> tuple[MCMCResult[str], dict[str, Any]]:
    """Return the chains of a run, their states as texts, and its record.

    Raises:
        CheckpointError: no run, or a damaged one.
    """
    if not (Path(path) / _FILES[0]).is_file():
        raise CheckpointError(f"{path} holds no run.", remedy="Write one with `kexue sample keywords ... --out RUN`.")
    whole, arrays = read_folder(path, _FILES, _FORMAT)
    texts, tags = ([[whole[name][i] for i in row] for row in arrays[key].tolist()]
                   for name, key in (("texts", "states"), ("moves", "moves")))  # fmt: skip
    return MCMCResult(texts, arrays["log_rho"], arrays["accepted"], tags), whole["record"]


def _number(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return different names, and the place of each of the given ones among them."""
    places = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return list(places), np.array([places[name] for name in names], dtype=np.int32)
