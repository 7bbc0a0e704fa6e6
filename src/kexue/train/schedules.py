"""AdamW and the course of the learning rate with which the commands of kexue train."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

_WARM = 20  # the learning rate rises over a twentieth of the steps


def build_optimizer(
    model: nn.Module, lr: float, *, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.98)
) -> AdamW:
    """Return AdamW with weight decay for matrices and filters, and none for biases and norms.

    Args:
        model: the module whose parameters are trained.
        lr: largest learning rate, > 0.
        weight_decay: of parameters with two or more dimensions, >= 0.
        betas: decays of AdamW's averages of the gradient and of its square, in [0, 1).
    """
    matrices = [one for one in model.parameters() if one.dim() > 1]
    vectors = [one for one in model.parameters() if one.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=lr, betas=betas)


def warm_then_fall(optimizer: Optimizer, steps: int) -> LambdaLR:
    """Return the schedule of the learning rate: up over a twentieth of the steps, then linearly down to 0."""
    warm = max(1, steps // _WARM)

    def factor(step: int) -> float:
        return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))

    return LambdaLR(optimizer, factor)
