"""Generative models with one vocabulary: what they sample, which likelihood is exact, how good the samples are.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach
from kexue.errors import NotSupported as NotSupported

if TYPE_CHECKING:
    from kexue.generative.interpolation import interpolate as interpolate
    from kexue.generative.model import GenerativeModel as GenerativeModel
    from kexue.generative.noise import Noise as Noise, sample_generators as sample_generators
    from kexue.train.config import LossOutput as LossOutput

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "interpolation": ("interpolate",),
        "model": ("GenerativeModel", "LossOutput"),
        "noise": ("Noise", "sample_generators"),
    },
    needs="torch",
    extra="generative",
)
