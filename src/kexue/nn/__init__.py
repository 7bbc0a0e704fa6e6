"""Layers to compose: simplex maps, positions, attention, a readable Transformer, ladders, quantisers, Lipschitz tools.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.nn.attention import (
        ToeplitzGate as ToeplitzGate,
        attention_weights as attention_weights,
        unilm_mask as unilm_mask,
        urpe_attention as urpe_attention,
    )
    from kexue.nn.cached_states import CachedStates as CachedStates
    from kexue.nn.dgcnn import (
        DGCNN as DGCNN,
        DilatedGatedConv1d as DilatedGatedConv1d,
    )
    from kexue.nn.ladder import (
        LadderBlock as LadderBlock,
        LadderSideNetwork as LadderSideNetwork,
    )
    from kexue.nn.lipschitz_bounds import (
        empirical_lipschitz as empirical_lipschitz,
        lipschitz_upper_bound as lipschitz_upper_bound,
    )
    from kexue.nn.penalties import (
        clip_weights_ as clip_weights_,
        frobenius_penalty as frobenius_penalty,
        gradient_penalty as gradient_penalty,
        spectral_penalty as spectral_penalty,
    )
    from kexue.nn.pointer import (
        GlobalPointer as GlobalPointer,
        decode_spans as decode_spans,
    )
    from kexue.nn.position import (
        LearnedPositions as LearnedPositions,
        SinusoidalPositions as SinusoidalPositions,
        T5Bias as T5Bias,
        apply_rotary as apply_rotary,
    )
    from kexue.nn.probe import (
        ProbeResult as ProbeResult,
        position_probe as position_probe,
    )
    from kexue.nn.quantize import (
        VectorQuantizer as VectorQuantizer,
        VQOutput as VQOutput,
        nearest_code as nearest_code,
    )
    from kexue.nn.rotation_trick import (
        rotate_to as rotate_to,
        straight_through as straight_through,
    )
    from kexue.nn.simplex import (
        PerturbMax as PerturbMax,
        log_perturb_max as log_perturb_max,
        perturb_max as perturb_max,
        perturb_max_cross_entropy as perturb_max_cross_entropy,
    )
    from kexue.nn.spectral import (
        SpectralNorm as SpectralNorm,
        spectral_norm_value as spectral_norm_value,
    )
    from kexue.nn.spectral_normalization import (
        apply_spectral_normalization as apply_spectral_normalization,
        remove_spectral_normalization as remove_spectral_normalization,
    )
    from kexue.nn.transformer import (
        Transformer as Transformer,
        TransformerConfig as TransformerConfig,
        TransformerOutput as TransformerOutput,
    )

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "attention": ("ToeplitzGate", "attention_weights", "unilm_mask", "urpe_attention"),
        "cached_states": ("CachedStates",),
        "dgcnn": ("DGCNN", "DilatedGatedConv1d"),
        "ladder": ("LadderBlock", "LadderSideNetwork"),
        "lipschitz_bounds": ("empirical_lipschitz", "lipschitz_upper_bound"),
        "penalties": ("clip_weights_", "frobenius_penalty", "gradient_penalty", "spectral_penalty"),
        "pointer": ("GlobalPointer", "decode_spans"),
        "position": ("LearnedPositions", "SinusoidalPositions", "T5Bias", "apply_rotary"),
        "probe": ("ProbeResult", "position_probe"),
        "quantize": ("VQOutput", "VectorQuantizer", "nearest_code"),
        "rotation_trick": ("rotate_to", "straight_through"),
        "simplex": ("PerturbMax", "log_perturb_max", "perturb_max", "perturb_max_cross_entropy"),
        "spectral": ("SpectralNorm", "spectral_norm_value"),
        "spectral_normalization": ("apply_spectral_normalization", "remove_spectral_normalization"),
        "transformer": ("Transformer", "TransformerConfig", "TransformerOutput"),
    },
    needs="torch",
    extra="train",
)
