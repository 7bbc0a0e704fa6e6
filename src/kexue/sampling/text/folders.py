"""Folders of two files: a record (JSON), and arrays (safetensors) whose checksum the record holds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from kexue._arrays import Array
from kexue._files import hash_file, replacing_folder
from kexue.errors import CheckpointError

_SUMS = ("arrays_sha256", "sha256")  # of the file with the arrays; of all else in the record, this sum included


def write_folder(
    path: str | os.PathLike[str],
    names: tuple[str, str],
    record: Mapping[str, Any],
    arrays: Mapping[str, Array],
    *,
    beside: Set[str] = frozenset(),
) -> None:
    """Write a folder, completely or not at all; one that is there is replaced.

    Args:
        path: the folder.
        names: of the files with the record and with the arrays.
        record: JSON.
        arrays: by name.
        beside: names of other files that may be lost with a folder that is replaced.

    Raises:
        DataError: the folder holds other files.
    """
    from safetensors.numpy import save_file

    with replacing_folder(path, foreign=lambda old: sorted(set(os.listdir(old)) - {*names, *beside})) as folder:
        save_file(dict(arrays), folder / names[1])
        whole = {**record, _SUMS[0]: hash_file(folder / names[1])}
        text = json.dumps({**whole, _SUMS[1]: _sum(whole)}, ensure_ascii=False)
        (folder / names[0]).write_text(text, encoding="utf-8", errors="surrogatepass")


def read_folder(
    path: str | os.PathLike[str], names: tuple[str, str], version: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the record and the arrays of a folder.

    Args:
        path: the folder.
        names: as of `write_folder`.
        version: the record's `format`.

    Raises:
        CheckpointError: a file that is missing, of another format, or not as it was written; it is named.
    """
    from safetensors.numpy import load_file

    file = Path(path) / names[0]
    try:
        record = json.loads(file.read_text(encoding="utf-8", errors="surrogatepass"))
        if record["format"] != version:
            raise ValueError(f"its format is {record['format']!r}, expected {version}")
        if record.pop(_SUMS[1]) != _sum(record):
            raise ValueError("it is not as it was written")
        file = Path(path) / names[1]
        if hash_file(file) != record.pop(_SUMS[0]):
            raise ValueError("it is not as it was written")
        return record, load_file(file)
    except Exception as error:  # damaged files raise many types of errors
        raise CheckpointError(
            f"{file} cannot be read: {type(error).__name__}: {error}.", remedy="Copy the folder again, or make it anew."
        ) from error


def _sum(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
