"""Files of vectors, as numpy writes them."""

from __future__ import annotations

import os
import tokenize
import zipfile
from typing import Any

import numpy as np

from kexue._files import explain
from kexue.errors import DataError

_SAVE = "Give a .npy file of floats of shape (n, d), as numpy.save writes."


def read_vectors(path: str | os.PathLike[str], *, kinds: str = "f") -> np.ndarray[Any, Any]:
    """The vectors (n, d) of a .npy file, mapped into memory.

    Args:
        path: the file.
        kinds: which kinds of numbers are accepted, as numpy's `dtype.kind` says them.

    Raises:
        DataError: it cannot be read, is empty, cut short or an archive, or holds anything but numbers of shape (n, d).
    """
    try:
        vectors: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except EOFError as error:
        raise DataError("the file is empty.", path=path, remedy=_SAVE) from error
    except OSError as error:
        message, remedy = explain(error)
        raise DataError(message, path=path, remedy=remedy) from error
    except (ValueError, TypeError, SyntaxError, OverflowError, tokenize.TokenError, zipfile.BadZipFile) as error:
        raise DataError(f"no array of vectors that can be read: {error}.", path=path, remedy=_SAVE) from error
    if not isinstance(vectors, np.ndarray):  # .npz
        names = ", ".join(vectors.files[:5])
        vectors.close()
        raise DataError(f"an archive of several arrays ({names}), not one array.", path=path, remedy=_SAVE)
    if vectors.ndim != 2 or vectors.dtype.kind not in kinds:
        raise DataError(
            f"expected floats of shape (n, d), got {vectors.dtype} of shape {vectors.shape}.", path=path, remedy=_SAVE
        )
    return vectors
