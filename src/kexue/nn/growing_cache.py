"""Keys and values with room for more tokens, so that a step of a `Transformer` copies none of the earlier ones."""

from __future__ import annotations

from torch import Tensor

KeysValues = tuple[Tensor, Tensor]  # (B, H, T, D) each


class GrowingKeysValues:
    """Keys and values of one layer, the first and second item, with room behind them; for inference only.

    `append` writes in place, so this continues one sequence of steps; make another from its items for another.

    Args:
        past: keys and values (B, H, T, D) of the tokens so far, copied.
        room: number of tokens that may follow, at least 0.
        rows: (B',) int64, rows of `past` to begin with, each as often as it is named; None is each once.
    """

    def __init__(self, past: KeysValues | GrowingKeysValues, room: int, rows: Tensor | None = None) -> None:
        self._length, buffers = past[0].shape[-2], []
        for given in (past[0], past[1]):
            batch, heads, length, width = given.shape
            size = batch if rows is None else len(rows)
            buffer = given.new_empty(size, heads, length + room, width)
            buffer[..., :length, :] = given if rows is None else given[rows]
            buffers.append(buffer)
        self._buffers: KeysValues = (buffers[0], buffers[1])

    def __getitem__(self, item: int) -> Tensor:
        return self._buffers[item][..., : self._length, :]

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add tokens behind those that are there; ValueError where there is no room for them."""
        length, room = keys.shape[-2], self._buffers[0].shape[-2] - self._length
        if length > room:
            raise ValueError(f"the cache has room for {room} more tokens, got {length}; make it with a larger room")
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[..., self._length : self._length + length, :] = new
        self._length += length

    def keep(self, rows: Tensor) -> None:
        """Keep these rows (B',) only, in this order."""
        keys, values = self._buffers
        self._buffers = keys.index_select(0, rows), values.index_select(0, rows)
