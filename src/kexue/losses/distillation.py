"""Losses that train a sentence model in addition to its main task: distilled similarities, and generation.

Source: kexue.fm/archives/8454, 7427.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kexue._tensors import as_class_numbers, as_floats, reduce, unit, without_autocast
from kexue.losses._checks import check_class_rows, reduced_cross_entropy


def similarity_distillation_loss(student: Tensor, teacher: Tensor, *, weight: float = 100.0) -> Tensor:
    """Squared error between the student's and the teacher's cosines of all pairs of sentences in a batch.

    loss = weight / n^2 sum over i, j of (cos(s_i, s_j) - cos(t_i, t_j))^2, the diagonal (0) included; 0 for an empty
    batch. A row of length 0 has no direction: its gradient and all its cosines are 0, also with itself. Source:
    kexue.fm/archives/8454.

    Args:
        student: (n, d); only these get gradients.
        teacher: (n, e); e may differ from d.
        weight: >= 0.

    Raises:
        ValueError: different numbers of rows.
    """
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(f"expected (n, d) and (n, e), got {tuple(student.shape)} and {tuple(teacher.shape)}")
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0, got {weight}")
    with without_autocast(student):  # roformer-sim, section "Distilled similarities"
        s, t = unit(as_floats(student, "student")), unit(as_floats(teacher, "teacher").detach())
        return weight * reduce((s @ s.T - (t @ t.T).to(s.dtype)).square(), None, "mean")


def seq2seq_loss(scores: Tensor, token_ids: Tensor, segment_ids: Tensor) -> Tensor:
    """Cross-entropy of the next token, over the tokens to generate, those of segment 1.

    Args:
        scores: (B, T, V), at each position the scores of the next token.
        token_ids: (B, T) integers.
        segment_ids: (B, T); 1 = to generate, 0 = given or padding.

    Returns:
        Scalar, the mean over all tokens to generate in the batch; 0 without any.

    Raises:
        ValueError: shapes that do not fit, fewer than two positions, a token outside [0, V).
    """
    if scores.ndim != 3 or token_ids.shape != scores.shape[:2] or segment_ids.shape != scores.shape[:2]:
        raise ValueError(
            f"expected scores (B, T, V), token_ids (B, T), segment_ids (B, T), "
            f"got {tuple(scores.shape)}, {tuple(token_ids.shape)}, {tuple(segment_ids.shape)}"
        )
    if scores.shape[1] < 2:
        raise ValueError(f"a next token needs at least 2 positions, got {scores.shape[1]}")
    # roformer-sim, section "Writing"
    labels = torch.where(segment_ids[:, 1:] == 1, as_class_numbers(token_ids, "token_ids")[:, 1:], -100).flatten()
    flat = scores[:, :-1].flatten(0, 1)
    labels = check_class_rows(labels, len(flat), flat.shape[1], "token_ids")
    return reduced_cross_entropy(flat, labels, "mean")
