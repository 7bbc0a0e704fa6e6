"""Checks of the arguments of a UniVAE and of its latents."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from kexue._tensors import is_finite, may_read
from kexue.nn.transformer import Transformer


def check_floats(x: Tensor, name: str, shapes: Sequence[tuple[int | str, ...]]) -> None:
    """Raise unless these are finite floats of one of the shapes, in which a word stands for any size."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of floats, got {type(x).__name__}")

    def fits(shape: tuple[int | str, ...]) -> bool:
        pairs = zip(shape, x.shape, strict=False)
        return len(shape) == x.ndim and all(isinstance(size, str) or size == own for size, own in pairs)

    if not x.is_floating_point() or not any(map(fits, shapes)):
        expected = " or ".join(f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})" for shape in shapes)
        raise ValueError(f"{name} must be floats {expected}, got {x.dtype} {tuple(x.shape)}")
    if may_read(x) and not is_finite(x):
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def check_arguments(
    backbone: Transformer, ids: tuple[int, int], n_latent_layers: int, max_length: int, beta: float, beta_warmup: int
) -> None:
    """Raise ValueError for numbers out of range, or a backbone that does not fit."""
    config = backbone.config
    if not 1 <= n_latent_layers < config.num_layers:
        raise ValueError(
            f"n_latent_layers must be from 1 to {config.num_layers - 1}, all blocks of the backbone but the first "
            f"(before it place 0 has read nothing), got {n_latent_layers}"
        )
    if not all(0 <= one < config.vocab_size for one in ids):
        raise ValueError(f"start_id and end_id must be in the vocabulary, [0, {config.vocab_size}), got {ids}")
    if max_length < 3:
        raise ValueError(f"max_length must be at least 3 (start, a token, end), got {max_length}")
    if not 0 <= beta < math.inf or not 0 <= beta_warmup < math.inf:
        raise ValueError(f"beta and beta_warmup must be 0 or more, and finite, got {beta} and {beta_warmup}")
    if config.num_segments < 2:
        raise ValueError(f"the backbone needs 2 segments, to read and to write, got num_segments={config.num_segments}")
    if config.position == "t5":
        raise ValueError("the backbone must have positions other than 't5', whose cache keeps none; use 'rotary'")
    if config.position == "learned" and config.max_length < 2 * max_length:
        raise ValueError(
            f"a sentence stands twice in a row, so learned positions need max_length {2 * max_length}, "
            f"got {config.max_length}"
        )
