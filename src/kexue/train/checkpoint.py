"""Checkpoints: nested state as a folder of safetensors and JSON, written atomically and read back exactly.

Each part becomes ``<part>.safetensors`` (its tensors, named by their path: for a model exactly the names of its state
dict) and an entry in ``checkpoint.json`` (everything else). Every file is hashed. There is no pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kexue._files import displaced_path, hash_file, is_disk_full, replacing_folder
from kexue._text import parse_json
from kexue.errors import CheckpointError, DataError, DiskFullError
from kexue.optim.kind import check_kind
from kexue.optim.stack import Layer
from kexue.train._encoding import decode, encode
from kexue.train._module_state import match_state

FORMAT, VERSION = "kexue-checkpoint", 1
MANIFEST = "checkpoint.json"


class DamagedError(CheckpointError):
    """A checkpoint is incomplete, or its bytes differ from those written."""


class Checkpoint(dict[str, Any]):
    """The saved parts by name: ``checkpoint["model"]`` or ``checkpoint.model``; tensors are on the CPU."""

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
            **objects: by name of the part, an object with `load_state_dict`, or a list or mapping of such objects.

        Raises:
            CheckpointError: no such part, or one that does not fit; the message names what is missing, extra or of
                another shape. A module that does not fit is left untouched.
        """
        for name, target in objects.items():
            if name not in self:
                raise CheckpointError(f"{self.path} has no part {name!r}, only {', '.join(self) or 'none'}.")
            _restore(target, self[name], name, self.get("frozen") or ())


def _restore(target: Any, state: Any, name: str, frozen: Collection[str]) -> None:
    """Load one part; `frozen` names weights that were left out of it on purpose."""
    if isinstance(target, (list, tuple, Mapping)):
        pairs = dict(target) if isinstance(target, Mapping) else dict(enumerate(target))
        states = dict(state) if isinstance(state, Mapping) else dict(enumerate(state))
        if pairs.keys() != states.keys():
            raise CheckpointError(f"{name}: the checkpoint has the entries {list(states)}, restore got {list(pairs)}.")
        for key, value in pairs.items():
            _restore(value, states[key], f"{name}[{key!r}]", frozen)
        return
    if isinstance(target, torch.nn.Module):
        state = match_state(target, state, name, frozen)
    try:
        if isinstance(target, torch.optim.Optimizer) and not isinstance(target, Layer):
            check_kind(state, target)
        target.load_state_dict(state)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name} does not fit a {type(target).__name__}: {error}") from error


