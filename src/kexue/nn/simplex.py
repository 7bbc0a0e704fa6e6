"""Probabilities by perturbation: p_i = P[argmax_j (scores_j + noise_j) = i], for any noise distribution.

With f and F the density and distribution function of the noise, and mu the scores divided by the temperature,

    p_i = integral f(e) prod_{j != i} F(mu_i - mu_j + e) de = integral_0^1 prod_{j != i} F(mu_i - mu_j + F^-1(t)) dt.

Gumbel noise gives softmax exactly. With every noise p >= 0, sum p = 1, p has the order of the scores, and
p(mu + c) = p(mu). The Jacobian dp/dmu is symmetric with zero row sums, because p is the gradient of
E max_j (mu_j + noise_j).

Source: kexue.fm/archives/9085. Equation numbers are those of kexue.fm/archives/10145, section "Perturb Max", which
restates it. Difference: the article takes K midpoints in t; here it is the K nodes of the double-exponential rule
(Takahasi and Mori 1974), which are denser at both ends and so resolve small probabilities.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import log_softmax, one_hot
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
from kexue.nn.noise import Noise, as_noise

_REACH = 2.8  # of the rule: its outermost nodes lie 7e-12 from 0 and 1, where float64 still separates them


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
    """Compute the probability of each class to have the largest perturbed score, by the module's formula.

    Costs n^2 * nodes values of log F per row of n classes ("gumbel": one softmax). With 64 nodes and scores up to about
    10 it is right to 1e-10 for normal and logistic noise, and to 1e-3 for exponential, uniform and Cauchy noise, whose
    integrands have a kink or a heavy tail. Below p = 1e-9 the relative accuracy decreases.

    Args:
        scores: (..., n) along `dim`, raw; -inf drops a class.
        noise: "gumbel", "normal", "logistic", "exponential" (scale 1), "cauchy" or "uniform" (on [0, 1]), or an object
            with `log_cdf` and `icdf`.
        temperature: divisor of the scores, > 0.
        nodes: nodes of the quadrature, >= 2.
        dim: the axis of the classes.
        mask: bool, broadcastable to scores, True = keep.
        normalize: divide by the sum, which the quadrature leaves near 1.
        chunk: nodes computed at once, and a second time in the backward pass: memory is then n^2 * chunk a row. None
            computes all at once.

    Returns:
        same shape and dtype; zeros where a class is masked. Half precision is computed in float32.

    Raises:
        ValueError, TypeError: an unknown noise, scores that are not floats, a number out of range.
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
    """Compute the logarithm of `perturb_max`; -inf where a class is masked or has probability 0."""
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
    """Compute the cross-entropy -log p_label under `perturb_max`; with Gumbel noise it is the usual one.

    Noise with bounded support can give a label probability 0 ("uniform", and in effect "exponential" where scores are
    25 temperatures apart): the loss is then infinite and has no gradient.

    Args:
        scores: (..., n), raw.
        labels: (...), integers in [0, n) or `ignore_index`.
        noise, temperature, nodes: as in `perturb_max`.
        ignore_index: label of samples that do not count.
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
        raise ValueError(f"labels must have the shape of scores without the last axis, got {got}")
    check_range(labels, scores.shape[-1], ignore_index)
    keep = labels != ignore_index
    kept_scores = torch.where(keep[..., None], scores, 0.0)
    log_p = _log_probabilities(kept_scores, noise, temperature, nodes, -1, None, True, None)
    log_p_label = log_p.gather(-1, torch.where(keep, labels, 0)[..., None]).squeeze(-1)
    return reduce(-log_p_label, keep, reduction)


class PerturbMax(torch.distributions.Distribution):
    """Distribution over the classes 0 ... n-1 with the probabilities of `perturb_max`; samples and relaxed samples.

    Args:
        scores: (..., n), raw.
        noise, temperature, nodes: as in `perturb_max`.

    Example:
        >>> PerturbMax(torch.tensor([1.0, 0.0, -1.0]), "normal").probs
        tensor([0.7287, 0.2241, 0.0471])
    """

    arg_constraints = {}  # noqa: RUF012 - the type that torch declares; any real scores are legal

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
        """Probabilities (..., n)."""
        return self._log_p.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the classes `value`, broadcast against the batch shape."""
        batch = (value + torch.zeros_like(self._log_p[..., 0])).shape
        log_p = self._log_p.expand(*batch, self.scores.shape[-1])
        return log_p.gather(-1, value.long().expand(batch)[..., None]).squeeze(-1)

    def sample(self, shape: Any = (), *, generator: torch.Generator | int | None = None) -> Tensor:
        """Draw classes, int64 of shape `shape + batch_shape`: the argmax of the perturbed scores."""
        return self._perturb(shape, generator).detach().argmax(-1)  # eq. 17

    def rsample(
        self,
        shape: Any = (),
        *,
        temperature: float = 1.0,
        hard: bool = False,
        generator: torch.Generator | int | None = None,
    ) -> Tensor:
        """Draw relaxed one-hot samples softmax(perturbed / temperature), `shape + batch_shape + (n,)`, with gradients.

        `hard` rounds them to one-hot in the forward pass and keeps the gradient of the soft ones (straight-through).
        """
        _check_positive(temperature, "temperature")
        soft: Tensor = torch.softmax(self._perturb(shape, generator) / temperature, -1)
        if not hard:
            return soft
        rounded: Tensor = one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
        return rounded + (soft - soft.detach())

    def entropy(self) -> Tensor:
        """Return the entropy in nats, of the batch shape."""
        each: Tensor = torch.special.entr(self.probs)
        return each.sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PerturbMax:
        """Return the same distribution with another batch shape."""
        scores = self.scores.expand(*batch_shape, self.scores.shape[-1])
        return PerturbMax(scores, self.noise, temperature=self.temperature, nodes=self.nodes)

    def _perturb(self, shape: Any, generator: torch.Generator | int | None) -> Tensor:
        """Return scores / temperature + noise, (*shape, ..., n), noise drawn in float64 to resolve its tails."""
        size, device = (*shape, *self.scores.shape), self.scores.device
        made = None if device.type == "meta" else as_generator(generator, device)
        t = torch.rand(size, generator=made, dtype=torch.float64, device=device)
        noise = as_noise(self.noise).icdf(t.clamp(min=1e-300))
        scores = at_least_float32(self.scores)
        return scores / self.temperature + noise.to(scores.dtype)


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
    """Return the log-probabilities in float32 or wider; arguments as in `perturb_max`."""
    distribution = as_noise(noise)
    _check_positive(temperature, "temperature")
    mu = as_floats(scores)
    if nodes < 2 or (chunk is not None and chunk < 1):
        raise ValueError(f"nodes must be >= 2 and chunk >= 1 or None, got {nodes=}, {chunk=}")
    keep = ~torch.isneginf(scores)
    if mask is not None:
        keep = keep & expand_mask(mask, scores.shape)
    mu = (torch.where(keep, mu, 0.0) / temperature).movedim(dim, -1)
    keep = keep.movedim(dim, -1)
    if noise == "gumbel":
        log_p = log_softmax(fill_masked(mu, keep), -1)  # eq. 16
    else:
        log_p = _quadrature(mu, keep, distribution, nodes, chunk)
        if normalize:
            total = masked_logsumexp(log_p, keep)[..., None]
            log_p = log_p - total.masked_fill(total == -math.inf, 0.0)  # a row of probabilities 0 stays at -inf
    return log_p.masked_fill(~keep, -math.inf).movedim(-1, dim)


