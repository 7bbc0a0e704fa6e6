"""Classification of labelled pairs of sentences by a linear layer that is dropped after training.

Source: kexue.fm/archives/8541; Sentence-BERT: Reimers and Gurevych 2019, arXiv:1908.10084.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kexue._tensors import Reduction, as_floats, check_reduction
from kexue.losses._checks import check_class_rows, check_embeddings, reduced_cross_entropy


class PairClassificationLoss(nn.Module):
    """Sentence-BERT's head: cross-entropy of one linear layer on [u, v, |u - v|]; the layer is removed after training.

    The loss does not contain the cosine of u and v, which improves often but not always: select models by the rank
    correlation of cosines, not by this loss. Give `loss.parameters()` to the optimizer too.

    Args:
        dim: d of the embeddings.
        num_labels: classes, >= 2.
        features: those of ``"u"``, ``"v"``, ``"abs_diff"`` to concatenate, in this order.
        bias: whether the layer has a bias; the article's has none.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: an unknown feature, fewer than two labels.
    """

    def __init__(
        self,
        dim: int,
        num_labels: int,
        *,
        features: Sequence[str] = ("u", "v", "abs_diff"),
        bias: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if not features or any(name not in ("u", "v", "abs_diff") for name in features):
            raise ValueError(f"features are some of 'u', 'v', 'abs_diff', got {tuple(features)}")
        if num_labels < 2:
            raise ValueError(f"num_labels must be >= 2, got {num_labels}")
        check_reduction(reduction)
        self.features, self.reduction = tuple(features), reduction
        self.linear = nn.Linear(len(features) * dim, num_labels, bias=bias)

    def scores(self, u: Tensor, v: Tensor) -> Tensor:
        """Scores (B, num_labels) of pairs of embeddings (B, d)."""
        check_embeddings(u, v)
        u, v = as_floats(u, "u"), as_floats(v, "v")
        parts = {"u": u, "v": v, "abs_diff": (u - v).abs()}
        joined = torch.cat([parts[name] for name in self.features], dim=1)  # section "Classification of pairs"
        scores: Tensor = self.linear(joined.to(self.linear.weight.dtype))
        return scores

    def forward(self, u: Tensor, v: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of embeddings u, v (B, d), of any length, with integer labels (B,); -100 ignores a row."""
        scores = self.scores(u, v)
        labels = check_class_rows(labels, scores.shape[0], scores.shape[1])
        return reduced_cross_entropy(scores, labels, self.reduction)


class MultiTaskPairLoss(nn.Module):
    """One head for several tasks on labelled pairs; for each pair the scores of the other tasks are masked.

    The article's tasks are yes/no pairs and inference pairs, five scores in all.

    Args:
        dim: d of the embeddings.
        tasks: name and number of classes of each task, in order.
        features, bias, reduction: as `PairClassificationLoss`.

    Raises:
        ValueError: no task, a task of fewer than two classes, an unknown feature.
    """

    def __init__(
        self,
        dim: int,
        *,
        tasks: Mapping[str, int] | None = None,
        features: Sequence[str] = ("u", "v", "abs_diff"),
        bias: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        tasks = {"binary": 2, "nli": 3} if tasks is None else dict(tasks)
        if not tasks or min(tasks.values()) < 2:
            raise ValueError(f"tasks must name at least one task of >= 2 classes, got {tasks}")
        self.tasks = tasks
        self.head = PairClassificationLoss(dim, sum(tasks.values()), features=features, bias=bias, reduction=reduction)
        sizes = torch.tensor(list(tasks.values()))
        self.register_buffer("_size", sizes, persistent=False)
        self.register_buffer("_start", sizes.cumsum(0) - sizes, persistent=False)

    _size: Tensor
    _start: Tensor

    def forward(self, u: Tensor, v: Tensor, labels: Tensor, task: str | Tensor) -> Tensor:
        """Compute the loss of embeddings u, v (B, d).

        Args:
            u, v: (B, d), of any length.
            labels: (B,) integers, counted from 0 within the pair's task; rows with label -100 are ignored. For
                ``"nli"``: contradiction, entailment, neutral.
            task: the name of the task of the whole batch, or (B,) integers, the index of each pair's task in `tasks`.
        """
        scores = self.head.scores(u, v)
        rows = scores.shape[0]
        if isinstance(task, str):
            if task not in self.tasks:
                raise ValueError(f"task must be one of {tuple(self.tasks)}, got {task!r}")
            task = labels.new_full((rows,), list(self.tasks).index(task), dtype=torch.int64)
        task = check_class_rows(task, rows, len(self.tasks), "task", ignore_index=None)
        start, size = self._start[task], self._size[task]
        labels = check_class_rows(labels, rows, size)
        column = torch.arange(scores.shape[1], device=scores.device)
        # section "One head for two tasks"
        own = (column >= start[:, None]) & (column < (start + size)[:, None])
        shifted = torch.where(labels == -100, labels, labels + start)
        return reduced_cross_entropy(scores.masked_fill(~own, -torch.inf), shifted, self.head.reduction)
