"""What a training step of each stage computes: modules with the `training_step` of `kexue.train.Trainer`.

Source: kexue.fm/archives/8454 (contrast, writing, distillation).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue.losses.distillation import similarity_distillation_loss
from kexue.text.roformer_sim.model import SentenceNetwork
from kexue.train.config import LossOutput

_SIMILARITIES, _VECTORS = 100.0, 10.0  # weights of the two losses of a distillation


class DistillTask(nn.Module):
    """Distillation: the teacher's cosines of all pairs of a batch, its vectors, and writing where a text follows.

        loss = 100/n^2 sum_ij (cos(v_i, v_j) - cos(u_i, u_j))^2 + 10/n sum_i (1 - cos(v_i, u_i)) + writing

    The first term is the article's, and invariant to rotations of v; the second fixes the rotation, which makes the
    first learn faster (ours).

    Args:
        network: the student.
    """

    def __init__(self, network: SentenceNetwork) -> None:
        super().__init__()
        self.network = network

    def training_step(
        self, batch: Mapping[str, Tensor], *, optimizer_index: int = 0, generator: Any = None
    ) -> LossOutput:
        """Compute the loss of rows with ``targets``, the teacher's vectors in the student's width."""
        segments = batch["segment_ids"]
        writes = bool(segments.any())
        vectors, states = self.network(batch["token_ids"], segments if writes else None, batch["mask"])
        vectors, targets = vectors.float(), batch["targets"]
        similarities = similarity_distillation_loss(vectors, targets, weight=_SIMILARITIES)
        direction = _VECTORS * (1 - functional.cosine_similarity(vectors, targets)).mean()
        parts: dict[str, Tensor] = {"similarities": similarities, "vectors": direction}
        if writes:
            parts["writing"] = self.network.writing_loss(states, batch["token_ids"], segments, batch["mask"])
        return LossOutput(torch.stack(list(parts.values())).sum(), parts)
