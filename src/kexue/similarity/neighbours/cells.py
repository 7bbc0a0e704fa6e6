"""Number of cells of a FAISS inverted file."""

from __future__ import annotations

import math


def count_cells(n: int) -> int:
    """Return the number of cells for `n` vectors: about 4 sqrt(n), at least 39 vectors each, as FAISS recommends."""
    return max(1, min(round(4 * math.sqrt(n)), n // 39))
