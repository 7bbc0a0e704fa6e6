"""Names of a package that load on first use, so that importing it costs next to nothing."""

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
    "cluster", "errors", "methods", "experiments", "demo",
)  # fmt: skip


class NoSuchNameError(AttributeError):
    """Says where a name lives, and looks for it only when it is printed: `hasattr` asks for names that nobody wants."""

    def __str__(self) -> str:
        return _where(*self.args)


def missing_name(package: str, name: str, asking: FrameType) -> Exception:
    """What to raise for a name that a package does not have.

    AttributeError; for ``from package import name`` an ImportError, which would otherwise lose the message.

    Args:
        asking: the frame that asked; ``from ... import`` does it from within Python's import machinery.
    """
    importing = asking.f_code.co_name == "_handle_fromlist" and "importlib" in asking.f_code.co_filename
    if importing and not name.startswith("_") and find_spec(f"{package}.{name}") is None:
        return ImportError(_where(package, name), name=package, path=sys.modules[package].__file__)
    return NoSuchNameError(package, name)


def _where(package: str, name: str) -> str:
    """The sentence that says where a name lives, or what it may be the misspelling of."""
    said = f"module {package!r} has no attribute {name!r}"
    if name.startswith("_"):
        return said
    homes: dict[str, str] = {}
    for room in _ROOMS:
        module = import_module(f"kexue.{room}")
        public = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        if name in public:
            return f"{said}; it is in kexue.{room}: from kexue.{room} import {name}"
        homes = dict.fromkeys(public, f"kexue.{room}") | homes
    lower = {n.lower(): n for n in homes}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.7)]
    return f"{said}; did you mean {' or '.join(f'{homes[n]}.{n}' for n in near)}?" if near else said


def attach(
    package: str,
    homes: Mapping[str, Sequence[str]],
    *,
    needs: Mapping[str, str] | str | None = None,
    extra: str | None = None,
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """What a package assigns to ``__getattr__, __dir__, __all__``.

    Args:
        package: its ``__name__``.
        homes: file of the package -> the public names in it.
        needs: file -> optional package without which it cannot be imported, or one package that all need; a missing
            one is then named together with the extra that brings it, before the file fails on its first line.
        extra: that extra, where it is not the usual one.
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
