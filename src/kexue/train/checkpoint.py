"""Nested state as a folder of safetensors and JSON, whole or not at all, and back to the bit.

Each part becomes ``<part>.safetensors`` (its tensors, named by their path: for a model exactly the names of its state
dict) and an entry in ``checkpoint.json`` (everything else). Every file is hashed. There is no pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kexue._files import displaced, is_disk_full, replacing_folder
from kexue.errors import CheckpointError, DiskFullError

FORMAT, VERSION = "kexue-checkpoint", 1
MANIFEST = "checkpoint.json"
_SHOWN = 5  # names in an error message


class Checkpoint(dict[str, Any]):
    """The parts that were saved, by name: ``checkpoint["model"]`` or ``checkpoint.model``; tensors are on the CPU."""

    def __init__(self, path: str | os.PathLike[str], parts: Mapping[str, Any]) -> None:
        super().__init__(parts)
        self.path = str(path)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the checkpoint has no part {name!r}; it has {', '.join(self)}") from None

    def restore(self, **objects: Any) -> None:
        """Load parts into the objects given: ``checkpoint.restore(model=model, optimizers=[optimizer])``.

        Args:
            **objects: for the part of that name, an object with `load_state_dict`, or a list or mapping of them.

        Raises:
            CheckpointError: no such part, or one that does not fit; the message names what is missing, extra or of
                another shape. A module that does not fit is left untouched.
        """
        for name, target in objects.items():
            if name not in self:
                raise CheckpointError(f"{self.path} has no part {name!r}, only {', '.join(self) or 'none'}.")
            _restore(target, self[name], name)


def _restore(target: Any, state: Any, name: str) -> None:
    if isinstance(target, (list, tuple, Mapping)):
        pairs = dict(target) if isinstance(target, Mapping) else dict(enumerate(target))
        states = dict(state) if isinstance(state, Mapping) else dict(enumerate(state))
        if pairs.keys() != states.keys():
            raise CheckpointError(f"{name}: saved for {list(states)}, asked for {list(pairs)}.")
        for key, value in pairs.items():
            _restore(value, states[key], f"{name}[{key!r}]")
        return
    if isinstance(target, torch.nn.Module):
        check_fit(target.state_dict(), state, name)
    try:
        target.load_state_dict(state)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name} does not fit a {type(target).__name__}: {error}") from error


def check_fit(wanted: Mapping[str, Any], saved: Mapping[str, Any], name: str) -> None:
    """Raise a `CheckpointError` that names the tensors missing, extra or of another shape; none when all fit."""
    faults = {
        "missing": [key for key in wanted if key not in saved],
        "unexpected": [key for key in saved if key not in wanted],
        "of another shape": [
            f"{key} {tuple(saved[key].shape)} instead of {tuple(value.shape)}"
            for key, value in wanted.items()
            if isinstance(value, Tensor) and isinstance(saved.get(key), Tensor) and saved[key].shape != value.shape
        ],
    }
    found = [
        f"{kind}: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        for kind, names in faults.items()
        if names
    ]
    if found:
        raise CheckpointError(f"{name} is of another stack; {'; '.join(found)}.", remedy="Build the model as saved.")


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nest of dicts, lists and tuples with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping) and type(tree) is not Counter:
        return {key: map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(value, change) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(value, change) for value in tree)
    return tree


def save_checkpoint(path: str | os.PathLike[str], **parts: Any) -> None:
    """Write a checkpoint folder that replaces `path` once it is whole and on disk.

    Args:
        path: the folder. A kill leaves the old one or the new one, never a mixture.
        **parts: nests of dicts, lists and tuples of tensors, numpy arrays, numbers, strings and None, or objects with
            `state_dict` (a module, an optimizer, lists of them). None as a part is left out.

    Raises:
        TypeError: something else in a part; the message says where.
        DiskFullError: no room; what was there before is kept.

    Example:
        >>> import tempfile
        >>> layer = torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/a", model=layer, step=3)
        ...     load_checkpoint(f"{folder}/a").step
        3
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    trees, tensors = {}, {}
    for part, value in parts.items():
        if value is not None:
            tensors[part] = dict[str, Tensor]()
            trees[part] = _encode(value, part, "", tensors[part])
    needed = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
    if shutil.disk_usage(target.parent).free < needed:
        raise _disk_full(target.parent, needed)
    try:
        with replacing_folder(target, foreign=_foreign) as temporary:
            files = {}
            for part, named in tensors.items():
                if named:
                    file = temporary / f"{part}.safetensors"
                    save_file(named, file)
                    files[file.name] = _sha256(file)
            body = {"format": FORMAT, "version": VERSION, "files": files, "parts": trees}
            manifest = json.dumps({"digest": _digest(body), "body": body}, allow_nan=False)
            (temporary / MANIFEST).write_text(manifest, encoding="utf-8")
    except OSError as error:
        if is_disk_full(error):
            raise _disk_full(target.parent, needed) from error
        raise


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a folder that `save_checkpoint` wrote, after checking that every byte is as it was written.

    Raises:
        CheckpointError: there is none, it is damaged, or it comes from elsewhere or from a newer version.
    """
    folder = Path(path)
    if not folder.exists() and displaced(folder).exists():
        folder = displaced(folder)  # a kill came between the two renames
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        body, digest = manifest["body"], manifest["digest"]
        kind, version = body["format"], body["version"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no checkpoint: it has no {MANIFEST}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged or not ours ({error}).") from error
    if kind != FORMAT or version != VERSION:
        raise CheckpointError(
            f"{folder} has format {kind!r} version {version!r}, expected {FORMAT!r} version {VERSION}.",
            remedy="Load it with the version of kexue that wrote it.",
        )
    if _digest(body) != digest:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: its digest differs.")
    tensors = {}
    for name, digest in body["files"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing.")
        if _sha256(file) != digest:
            raise CheckpointError(f"{file} is damaged: its hash differs from the one in {MANIFEST}.")
        try:
            tensors[name.removesuffix(".safetensors")] = load_file(file)
        except SafetensorError as error:  # pragma: no cover - the hash comes first
            raise CheckpointError(f"{file} is damaged: {error}.") from error
    return Checkpoint(folder, {part: _decode(tree, tensors.get(part, {})) for part, tree in body["parts"].items()})


def _encode(value: Any, where: str, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as plain JSON, tensors put into `tensors` by path. A mark is a dict whose one key begins with $."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, np.generic):
        return _encode(value.item(), where, name, tensors)
    if isinstance(value, (Tensor, np.ndarray)):
        mark = "$tensor" if isinstance(value, Tensor) else "$array"
        tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(value)
        key = name or "value"
        while key in tensors:
            key += "_"
        # A copy, since tied weights share memory and safetensors wants each tensor on its own.
        tensors[key] = tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {mark: key}

    def inside(key: Any, item: Any) -> Any:
        return _encode(item, f"{where}[{key!r}]", f"{name}.{key}" if name else str(key), tensors)

    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value) and type(value) is not Counter:
            return {key: inside(key, item) for key, item in value.items()}
        mark = "$counter" if type(value) is Counter else "$dict"
        return {mark: [[_encode(key, where, "", {}), inside(key, item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [inside(index, item) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if hasattr(value, "state_dict"):
        return _encode(value.state_dict(), where, name, tensors)
    raise TypeError(f"cannot save {where}, a {type(value).__name__}: expected tensors, numbers, strings, None or nests")


def _decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    mark: str = next(iter(tree), "")
    if not mark.startswith("$"):
        return {key: _decode(item, tensors) for key, item in tree.items()}
    value: Any = tree[mark]
    if mark == "$tensor":
        return tensors[value]
    if mark == "$array":
        return tensors[value].numpy()
    if mark == "$float":
        return float(value)
    if mark == "$tuple":
        return tuple(_decode(item, tensors) for item in value)
    pairs = {_decode(key, tensors): _decode(item, tensors) for key, item in value}
    return Counter(pairs) if mark == "$counter" else pairs


def _foreign(folder: Path) -> list[str]:
    """Names in a folder that no checkpoint of ours holds."""
    names = {path.name for path in folder.iterdir()}
    if not names:
        return []
    try:
        ours = {MANIFEST, *json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["body"]["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return sorted(names)
    return sorted(names - ours)


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _disk_full(folder: Path, needed: int) -> DiskFullError:
    free = shutil.disk_usage(folder).free
    return DiskFullError(
        f"{folder} has {free:,} bytes free, the checkpoint needs {needed:,}.",
        needed=needed,
        free=free,
        remedy="Make room and run again: the last good checkpoint is kept.",
    )
