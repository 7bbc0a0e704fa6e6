"""AdaX: Adam with a second moment over an ever longer past, so that late training nears a fixed preconditioner.

Source: kexue.fm/archives/7387; Li, Zhang, Wang and Luo 2020, arXiv:2004.09740, algorithm 2.
Differences: the second moment is kept normalised. As it is written it grows like (1 + beta2)^t, which leaves float32
near t = 887,000. Epsilon stands under the root, as in the article; `eps_mode` moves it out.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from kexue._tensors import at_least_float32
from kexue.optim._dense import DenseOptimizer, check_rate, put_back
from kexue.optim._fusion import fusible
from kexue.optim.stack import Group


@fusible(elementwise=True)
class AdaX(DenseOptimizer):
    """Adam whose second moment gives more weight to older gradients, and whose first has no bias correction.

    With g the gradient, t = 1, 2, ... and beta2 small:

    - m <- beta1 m + (1 - beta1) g
    - v <- b_t v + (1 - b_t) g^2,  1 - b_t = beta2 / ((1 + beta2)^t - 1)
    - p <- p - lr m / sqrt(v + eps)

    which is the published v' <- (1 + beta2) v' + beta2 g^2 with v = v' / ((1 + beta2)^t - 1). b_1 = 0 and b_t -> 1: for
    t << 1 / beta2 v is nearly the plain mean of all g^2; later the weight of a new g^2 falls like exp(-beta2 t) and v
    freezes. So AdaX ends as SGD with a fixed preconditioner, which does not suit data that keep changing.

    Source: kexue.fm/archives/7387; arXiv:2004.09740.

    Args:
        params: parameters or groups; a group may set anything below.
        lr: >= 0, a number or a tensor of one number.
        betas: beta1 in [0, 1); beta2 in (0, 1), small, not 1 minus something small as in Adam.
        eps: >= 0.
        weight_decay: >= 0.
        decoupled: whether decay is p <- (1 - lr weight_decay) p; False: added to the gradient as weight_decay p.
        eps_mode: ``"inside"`` the root, or ``"outside"``: sqrt(v) + eps, as in the article's code.
        foreach: whether many tensors share a call; None: on CUDA.
        maximize: ascend instead of descend.

    Raises:
        ValueError: a number out of its range. TypeError: at the step, a sparse gradient or a complex parameter.

    Warns:
        UserWarning: beta2 >= 0.5, which looks like Adam's.

    State of a parameter: `step`, `exp_avg` (m), `exp_avg_sq` (v, normalised), the latter two float32 for half
    precision. Checkpoints of code that keeps v' do not fit.

    Example:
        >>> p = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = AdaX([p], lr=0.1)
        >>> p.square().sum().backward()
        >>> optimizer.step()
        >>> round(p[0].item(), 4)  # m = 0.1 g, v = g^2
        0.99
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 1e-4),
        eps: float = 1e-8,
        *,
        weight_decay: float = 0.0,
        decoupled: bool = True,
        eps_mode: Literal["inside", "outside"] = "inside",
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in {"self", "params", "__class__"}}
        super().__init__(params, settings)

    def check(self, group: Group) -> None:
        """Raise ValueError for a setting out of its range."""
        check_rate(group["lr"], group["weight_decay"])
        for name, value, holds, wanted in (
            ("lr", group["lr"], group["lr"] is not None, "a number"),
            ("betas[0]", group["betas"][0], 0 <= group["betas"][0] < 1, "in [0, 1)"),
            ("betas[1]", group["betas"][1], 0 < group["betas"][1] < 1, "in (0, 1), such as 1e-4"),
            ("eps", group["eps"], group["eps"] >= 0, ">= 0"),
            ("eps_mode", group["eps_mode"], group["eps_mode"] in {"inside", "outside"}, "'inside' or 'outside'"),
        ):
            if not holds:
                raise ValueError(f"{name} must be {wanted}, got {value!r}")
        if group["betas"][1] >= 0.5:
            warnings.warn(
                f"AdaX's beta2 is small, such as 1e-4; {group['betas'][1]} looks like Adam's: with it the first "
                "gradients outweigh all later ones",
                stacklevel=5,  # the call of AdaX
            )

    def update(self, group: Group, params: list[Tensor], steps: int) -> None:
        """Update `params`, which differ in nothing but their shapes, in their step number `steps`."""
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        values = [at_least_float32(p) for p in params]
        grads = [at_least_float32(p.grad) for p in params if p.grad is not None]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        if group["weight_decay"] and group["decoupled"]:
            torch._foreach_mul_(values, 1 - lr * group["weight_decay"])
        elif group["weight_decay"]:
            grads = list(torch._foreach_add(grads, values, alpha=group["weight_decay"]))
        m, v = (self.moments(params, name, grads) for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(m, grads, 1 - beta1)  # section "AdaX": m_t
        torch._foreach_lerp_(v, torch._foreach_mul(grads, grads), _new_weight(beta2, steps))  # section "AdaX": v_t
        if group["eps_mode"] == "inside":
            roots = torch._foreach_add(v, group["eps"])
            torch._foreach_sqrt_(roots)
        else:
            roots = torch._foreach_sqrt(v)
            torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(values, m, roots, value=-lr)  # section "AdaX": theta_t
        put_back(params, values)


def _new_weight(beta2: float, steps: int) -> float:
    """The weight of this step's g^2, 1 - b_t = beta2 / ((1 + beta2)^t - 1), without overflow or cancellation."""
    exponent = steps * math.log1p(beta2)  # section "AdaX": v_t divided by (1 + beta2)^t - 1
    return beta2 / math.expm1(exponent) if exponent < 700 else beta2 * math.exp(-exponent)
