"""Losses on labelled pairs of sentences: by order (CoSENT), by value (MSE, hinge), by classification; and distillation.

Source: kexue.fm/archives/8541 (classification, distillation, what disappoints), 8847 (CoSENT), 7427 (generation).
Sentence-BERT: Reimers and Gurevych 2019, arXiv:1908.10084.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kexue._tensors import (
    Reduction,
    as_class_numbers,
    as_floats,
    check_range,
    check_reduction,
    may_read,
    reduce,
    unit,
    without_autocast,
)
from kexue.losses._checks import as_cosines, as_real_numbers, check_scale, cross_entropy

Method = Literal["sorted", "pairwise"]


def cosent_loss(cosines: Tensor, labels: Tensor, *, scale: float = 20.0, method: Method = "sorted") -> Tensor:
    """CoSENT: a pair with a higher label should have the higher cosine; values do not matter, order does.

    loss = log(1 + sum over i, j with labels_i < labels_j of exp(scale (cos_i - cos_j)))

    One logsumexp over all ordered pairs of the batch, so the value grows with the batch; ties are not compared. Source:
    kexue.fm/archives/8847.

    Args:
        cosines: (B,) cosines of the pairs of sentences, each in [-1, 1].
        labels: (B,) numbers of any kind, greater = more similar: 0/1, graded, entailment > neutral > contradiction.
            Labels that should tie must be equal exactly.
        scale: > 0, inverse temperature.
        method: ``"sorted"`` needs O(B) memory and O(B log B) time; ``"pairwise"`` forms the B x B matrix, and is the
            reference. They agree to rounding; "sorted" computes in float64 where the device can.

    Returns:
        Scalar; exactly 0 where no two labels differ; float32 for half precision, else the dtype of `cosines`.

    Raises:
        ValueError: shapes that differ or are not (B,), a cosine outside [-1, 1], labels that are not finite, an unknown
            method, scale <= 0. TypeError: cosines that are no floats, complex labels.
    """
    check_scale(scale)
    if method not in ("sorted", "pairwise"):
        raise ValueError(f"method must be 'sorted' or 'pairwise', got {method!r}")
    _check_pairs(cosines, labels)
    labels = as_real_numbers(labels)
    if may_read(labels) and not bool(labels.isfinite().all()):
        raise ValueError("labels must be finite, got NaN or infinity")
    cosines = as_cosines(cosines)
    if method == "pairwise":
        return _cosent_pairwise(scale * cosines, labels)
    exact = cosines if cosines.device.type == "mps" else cosines.double()  # B numbers: float64 costs nothing
    return _cosent_sorted(scale * exact, labels).to(cosines.dtype)


def _cosent_pairwise(scores: Tensor, labels: Tensor) -> Tensor:
    below = labels[:, None] < labels
    terms = (scores[:, None] - scores).masked_fill(~below, -torch.inf).flatten()
    return torch.cat([terms.new_zeros(1), terms]).logsumexp(0)


def _cosent_sorted(scores: Tensor, labels: Tensor) -> Tensor:
    """For each j, the running logsumexp of the scores with a smaller label takes the place of a row of the matrix."""
    labels, order = labels.sort()
    scores = scores[order]
    first = torch.searchsorted(labels, labels)  # where the ties of j begin = how many labels are smaller
    running = scores.logcumsumexp(0)
    terms = running[(first - 1).clamp(min=0)] - scores
    return torch.cat([terms.new_zeros(1), terms.masked_fill(first == 0, -torch.inf)]).logsumexp(0)


class CoSENTLoss(nn.Module):
    """`cosent_loss` of the cosines of two batches of embeddings: `forward(a, b, labels)` with (B, d), (B, d), (B,).

    An embedding of length 0 has no direction: its cosine and its gradient are 0.
    """

    def __init__(self, scale: float = 20.0, *, method: Method = "sorted") -> None:
        super().__init__()
        check_scale(scale)
        if method not in ("sorted", "pairwise"):
            raise ValueError(f"method must be 'sorted' or 'pairwise', got {method!r}")
        self.scale, self.method = scale, method

    def forward(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch of pairs."""
        _check_embeddings(a, b)
        with without_autocast(a):
            cosines = (unit(as_floats(a, "a")) * unit(as_floats(b, "b"))).sum(1)
        return cosent_loss(cosines, labels, scale=self.scale, method=self.method)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"scale={self.scale}, method={self.method!r}"


