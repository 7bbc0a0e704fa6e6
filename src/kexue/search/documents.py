"""Documents as callers give them, checked before anything is done with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kexue.errors import DataError
from kexue.search.store.base import Row

DEPTH = 64  # levels of metadata; what reads JSON gives up at some hundreds


class Checked(NamedTuple):
    """Documents fit to be stored; `places` are their positions in the input, `doubles` counts texts left out."""

    rows: list[Row]
    places: list[int]
    doubles: int


def text_id(text: str) -> str:
    """The id of a text that was given none: 32 hexadecimal digits of its hash.

    >>> text_id("退货要多久")
    '8233b05a265cf474d47d43a9fd8a2084'
    """
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def check_documents(
    texts: str | Iterable[str],
    ids: Iterable[str | int] | None,
    metadata: Iterable[Mapping[str, Any] | None] | None,
) -> Checked:
    """Check what `Index.add` was given; without `ids` a text is named by its hash, and counted once.

    Raises:
        DataError: a blank text, a bad or repeated id, metadata JSON cannot hold; positions are named.
        ValueError: the lengths differ. TypeError: not strings.
    """
    said = [texts] if isinstance(texts, str) else list(texts)
    names = None if ids is None else [ids] if isinstance(ids, str) else list(ids)
    known = [None] * len(said) if metadata is None else [metadata] if isinstance(metadata, Mapping) else list(metadata)
    for what, given in (("ids", names), ("metadata", known)):
        if given is not None and len(given) != len(said):
            raise ValueError(f"{len(said)} texts came with {len(given)} {what}.")
    seen: dict[str, int] = {}
    rows, places, doubles = [], [], 0
    for place, text in enumerate(said):
        check_text(text, f"position {place}")
        name = text_id(text) if names is None else check_id(names[place], f"position {place}")
        if name in seen:
            if names is None:
                doubles += 1
                continue
            raise DataError(
                f"the id {name!r} stands at positions {seen[name]} and {place}.",
                remedy="Give each document its own id.",
            )
        seen[name] = place
        rows.append(Row(name, text, check_metadata(known[place], f"position {place}")))
        places.append(place)
    return Checked(rows, places, doubles)


def check_text(text: object, where: str) -> None:
    """Refuse what is no text, or a blank one."""
    if not isinstance(text, str):
        raise TypeError(f"a text must be a string, got {type(text).__name__} at {where}.")
    if not text or text.isspace():
        raise DataError(f"the text at {where} is empty.", remedy="Leave it out.")
    if not text.isascii():
        _check_unicode(text, "text", where)


def check_id(name: object, where: str) -> str:
    """An id as text: a string that is not blank, or a whole number."""
    if isinstance(name, int | np.integer) and not isinstance(name, bool):
        return str(int(name))
    if not isinstance(name, str):
        raise TypeError(f"an id must be a string or a whole number, got {type(name).__name__} at {where}.")
    if not name or name.isspace() or "\0" in name:
        raise DataError(f"the id at {where} is blank or holds a NUL character: {name!r}.", remedy="Give another id.")
    if not name.isascii():
        _check_unicode(name, "id", where)
    return str(name)  # of numpy's strings, too


def check_metadata(metadata: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Metadata as JSON will give them back; numbers and arrays of numpy become those of Python."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a dictionary or None, got {type(metadata).__name__} at {where}.")
    try:
        dumped = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False, default=_plain)
        dumped.encode()
        kept: dict[str, Any] = json.loads(dumped)
        deep = _depth(kept) > DEPTH
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
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return float(value) if isinstance(value, np.longdouble) else value.tolist()
    raise TypeError(f"{type(value).__name__} is no value of JSON: {value!r:.60}")


def _depth(value: Any) -> int:
    """Levels of lists and dictionaries; no deeper than `json.loads` goes."""
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
