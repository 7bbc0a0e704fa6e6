"""Record of a text, and the values of its metadata."""

from __future__ import annotations

import datetime
import decimal
import math
import re
from typing import Any, NamedTuple

from kexue.corpus.decoding import Decoder
from kexue.corpus.faults import RecordError

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?", re.ASCII)


class Record(NamedTuple):
    """One text of a collection, and its place.

    Attributes:
        id: identifier; None where the input has none.
        text: the text.
        metadata: values by column.
        path: file.
        line: line from 1 (row in Parquet; 1 for a whole file).
    """

    id: str | None
    text: str
    metadata: dict[str, Any]
    path: str
    line: int


def parse_scalar(text: str) -> str | int | float | bool:
    """Return the value of a CSV field or of a filter: a plain decimal number, ``true`` or ``false``, else the text.

    Numbers with leading zeros, a plus sign or an exponent, and those too long to be held exactly, stay text.

    >>> [parse_scalar(text) for text in ("42", "-3.50", "007", "1e5", "true", "True", "3.1.2")]
    [42, -3.5, '007', '1e5', True, 'True', '3.1.2']
    """
    if text in ("true", "false"):
        return text == "true"
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > 18 or text == "-0":
        return text
    if match[1] is None:
        return int(text)
    return float(text) if len(text) <= 16 else text


def to_json(value: Any, decoder: Decoder, *, path: str, line: int, column: str) -> Any:
    """Return a Parquet value as JSON can hold it: dates in ISO form, decimals as numbers, not-a-number as null.

    Args:
        value: value as Arrow gives it, strings as bytes or text.
        decoder: rule for malformed bytes.
        path, line, column: place of the value, for errors.

    Raises:
        DataError: a value of a type that JSON does not have, or malformed bytes.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        if value == value.to_integral_value():
            return int(value)
        return (
            float(value) if decimal.Decimal(repr(float(value))) == value else str(value)
        )  # same rule as `parse_scalar`
    if isinstance(value, bytes):
        return decoder.decode(value, path=path, line=line, column=column)
    if isinstance(value, list):
        return [to_json(item, decoder, path=path, line=line, column=column) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item, decoder, path=path, line=line, column=column) for key, item in value.items()}
    raise RecordError(
        "malformed",
        f"metadata cannot hold a {type(value).__name__}.",
        remedy="Remove the column from --metadata.",
        path=path,
        line=line,
        column=column,
    )
