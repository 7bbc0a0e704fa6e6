"""Optimizers, and wrappers that add one trick each to any optimizer.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.optim.accumulate import GradientAccumulation as GradientAccumulation
    from kexue.optim.adafactor import Adafactor as Adafactor
    from kexue.optim.adax import AdaX as AdaX
    from kexue.optim.compose import extend as extend
    from kexue.optim.ema import EMA as EMA
    from kexue.optim.layer_adaptation import LayerAdaptation as LayerAdaptation
    from kexue.optim.lazy import Lazy as Lazy
    from kexue.optim.lookahead import Lookahead as Lookahead
    from kexue.optim.memory import MemoryReport as MemoryReport, optimizer_memory as optimizer_memory
    from kexue.optim.piecewise import PiecewiseLinear as PiecewiseLinear, PiecewiseLinearLR as PiecewiseLinearLR
    from kexue.optim.stack import unwrap as unwrap
    from kexue.optim.weight_decay import DecoupledWeightDecay as DecoupledWeightDecay

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "adafactor": ("Adafactor",),
        "adax": ("AdaX",),
        "accumulate": ("GradientAccumulation",),
        "compose": ("extend",),
        "ema": ("EMA",),
        "layer_adaptation": ("LayerAdaptation",),
        "lazy": ("Lazy",),
        "lookahead": ("Lookahead",),
        "memory": ("MemoryReport", "optimizer_memory"),
        "piecewise": ("PiecewiseLinear", "PiecewiseLinearLR"),
        "stack": ("unwrap",),
        "weight_decay": ("DecoupledWeightDecay",),
    },
    needs="torch",
    extra="train",
)
