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
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kexue._files import displaced, is_disk_full, replacing_folder
from kexue._text import parse_json
from kexue.errors import CheckpointError, DataError, DiskFullError
from kexue.optim.kind import check_kind
from kexue.optim.stack import Layer

FORMAT, VERSION = "kexue-checkpoint", 1
MANIFEST = "checkpoint.json"
_SHOWN = 5  # names in an error message
_WHOLE = {torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
_WHOLE |= {torch.int8, torch.int16, torch.int32, torch.int64}
_PARALLEL = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)


class DamagedError(CheckpointError):
    """A checkpoint is incomplete, or its bytes are not those that were written."""


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
            _restore(target, self[name], name, self.get("frozen") or ())


def _restore(target: Any, state: Any, name: str, frozen: Collection[str]) -> None:
    if isinstance(target, (list, tuple, Mapping)):
        pairs = dict(target) if isinstance(target, Mapping) else dict(enumerate(target))
        states = dict(state) if isinstance(state, Mapping) else dict(enumerate(state))
        if pairs.keys() != states.keys():
            raise CheckpointError(f"{name}: saved for {list(states)}, asked for {list(pairs)}.")
        for key, value in pairs.items():
            _restore(value, states[key], f"{name}[{key!r}]", frozen)
        return
    if isinstance(target, torch.nn.Module):
        state = fit(target, state, name, frozen)
    try:
        if isinstance(target, torch.optim.Optimizer) and not isinstance(target, Layer):
            check_kind(state, target)
        target.load_state_dict(state)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name} does not fit a {type(target).__name__}: {error}") from error


def plain_state(module: torch.nn.Module) -> dict[str, Any]:
    """A module's state dict under the names that it has without `torch.compile` and data parallel wrappers."""
    return {plain_name(module, name): value for name, value in module.state_dict().items()}


def fit(module: torch.nn.Module, state: Mapping[str, Any], name: str, absent: Collection[str] = ()) -> dict[str, Any]:
    """A saved state under the names of `module` as it is wrapped now.

    Args:
        module: what the state is for.
        state: by plain names.
        name: for the message.
        absent: plain names that were left out on purpose; the module's own values stand for them.

    Raises:
        CheckpointError: tensors are missing, extra or of another shape.
    """
    own = module.state_dict()
    plain = {key: plain_name(module, key) for key in own}
    kept = {plain[key]: value for key, value in own.items() if plain[key] in absent and plain[key] not in state}
    filled = {**state, **kept}
    check_fit({plain[key]: value for key, value in own.items()}, filled, name)
    return {key: filled[plain[key]] for key in own}


def plain_name(module: torch.nn.Module, name: str) -> str:
    """A name in the state dict of `module` without the steps of `torch.compile` and data parallel wrappers."""
    plain, part = [], module
    for step in name.split("."):
        wraps = step == "_orig_mod" or (step == "module" and isinstance(part, _PARALLEL))
        plain += [] if wraps else [step]
        part = getattr(part, step) if step in part._modules else part
    return ".".join(plain)


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
        DataError: `path` is a file, or a folder that holds anything but a checkpoint.
        DiskFullError: no room; what was there before is kept.

    Example:
        >>> import tempfile
        >>> layer = torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/a", model=layer, step=3)
        ...     load_checkpoint(f"{folder}/a").step
        3
    """
    write_checkpoint(path, parts)


def write_checkpoint(
    path: str | os.PathLike[str], parts: Mapping[str, Any], *, older: str | os.PathLike[str] | None = None
) -> None:
    """As `save_checkpoint`; what is replaced is kept at `older`, if that is given."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    trees, tensors = {}, {}
    for part, value in parts.items():
        if value is not None:
            tensors[part] = dict[str, Tensor]()
            try:
                trees[part] = _encode(value, part, "", tensors[part])
            except RecursionError:
                raise TypeError(f"cannot save {part}: it is nested too deeply, or holds itself") from None
    needed = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
    if shutil.disk_usage(target.parent).free < needed:
        raise _disk_full(target.parent, needed)
    try:
        with replacing_folder(target, foreign=foreign, older=older) as temporary:
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
    body = _read_manifest(folder)
    tensors = {}
    for name, digest in body["files"].items():
        file = folder / Path(name).name
        if not file.is_file():
            raise DamagedError(f"{folder} is incomplete: {name} is missing.")
        if _sha256(file) != digest:
            raise DamagedError(f"{file} is damaged: its hash differs from the one in {MANIFEST}.")
        try:
            tensors[name.removesuffix(".safetensors")] = load_file(file)
        except SafetensorError as error:  # pragma: no cover - the hash comes first
            raise DamagedError(f"{file} is damaged: {error}.") from error
    try:
        parts = {part: _decode(tree, tensors.get(part, {})) for part, tree in body["parts"].items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / MANIFEST} makes no sense ({type(error).__name__}: {error}).") from error
    return Checkpoint(folder, parts)


