"""Whitening on disk: one safetensors file, or a Dense stage inside a sentence-transformers folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize, save_file

from kexue._files import explain, replacing, replacing_folder
from kexue._text import parse_json
from kexue.errors import DataError, SpaceMismatchError
from kexue.similarity.whitening.kernel import Spectrum
from kexue.similarity.whitening.statistics import Moments

if TYPE_CHECKING:
    from kexue.similarity.whitening.estimator import Whitening

W = TypeVar("W", bound="Whitening")

_FORMAT = "kexue.whitening"
_VERSION = 1
_WRITE = "Write one with Whitening.save or `kexue whiten fit`."
_TYPES = "sentence_transformers.models."  # the spelling every reader of such folders knows


def save(whitening: Whitening, path: str | os.PathLike[str]) -> None:
    """Write moments and spectrum as tensors, parameters as JSON in the header of the same file."""
    found, spectrum = whitening.moments_, whitening._spectrum[1]
    tensors = {
        "mean": found.mean,
        "scatter": found.scatter,
        "eigenvalues": spectrum.values,
        "eigenvectors": spectrum.vectors,
    }
    header = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "params": json.dumps({k: _plain(v) for k, v in whitening.get_params().items()}),
        "n": json.dumps(_plain(found.n)),
    }
    with replacing(path) as temporary:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, metadata=header)


def load(cls: type[W], path: str | os.PathLike[str]) -> W:
    """Read what `save` wrote into a fitted `cls`."""
    try:
        open(path, "rb").close()  # what is wrong is told better than by safetensors
    except OSError as error:
        message, remedy = explain(error)
        raise DataError(message, path=path, remedy=remedy) from error
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise DataError(
                    f"no whitening: the file's format is {header.get('format', 'not stated')!r}.",
                    path=path,
                    remedy=_WRITE,
                )
            if int(header["version"]) > _VERSION:
                raise DataError(
                    f"whitening of version {header['version']}; this library reads up to {_VERSION}.",
                    path=path,
                    remedy="Upgrade kexue.",
                )
            tensors = {name: file.get_tensor(name) for name in ("mean", "scatter", "eigenvalues", "eigenvectors")}
            new = cls(**parse_json(header["params"], path))
            new.moments_ = Moments(parse_json(header["n"], path), tensors["mean"], tensors["scatter"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"damaged or not a whitening file ({error}).", path=path, remedy=_WRITE) from error
    spectrum = Spectrum(tensors["eigenvalues"], tensors["eigenvectors"])
    new._spectrum = ((new.moments_, new.beta, new.ddof), spectrum)
    return new


def _plain(value: Any) -> Any:
    """Numbers of numpy as those of Python, for JSON."""
    return value.item() if isinstance(value, np.generic) else value


def export_dense(whitening: Whitening, model_folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[str]:
    """Copy the folder and append Dense (and Normalize); see `Whitening.export_dense`."""
    source, target = Path(model_folder), Path(out)
    stages = _stages(source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError("already there and not an empty folder.", path=target, remedy="Give the name of a new folder.")
    d, k = whitening.kernel_.shape
    emitted = _dimension(source, stages)
    if emitted is not None and emitted != d:
        raise SpaceMismatchError(
            f"{source} emits {emitted} dimensions, the whitening was fitted on {d}.",
            expected=emitted,
            received=d,
            remedy="Fit the whitening on vectors of this model.",
        )
    ends_normalized = bool(stages) and _kind(stages[-1]) == "Normalize"
    added = ["Dense"] + (["Normalize"] if ends_normalized or whitening.normalize else [])
    index = max((int(stage["idx"]) for stage in stages), default=-1)
    with replacing_folder(target, foreign=os.listdir) as temporary:
        _copy(source, temporary)
        for kind in added:
            index += 1
            folder = f"{index}_{kind}"
            stages.append({"idx": index, "name": str(index), "path": folder, "type": _TYPES + kind})
            (temporary / folder).mkdir()
            if kind == "Dense":
                _write_dense(whitening, temporary / folder, d, k)
        (temporary / "modules.json").write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")
    return [str(stage["type"]) for stage in stages]


def _copy(source: Path, target: Path) -> None:
    """The files of a folder, links followed, with the permissions that new files get here."""
    for root, _, names in os.walk(source, followlinks=True):
        folder = target / Path(root).relative_to(source)
        folder.mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(Path(root, name), folder / name)


def _write_dense(whitening: Whitening, folder: Path, d: int, k: int) -> None:
    config = {
        "in_features": d,
        "out_features": k,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {
        "linear.weight": np.ascontiguousarray(whitening.kernel_.T, dtype=np.float32),
        "linear.bias": whitening.bias_.astype(np.float32),
    }
    (folder / "model.safetensors").write_bytes(serialize(weights, metadata={"format": "pt"}))


def _stages(folder: Path) -> list[dict[str, Any]]:
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


def _kind(stage: dict[str, Any]) -> str:
    return str(stage["type"]).rpartition(".")[2]


def _dimension(folder: Path, stages: list[dict[str, Any]]) -> int | None:
    """Width of the vectors a folder emits, from its last Dense or Pooling stage; None when neither says so."""
    for stage in reversed(stages):
        path = folder / str(stage.get("path", "")) / "config.json"
        if _kind(stage) not in ("Dense", "Pooling") or not path.is_file():
            continue
        config = parse_json(path.read_bytes(), path, kind=dict)
        if "out_features" in config:
            return int(config["out_features"])
        width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
        mode = config.get("pooling_mode")
        old = sum(value is True for name, value in config.items() if name.startswith("pooling_mode_"))
        joined = len(mode) if isinstance(mode, list) else max(1, old)  # several poolings are concatenated
        return None if width is None else int(width) * joined
    return None
