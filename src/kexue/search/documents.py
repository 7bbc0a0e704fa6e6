"""Documents, ids and metadata from callers, checked before they are used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kexue.errors import DataError
from kexue.search.filters import plain_value
from kexue.search.products import Vectors
from kexue.search.space import as_vectors
from kexue.search.store.base import Row

DEPTH = 64  # levels of metadata; JSON readers fail at some hundreds


class Document(NamedTuple):
    """A stored text with its id and metadata."""

    id: str
    text: str
    metadata: dict[str, Any]


class CheckedDocuments(NamedTuple):
    """Documents that can be stored; `positions` are those in the input, `duplicates` counts repeated texts."""

    rows: list[Row]
    positions: list[int]
    duplicates: int


def text_id(text: str) -> str:
    """Return the id for a text that was given without an id: 32 hexadecimal digits of its hash.

    >>> text_id("退货要多久")
    '8233b05a265cf474d47d43a9fd8a2084'
    """
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def check_documents(
    texts: str | Iterable[str],
    ids: Iterable[str | int] | None,
    metadata: Iterable[Mapping[str, Any] | None] | None,
) -> CheckedDocuments:
    """Check the documents for `Index.add`; without `ids` a text is named by its hash, and taken once.

    Raises:
        DataError: a blank text, a bad or repeated id, metadata JSON cannot hold; positions are named.
        ValueError: the lengths differ. TypeError: not strings.
    """
    given = [texts] if isinstance(texts, str) else list(texts)
    names = None if ids is None else [ids] if isinstance(ids, str) else list(ids)
    about = [None] * len(given) if metadata is None else [metadata] if isinstance(metadata, Mapping) else list(metadata)
    for what, values in (("ids", names), ("metadata", about)):
        if values is not None and len(values) != len(given):
            raise ValueError(f"{len(given)} texts came with {len(values)} {what}.")
    seen: dict[str, int] = {}
    rows, positions, duplicates = [], [], 0
    for place, text in enumerate(given):
        check_text(text, f"position {place}")
        name = text_id(text) if names is None else check_id(names[place], f"position {place}")
        if name in seen:
            if names is None:
                duplicates += 1
                continue
            raise DataError(
                f"the id {name!r} is at positions {seen[name]} and {place}.",
                remedy="Give each document its own id.",
            )
        seen[name] = place
        rows.append(Row(name, text, check_metadata(about[place], f"position {place}")))
        positions.append(place)
    return CheckedDocuments(rows, positions, duplicates)


def match_vectors(vectors: Any, checked: CheckedDocuments, *, dim: int | None) -> Vectors:
    """Return the given vectors of checked documents, without those of repeated texts.

    Args:
        vectors: (n, dim) for all n texts of the input.
        checked: the documents of the input.
        dim: expected length of a vector; None accepts any.

    Raises:
        ValueError: another number of vectors than texts, NaN or infinity. SpaceMismatchError: another length.
    """
    rows = dict(zip(checked.positions, checked.rows, strict=True))
    raw = as_vectors(
        vectors,
        dim=dim,
        what="vectors",
        name=lambda at: f"row {at} (id {rows[at].id!r:.80})" if at in rows else f"row {at}",
    )
    n = len(checked.rows) + checked.duplicates
    if len(raw) != n:
        raise ValueError(f"{n} texts came with {len(raw)} vectors.")
    return raw[checked.positions]


def check_ids(ids: str | Iterable[str]) -> list[str]:
    """Return ids as a list of strings; one id counts as a list of one."""
    if isinstance(ids, bytes | bytearray | memoryview):
        raise TypeError(f"ids must be text, got {type(ids).__name__}: {bytes(ids)!r:.60}.")
    return [check_id(one, f"position {at}") for at, one in enumerate([ids] if isinstance(ids, str) else ids)]


def check_text(text: object, where: str) -> None:
    """Raise TypeError for anything but a string, and DataError for a blank one."""
    if not isinstance(text, str):
        raise TypeError(f"a text must be a string, got {type(text).__name__} at {where}.")
    if not text or text.isspace():
        raise DataError(f"the text at {where} is empty.", remedy="Leave it out.")
    if not text.isascii():
        _check_unicode(text, "text", where)


def check_id(name: object, where: str) -> str:
    """Return an id as text; it may be a string that is not blank, or a whole number."""
    if isinstance(name, int | np.integer) and not isinstance(name, bool):
        return str(int(name))
    if not isinstance(name, str):
        raise TypeError(f"an id must be a string or a whole number, got {type(name).__name__} at {where}.")
    if not name or name.isspace() or "\0" in name:
        raise DataError(f"the id at {where} is blank or holds a NUL character: {name!r}.", remedy="Give another id.")
    if not name.isascii():
        _check_unicode(name, "id", where)
    return str(name)  # also of a numpy string


def check_metadata(metadata: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Return metadata as JSON will restore them; numbers and arrays of numpy become Python numbers and lists."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a dictionary or None, got {type(metadata).__name__} at {where}.")
    try:
        dumped = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False, default=_plain)
        dumped.encode()
        restored: dict[str, Any] = json.loads(dumped)
        deep = _depth(restored) > DEPTH
    except RecursionError:
        deep = True
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the metadata at {where} cannot be written as JSON: {error}.",
            remedy="Use strings, finite numbers, booleans, None, and lists and dictionaries of these.",
        ) from error
    if deep:
        raise DataError(
            f"the metadata at {where} are nested too deeply, expected at most {DEPTH} levels.",
            remedy="Keep them flat: filters look at the first level only.",
        )
    return restored


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return plain_value(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value: {value!r:.60}")


def _depth(value: Any) -> int:
    """Return the levels of lists and dictionaries in a value that `json.loads` has read."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _check_unicode(text: str, what: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the {what} at {where} holds half a surrogate pair, at character {error.start}.",
            remedy="Decode its source with errors='replace'.",
        ) from error