def load_newest(last: Path, previous: Path) -> Checkpoint:
    """The checkpoint `last`, or with a warning the one before it, where the last one is missing or damaged.

    Raises:
        CheckpointError: neither can be read, or the last one is of another make.
    """
    try:
        return load_checkpoint(last)
    except DamagedError as error:
        try:
            saved = load_checkpoint(previous)
        except CheckpointError:
            raise error from None
        warnings.warn(f"{error} Going on from {previous}, the one before.", stacklevel=2)
        return saved


def _read_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint says, whose digest is right."""
    file = folder / MANIFEST
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "is not there"
        raise DamagedError(f"{folder} is no checkpoint: it {what}.")
    try:
        manifest = parse_json(file.read_bytes(), file)
        body, digest = manifest["body"], manifest["digest"]
        kind, version = body["format"], body["version"]
    except FileNotFoundError as error:
        raise DamagedError(f"{folder} is no checkpoint: it has no {MANIFEST}.") from error
    except (DataError, KeyError, TypeError, OSError) as error:
        raise DamagedError(f"{file} is damaged or not ours ({error}).") from error
    try:
        intact = _digest(body) == digest
    except RecursionError:
        intact = False
    if kind != FORMAT or version != VERSION:
        raise (CheckpointError if intact else DamagedError)(
            f"{folder} has format {kind!r} version {version!r}, expected {FORMAT!r} version {VERSION}.",
            remedy="Load it with the version of kexue that wrote it.",
        )
    if not intact:
        raise DamagedError(f"{file} is damaged: its digest differs.")
    if not (isinstance(body.get("files"), dict) and isinstance(body.get("parts"), dict)):
        raise CheckpointError(f"{file} makes no sense: it names no files and parts.")
    return dict(body)


def _encode(value: Any, where: str, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as plain JSON, tensors put into `tensors` by path. A mark is a dict whose one key begins with $."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, complex):
        return {"$complex": [repr(float(value.real)), repr(float(value.imag))]}
    if isinstance(value, np.generic) and isinstance(value.item(), (bool, int, float, complex)):
        return _encode(value.item(), where, name, tensors)
    if isinstance(value, (Tensor, np.ndarray)):
        key = name or "value"
        while key in tensors:
            key += "_"
        tensor = _detach(value, where)
        # A copy, since tied weights share memory and safetensors wants each tensor on its own.
        tensors[key] = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).to(
            "cpu", copy=True, memory_format=torch.contiguous_format
        )
        place = {"$tensor" if isinstance(value, Tensor) else "$array": key}
        return {**place, "complex": True} if tensor.is_complex() else place

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
    if isinstance(value, torch.nn.Module):
        return _encode(plain_state(value), where, name, tensors)
    if hasattr(value, "state_dict"):
        return _encode(value.state_dict(), where, name, tensors)
    raise TypeError(f"cannot save {where}, a {type(value).__name__}: expected tensors, numbers, strings, None or nests")


def _detach(value: Tensor | np.ndarray[Any, Any], where: str) -> Tensor:
    """The numbers of a tensor or an array, without graph and views.

    Raises:
        TypeError: it has no numbers, as on the meta device, or such as no checkpoint holds.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc" or value.dtype.itemsize > (16 if value.dtype.kind == "c" else 8):
            raise TypeError(f"cannot save {where}, an array of {value.dtype}: expected numbers of at most 64 bits")
        value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C", subok=False))
    dtype = value.dtype
    whole = dtype.is_floating_point or dtype.is_complex or dtype in _WHOLE
    if value.is_meta or value.layout != torch.strided or value.is_nested or not whole:
        what = "on the meta device" if value.is_meta else f"of layout {value.layout} and type {dtype}"
        raise TypeError(f"cannot save {where}, a tensor {what}: expected dense numbers, such as those of .to_dense()")
    return value.detach().resolve_conj().resolve_neg()


def _decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    mark: str = next(iter(tree), "")
    if not mark.startswith("$"):
        return {key: _decode(item, tensors) for key, item in tree.items()}
    value: Any = tree[mark]
    if mark in {"$tensor", "$array"}:
        tensor = torch.view_as_complex(tensors[value]) if tree.get("complex") else tensors[value]
        return tensor if mark == "$tensor" else tensor.numpy()
    if mark == "$float":
        return float(value)
    if mark == "$complex":
        return complex(*map(float, value))
    if mark == "$tuple":
        return tuple(_decode(item, tensors) for item in value)
    pairs = {_decode(key, tensors): _decode(item, tensors) for key, item in value}
    return Counter(pairs) if mark == "$counter" else pairs


def foreign(folder: Path) -> list[str]:
    """Names in a folder that no checkpoint of ours holds; a damaged checkpoint of ours is ours."""
    names = {path.name for path in folder.iterdir()}
    data = (folder / MANIFEST).read_bytes() if (folder / MANIFEST).is_file() else b"?" if names else b""
    try:
        ours = {MANIFEST, *parse_json(data, folder)["body"]["files"]}
    except (DataError, KeyError, TypeError):
        damaged = FORMAT.encode() in data or not data.strip(b"\0")
        ours = {name for name in names if name == MANIFEST or name.endswith(".safetensors")} if damaged else set()
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
