"""Whitening as a Dense stage at the end of a sentence-transformers folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as serialize

from kexue._arrays import Array
from kexue._files import replacing_folder
from kexue._text import parse_json
from kexue.errors import DataError, SpaceMismatchError

_TYPES = "sentence_transformers.models."  # the prefix that every reader of such folders accepts


def append_dense(
    kernel: Array, bias: Array, model_folder: str | os.PathLike[str], out: str | os.PathLike[str], *, normalize: bool
) -> list[str]:
    """Copy a model folder and append y = x kernel + bias as a Dense stage; see `Whitening.export_dense`.

    Args:
        kernel: (d, k).
        bias: (k,).
        model_folder: folder with `modules.json`.
        out: folder to write; must not exist or be empty.
        normalize: append a Normalize stage too; always done where the folder ends in one.

    Returns:
        The type of every stage of the new folder, in order.
    """
    source, target = Path(model_folder), Path(out)
    stages = _read_stages(source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError("already there and not an empty folder.", path=target, remedy="Give the name of a new folder.")
    width = _output_width(source, stages)
    if width is not None and width != len(kernel):
        raise SpaceMismatchError(
            f"{source} emits {width} dimensions, the whitening was fitted on {len(kernel)}.",
            expected=width,
            received=len(kernel),
            remedy="Fit the whitening on vectors of this model.",
        )
    ends_normalized = bool(stages) and _stage_kind(stages[-1]) == "Normalize"
    index = max((int(stage["idx"]) for stage in stages), default=-1)
    with replacing_folder(target, foreign=os.listdir) as temporary:
        _copy_files(source, temporary)
        for kind in ["Dense", "Normalize"] if ends_normalized or normalize else ["Dense"]:
            index += 1
            folder = f"{index}_{kind}"
            stages.append({"idx": index, "name": str(index), "path": folder, "type": _TYPES + kind})
            (temporary / folder).mkdir()
            if kind == "Dense":
                write_dense(kernel, bias, temporary / folder)
        (temporary / "modules.json").write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")
    return [str(stage["type"]) for stage in stages]


def _copy_files(source: Path, target: Path) -> None:
    """Copy the files of a folder, links followed, with the default permissions of new files."""
    for root, _, names in os.walk(source, followlinks=True):
        folder = target / Path(root).relative_to(source)
        folder.mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(Path(root, name), folder / name)


def write_dense(kernel: Array, bias: Array, folder: Path) -> None:
    """Write configuration and weights of the Dense stage y = x kernel + bias into a folder."""
    d, k = kernel.shape
    config = {
        "in_features": d,
        "out_features": k,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {
        "linear.weight": np.ascontiguousarray(kernel.T, dtype=np.float32),
        "linear.bias": bias.astype(np.float32),
    }
    (folder / "model.safetensors").write_bytes(serialize(weights, metadata={"format": "pt"}))


def _read_stages(folder: Path) -> list[dict[str, Any]]:
    """Read the stages of a model folder, in order."""
    path = folder / "modules.json"
    try:
        stages = parse_json(path.read_bytes(), path, kind=list)
        return sorted(({**stage} for stage in stages), key=lambda stage: int(stage["idx"]))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            "no sentence-transformers folder.", path=path, remedy="Give a folder that holds modules.json."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not a list of stages ({error}).", path=path, remedy="Fetch the model again.") from error


def _stage_kind(stage: dict[str, Any]) -> str:
    """Class name of a stage, such as "Pooling"."""
    return str(stage["type"]).rpartition(".")[2]


def _output_width(folder: Path, stages: list[dict[str, Any]]) -> int | None:
    """Dimension of the vectors a folder emits, from its last Dense or Pooling stage; None where neither states it."""
    for stage in reversed(stages):
        path = folder / str(stage.get("path", "")) / "config.json"
        if _stage_kind(stage) not in ("Dense", "Pooling") or not path.is_file():
            continue
        config = parse_json(path.read_bytes(), path, kind=dict)
        if "out_features" in config:
            return int(config["out_features"])
        width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
        mode = config.get("pooling_mode")
        switches = sum(value is True for name, value in config.items() if name.startswith("pooling_mode_"))
        poolings = len(mode) if isinstance(mode, list) else max(1, switches)  # several poolings are concatenated
        return None if width is None else int(width) * poolings
    return None