def cosine_mse_loss(cosines: Tensor, labels: Tensor, *, negative: float = 0.0, reduction: Reduction = "mean") -> Tensor:
    """Squared error, label (cos - 1)^2 + (1 - label) (cos - negative)^2: simple, and among the worse in 8541.

    Labelled negatives are mostly hard, near in wording; a target of 0 or -1 is too low for them.

    Args:
        cosines, labels: (B,); cosines in [-1, 1], labels in [0, 1], 1 = similar.
        negative: what dissimilar pairs are driven to, in [-1, 1]; the article tries 0 and -1.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: shapes that differ, cosines or `negative` outside [-1, 1], labels outside [0, 1].
    """
    if not -1 <= negative <= 1:
        raise ValueError(f"negative is a cosine in [-1, 1], got {negative}")
    cosines, labels = _similar_or_not(cosines, labels)
    values = labels * (cosines - 1).square() + (1 - labels) * (cosines - negative).square()
    return reduce(values, None, reduction)


def cosine_hinge_loss(
    cosines: Tensor, labels: Tensor, *, upper: float = 0.9, lower: float = 0.1, reduction: Reduction = "mean"
) -> Tensor:
    """Hinges, label max(upper - cos, 0) + (1 - label) max(cos - lower, 0): no pull beyond the two bounds.

    Args:
        cosines, labels: (B,); cosines in [-1, 1], labels in [0, 1], 1 = similar.
        upper, lower: -1 <= lower <= upper <= 1.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: shapes that differ, cosines outside [-1, 1], labels outside [0, 1], bounds out of order.
    """
    if not -1 <= lower <= upper <= 1:
        raise ValueError(f"expected -1 <= lower <= upper <= 1, got lower={lower}, upper={upper}")
    cosines, labels = _similar_or_not(cosines, labels)
    values = labels * (upper - cosines).clamp(min=0) + (1 - labels) * (cosines - lower).clamp(min=0)
    return reduce(values, None, reduction)


class PairClassificationLoss(nn.Module):
    """Sentence-BERT's head: cross-entropy of one linear layer on [u, v, |u - v|]; the layer is dropped afterwards.

    Trained so, cosines of u and v improve although the loss never sees them, and not always: choose the model by the
    rank correlation of cosines, not by this loss. Hand `loss.parameters()` to the optimizer too.

    Args:
        dim: d of the embeddings.
        num_labels: classes, >= 2.
        features: which of ``"u"``, ``"v"``, ``"abs_diff"`` are joined, in this order.
        bias: whether the layer has one; the article's has none.
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
        _check_embeddings(u, v)
        u, v = as_floats(u, "u"), as_floats(v, "v")
        parts = {"u": u, "v": v, "abs_diff": (u - v).abs()}
        joined = torch.cat([parts[name] for name in self.features], dim=1)
        scores: Tensor = self.linear(joined.to(self.linear.weight.dtype))
        return scores

    def forward(self, u: Tensor, v: Tensor, labels: Tensor) -> Tensor:
        """The loss of embeddings u, v (B, d), of any length, with labels (B,), integers; label -100 ignores a row."""
        scores = self.scores(u, v)
        labels = _checked_classes(labels, scores.shape[0], scores.shape[1])
        return _cross_entropy(scores, labels, self.reduction)


class MultiTaskPairLoss(nn.Module):
    """Several kinds of labelled pairs share one head; the scores of the other tasks are masked for each pair.

    Kinds of data as in the article: yes/no pairs and inference pairs, five scores in all.

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
        """The loss of embeddings u, v (B, d).

        Args:
            u, v: (B, d), of any length.
            labels: (B,) integers, counted from 0 within the pair's task; rows with label -100 are ignored. For
                ``"nli"``: contradiction, entailment, neutral.
            task: the name of the task of the whole batch, or (B,) integers, the place of each pair's task in `tasks`.
        """
        scores = self.head.scores(u, v)
        rows = scores.shape[0]
        if isinstance(task, str):
            if task not in self.tasks:
                raise ValueError(f"task must be one of {tuple(self.tasks)}, got {task!r}")
            task = labels.new_full((rows,), list(self.tasks).index(task), dtype=torch.int64)
        task = _checked_classes(task, rows, len(self.tasks), "task", ignore_index=None)
        start, size = self._start[task], self._size[task]
        labels = _checked_classes(labels, rows, size)
        column = torch.arange(scores.shape[1], device=scores.device)
        own = (column >= start[:, None]) & (column < (start + size)[:, None])
        shifted = torch.where(labels == -100, labels, labels + start)
        return _cross_entropy(scores.masked_fill(~own, -torch.inf), shifted, self.head.reduction)


