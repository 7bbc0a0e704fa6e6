"""Noise of a batch, drawn item by item, so that an item is the same in a batch of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from kexue._counts import check_counts, is_whole
from kexue._tensors import as_generator


def sample_generators(
    seed: int, n: int, *, start: int = 0, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """Return the generators of items `start` to `start + n - 1` of a seed; item i has the same one whatever n is.

    Args:
        seed: >= 0.
        n: number of generators, >= 0.
        start: number of the first item, >= 0.
        device: of the generators.

    Example:
        >>> first = sample_generators(0, 4)[2]
        >>> again = sample_generators(0, 1, start=2)[0]
        >>> first.initial_seed() == again.initial_seed()
        True
    """
    check_counts(0, seed=seed, n=n, start=start)
    return [as_generator(_seed_of_item(seed, start + i), device) for i in range(n)]


def _seed_of_item(seed: int, item: int) -> int:
    """Return the 64-bit seed of one item, independent of its neighbours' seeds."""
    return int(np.random.SeedSequence(seed, spawn_key=(item,)).generate_state(1, np.uint64)[0])


class Noise:
    """Random numbers of a batch: a stream for each item, or one stream for all of them.

    Args:
        generator: an int is a seed, from which each item gets a stream of its own; a list has the stream of each item;
            a `torch.Generator` is one stream for all; None is one stream from the system's entropy.
        n: items.
        device: of the numbers.

    Example:
        >>> whole = Noise(0, 5).normal((2,))
        >>> bool((whole[3:] == Noise(0, 5)[3:].normal((2,))).all())
        True
    """

    def __init__(
        self,
        generator: torch.Generator | Sequence[torch.Generator] | int | None,
        n: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self._count = n
        self._streams: list[torch.Generator] | None
        self._shared: torch.Generator | None = None
        if is_whole(generator):
            self._streams = sample_generators(generator, n, device=self.device)
        elif isinstance(generator, Sequence):
            if len(generator) != n:
                raise ValueError(f"expected one generator for each of {n} items, got {len(generator)}")
            self._streams = [as_generator(one, self.device) for one in generator]
        else:
            self._streams, self._shared = None, as_generator(generator, self.device)

    def __len__(self) -> int:
        """Return the number of items."""
        return self._count

    def __getitem__(self, items: slice) -> Self:
        """Return the noise of some of the items; streams are shared with the whole."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._count = len(range(self._count)[items])
        if self._streams is not None:
            part._streams = self._streams[items]
        return part

    def normal(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Return standard normal numbers (n, *shape)."""
        return self._draw(torch.randn, shape, dtype)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Return numbers (n, *shape) uniform in [0, 1)."""
        return self._draw(torch.rand, shape, dtype)

    def _draw(self, draw: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype | None) -> Tensor:
        if self._streams is None:
            return draw((self._count, *shape), generator=self._shared, device=self.device, dtype=dtype)
        rows = [draw(tuple(shape), generator=one, device=self.device, dtype=dtype) for one in self._streams]
        return torch.stack(rows) if rows else torch.empty(0, *shape, device=self.device, dtype=dtype)
