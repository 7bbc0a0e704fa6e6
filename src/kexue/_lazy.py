"""Names of a package that load on first use, so that importing it costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from kexue._optional import import_optional


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
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if home in wanted:
            import_optional(wanted[home], extra=extra)
        return getattr(import_module(f"{package}.{home}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of})

    return load, names, sorted(home_of)
