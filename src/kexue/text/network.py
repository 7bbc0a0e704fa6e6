"""Token ids to sentence vectors: the layers of a model folder on one device, in one arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kexue._devices import has_native_bfloat16
from kexue.errors import CheckpointError
from kexue.text.folder import DenseStage, ModelFolder, load_dense, load_transformer
from kexue.text.pooling import pool

Batch = tuple[np.ndarray, np.ndarray]
"""Token ids (B, T) int64 and mask (B, T) bool, True = token."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOG = logging.getLogger("kexue.text")
_LEAST_COSINE = 0.999  # of bfloat16 to float32, on every probe sentence


class Network:
    """Layers of a model folder, from token ids to sentence vectors.

    Transformer, pooling, dense stages, scaling to length 1.

    The transformer starts in float32; all that follows it stays in float32.

    Args:
        stack: stages of the model folder.
        device: device of all weights.

    Attributes:
        dim: width of a sentence vector.
        max_positions: largest number of tokens that the transformer has positions for; None = no limit.

    Raises:
        CheckpointError: weights that cannot be read, or a dense stage whose width does not fit the one before.
    """

    def __init__(self, stack: ModelFolder, device: torch.device) -> None:
        self.device = device
        self._where = stack.transformer
        transformer = load_transformer(stack.transformer)
        self.max_positions = transformer.max_positions
        self.dim = _check_widths(stack, transformer.hidden_size)
        pooler = transformer.pooler
        self._pooler = None if pooler is None else (pooler[0].to(device), pooler[1].to(device))
        self._stages = [load_dense(s).to(device) if isinstance(s, DenseStage) else s for s in stack.stages]
        self._transformer = transformer.to(device, torch.float32)

    @property
    def dtype(self) -> str:
        """Arithmetic of the transformer: ``"float32"``, ``"bfloat16"`` or ``"float16"``."""
        return str(self._transformer.dtype).removeprefix("torch.")

    def check_pooling(self, mode: str) -> str:
        """Return a canonical name of a pooling; CheckpointError where it needs weights that the folder lacks."""
        if mode == "pooler" and self._pooler is None:
            raise CheckpointError(
                f"{self._where} holds no weights of a linear pooler.", remedy='Use another pooling, such as "cls".'
            )
        return mode

    def set_dtype(self, dtype: str, *, probes: Callable[[], Batch], pooling: str, name: str) -> None:
        """Choose the arithmetic of the transformer.

        Args:
            dtype: a key of `DTYPES`, or ``"auto"``: bfloat16 where the device has it and the vectors of the probes
                keep a cosine of at least 0.999 to those of float32, else float32.
            probes: returns the batch that decides.
            pooling: pooling of the probes.
            name: name of the model in the log.
        """
        exact = self._transformer
        if dtype != "auto":
            self._transformer = exact.to(self.device, DTYPES[dtype])
            return
        if not has_native_bfloat16(self.device):
            return
        batch = probes()
        reference = self.vectors(batch, pooling, unit=True)
        self._transformer = exact.to(self.device, torch.bfloat16)
        worst = float((self.vectors(batch, pooling, unit=True) * reference).sum(axis=1).min())
        if not worst >= _LEAST_COSINE:  # a NaN also fails
            self._transformer = exact
            _LOG.warning("%s: bfloat16 reaches a cosine of %.5f to float32 only; using float32.", name, worst)
        else:
            _LOG.info("%s: bfloat16, cosine to float32 at least %.5f on probes.", name, worst)

    @torch.inference_mode()
    def states(self, batch: Batch, *, every: bool = False) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the hidden states (B, T, h), all L + 1 or the last alone, and the mask (B, T) on the device."""
        ids, mask = batch
        keep = torch.from_numpy(mask).to(self.device)
        return self._transformer(torch.from_numpy(ids).to(self.device), keep, every), keep

    @torch.inference_mode()
    def vectors(self, batch: Batch, pooling: str, *, unit: bool) -> np.ndarray:
        """Return sentence vectors (B, dim) float32; `unit` brings them to length 1."""
        states, keep = self.states(batch, every=pooling == "first-last-avg")
        used = [states[0], states[1], states[-1]] if len(states) > 1 else states
        vectors = pool([state.float() for state in used], keep, pooling, pooler=self._pool_linearly)
        for i, stage in enumerate(self._stages):
            if not isinstance(stage, str):
                vectors = stage(vectors)
            elif i < len(self._stages) - 1:  # `unit` decides on a last Normalize stage
                vectors = functional.normalize(vectors, dim=-1)
        if unit:
            vectors = functional.normalize(vectors, dim=-1)
        array: np.ndarray = vectors.numpy(force=True)
        return array

    def _pool_linearly(self, first: Tensor) -> Tensor:
        assert self._pooler is not None  # checked by `check_pooling`
        return functional.linear(first, *self._pooler)


def _check_widths(stack: ModelFolder, width: int) -> int:
    """Return the width after the last stage; CheckpointError where two neighbours do not fit."""
    for stage in stack.stages:
        if isinstance(stage, DenseStage):
            if stage.in_features != width:
                raise CheckpointError(f"{stage.folder} takes {stage.in_features} dimensions, but gets {width}.")
            width = stage.out_features
    return width
