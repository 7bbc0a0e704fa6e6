"""Conversion of callers' matrices: anything that numpy reads, and torch tensors if torch is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, TypeGuard

import numpy as np

from kexue.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]


def is_tensor(x: object) -> TypeGuard[Any]:
    """Return whether `x` is a torch tensor; never imports torch (a tensor cannot exist before torch is loaded)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def as_matrix(x: object, name: str = "X") -> Any:
    """Return `x` as a 2-D real array, or the tensor itself; no copy where none is needed. An iterator is read once.

    Raises:
        ValueError: not two-dimensional, complex, without columns, or a meta tensor, which has no values.
        TypeError: sparse, or entries that are not numbers.
    """
    if is_tensor(x):
        matrix: Any = x.detach()
        real = not matrix.is_complex()
        raise_no_values(matrix, name)
    else:
        x = reread(x)
        if hasattr(x, "tocsr"):
            raise TypeError(f"{name} is a sparse matrix; dense vectors (n, d) are needed. Use {name}.toarray().")
        matrix = np.asarray(x)
        real = matrix.dtype.kind != "c"
        if matrix.dtype.kind == "O":
            try:
                matrix = matrix.astype(np.float64)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name} must hold real numbers: {error}") from error
        elif matrix.dtype.kind not in "fiubc":
            raise ValueError(f"{name} must hold real numbers, got dtype {matrix.dtype}.")
    if not real:
        raise ValueError(f"Complex data not supported: {name} has dtype {matrix.dtype}, real numbers are needed.")
    if matrix.ndim != 2:
        raise ValueError(
            f"{name} must be 2-dimensional (n, d), got shape {tuple(matrix.shape)}. "
            f"Reshape your data: {name}[None, :] makes one vector a batch of one."
        )
    if matrix.shape[1] == 0:
        raise ValueError(f"0 feature(s) (shape={tuple(matrix.shape)}) while a minimum of 1 is required in {name}.")
    return matrix


def host(block: Any) -> Array:
    """Return numbers of any kind, on any device, as a numpy array (bfloat16 as float32)."""
    if is_tensor(block):
        raise_no_values(block, "the input")
        block = block.detach()
        if block.dtype.is_floating_point and block.element_size() < 4:
            block = block.float()
        return np.asarray(block.cpu().resolve_neg().numpy())
    return np.asarray(reread(block))


def as_float64(x: Any) -> Array:
    """Return numbers of any kind, on any device, as a float64 numpy array."""
    return np.asarray(host(x), dtype=np.float64)


def reread(x: Any) -> Any:
    """Return `x` itself, or the items of a one-shot iterator as a list, which can be read more than once."""
    return list(x) if isinstance(x, Iterator) else x


def raise_no_values(tensor: Any, name: str) -> None:
    """Raise on a tensor that numpy cannot read: ValueError on the meta device, TypeError where sparse."""
    if tensor.device.type == "meta":
        raise ValueError(f"{name} is on the meta device and has no values to compute with; pass one on a real device.")
    if tensor.layout != sys.modules["torch"].strided:
        raise TypeError(f"{name} is a sparse tensor; dense numbers are needed. Use {name}.to_dense().")


def finite_rows(x: Any, name: str) -> Array:
    """Return `x` as a float64 matrix; ValueError naming the first NaN or infinity, overflow of float64 included."""
    with np.errstate(over="ignore"):
        rows = host(as_matrix(x, name)).astype(np.float64)
    raise_non_finite(rows, name)
    return rows


def like(result: Array, x: Any) -> Any:
    """Return `result` as the kind, device and floating dtype of `x` (integers become float64)."""
    if is_tensor(x):
        torch = sys.modules["torch"]
        dtype = x.dtype if x.dtype.is_floating_point else torch.float64
        return torch.from_numpy(result).to(device=x.device, dtype=dtype)
    dtype = x.dtype if x.dtype.kind == "f" else np.float64
    return result.astype(dtype, copy=False)


def working_dtype(x: Any) -> np.dtype[Any]:
    """Return float32 for float32 and shorter floats, float64 for everything else."""
    if is_tensor(x):
        small = x.dtype.is_floating_point and x.element_size() <= 4
    else:
        small = x.dtype.kind == "f" and x.dtype.itemsize <= 4
    return np.dtype(np.float32 if small else np.float64)


def raise_non_finite(x: Any, name: str = "X", *, step: int = 65_536) -> None:
    """Raise DataError naming the first NaN or infinity of `x`; return where all of it is finite."""
    for start in range(0, x.shape[0], step):
        bad = ~np.isfinite(host(x[start : start + step]))
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            value = host(x[start + row : start + row + 1])[0, column]
            what = "NaN" if np.isnan(value) else "infinity"
            raise DataError(
                f"{name} holds {value} ({what}) at row {start + row}, column {column}.",
                remedy=f"Drop such rows first: {name}[np.isfinite({name}).all(axis=1)].",
            )
