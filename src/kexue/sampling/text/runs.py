"""Runs on the disk: all states of chains that wrote sentences, to be judged later."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kexue._files import replacing_folder
from kexue.errors import CheckpointError
from kexue.sampling import MCMCResult, diagnose
from kexue.sampling.convergence import LEAST
from kexue.sampling.text.laws import LanguageModel, Tokens

_CHAINS, _RECORD = "chains.safetensors", "run.json"
_FORMAT = 1


def judge_chains(result: MCMCResult[Any]) -> dict[str, Any]:
    """Return what is told of chains beside their sentences, JSON-ready: what `diagnose` says of them, in part."""
    if result.log_rho.shape[1] < LEAST:
        flags = ["too few steps to compare the chains"]
        acceptance = float(result.accepted.mean())
        return {"acceptance": acceptance, "acceptance_by_move": {}, "rhat": None, "ess": None, "flags": flags}
    report = diagnose(result).record()
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
    from safetensors.numpy import save_file

    texts, states = _number([lm.decode(state) for chain in result.states for state in chain])
    tags, moves = _number([tag for chain in result.moves for tag in chain])
    arrays = {
        "log_rho": result.log_rho,
        "accepted": result.accepted,
        "states": states.reshape(result.log_rho.shape),
        "moves": moves.reshape(result.accepted.shape),
    }
    with replacing_folder(path, foreign=lambda folder: sorted(set(os.listdir(folder)) - {_CHAINS, _RECORD})) as folder:
        save_file(arrays, folder / _CHAINS)
        whole = {"format": _FORMAT, "record": record, "texts": texts, "moves": tags}
        (folder / _RECORD).write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")


def read_run(path: str | os.PathLike[str]) -> tuple[MCMCResult[str], dict[str, Any]]:
    """Return the chains of a run, their states as texts, and its record.

    Raises:
        CheckpointError: no run, or a damaged one.
    """
    from safetensors.numpy import load_file

    folder = Path(path)
    if not (folder / _RECORD).is_file():
        raise CheckpointError(f"{folder} holds no run.", remedy="Write one with `kexue sample keywords ... --out RUN`.")
    try:
        whole = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if whole["format"] != _FORMAT:
            raise ValueError(f"format {whole['format']!r}, expected {_FORMAT}")
        arrays = load_file(folder / _CHAINS)
        texts, tags = ([[whole[name][i] for i in row] for row in arrays[key].tolist()]
                       for name, key in (("texts", "states"), ("moves", "moves")))  # fmt: skip
        return MCMCResult(texts, arrays["log_rho"], arrays["accepted"], tags), whole["record"]
    except Exception as error:  # damaged files raise many types of errors
        raise CheckpointError(
            f"{folder} cannot be read: {type(error).__name__}: {error}", remedy="Write the run again."
        ) from error


def _number(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return different names, and the place of each of the given ones among them."""
    places = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return list(places), np.array([places[name] for name in names], dtype=np.int32)
