"""Collections of text on disk, read as a stream whatever their size or format."""

from __future__ import annotations

from kexue.corpus.records import Record, Records, parse_scalar, read_records

__all__ = ["Record", "Records", "parse_scalar", "read_records"]
