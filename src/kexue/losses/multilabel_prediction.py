"""Predicted classes and probabilities from scores trained with the multi-label loss (ZLPR).

Source: kexue.fm/archives/7359 (hard labels), kexue.fm/archives/9064 (soft labels); Su et al. 2022, arXiv:2208.02955.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kexue._tensors import as_floats
from kexue.losses._checks import as_real_numbers


def zlpr_predict(scores: Tensor, threshold: float | Tensor = 0.0) -> Tensor:
    """Predicted classes: bool, same shape; True where the score exceeds the threshold.

    A tensor of thresholds broadcasts to the leading shape of `scores`, one threshold per sample.
    """
    if isinstance(threshold, Tensor):
        threshold = threshold.unsqueeze(-1)
    return scores > threshold


def zlpr_proba(scores: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Probability of each class, sigmoid(2 s / temperature), at which the gradient for soft labels vanishes.

    Note the factor 2. For hard labels drawn at random it is not exact; set `temperature` by `fit_temperature` there.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    return torch.sigmoid(2 * as_floats(scores) / temperature)  # section "Soft labels": t = sigma(2 s)


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature at which `zlpr_proba` has the least binary cross-entropy on held-out scores and labels.

    Args:
        scores: (..., C); labels: same shape, bool or in [0, 1].

    Raises:
        ValueError: no best temperature exists: scores do not increase with the labels, or separate them without errors.
    """
    s, t = as_floats(scores.detach()).double(), as_real_numbers(labels).detach().double()
    if s.shape != t.shape:
        raise ValueError(f"labels must have the shape of scores, {tuple(s.shape)}, got {tuple(t.shape)}")

    def slope(inverse: float) -> float:  # derivative of the cross-entropy by 1 / temperature; it increases
        return float((2 * s * (torch.sigmoid(2 * inverse * s) - t)).mean())

    low, high = 2.0**-40, 2.0**40
    if not slope(low) < 0 < slope(high):
        raise ValueError(
            "no temperature fits: scores must rise with the labels, but not separate them perfectly; got slopes "
            f"{slope(low):.3g} and {slope(high):.3g} at the ends; use held-out data"
        )
    for _ in range(100):  # bisection on the logarithm, to the last digit
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / high
