"""Request bodies: fields that a client may leave out or set to null, and fields that no route knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from kexue.serve.errors import ApiError

_MAX_NAMED = 8  # unknown fields that the warnings name; a body may hold a million
_MAX_NAME = 60  # characters of a name in a warning


def _fail_fast(schema: Any) -> Any:
    """Return a pydantic schema in which every list stops at its first wrong item."""
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list | tuple) else ():
        _fail_fast(part)
    if isinstance(schema, dict) and schema.get("type") == "list":
        schema["fail_fast"] = True
    return schema


class Fields(BaseModel):
    """Request body; null for an optional field is the same as leaving it out.

    Unknown fields are named in the warnings of the answer, or refused by a strict server.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Return a schema in which every list stops at its first wrong item, which avoids a million errors."""
        return _fail_fast(handler(source))

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: Any) -> Any:
        """Remove optional fields that are null."""
        if not isinstance(given, dict):
            return given
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in given.items() if value is not None or name in required}

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, given: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is expected: Python takes them for 1 and 0."""
        expected = cls.model_fields[str(info.field_name)].annotation
        kinds = get_args(expected) or (expected,)
        if isinstance(given, bool) and (int in kinds or float in kinds):
            raise PydanticKnownError("int_type" if int in kinds else "float_type")
        return given

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return a schema in which every optional field may be null."""
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        for name, field in own["properties"].items():
            if name not in own.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
                shape = {key: field.pop(key) for key in list(field) if key not in _ABOUT}
                field["anyOf"] = [*shape.get("anyOf", [shape]), {"type": "null"}]
        return schema


_ABOUT = ("title", "description", "default", "examples")


def check_fields(body: Fields, *, strict: bool) -> list[str]:
    """Return warnings that name unknown fields of a body and of the objects in it.

    Raises:
        ApiError: there is one, and the server is strict.
    """
    return warn_unknown(islice(_find_unknown(body), _MAX_NAMED + 1), "field", strict=strict)


def _find_unknown(body: Fields, before: str = "") -> Iterator[str]:
    """Yield the paths of unknown fields; `before` is the path of the body."""
    yield from (before + name for name in body.model_extra or ())
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, Fields):
            yield from _find_unknown(value, f"{before}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Fields):
            for place, one in enumerate(value):
                yield from _find_unknown(one, f"{before}{name}[{place}].")


def warn_unknown(unknown: Iterable[str], what: str, *, strict: bool) -> list[str]:
    """Return warnings that name unknown fields or parameters; ApiError where the server is strict.

    Args:
        unknown: names; no more than 9 are read.
        what: ``"field"`` or ``"parameter"``.
        strict: refuse the first one.
    """
    names = [name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..." for name in unknown]
    if strict and names:
        raise ApiError(400, f"unknown {what} {names[0]!r}; this server is strict.", param=names[0])
    warnings = [f"unknown {what} {name!r} was ignored." for name in names[:_MAX_NAMED]]
    return [*warnings, f"more unknown {what}s were ignored."] if len(names) > _MAX_NAMED else warnings
