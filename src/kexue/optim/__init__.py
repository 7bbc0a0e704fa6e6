"""Optimizers, and wrappers that add one trick each to any optimizer.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from kexue._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {}, needs="torch", extra="train")
