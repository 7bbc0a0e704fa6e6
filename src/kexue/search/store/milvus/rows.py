"""Documents as rows of a collection in Milvus."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from kexue.errors import DataError, IndexFormatError
from kexue.search.products import Vectors
from kexue.search.store.base import Match, Row, dump_metadata
from kexue.search.store.milvus.connection import LONGEST
from kexue.search.store.milvus.expressions import searchable


def make_entity(row: Row, key: int) -> dict[str, Any]:
    """Return a document as a row of Milvus."""
    if row.vector is None:
        raise ValueError(f"document {row.id!r} comes without a vector")
    metadata = dump_metadata(row.metadata)
    for what, value in {"id": row.id, "text": row.text, "metadata": metadata}.items():
        if len(value) * 4 > LONGEST and (length := len(value.encode())) > LONGEST:
            raise DataError(
                f"the {what} of document {row.id[:60]!r} has {length} bytes, Milvus takes {LONGEST}.",
                remedy="Split it into several documents, or keep the index in a file.",
            )
    return {
        "id": row.id,
        "key": key,
        "text": row.text,
        "metadata": metadata,
        "fields": searchable(row.metadata),
        "vector": np.ascontiguousarray(row.vector, np.float32),
    }


def parse_document(row: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Return id, text and metadata of a row."""
    try:
        return row["id"], row["text"], json.loads(row["metadata"])
    except (ValueError, RecursionError):
        raise IndexFormatError(
            f"the metadata of document {row['id']!r:.80} in Milvus are not what was written.",
            remedy="Add it again, or copy the index there again (kexue index copy).",
        ) from None


def parse_vector(row: Mapping[str, Any]) -> Vectors | None:
    """Return the vector of a row; None where it was not asked for."""
    return np.asarray(row["vector"], np.float32) if "vector" in row else None


def make_match(row: Mapping[str, Any], score: float) -> Match:
    """Return a row and its score as an answer."""
    return Match(*parse_document(row), float(score), parse_vector(row))