def _quadrature(mu: Tensor, keep: Tensor, distribution: Noise, nodes: int, chunk: int | None) -> Tensor:
    """Return log sum_k w_k prod_{j != i} F(mu_i - mu_j + e_k), over the kept j."""
    log_cdf = distribution.log_cdf
    e, log_w = (part.to(mu) for part in _double_exponential_rule(distribution, nodes))
    gaps = mu[..., :, None] - mu[..., None, :]
    left_out = torch.eye(mu.shape[-1], dtype=torch.bool, device=mu.device) | ~keep[..., None, :]

    def integrate(gaps: Tensor, e: Tensor, log_w: Tensor) -> Tensor:
        terms = log_cdf(torch.where(left_out, 0.0, gaps)[..., None] + e).masked_fill(left_out[..., None], 0.0)
        return _logsumexp(terms.sum(-2) + log_w)  # eq. 18

    if chunk is None or chunk >= nodes:
        return integrate(gaps, e, log_w)
    pieces = zip(torch.split(e, chunk), torch.split(log_w, chunk), strict=True)
    if is_transformed():  # torch.func does not support checkpoints
        return _logsumexp(torch.stack([integrate(gaps, *piece) for piece in pieces], -1))
    sums: list[Any] = [checkpoint(integrate, gaps, *piece, use_reentrant=False) for piece in pieces]
    return _logsumexp(torch.stack(sums, -1))


def _logsumexp(x: Tensor) -> Tensor:
    """Return log sum exp over the last axis; -inf with gradient 0 where all entries are -inf."""
    return masked_logsumexp(x, torch.ones_like(x, dtype=torch.bool))


def _double_exponential_rule(distribution: Noise, nodes: int) -> tuple[Tensor, Tensor]:
    """Return the nodes e_k = F^-1(t_k) and log weights, with t = sigmoid(pi sinh s) on an even grid of s."""
    s = torch.linspace(-_REACH, _REACH, nodes, dtype=torch.float64)
    t = torch.sigmoid(math.pi * torch.sinh(s))
    weights = torch.cosh(s) * t * t.flip(0)  # dt/ds up to a constant; 1 - t mirrors t
    # Section "一般噪声" (general noise): nodes by the inverse of F.
    return distribution.icdf(t), torch.log(weights / weights.sum())


def _check_positive(value: float, name: str) -> None:
    """Raise ValueError unless value > 0."""
    if not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")
