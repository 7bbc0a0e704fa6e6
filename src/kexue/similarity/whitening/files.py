"""Whitening file: moments and spectrum as tensors, parameters as JSON, in one safetensors file."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kexue._files import replacing, system_error
from kexue._text import parse_json
from kexue.errors import DataError
from kexue.similarity.whitening.kernel import Spectrum
from kexue.similarity.whitening.statistics import Moments

_FORMAT = "kexue.whitening"
_VERSION = 1
_WRITE = "Write one with Whitening.save or `kexue whiten fit`."


class WhiteningState(NamedTuple):
    """Content of a whitening file: constructor arguments, statistics, and the spectrum computed from them."""

    params: dict[str, Any]
    moments: Moments
    spectrum: Spectrum


def write_whitening(state: WhiteningState, path: str | os.PathLike[str]) -> None:
    """Write the file, or leave an older one as it was."""
    tensors = {
        "mean": state.moments.mean,
        "scatter": state.moments.scatter,
        "eigenvalues": state.spectrum.values,
        "eigenvectors": state.spectrum.vectors,
    }
    header = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "params": json.dumps({name: _plain_number(value) for name, value in state.params.items()}),
        "n": json.dumps(_plain_number(state.moments.n)),
    }
    with replacing(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, temporary, metadata=header)


def read_whitening(path: str | os.PathLike[str]) -> WhiteningState:
    """Read a file of `write_whitening`.

    Raises:
        DataError: the file is missing, damaged, of a newer version, or holds something else.
    """
    try:
        open(path, "rb").close()  # its error says more than the one of safetensors
    except OSError as error:
        raise system_error(error, path) from error
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
            params, n = parse_json(header["params"], path, kind=dict), parse_json(header["n"], path)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise file_error(error, path) from error
    moments = Moments(n, tensors["mean"], tensors["scatter"])
    return WhiteningState(params, moments, Spectrum(tensors["eigenvalues"], tensors["eigenvectors"]))


def file_error(error: Exception, path: str | os.PathLike[str]) -> DataError:
    """Return the error for a file that is not a whitening, or an incomplete one."""
    return DataError(f"damaged or not a whitening file ({error}).", path=path, remedy=_WRITE)


def _plain_number(value: Any) -> Any:
    """Return a numpy number as a Python number, for JSON."""
    return value.item() if isinstance(value, np.generic) else value
