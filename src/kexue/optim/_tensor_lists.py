"""Lists of tensors: grouped by device and type, copied, and cut into pieces that fit into the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

_CACHED = 1 << 17  # number of elements of a tensor that stay in the cache during several passes


def batches(*lists: Iterable[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Equally long lists of tensors, split by device and type of their members, as `torch._foreach` wants them."""
    kinds: dict[Any, list[tuple[Tensor, ...]]] = {}
    for row in zip(*lists, strict=True):
        kinds.setdefault(tuple((type(t), t.device, t.dtype) for t in row), []).append(row)
    for rows in kinds.values():
        yield tuple(list(column) for column in zip(*rows, strict=True))


def snapshot(p: Tensor, scratch: dict[Tensor, Tensor]) -> Tensor:
    """A copy of a parameter; on a CPU in memory kept by `scratch`, since fresh pages cost more than the copy."""
    if p.device.type != "cpu" or type(p.data) is not Tensor:
        return p.detach().clone()
    copy = scratch.get(p)
    if copy is None or copy.shape != p.shape or copy.dtype != p.dtype:
        copy = scratch[p] = torch.empty_like(p.detach())
    return copy.copy_(p.detach())


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views that together cover tensors of one shape; on a CPU short enough for several passes in the cache."""
    first = tensors[0]
    plain = first.device.type == "cpu" and all(type(t.data) is Tensor and t.is_contiguous() for t in tensors)
    if not plain or first.numel() <= _CACHED:
        yield tensors
        return
    yield from zip(*(torch.split(t.view(-1), _CACHED) for t in tensors), strict=True)
