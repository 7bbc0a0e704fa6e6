"""Text to vectors: find a model, read its folder, pool its tokens, encode a list or a stream.

Importing this package loads neither torch nor transformers; the names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from kexue._optional import import_optional

if TYPE_CHECKING:
    from kexue.text.encoder import Encoder, TokenVectors
    from kexue.text.models import ModelIdentity, find_model
    from kexue.text.pooling import pool
    from kexue.text.streaming import EncodeReport

__all__ = ["EncodeReport", "Encoder", "ModelIdentity", "TokenVectors", "find_model", "pool"]

_LAZY = {
    "EncodeReport": "streaming",
    "Encoder": "encoder",
    "ModelIdentity": "models",
    "TokenVectors": "encoder",
    "find_model": "models",
    "pool": "pooling",
}
_WITH_TORCH = {"encoder", "pooling"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'kexue.text' has no attribute {name!r}")
    if _LAZY[name] in _WITH_TORCH:
        import_optional("torch")  # a missing extra is named before the module fails on its first line
    return getattr(import_module(f"kexue.text.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
