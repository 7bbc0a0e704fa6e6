"""Layers to compose: simplex maps, positions, attention, a readable Transformer, ladders, quantisers, Lipschitz tools.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.nn.quantize import (
        VectorQuantizer as VectorQuantizer,
        VQOutput as VQOutput,
        nearest_code as nearest_code,
        rotate_to as rotate_to,
        straight_through as straight_through,
    )
    from kexue.nn.simplex import (
        PerturbMax as PerturbMax,
        log_perturb_max as log_perturb_max,
        perturb_max as perturb_max,
        perturb_max_cross_entropy as perturb_max_cross_entropy,
    )

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "quantize": ("VQOutput", "VectorQuantizer", "nearest_code", "rotate_to", "straight_through"),
        "simplex": ("PerturbMax", "log_perturb_max", "perturb_max", "perturb_max_cross_entropy"),
    },
    needs="torch",
    extra="train",
)
