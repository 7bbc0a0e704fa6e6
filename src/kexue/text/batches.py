"""Batches of texts of similar length, within a number of tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def split_by_tokens(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Yield the rows of each batch, longest texts first.

    A batch takes rows while ``rows * longest <= budget``, and at least one row.

    Args:
        lengths: (n,) tokens of each text.
        budget: most tokens of a batch, padding included.

    >>> [rows.tolist() for rows in split_by_tokens(np.array([3, 9, 4]), 8)]
    [[1], [2, 0]]
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start:stop]
        start = stop
