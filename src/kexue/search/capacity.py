"""Memory, disk and time that an index of a given size needs, computed from measured constants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from kexue.search.engine import APPROXIMATE_FROM, exact_bytes, inverted_bytes, plan_cells
from kexue.search.postings import postings_bytes

# Measured on two cores of an AMD EPYC with native bfloat16, a 384-wide encoder of six layers.
TOKENS_PER_SECOND = 15_000  # encoded on both cores, short texts
ENCODE_SECONDS = 0.004  # one query
SCAN_BYTES_PER_SECOND = 20e9  # one core reading vectors
CELLS_BYTES_PER_SECOND = 4e9  # one core decoding the bytes of an inverted file
HIT_SECONDS = 0.0001  # reading the documents of ten hits from the file
PROCESS_BYTES = 700_000_000  # interpreter, libraries, a small encoder
BYTES_PER_TOKEN = 5.5  # bytes of text
ROW_BYTES = 110  # a document's row and keys in the file
PAGE_SHARE = 0.05  # share of the bytes of a vector that is lost at the ends of pages
CORES = 2
BUSY = 0.6  # load of a core above which queries wait


@dataclass(frozen=True)
class Capacity:
    """Resources that an index needs; the fields of ``kexue plan``.

    `vector_bytes` is the size of the vectors alone, `index_bytes` that of the search engine in memory, `memory_bytes`
    that of one serving process, `disk_bytes` that of the file with its snapshots. `replicas` is the number of processes
    of two cores that answer the wanted rate; 1 without a rate. `assumptions` are the numbers behind the estimate.
    """

    docs: int
    dims: int
    vector_bytes: int
    index_bytes: int
    memory_bytes: int
    disk_bytes: int
    build_seconds: float
    replicas: int
    assumptions: dict[str, Any]


def plan_capacity(
    docs: int,
    dims: int,
    *,
    qps: float | None = None,
    dtype: Literal["float32", "int8"] = "float32",
    tokens: int = 20,
) -> Capacity:
    """Estimate what an index needs.

    Args:
        docs: documents. dims: numbers of a stored vector. tokens: mean number in a document.
        qps: text queries per second, encoding included; None: no rate is required.
        dtype: ``"float32"`` keeps every vector in memory and compares all; ``"int8"`` keeps one byte per dimension in
            an inverted file (the default of an index from 200,000 documents on) and scores candidates exactly from
            disk.

    Raises:
        ValueError: a number that is not positive, an unknown dtype.

    >>> plan = plan_capacity(1_000_000, 128, dtype="int8")
    >>> round(plan.index_bytes / 1e6), plan.replicas
    (146, 1)
    """
    for name, value in (("docs", docs), ("dims", dims), ("tokens", tokens), ("qps", 1 if qps is None else qps)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if dtype not in ("float32", "int8"):
        raise ValueError(f"dtype must be 'float32' or 'int8', got {dtype!r}")
    approximate = dtype == "int8"
    vector_bytes = docs * dims * (1 if approximate else 4)
    index_bytes = inverted_bytes(docs, dims) if approximate else exact_bytes(docs, dims)
    search = _search_seconds(docs, dims, approximate=approximate)
    words = postings_bytes(docs, tokens)
    text_bytes = BYTES_PER_TOKEN * tokens
    rows = docs * (text_bytes + ROW_BYTES + 4 * dims * (1 + PAGE_SHARE))
    rate = CORES * BUSY / (ENCODE_SECONDS + search)
    assumptions: dict[str, Any] = {
        "dtype": dtype,
        "tokens_per_document": tokens,
        "text_bytes_per_document": text_bytes,
        "word_bytes": words,
        "cores_per_replica": CORES,
        "encoder": "six layers, 384 wide, bfloat16 on a processor",
        "tokens_per_second": TOKENS_PER_SECOND,
        "encode_seconds": ENCODE_SECONDS,
        "search_seconds": search,
        "queries_per_second_per_replica": rate,
        "approximate_from": APPROXIMATE_FROM,
    }
    if approximate:
        cells = plan_cells(docs)
        assumptions |= {"cells": cells.number, "probes": cells.probes}
    return Capacity(
        docs=docs,
        dims=dims,
        vector_bytes=vector_bytes,
        index_bytes=index_bytes,
        memory_bytes=index_bytes + words + PROCESS_BYTES,
        disk_bytes=round(rows + index_bytes + words),
        build_seconds=docs * tokens / TOKENS_PER_SECOND,
        replicas=1 if qps is None else math.ceil(qps / rate),
        assumptions=assumptions,
    )


def _search_seconds(docs: int, dims: int, *, approximate: bool) -> float:
    """Return the seconds of one query without its encoding."""
    if not approximate:
        return 4 * docs * dims / SCAN_BYTES_PER_SECOND + HIT_SECONDS
    cells = plan_cells(docs)
    read = docs * dims * cells.probes / cells.number + 4 * cells.number * dims
    return read / CELLS_BYTES_PER_SECOND + 2 * HIT_SECONDS
