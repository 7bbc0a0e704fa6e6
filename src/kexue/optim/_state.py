"""The state of a wrapper and its inner optimizer as one mapping: writing to it changes the tensors of their owner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from itertools import chain
from typing import Any


class Entry(MutableMapping[str, Any]):
    """The state of one parameter: the values of `inner`, and under names with `prefix` those of the wrapper, `own`.

    As with a dict, an entry that was taken out of the state keeps its values and can be put in elsewhere.
    """

    def __init__(self, inner: MutableMapping[str, Any], own: dict[str, Any], prefix: str) -> None:
        self._inner, self._own, self._prefix = inner, own, prefix

    def _locate(self, name: str) -> tuple[MutableMapping[str, Any], str]:
        ours = name.startswith(self._prefix)
        return (self._own, name.removeprefix(self._prefix)) if ours else (self._inner, name)

    def __getitem__(self, name: str) -> Any:
        values, key = self._locate(name)
        return values[key]

    def __setitem__(self, name: str, value: Any) -> None:
        values, key = self._locate(name)
        values[key] = value

    def __delitem__(self, name: str) -> None:
        values, key = self._locate(name)
        del values[key]

    def __iter__(self) -> Iterator[str]:
        return chain(self._inner, [self._prefix + name for name in self._own])

    def __len__(self) -> int:
        return len(self._inner) + len(self._own)

    def __repr__(self) -> str:
        return repr(dict(self))


class State(MutableMapping[Any, Any]):
    """The states of all parameters; reading a missing one creates an empty one, as in torch's optimizers.

    Args:
        inner: the state of the inner optimizer.
        own: the wrapper's tensors by parameter and name.
        prefix: of the names under which these are shown.
    """

    def __init__(self, inner: MutableMapping[Any, Any], own: dict[Any, dict[str, Any]], prefix: str) -> None:
        self._inner, self._own, self._prefix = inner, own, prefix

    def __getitem__(self, key: Any) -> Entry:
        return Entry(self._inner[key], self._own.setdefault(key, {}), self._prefix)

    def __setitem__(self, key: Any, values: Mapping[str, Any]) -> None:
        prefix, values = self._prefix, dict(values)
        self._own[key] = {name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)}
        self._inner[key] = {name: v for name, v in values.items() if not name.startswith(prefix)}

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise KeyError(key)
        self._inner.pop(key, None)
        self._own.pop(key, None)

    def __contains__(self, key: object) -> bool:
        return key in self._inner or bool(self._own.get(key))

    def __iter__(self) -> Iterator[Any]:
        return iter(dict.fromkeys([*self._inner, *(key for key, values in self._own.items() if values)]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, key: Any, default: Any = None) -> Any:
        """The state of a parameter, or `default` where there is none; creates none."""
        if key not in self:
            return default
        return self[key]

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove and return the state of a parameter."""
        if key not in self and default:
            return default[0]
        values = self.get(key)
        del self[key]
        return values

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The state of a parameter; set to `default` where there is none."""
        if key not in self:
            self[key] = {} if default is None else default
        return self[key]

    def clear(self) -> None:
        """Remove all states, the wrapper's and the inner ones."""
        self._inner.clear()
        self._own.clear()

    def __repr__(self) -> str:
        return repr(dict(self))
