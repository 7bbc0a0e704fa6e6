"""SHA-256 of files, by their bytes and by the meaning of their JSON; each is read once while it does not change."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from kexue._files import hash_file
from kexue._text import parse_json
from kexue.errors import CheckpointError, DataError


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    status = path.stat()
    return _hash_file(path.resolve(), status.st_size, status.st_mtime_ns)


def json_sha256(path: Path, without: tuple[str, ...] = ()) -> str | None:
    """Return the SHA-256 of a file's JSON value, whatever its layout; None where there is no file.

    Args:
        path: the file.
        without: keys of the top object that do not count.

    Raises:
        CheckpointError: the file is not JSON.
    """
    if not path.is_file():
        return None
    status = path.stat()
    return _hash_json(path.resolve(), without, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _hash_json(path: Path, without: tuple[str, ...], size: int, mtime_ns: int) -> str:
    try:
        content = parse_json(path.read_bytes(), path)
    except DataError as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error.message}", remedy=error.remedy) from error
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in without}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=64)
def _hash_file(path: Path, size: int, mtime_ns: int) -> str:
    return hash_file(path)