def similarity_distillation_loss(student: Tensor, teacher: Tensor, *, weight: float = 100.0) -> Tensor:
    """Make the student's cosines between all sentences of a batch those of the teacher.

    loss = weight / n^2 sum over i, j of (cos(s_i, s_j) - cos(t_i, t_j))^2, the diagonal (0) included; 0 for an empty
    batch. A row of length 0 has no direction: its cosines, that with itself too, and its gradient are 0. Source:
    kexue.fm/archives/8454.

    Args:
        student: (n, d); gradients flow here alone.
        teacher: (n, e), e may differ from d.
        weight: >= 0.

    Raises:
        ValueError: numbers of rows that differ.
    """
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(f"expected (n, d) and (n, e), got {tuple(student.shape)} and {tuple(teacher.shape)}")
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0, got {weight}")
    with without_autocast(student):
        s, t = unit(as_floats(student, "student")), unit(as_floats(teacher, "teacher").detach())
        return weight * reduce((s @ s.T - (t @ t.T).to(s.dtype)).square(), None, "mean")


def seq2seq_loss(scores: Tensor, token_ids: Tensor, segment_ids: Tensor) -> Tensor:
    """Cross-entropy of the next token, over the tokens that are to be written: those of segment 1.

    Args:
        scores: (B, T, V), at each place the scores of the next token.
        token_ids: (B, T) integers.
        segment_ids: (B, T): 1 = to be written, 0 = given, or padding.

    Returns:
        Scalar, the mean over all written tokens of the batch; 0 where there is none.

    Raises:
        ValueError: shapes that do not fit, fewer than two places, a token outside [0, V).
    """
    if scores.ndim != 3 or token_ids.shape != scores.shape[:2] or segment_ids.shape != scores.shape[:2]:
        raise ValueError(
            f"expected scores (B, T, V), token_ids (B, T), segment_ids (B, T), "
            f"got {tuple(scores.shape)}, {tuple(token_ids.shape)}, {tuple(segment_ids.shape)}"
        )
    if scores.shape[1] < 2:
        raise ValueError(f"a next token needs at least 2 places, got {scores.shape[1]}")
    labels = torch.where(segment_ids[:, 1:] == 1, as_class_numbers(token_ids, "token_ids")[:, 1:], -100).flatten()
    flat = scores[:, :-1].flatten(0, 1)
    labels = _checked_classes(labels, len(flat), flat.shape[1], "token_ids")
    return _cross_entropy(flat, labels, "mean")


def _cross_entropy(scores: Tensor, labels: Tensor, reduction: Reduction) -> Tensor:
    kept = labels != -100
    return reduce(cross_entropy(as_floats(scores), labels, kept), kept, reduction)


def _check_pairs(cosines: Tensor, labels: Tensor) -> None:
    if cosines.ndim != 1 or labels.shape != cosines.shape:
        raise ValueError(f"expected cosines (B,) and labels (B,), got {tuple(cosines.shape)} and {tuple(labels.shape)}")


def _similar_or_not(cosines: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    _check_pairs(cosines, labels)
    labels = as_real_numbers(labels)
    if may_read(labels) and bool(((labels < 0) | (labels > 1)).any()):
        raise ValueError(f"labels must lie in [0, 1], got {labels.min().item()} to {labels.max().item()}")
    cosines = as_cosines(cosines)
    return cosines, labels.to(cosines.dtype)


def _check_embeddings(u: Tensor, v: Tensor) -> None:
    if u.ndim != 2 or u.shape != v.shape:
        raise ValueError(f"expected two batches of embeddings (B, d), got {tuple(u.shape)} and {tuple(v.shape)}")


def _checked_classes(
    labels: Tensor, rows: int, classes: int | Tensor, name: str = "labels", ignore_index: int | None = -100
) -> Tensor:
    """`labels` (rows,) as int64 in [0, classes), -100 aside; `classes` may differ by row."""
    if labels.shape != (rows,):
        raise ValueError(f"{name} must have shape ({rows},), got {tuple(labels.shape)}")
    labels = as_class_numbers(labels, name)
    check_range(labels, classes, ignore_index, name)
    return labels
