"""Optimizers, and wrappers that add one trick each to any optimizer.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.optim.adafactor import Adafactor as Adafactor
    from kexue.optim.adax import AdaX as AdaX

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "adafactor": ("Adafactor",),
        "adax": ("AdaX",),
    },
    needs="torch",
    extra="train",
)
