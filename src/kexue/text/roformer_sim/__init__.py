"""RoFormer-Sim: one Transformer that turns sentences into vectors and writes sentences that mean the same.

Source: kexue.fm/archives/8454; SimBERT: kexue.fm/archives/7427.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.text.roformer_sim.model import RoFormerSimConfig as RoFormerSimConfig
    from kexue.text.roformer_sim.sentences import RoFormerSim as RoFormerSim
    from kexue.text.roformer_sim.similar import Similar as Similar

__getattr__, __dir__, __all__ = attach(
    __name__, {"model": ("RoFormerSimConfig",), "sentences": ("RoFormerSim",), "similar": ("Similar",)}, needs="torch"
)
