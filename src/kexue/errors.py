"""Errors for callers to catch. Every message names the value received; `remedy` says what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def _rebuild(kind: type[KexueError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> KexueError:
    """Return an unpickled error, made from its arguments and attributes without calling its constructor."""
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(attributes)
    return error


class KexueError(Exception):
    """Base class of the library's errors; `remedy` says what to do, None where nothing can be done."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by attributes, since constructors differ: errors of a worker reach the parent process."""
        return _rebuild, (type(self), self.args, self.__dict__)


class MissingDependencyError(KexueError, ImportError):
    """An optional package is not installed; `extra` is the extra of kexue that contains it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed.", remedy=f'Install it with: pip install "kexue[{extra}]"')
        self.package = package
        self.extra = extra


class NotFittedError(KexueError, ValueError, AttributeError):
    """An estimator was used before `fit`."""


class NotSupported(KexueError, NotImplementedError):  # noqa: N818 - the contract's name
    """An operation that the object does not support; the message says what it does support."""


class UnknownArticleError(KexueError, KeyError):
    """No article, or no experiment yet, has the given name, number or address."""


class DataError(KexueError, ValueError):
    """User data that cannot be read or is invalid; `path`, `line` and `column` say where."""

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        path: str | os.PathLike[str] | None = None,
        line: int | None = None,
        column: str | int | None = None,
    ) -> None:
        where = [str(os.fspath(path))] if path is not None else []
        where += [f"line {line}"] if line is not None else []
        where += [f"column {column!r}"] if column is not None else []
        super().__init__(f"{', '.join(where)}: {message}" if where else message, remedy=remedy)
        self.path = os.fspath(path) if path is not None else None
        self.line = line
        self.column = column


class ModelNotFoundError(KexueError, FileNotFoundError):
    """No encoder is available; `tried` lists the places searched, in order."""

    def __init__(self, message: str, *, tried: Sequence[str] = (), remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.tried = list(tried)


class SpaceMismatchError(KexueError, ValueError):
    """Vectors whose model, whitening or dimension differs from that of the index."""

    def __init__(self, message: str, *, expected: object, received: object, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.expected = expected
        self.received = received


class IndexFormatError(KexueError):
    """The file is not an index, is damaged, or was written by a newer version."""


class CheckpointError(KexueError):
    """Saved weights do not fit: a different stack of wrappers, missing or extra names, or a different hash."""


class DiskFullError(KexueError, OSError):
    """The disk is full; no partly written file remains. `needed` and `free` are bytes."""

    def __init__(self, message: str, *, needed: int, free: int, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.needed = needed
        self.free = free


class InfeasibleError(KexueError):
    """Hard constraints that no state satisfies, or a starting state of zero density."""


class RetryError(KexueError):
    """Every try failed; `exceptions` holds the error of each of the `tries`."""

    def __init__(self, message: str, *, exceptions: Sequence[BaseException] = (), tries: int = 0) -> None:
        super().__init__(message)
        self.exceptions = list(exceptions)
        self.tries = tries
