"""Nested dicts, lists and tuples as plain JSON and a dict of tensors, and back exactly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kexue.train._module_state import plain_state

_WHOLE = {torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
_WHOLE |= {torch.int8, torch.int16, torch.int32, torch.int64}


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return the same nested dicts, lists and tuples with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping) and type(tree) is not Counter:
        return {key: map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(value, change) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(value, change) for value in tree)
    return tree


def encode(value: Any, where: str, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as plain JSON; its tensors go into `tensors`, named by their path.

    What JSON lacks becomes a dict whose one key starts with $, such as {"$tensor": name}.

    Args:
        value: the nested structure.
        where: its place in the checkpoint, for the error message.
        name: path of its tensors.
        tensors: filled with the tensors.

    Raises:
        TypeError: something that a checkpoint does not hold.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, complex):
        return {"$complex": [repr(float(value.real)), repr(float(value.imag))]}
    if isinstance(value, np.generic) and isinstance(value.item(), (bool, int, float, complex)):
        return encode(value.item(), where, name, tensors)
    if isinstance(value, (Tensor, np.ndarray)):
        key = name or "value"
        while key in tensors:
            key += "_"
        tensor = _detach(value, where)
        # A copy, since tied weights share memory and safetensors wants each tensor on its own.
        tensors[key] = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).to(
            "cpu", copy=True, memory_format=torch.contiguous_format
        )
        mark = {"$tensor" if isinstance(value, Tensor) else "$array": key}
        return {**mark, "complex": True} if tensor.is_complex() else mark

    def encode_item(key: Any, item: Any) -> Any:
        return encode(item, f"{where}[{key!r}]", f"{name}.{key}" if name else str(key), tensors)

    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value) and type(value) is not Counter:
            return {key: encode_item(key, item) for key, item in value.items()}
        kind = "$counter" if type(value) is Counter else "$dict"
        return {kind: [[encode(key, where, "", {}), encode_item(key, item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [encode_item(index, item) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, torch.nn.Module):
        return encode(plain_state(value), where, name, tensors)
    if hasattr(value, "state_dict"):
        return encode(value.state_dict(), where, name, tensors)
    raise TypeError(
        f"cannot save {where}, a {type(value).__name__}: expected tensors, numbers, strings, None, "
        "or dicts, lists and tuples of them"
    )


def _detach(value: Tensor | np.ndarray[Any, Any], where: str) -> Tensor:
    """The values of a tensor or an array, without graph and views.

    Raises:
        TypeError: it has no values, as on the meta device, or values of a type that no checkpoint holds.
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


def decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the nested structure that `encode` was given."""
    if isinstance(tree, list):
        return [decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    mark: str = next(iter(tree), "")
    if not mark.startswith("$"):
        return {key: decode(item, tensors) for key, item in tree.items()}
    value: Any = tree[mark]
    if mark in {"$tensor", "$array"}:
        tensor = torch.view_as_complex(tensors[value]) if tree.get("complex") else tensors[value]
        return tensor if mark == "$tensor" else tensor.numpy()
    if mark == "$float":
        return float(value)
    if mark == "$complex":
        return complex(*map(float, value))
    if mark == "$tuple":
        return tuple(decode(item, tensors) for item in value)
    pairs = {decode(key, tensors): decode(item, tensors) for key, item in value}
    return Counter(pairs) if mark == "$counter" else pairs
