"""AdaFactor: adaptive steps with a second moment that keeps one number per row and one per column of a matrix.

Source: kexue.fm/archives/7302; Shazeer and Stern 2018, arXiv:1804.04235. Comments name the parts of the article
(section "…") and the paper's algorithms 4 to 6 (A4, A5, A6).
Differences: the factors are divided before they are multiplied, as R C underflows float32 where gradients are zero.
Means stand where the paper has sums; the quotient is the same. `RMS(p)` is that of the parameter before its decay.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from kexue._tensors import at_least_float32, float32_or_wider
from kexue.optim._dense import DenseOptimizer, check_rate, put_back, sum_shards
from kexue.optim._fusion import fusible
from kexue.optim.stack import Group

_CELLS = 2**18  # elements of a matrix handled at a time per thread: they stay in the cache of a core


@fusible(elementwise=False)
class Adafactor(DenseOptimizer):
    """Optimizer with adaptive steps like Adam's, which stores n + m numbers for an n x m matrix.

    With g the gradient, t = 1, 2, ... and b_t = 1 - t^-decay_power:

    - matrix: R <- b_t R + (1 - b_t) mean_columns(g^2 + eps[0]), C likewise over rows, v = R C / mean(R);
      anything else: v <- b_t v + (1 - b_t) (g^2 + eps[0]);
    - u = g / sqrt(v), then u <- u / max(1, RMS(u) / clip_threshold), where RMS(x) = sqrt(mean(x^2));
    - with beta1 > 0: m <- beta1 m + (1 - beta1) u and u = m;
    - p <- (1 - lr weight_decay) p - lr max(eps[1], RMS(p)) u.

    R C / mean(R) is the matrix of rank one nearest to v in generalised Kullback-Leibler divergence. A tensor with more
    dimensions has R and C for every index of the others.

    Source: kexue.fm/archives/7302; arXiv:1804.04235.

    Args:
        params: parameters or groups; a group may set anything below, so ``scale_parameter=False`` for some of them.
        lr: >= 0, about 1e-3 also for fine-tuning, as it is relative to the size of the parameter; a scheduler may move
            it. None: the relative step min(1e-2, 1 / sqrt(t)), which no scheduler can change.
        beta1: in [0, 1), momentum of the clipped update; 0 keeps no such state.
        beta2: in [0, 1), a fixed b instead of b_t; without bias correction: only clipping limits the first steps.
        decay_power: > 0. At t = 1 the gradient alone counts, later more and more of the past.
        eps: number added to g^2, and lower bound of the size of a parameter; both >= 0.
        clip_threshold: > 0; None: no clipping.
        scale_parameter: whether the step is relative to RMS(p).
        relative_step_scale: > 0, factor of the relative step where ``scale_parameter`` is False.
        min_dim_size_to_factor: a tensor is factored when both dimensions are at least this long. 0: always.
        factor_dims: the two ``"largest"`` dimensions, the earlier of equal ones, or the two ``"last"``.
        weight_decay: >= 0, decoupled, times lr or the relative step.
        warmup_init: the relative step starts as 1e-6 t.
        foreach: True: many tensors per call, faster on accelerators, with temporary memory as large as the parameters.
            None and False: one at a time.
        maximize: ascend instead of descend.

    Raises:
        ValueError: a setting out of its range; at the step, a scheduler together with ``lr=None``.
        TypeError: at the step, a sparse gradient or a complex parameter.

    State of a parameter: `step`, `exp_avg_sq_row` and `exp_avg_sq_col`, or `exp_avg_sq`; with momentum `exp_avg`. They
    are float32 for half precision, and have the shape of the parameter or 1 where a mean was taken.

    Example:
        >>> p = torch.nn.Parameter(torch.ones(256, 512))
        >>> optimizer = Adafactor([p], lr=0.1)
        >>> p.square().sum().backward()
        >>> optimizer.step()
        >>> round(p[0, 0].item(), 3), {k: tuple(v.shape) for k, v in optimizer.state[p].items()}
        (0.9, {'step': (), 'exp_avg_sq_row': (256, 1), 'exp_avg_sq_col': (1, 512)})

    See also: `AdaX`, whose second moment also averages over an ever longer past, without factors.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = 1e-3,
        *,
        beta1: float = 0.0,
        beta2: float | None = None,
        decay_power: float = 0.8,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float | None = 1.0,
        scale_parameter: bool = True,
        relative_step_scale: float = 0.05,
        min_dim_size_to_factor: int = 128,
        factor_dims: Literal["largest", "last"] = "largest",
        weight_decay: float = 0.0,
        warmup_init: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in {"self", "params", "__class__"}}
        super().__init__(params, settings)

    def check(self, group: Group) -> None:
        """Raise ValueError for a setting out of its range."""
        check_rate(group["lr"], group["weight_decay"])
        beta1, beta2, clip = group["beta1"], group["beta2"], group["clip_threshold"]
        for name, value, holds, wanted in (
            ("beta1", beta1, 0 <= beta1 < 1, "in [0, 1)"),
            ("beta2", beta2, beta2 is None or 0 <= beta2 < 1, "None or in [0, 1)"),
            ("decay_power", group["decay_power"], group["decay_power"] > 0, "> 0"),
            ("eps", group["eps"], len(group["eps"]) == 2 and min(group["eps"]) >= 0, "two numbers >= 0"),
            ("clip_threshold", clip, clip is None or clip > 0, "None or > 0"),
            ("relative_step_scale", group["relative_step_scale"], group["relative_step_scale"] > 0, "> 0"),
            ("factor_dims", group["factor_dims"], group["factor_dims"] in {"largest", "last"}, "'largest' or 'last'"),
            ("warmup_init", group["warmup_init"], group["lr"] is None or not group["warmup_init"], "False with an lr"),
        ):
            if not holds:
                raise ValueError(f"{name} must be {wanted}, got {value!r}")

    def kind(self, group: Group, param: Tensor) -> Hashable:
        """As in the base, for tensors that are factored alike; None, to save memory, unless `foreach` is True."""
        return (param.device, param.dtype, type(param), _dims(group, param.shape)) if group["foreach"] else None

    def update(self, group: Group, params: list[Tensor], steps: int) -> None:
        """Update `params`, which differ in nothing but their sizes, in their step number `steps`."""
        dims = _dims(group, params[0].shape)
        if dims and not group["foreach"] and _is_cpu_matrix(params[0]):
            self._update_matrix(group, params[0], steps)
            return
        rate, fresh = _rate(group, steps), _new_weight(group, steps)
        grads = [at_least_float32(p.grad) for p in params if p.grad is not None]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        squares = list(torch._foreach_mul(grads, grads))
        if dims is None:
            v = self.moments(params, "exp_avg_sq", squares)
            torch._foreach_add_(squares, group["eps"][0])
            torch._foreach_lerp_(v, squares, fresh)  # section "AdaFactor", A5: V_t
            updates = list(torch._foreach_mul(grads, [_root(x) for x in v]))  # section "AdaFactor", A5: U_t
        else:
            means = [[_mean(x, dim) for x in squares] for dim in (dims[1], dims[0])]
            R, C = self._factors(group, params, means, fresh)
            updates = list(torch._foreach_mul(grads, [_root(x, _mean(x, dims[0])) for x in R]))
            torch._foreach_mul_(updates, [_root(x) for x in C])  # section "AdaFactor", A4: U_t
        del squares
        values = [at_least_float32(p) for p in params]
        if group["clip_threshold"] is not None:
            clips = _sizes(updates)
            torch._foreach_div_(clips, group["clip_threshold"])
            torch._foreach_clamp_min_(clips, 1.0)
            torch._foreach_div_(updates, clips)  # section "AdaFactor", A4: clipped U_t
        if group["beta1"]:
            m = self.moments(params, "exp_avg", updates)
            torch._foreach_lerp_(m, updates, 1 - group["beta1"])
            updates = m
        if group["scale_parameter"]:
            scales = _sizes(values)
            torch._foreach_clamp_min_(scales, group["eps"][1])
            torch._foreach_mul_(scales, rate)  # section "AdaFactor", A4: alpha_t
        else:
            scales = [x.new_full((), rate) for x in values]
        if group["weight_decay"]:
            torch._foreach_mul_(values, 1 - rate * group["weight_decay"])
        torch._foreach_addcmul_(values, updates, scales, value=-1.0)  # section "AdaFactor", A4: X_t
        put_back(params, values)

    def _update_matrix(self, group: Group, p: Tensor, steps: int) -> None:
        """`update` for one matrix on the CPU, a block of rows at a time and without an array of its size."""
        assert p.grad is not None
        rate, fresh, grad = _rate(group, steps), _new_weight(group, steps), p.grad
        n, m = p.shape
        size = min(n, max(1, _CELLS * torch.get_num_threads() // m))
        buffer = torch.empty(size, m, dtype=float32_or_wider(p.dtype))
        row, col = buffer.new_zeros(n, 1), buffer.new_zeros(1, m)
        for g, total in zip(_blocks(grad, size), torch.split(row, size), strict=True):
            square = torch.mul(g, g, out=buffer[: len(g)])
            torch.sum(square, 1, keepdim=True, out=total)
            col += square.sum(0)
        (R,), (C,) = self._factors(group, [p], [[row.div_(m)], [col.div_(n)]], fresh)
        r, c = _root(R, R.mean()), _root(C)
        if group["maximize"]:
            r.neg_()
        if group["clip_threshold"] is not None:
            norm = torch.empty_like(r)
            for g, out in zip(_blocks(grad, size), torch.split(norm, size), strict=True):
                torch.linalg.vector_norm(torch.mul(g, c, out=buffer[: len(g)]), dim=1, keepdim=True, out=out)
            size_of_update = torch.linalg.vector_norm(norm.mul_(r)) / (n * m) ** 0.5
            r /= (size_of_update / group["clip_threshold"]).clamp_(min=1)  # section "AdaFactor", A4: clipped U_t
        scale = buffer.new_full((), rate)
        if group["scale_parameter"]:
            norm = torch.linalg.vector_norm(torch.linalg.vector_norm(p, dim=1, dtype=buffer.dtype))
            scale *= (norm / (n * m) ** 0.5).clamp_(min=group["eps"][1])  # section "AdaFactor", A4: alpha_t
        decay = 1 - rate * group["weight_decay"]
        momentum: list[Tensor] | tuple[None, ...] = (None,) * -(-n // size)
        if group["beta1"]:
            momentum = list(torch.split(self.moments([p], "exp_avg", [at_least_float32(p)])[0], size))
        else:
            r *= scale
        for x, g, factor, mean in zip(
            torch.split(p, size), _blocks(grad, size), torch.split(r, size), momentum, strict=True
        ):
            value = at_least_float32(x).mul_(decay) if group["weight_decay"] else at_least_float32(x)
            update = torch.mul(g, factor, out=buffer[: len(g)])
            if mean is None:
                value.addcmul_(update, c, value=-1.0)  # section "AdaFactor", A4: X_t
            else:
                mean.lerp_(update.mul_(c), 1 - group["beta1"])
                value.addcmul_(mean, scale, value=-1.0)
            put_back([x], [value])

    def _factors(
        self, group: Group, params: list[Tensor], means: list[list[Tensor]], fresh: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        """R and C after the means of g^2 along columns and along rows in this step; `means` is overwritten."""
        factors = []
        for name, mean in zip(("exp_avg_sq_row", "exp_avg_sq_col"), means, strict=True):
            moments = self.moments(params, name, mean)
            torch._foreach_add_(mean, group["eps"][0])
            torch._foreach_lerp_(moments, mean, fresh)  # section "AdaFactor", A4: R_t, C_t
            factors.append(moments)
        return factors[0], factors[1]


def _dims(group: Group, shape: torch.Size) -> tuple[int, int] | None:
    """Dimensions of rows and of columns, the earlier first; None: not factored."""
    order = range(len(shape))
    dims = sorted(order, key=lambda dim: -shape[dim])[:2] if group["factor_dims"] == "largest" else order[-2:]
    if len(dims) < 2 or min(shape[dim] for dim in dims) < group["min_dim_size_to_factor"]:
        return None
    return min(dims), max(dims)


def _rate(group: Group, steps: int) -> float:
    """Step size before it is multiplied by the size of the parameter (rho_t of A6 where there is no lr)."""
    if group["lr"] is not None:
        return float(group["lr"])
    if "initial_lr" in group:
        raise ValueError("a scheduler cannot change the relative step of lr=None: give Adafactor an lr, or drop it")
    rate: float = min(1e-6 * steps if group["warmup_init"] else 1e-2, steps**-0.5)  # section "AdaFactor", A6: rho_t
    return rate if group["scale_parameter"] else rate * float(group["relative_step_scale"])


def _new_weight(group: Group, steps: int) -> float:
    """Weight of the g^2 of this step: 1 - b_t = t^-c, or 1 - beta2."""
    return float(
        steps ** -group["decay_power"] if group["beta2"] is None else 1 - group["beta2"]
    )  # section "AdaFactor", A6: beta2_t


def _root(v: Tensor, mean: Tensor | None = None) -> Tensor:
    """1 / sqrt(v / mean), large but finite at v = 0, so that a gradient of 0 stays 0."""
    tiny = torch.finfo(v.dtype).tiny
    return (v if mean is None else v / mean.clamp(min=tiny)).clamp(min=tiny).rsqrt_()


def _mean(x: Tensor, dim: int) -> Tensor:
    return sum_shards(x.sum(dim, keepdim=True)) / x.shape[dim]


def _sizes(tensors: list[Tensor]) -> list[Tensor]:
    """RMS of each, as a scalar tensor."""
    norms = [sum_shards(norm) for norm in torch._foreach_norm(tensors)]
    torch._foreach_div_(norms, [x.numel() ** 0.5 for x in tensors])
    return norms


def _is_cpu_matrix(param: Tensor) -> bool:
    return param.ndim == 2 and param.is_cpu and type(param) in {Tensor, torch.nn.Parameter}


def _blocks(grad: Tensor, size: int) -> Iterator[Tensor]:
    """The gradient, `size` rows at a time, half precision as float32."""
    return (at_least_float32(block) for block in torch.split(grad, size))
