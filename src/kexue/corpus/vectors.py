"""Vectors in .npy files."""

from __future__ import annotations

import os
import tokenize
from collections.abc import Iterator
from typing import Any

import numpy as np

from kexue._files import system_error
from kexue.errors import DataError

CHUNK = 8192  # rows read at a time
_SAVE = "Give a .npy file of floats of shape (n, d), as numpy.save writes."


def read_vectors(path: str | os.PathLike[str], *, kinds: str = "f") -> np.ndarray[Any, Any]:
    """Return the vectors (n, d) of a .npy file, mapped into memory.

    Args:
        path: a .npy file, n >= 1.
        kinds: accepted kinds of numbers, letters of numpy's `dtype.kind`.

    Raises:
        DataError: the file cannot be read, is empty, cut short or an archive, or has no numbers of shape (n, d).
    """
    vectors = read_array(path)
    if vectors.ndim != 2 or vectors.dtype.kind not in kinds:
        raise DataError(
            f"expected floats of shape (n, d), got {vectors.dtype} of shape {vectors.shape}.", path=path, remedy=_SAVE
        )
    if not len(vectors):
        raise DataError("the file has no rows.", path=path, remedy="Leave the file out.")
    return vectors


def read_array(path: str | os.PathLike[str]) -> np.ndarray[Any, Any]:
    """Return the array of a .npy file, of any shape and type without objects, mapped into memory.

    Raises:
        DataError: the file cannot be read, is empty, cut short or an archive.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(6)
        if not head.startswith(b"\x93NUMPY"):
            what = (
                "it is an archive of several arrays"
                if head.startswith(b"PK")
                else "it is not a .npy file"
                if head
                else "it is empty"
            )
            raise DataError(f"expected one array of numbers: {what}.", path=path, remedy=_SAVE)
        with np.errstate(over="ignore"):  # in the size of a damaged shape
            array: np.ndarray[Any, Any] = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise system_error(error, path) from error
    except DataError:
        raise
    except (ValueError, TypeError, SyntaxError, OverflowError, EOFError, tokenize.TokenError) as error:
        raise DataError(f"the array of numbers cannot be read: {error}.", path=path, remedy=_SAVE) from error
    return array


def vector_chunks(vectors: np.ndarray[Any, Any], path: str | os.PathLike[str]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the rows of `read_vectors`, 8,192 at a time.

    Args:
        vectors: (n, d).
        path: their file, for errors.

    Raises:
        DataError: a number that is not finite, with its row in the file and its column, both from 0.
    """
    for start in range(0, len(vectors), CHUNK):
        chunk = vectors[start : start + CHUNK]
        bad = np.argwhere(~np.isfinite(chunk))
        if len(bad):
            row, column = map(int, bad[0])
            raise DataError(
                f"row {start + row} holds {chunk[row, column]} in column {column}, both from 0.",
                path=path,
                remedy="Save it without such rows: x[np.isfinite(x).all(axis=1)].",
            )
        yield chunk
