"""HTTP server for embeddings, reranking and search, in the formats of existing clients, with a web page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.serve.app import create_app as create_app, run as run
    from kexue.serve.settings import Settings as Settings

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "app": ("create_app", "run"),
        "settings": ("Settings",),
    },
    needs={"app": "fastapi"},
)
