"""Names of a package that load on first use, so that importing the package is fast."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import FrameType

from kexue._optional import import_optional

_ROOMS = (
    "losses", "nn", "optim", "similarity", "text", "search", "train", "retry", "algebra", "corpus", "home", "serve",
    "cluster", "errors", "methods", "experiments", "demo", "integrations", "generative",
    "generative.diffusion", "sampling", "sampling.text", "clue", "extract",
)  # fmt: skip


class NoSuchNameError(AttributeError):
    """AttributeError for a name that a package does not have; its message says which package has the name.

    The message is computed only when it is printed, because `hasattr` raises this error often and drops it.
    """

    def __str__(self) -> str:
        return _where(*self.args)


def missing_name(package: str, name: str, asking: FrameType) -> Exception:
    """Return the exception to raise for a name that a package does not have.

    AttributeError; for ``from package import name`` an ImportError, which would otherwise lose the message.

    Args:
        asking: the frame that asked; ``from ... import`` does it from within Python's import machinery.
    """
    importing = asking.f_code.co_name == "_handle_fromlist" and "importlib" in asking.f_code.co_filename
    if importing and not name.startswith("_") and find_spec(f"{package}.{name}") is None:
        return ImportError(_where(package, name), name=package, path=sys.modules[package].__file__)
    return NoSuchNameError(package, name)


def _where(package: str, name: str) -> str:
    """Return the message for a missing name: the package that has it, or names of similar spelling."""
    message = f"module {package!r} has no attribute {name!r}"
    if name.startswith("_"):
        return message
    package_of: dict[str, str] = {}
    for room in _ROOMS:
        module = import_module(f"kexue.{room}")
        public = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        if name in public:
            return f"{message}; it is in kexue.{room}: from kexue.{room} import {name}"
        package_of = dict.fromkeys(public, f"kexue.{room}") | package_of
    lower = {n.lower(): n for n in package_of}
    similar = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.7)]
    if not similar:
        return message
    return f"{message}; did you mean {' or '.join(f'{package_of[n]}.{n}' for n in similar)}?"


def attach(
    package: str,
    homes: Mapping[str, Sequence[str]],
    *,
    needs: Mapping[str, str] | str | None = None,
    extra: str | None = None,
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return the ``__getattr__, __dir__, __all__`` of a package that loads its names on first use.

    Args:
        package: its ``__name__``.
        homes: file of the package -> the public names in it.
        needs: file -> optional package that it imports; one string: all files import it. If that package is missing,
            the error names it and the extra that installs it, before the file is imported.
        extra: name of that extra, if it is not the usual one.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    wanted = dict.fromkeys(homes, needs) if isinstance(needs, str) else needs or {}

    def load(name: str) -> object:
        home = home_of.get(name)
        if home is None:
            raise missing_name(package, name, sys._getframe(1))
        if home in wanted:
            import_optional(wanted[home], extra=extra)
        return getattr(import_module(f"{package}.{home}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of})

    return load, names, sorted(home_of)
