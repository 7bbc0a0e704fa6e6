"""Probabilities by perturbation: p_i = P[argmax_j (scores_j + noise_j) = i]; every law of noise gives a distribution.

With f and F the density and distribution function of the noise, and mu the scores divided by the temperature,

    p_i = integral f(e) prod_{j != i} F(mu_i - mu_j + e) de = integral_0^1 prod_{j != i} F(mu_i - mu_j + F^-1(t)) dt.

Gumbel noise gives softmax exactly. Every law keeps p >= 0, sum p = 1, the order of the scores, and p(mu + c) = p(mu).
The Jacobian dp/dmu is symmetric with zero row sums, for p is the gradient of E max_j (mu_j + noise_j).

Source: kexue.fm/archives/9085. Difference: the article takes K midpoints in t; here it is the K nodes of the
double-exponential rule (Takahasi and Mori 1974), which crowd at both ends and so resolve small probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import log_softmax, one_hot, softplus
from torch.utils.checkpoint import checkpoint

from kexue._tensors import (
    Reduction,
    as_class_numbers,
    as_floats,
    as_generator,
    at_least_float32,
    check_range,
    check_reduction,
    expand_mask,
    fill_masked,
    is_transformed,
    masked_logsumexp,
    reduce,
)

_REACH = 2.8  # of the rule: its outermost nodes lie 7e-12 from 0 and 1, where float64 still separates them


class Noise(Protocol):
    """A law of noise: elementwise, differentiable `log_cdf`, and the quantile function `icdf` of float64 in (0, 1)."""

    @property
    def log_cdf(self) -> Callable[[Tensor], Tensor]:
        """Log F, elementwise and differentiable."""
        ...

    @property
    def icdf(self) -> Callable[[Tensor], Tensor]:
        """The inverse of F, on float64 in (0, 1)."""
        ...


@dataclass(frozen=True)
class _Law:
    log_cdf: Callable[[Tensor], Tensor]
    icdf: Callable[[Tensor], Tensor]


def _log_below(x: Tensor, log_cdf: Callable[[Tensor], Tensor]) -> Tensor:
    """`log_cdf` where x > 0 and -inf elsewhere, without NaN in the gradient."""
    inside = x > 0
    return torch.where(inside, log_cdf(torch.where(inside, x, 1.0)), -math.inf)


def _log_normal_cdf(x: Tensor) -> Tensor:
    """Log Phi(x). The gradient of torch's own subtracts numbers near x^2/2: wrong in float32 from -1e3 on."""
    left = x < -1
    z = torch.where(left, x, -1.0) * -math.sqrt(0.5)
    tail = torch.log(torch.special.erfcx(z) / 2) - z * z
    return torch.where(left, tail, torch.log1p(-torch.erfc(torch.where(left, -1.0, x) * math.sqrt(0.5)) / 2))


NOISES: dict[str, Noise] = {
    "gumbel": _Law(lambda x: -torch.exp(-x), lambda t: -torch.log(-torch.log(t))),
    "normal": _Law(_log_normal_cdf, torch.special.ndtri),
    "logistic": _Law(lambda x: -softplus(-x), torch.logit),
    "exponential": _Law(lambda x: _log_below(x, lambda y: torch.log(-torch.expm1(-y))), lambda t: -torch.log1p(-t)),
    "cauchy": _Law(
        lambda x: torch.log(torch.atan2(torch.ones_like(x), -x) / math.pi),  # 1/2 + atan(x)/pi without cancellation
        lambda t: torch.tan(math.pi * (t - 0.5)),
    ),
    "uniform": _Law(lambda x: _log_below(x, lambda y: torch.log(y.clamp(max=1.0))), lambda t: t),
}


def perturb_max(
    scores: Tensor,
    noise: str | Noise = "gumbel",
    *,
    temperature: float = 1.0,
    nodes: int = 64,
    dim: int = -1,
    mask: Tensor | None = None,
    normalize: bool = True,
    chunk: int | None = None,
) -> Tensor:
    """Probability of each class to have the largest perturbed score; formula and source stand at the top of this file.

    Costs n^2 * nodes values of log F a row of n classes ("gumbel": one softmax). With 64 nodes and scores up to about
    10 it is right to 1e-10 for normal and logistic noise, and to 1e-3 for exponential, uniform and Cauchy noise, whose
    integrands have a kink or a heavy tail. Relative accuracy fades below p = 1e-9.

    Args:
        scores: (..., n) along `dim`, raw; -inf drops a class.
        noise: "gumbel", "normal", "logistic", "exponential" (scale 1), "cauchy" or "uniform" (on [0, 1]), or an object
            with `log_cdf` and `icdf`.
        temperature: > 0; scores are divided by it. nodes: >= 2, of the quadrature.
        dim: the axis of the classes. mask: bool, broadcastable to scores, True = keep.
        normalize: divide by the sum, which the quadrature leaves near 1.
        chunk: nodes handled at once, and computed again in the backward pass: memory is then n^2 * chunk a row.

    Returns:
        same shape and dtype; zeros where a class is masked. Half precision is computed in float32.

    Raises:
        ValueError, TypeError: an unknown noise, scores that are no floats, a number out of range.
    """
    options = (noise, temperature, nodes, dim, mask, normalize, chunk)
    return _log_probabilities(scores, *options).exp().to(scores.dtype)


