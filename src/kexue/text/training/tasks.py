"""What a training step computes: a module with the `training_step` of `kexue.train.Trainer`, and its objectives.

Source: kexue.fm/archives/8454 (contrast, writing, distillation), 8541 (labelled pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue._tensors import unit
from kexue.losses.contrastive import pair_contrastive_loss
from kexue.losses.distillation import similarity_distillation_loss
from kexue.losses.pair_heads import MultiTaskPairLoss
from kexue.losses.pairs import CoSENTLoss, cosine_hinge_loss, cosine_mse_loss
from kexue.text.roformer_sim.model import SentenceNetwork
from kexue.train.config import LossOutput
from kexue.train.gradcache import GradCache

Objective = Callable[[Tensor, Mapping[str, Tensor]], dict[str, Tensor]]  # vectors (B, d), batch -> terms of the loss
_SIMILARITIES, _VECTORS = 100.0, 10.0  # weights of the two terms of a distillation
_SCALE = 20.0  # of cosines in the contrastive loss
_ROWS = ("token_ids", "segment_ids", "mask")


class SentenceTask(nn.Module):
    """One stage: the sum of the terms of an objective on the vectors of a batch, and of writing where a text follows.

    Writing is a mean over all tokens to be written in the batch, so both can be computed chunk by chunk: `GradCache`
    gets a column beside the vectors, the sum of the writing losses of a chunk.

    Args:
        network: the model.
        objective: vectors and the batch to the terms of the loss by name; where it is a module, its weights are trained
            too.
        chunk_size: rows encoded with a graph at a time; None: all.
    """

    def __init__(self, network: SentenceNetwork, objective: Objective, *, chunk_size: int | None = None) -> None:
        super().__init__()
        self.network, self.objective, self.chunk_size = network, objective, chunk_size

    def training_step(
        self, batch: Mapping[str, Tensor], *, optimizer_index: int = 0, generator: torch.Generator | None = None
    ) -> LossOutput:
        """Compute the loss of a batch of rows."""
        rows = {name: batch[name] for name in _ROWS}
        tokens = int(batch["segment_ids"].sum())

        def loss(encoded: Tensor) -> LossOutput:
            """Compute the loss from vectors and writing losses."""
            parts = self.objective(encoded[:, :-1], batch)
            if tokens:
                parts["writing"] = encoded[:, -1].sum() / tokens
            return LossOutput(torch.stack(list(parts.values())).sum(), parts)

        if self.chunk_size is None:
            return loss(self._encode(rows))
        return GradCache(self._encode, loss, chunk_size=self.chunk_size).step(rows, generator=generator)

    def _encode(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors (B, d) of rows, and in a last column the sum of their writing losses, then zeros."""
        segments = rows["segment_ids"]
        tokens = int(segments.sum())
        vectors, states = self.network(rows["token_ids"], segments if tokens else None, rows["mask"])
        vectors = vectors.float()
        column = vectors.new_zeros(len(vectors), 1)
        if tokens:
            written = self.network.writing_loss(states, rows["token_ids"], segments, rows["mask"]).float()
            column = torch.cat((tokens * written.reshape(1, 1), column[1:]))
        return torch.cat((vectors, column), dim=1)


def distill(vectors: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the terms of distillation: the teacher's cosines of all pairs of a batch, and its vectors.

        100 / n^2 sum_ij (cos(v_i, v_j) - cos(u_i, u_j))^2,    10 / n sum_i (1 - cos(v_i, u_i))

    The first is the article's, and invariant to rotations of v; the second fixes the rotation, which makes the first
    learn faster (ours).

    Args:
        vectors: (n, d) of the student.
        batch: with ``targets`` (n, d), the teacher's vectors in the student's width.
    """
    targets = batch["targets"]
    return {
        "similarities": similarity_distillation_loss(vectors, targets, weight=_SIMILARITIES),
        "vectors": _VECTORS * (1 - functional.cosine_similarity(vectors, targets)).mean(),
    }


def contrast(vectors: Tensor, _batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the contrastive loss of rows of which 2i and 2i + 1 are partners, with a scale of 20."""
    return {"contrast": pair_contrastive_loss(vectors, scale=_SCALE)}


class Classify(nn.Module):
    """Classes of labelled pairs by a linear layer on [u, v, |u - v|], which is trained with the network and dropped.

    Args:
        dim: width of the vectors.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.head = MultiTaskPairLoss(dim)

    def forward(self, vectors: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of rows of which 2i and 2i + 1 are a pair, with ``labels`` and ``tasks``."""
        return {"classes": self.head(vectors[::2], vectors[1::2], batch["labels"].long(), batch["tasks"])}


def order(vectors: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CoSENT of rows of which 2i and 2i + 1 are a pair, with ``labels`` of any scale."""
    return {"cosent": CoSENTLoss()(vectors[::2], vectors[1::2], batch["labels"])}


def square(vectors: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the squared error of the cosines of rows of which 2i and 2i + 1 are a pair, with ``labels`` 0 and 1."""
    return {"mse": cosine_mse_loss(_cosines(vectors), batch["labels"])}


def hinge(vectors: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the hinge loss of the cosines of rows of which 2i and 2i + 1 are a pair, with ``labels`` 0 and 1."""
    return {"hinge": cosine_hinge_loss(_cosines(vectors), batch["labels"])}


def _cosines(vectors: Tensor) -> Tensor:
    """Return the cosines (B / 2,) of rows 2i and 2i + 1."""
    directions = unit(vectors)
    return (directions[::2] * directions[1::2]).sum(1)
