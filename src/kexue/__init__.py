"""Search of your own texts by meaning, and the methods of kexue.fm as components.

Importing this package loads neither torch nor transformers; the three names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from kexue._version import __version__

if TYPE_CHECKING:
    from kexue.search import Index
    from kexue.similarity import Whitening
    from kexue.text import Encoder

__all__ = ["Encoder", "Index", "Whitening", "__version__"]

_LAZY = {"Encoder": "kexue.text", "Index": "kexue.search", "Whitening": "kexue.similarity"}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    import sys

    from kexue._lazy import missing_name

    raise missing_name(__name__, name, sys._getframe(1))


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