def log_perturb_max(
    scores: Tensor,
    noise: str | Noise = "gumbel",
    *,
    temperature: float = 1.0,
    nodes: int = 64,
    dim: int = -1,
    mask: Tensor | None = None,
    normalize: bool = True,
    chunk: int | None = None,
) -> Tensor:
    """Logarithm of `perturb_max`, from the log domain; -inf where a class is masked or out of the noise's reach."""
    options = (noise, temperature, nodes, dim, mask, normalize, chunk)
    return _log_probabilities(scores, *options).to(scores.dtype)


def perturb_max_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    noise: str | Noise = "gumbel",
    *,
    temperature: float = 1.0,
    nodes: int = 64,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy -log p_label under `perturb_max`; with Gumbel noise the usual one.

    Noise with bounded support ("uniform", and "exponential" some 25 temperatures apart) gives a label out of reach
    probability 0: the loss is then infinite and sends no gradient.

    Args:
        scores: (..., n), raw. labels: (...), integers in [0, n) or `ignore_index`.
        noise, temperature, nodes: as in `perturb_max`.
        reduction: "none" (one value a sample), "mean" over the kept ones, or "sum".

    Returns:
        (...) or scalar, float32 for half precision; exactly 0, with a graph, when every label is ignored.

    Raises:
        ValueError, TypeError: shapes that do not fit, labels out of range, and what `perturb_max` raises.
    """
    check_reduction(reduction)
    scores, labels = as_floats(scores), as_class_numbers(labels)
    if labels.shape != scores.shape[:-1]:
        got = f"{tuple(labels.shape)} for scores {tuple(scores.shape)}"
        raise ValueError(f"labels must have the shape of scores less the last axis, got {got}")
    check_range(labels, scores.shape[-1], ignore_index)
    keep = labels != ignore_index
    kept_scores = torch.where(keep[..., None], scores, 0.0)
    log_p = _log_probabilities(kept_scores, noise, temperature, nodes, -1, None, True, None)
    chosen = log_p.gather(-1, torch.where(keep, labels, 0)[..., None]).squeeze(-1)
    return reduce(-chosen, keep, reduction)


class PerturbMax(torch.distributions.Distribution):
    """The distribution over classes 0 ... n-1 that `perturb_max` gives, with samples and relaxed samples.

    Args:
        scores: (..., n), raw. noise, temperature, nodes: as in `perturb_max`.

    >>> PerturbMax(torch.tensor([1.0, 0.0, -1.0]), "normal").probs
    tensor([0.7287, 0.2241, 0.0471])
    """

    arg_constraints = {}  # noqa: RUF012 - as torch declares it: any real scores will do

    def __init__(
        self, scores: Tensor, noise: str | Noise = "gumbel", *, temperature: float = 1.0, nodes: int = 64
    ) -> None:
        self.scores, self.noise, self.temperature, self.nodes = scores, noise, temperature, nodes
        self._log_p = log_perturb_max(scores, noise, temperature=temperature, nodes=nodes)
        super().__init__(scores.shape[:-1], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The integers 0 ... n-1."""
        last = self.scores.shape[-1] - 1
        interval: constraints.Constraint = constraints.integer_interval(0, last)  # type: ignore[no-untyped-call]
        return interval

    @property
    def probs(self) -> Tensor:
        """(..., n)."""
        return self._log_p.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the classes `value`, broadcast against the batch shape."""
        batch = (value + torch.zeros_like(self._log_p[..., 0])).shape
        log_p = self._log_p.expand(*batch, self.scores.shape[-1])
        return log_p.gather(-1, value.long().expand(batch)[..., None]).squeeze(-1)

    def sample(self, shape: Any = (), *, generator: torch.Generator | int | None = None) -> Tensor:
        """Classes, int64 of shape `shape + batch_shape`: the argmax of the perturbed scores."""
        return self._perturbed(shape, generator).detach().argmax(-1)

    def rsample(
        self,
        shape: Any = (),
        *,
        temperature: float = 1.0,
        hard: bool = False,
        generator: torch.Generator | int | None = None,
    ) -> Tensor:
        """Relaxed one-hot samples softmax(perturbed / temperature), `shape + batch_shape + (n,)`, with gradients.

        `hard` rounds them to one-hot in the forward pass and keeps the gradient of the soft ones (straight-through).
        """
        _positive(temperature, "temperature")
        soft: Tensor = torch.softmax(self._perturbed(shape, generator) / temperature, -1)
        if not hard:
            return soft
        rounded: Tensor = one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
        return rounded + (soft - soft.detach())

    def entropy(self) -> Tensor:
        """Entropy in nats, of the batch shape."""
        each: Tensor = torch.special.entr(self.probs)
        return each.sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PerturbMax:
        """The same distribution with another batch shape."""
        scores = self.scores.expand(*batch_shape, self.scores.shape[-1])
        return PerturbMax(scores, self.noise, temperature=self.temperature, nodes=self.nodes)

    def _perturbed(self, shape: Any, generator: torch.Generator | int | None) -> Tensor:
        """(*shape, ..., n): scores / temperature + noise, drawn in float64 for the sake of the tails."""
        size, device = (*shape, *self.scores.shape), self.scores.device
        made = None if device.type == "meta" else as_generator(generator, device)
        t = torch.rand(size, generator=made, dtype=torch.float64, device=device)
        drawn = _law(self.noise).icdf(t.clamp(min=1e-300))
        scores = at_least_float32(self.scores)
        return scores / self.temperature + drawn.to(scores.dtype)


def _log_probabilities(
    scores: Tensor,
    noise: str | Noise,
    temperature: float,
    nodes: int,
    dim: int,
    mask: Tensor | None,
    normalize: bool,
    chunk: int | None,
) -> Tensor:
    law = _law(noise)
    _positive(temperature, "temperature")
    mu = as_floats(scores)
    if nodes < 2 or (chunk is not None and chunk < 1):
        raise ValueError(f"nodes must be >= 2 and chunk >= 1 or None, got {nodes=}, {chunk=}")
    keep = ~torch.isneginf(scores)
    if mask is not None:
        keep = keep & expand_mask(mask, scores.shape)
    mu = (torch.where(keep, mu, 0.0) / temperature).movedim(dim, -1)
    keep = keep.movedim(dim, -1)
    if noise == "gumbel":
        log_p = log_softmax(fill_masked(mu, keep), -1)
    else:
        log_p = _quadrature(mu, keep, law, nodes, chunk)
        if normalize:
            total = masked_logsumexp(log_p, keep)[..., None]
            log_p = log_p - total.masked_fill(total == -math.inf, 0.0)  # a row out of the noise's reach stays at -inf
    return log_p.masked_fill(~keep, -math.inf).movedim(-1, dim)


def _quadrature(mu: Tensor, keep: Tensor, law: Noise, nodes: int, chunk: int | None) -> Tensor:
    """Log of sum_k w_k prod_{j != i} F(mu_i - mu_j + e_k), over the kept j."""
    e, log_w = (part.to(mu) for part in _rule(law, nodes))
    gaps = mu[..., :, None] - mu[..., None, :]
    absent = torch.eye(mu.shape[-1], dtype=torch.bool, device=mu.device) | ~keep[..., None, :]

    def part(gaps: Tensor, e: Tensor, log_w: Tensor) -> Tensor:
        terms = law.log_cdf(torch.where(absent, 0.0, gaps)[..., None] + e).masked_fill(absent[..., None], 0.0)
        return _logsumexp(terms.sum(-2) + log_w)

    if chunk is None or chunk >= nodes:
        return part(gaps, e, log_w)
    pieces = zip(torch.split(e, chunk), torch.split(log_w, chunk), strict=True)
    if is_transformed():  # torch.func knows no checkpoints
        return _logsumexp(torch.stack([part(gaps, *piece) for piece in pieces], -1))
    done: list[Any] = [checkpoint(part, gaps, *piece, use_reentrant=False) for piece in pieces]
    return _logsumexp(torch.stack(done, -1))


def _logsumexp(x: Tensor) -> Tensor:
    """log sum exp over the last axis; -inf with gradient 0 where all entries are -inf."""
    return masked_logsumexp(x, torch.ones_like(x, dtype=torch.bool))


def _rule(law: Noise, nodes: int) -> tuple[Tensor, Tensor]:
    """Double-exponential nodes e_k = F^-1(t_k) and log weights: t = sigmoid(pi sinh s) on an even grid of s."""
    s = torch.linspace(-_REACH, _REACH, nodes, dtype=torch.float64)
    t = torch.sigmoid(math.pi * torch.sinh(s))
    weights = torch.cosh(s) * t * t.flip(0)  # dt/ds up to a constant; 1 - t mirrors t
    return law.icdf(t), torch.log(weights / weights.sum())


def _law(noise: str | Noise) -> Noise:
    if isinstance(noise, str):
        if noise not in NOISES:
            raise ValueError(f"noise must be one of {', '.join(NOISES)} or an object with log_cdf, icdf; got {noise!r}")
        return NOISES[noise]
    if not (hasattr(noise, "log_cdf") and hasattr(noise, "icdf")):
        raise TypeError(f"a noise needs the methods log_cdf and icdf; {type(noise).__name__} lacks them")
    return noise


def _positive(value: float, name: str) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")