def save_checkpoint(path: str | os.PathLike[str], **parts: Any) -> None:
    """Write a checkpoint folder that replaces `path` once it is whole and on disk.

    Args:
        path: the folder. A kill leaves the old checkpoint or the new one, never a mixture.
        **parts: nested dicts, lists and tuples of tensors, numpy arrays, numbers, strings and None, or objects with
            `state_dict` (a module, an optimizer, lists of them). None as a part is left out.

    Raises:
        TypeError: something else in a part; the message says where.
        DataError: `path` is a file, or a folder that holds anything but a checkpoint.
        DiskFullError: not enough room; the old checkpoint is kept.

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
    """`save_checkpoint`, with the replaced checkpoint kept at `older`, if given."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    trees, tensors = {}, {}
    for part, value in parts.items():
        if value is not None:
            tensors[part] = dict[str, Tensor]()
            try:
                trees[part] = encode(value, part, "", tensors[part])
            except RecursionError:
                raise TypeError(f"cannot save {part}: it is nested too deeply, or holds itself") from None
    needed = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
    if shutil.disk_usage(target.parent).free < needed:
        raise _disk_full_error(target.parent, needed)
    try:
        with replacing_folder(target, foreign=find_foreign, older=older) as temporary:
            files = {}
            for part, named in tensors.items():
                if named:
                    file = temporary / f"{part}.safetensors"
                    save_file(named, file)
                    files[file.name] = hash_file(file)
            body = {"format": FORMAT, "version": VERSION, "files": files, "parts": trees}
            manifest = json.dumps({"digest": _digest(body), "body": body}, allow_nan=False)
            (temporary / MANIFEST).write_text(manifest, encoding="utf-8")
    except OSError as error:
        if is_disk_full(error):
            raise _disk_full_error(target.parent, needed) from error
        raise


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, after a check that every byte is as it was written.

    Raises:
        CheckpointError: no checkpoint there, a damaged one, or one of another program or a newer version.
    """
    folder = Path(path)
    if not folder.exists() and displaced_path(folder).exists():
        folder = displaced_path(folder)  # a kill came between the two renames
    body = read_manifest(folder)
    tensors = {}
    for name, digest in body["files"].items():
        file = folder / Path(name).name
        if not file.is_file():
            raise DamagedError(f"{folder} is incomplete: {name} is missing.")
        if hash_file(file) != digest:
            raise DamagedError(f"{file} is damaged: its hash differs from the one in {MANIFEST}.")
        try:
            tensors[name.removesuffix(".safetensors")] = load_file(file)
        except SafetensorError as error:  # pragma: no cover - the hash comes first
            raise DamagedError(f"{file} is damaged: {error}.") from error
    try:
        parts = {part: decode(tree, tensors.get(part, {})) for part, tree in body["parts"].items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read ({type(error).__name__}: {error}).") from error
    return Checkpoint(folder, parts)


def load_newest(last: Path, previous: Path) -> Checkpoint:
    """The checkpoint `last`, or with a warning `previous` where the last one is missing or damaged.

    Raises:
        CheckpointError: neither can be read, or the last one is of another program or a newer version.
    """
    try:
        return load_checkpoint(last)
    except DamagedError as error:
        try:
            saved = load_checkpoint(previous)
        except CheckpointError:
            raise error from None
        warnings.warn(f"{error} Resuming from {previous}, the checkpoint before.", stacklevel=2)
        return saved


def read_manifest(folder: Path) -> dict[str, Any]:
    """Body of the manifest of a checkpoint, after a check of its digest.

    Raises:
        DamagedError: no manifest, or a damaged one.
        CheckpointError: another format or version, or a manifest without files and parts.
    """
    file = folder / MANIFEST
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "is not there"
        raise DamagedError(f"{folder} is not a checkpoint: it {what}.")
    try:
        manifest = parse_json(file.read_bytes(), file)
        body, digest = manifest["body"], manifest["digest"]
        kind, version = body["format"], body["version"]
    except FileNotFoundError as error:
        raise DamagedError(f"{folder} is not a checkpoint: it has no {MANIFEST}.") from error
    except (DataError, KeyError, TypeError, OSError) as error:
        raise DamagedError(f"{file} is damaged, or was not written by kexue ({error}).") from error
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
        raise CheckpointError(f"{file} is incomplete: it names no files and parts.")
    return dict(body)


def find_foreign(folder: Path) -> list[str]:
    """Names in a folder that no checkpoint of ours holds; files of a damaged checkpoint count as ours."""
    names = {path.name for path in folder.iterdir()}
    data = (folder / MANIFEST).read_bytes() if (folder / MANIFEST).is_file() else b"?" if names else b""
    try:
        ours = {MANIFEST, *parse_json(data, folder)["body"]["files"]}
    except (DataError, KeyError, TypeError):
        damaged = FORMAT.encode() in data or not data.strip(b"\0")
        ours = {name for name in names if name == MANIFEST or name.endswith(".safetensors")} if damaged else set()
    return sorted(names - ours)


def _digest(body: Any) -> str:
    """SHA-256 of the body of a manifest, in hexadecimal."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _disk_full_error(folder: Path, needed: int) -> DiskFullError:
    free = shutil.disk_usage(folder).free
    return DiskFullError(
        f"{folder} has {free:,} bytes free, the checkpoint needs {needed:,}.",
        needed=needed,
        free=free,
        remedy="Make room and run again: the last good checkpoint is kept.",
    )
