"""Variational auto-encoder: an encoder gives each event a normal distribution of latents, a decoder goes back.

Source: kexue.fm/archives/5253 and 5343; Kingma and Welling 2013, arXiv:1312.6114.
Burda et al. 2015, arXiv:1509.00519 (bound with several latents); Kingma et al. 2016, arXiv:1606.04934 (free bits).
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from kexue._counts import check_counts
from kexue._tensors import at_least_float32, check_classes, evaluating, explaining_precision
from kexue.generative.likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood, LogisticLikelihood
from kexue.generative.model import GenerativeModel, LossOutput, check_batch, unpack_batch
from kexue.generative.noise import Noise
from kexue.generative.posterior import Posterior

LOG_VAR_RANGE = (-15.0, 10.0)  # exp of more overflows in half precision, and of less is no noise at all


class VAE(GenerativeModel):
    """A decoder of normal latents, and an encoder that says which latents an event may have.

    The loss of an event is -log p(x | z) + beta KL(q(z | x) || p(z)), z from q; both terms are sums over numbers, not
    means, and the loss is the mean over the batch. With beta = 1 it bounds -log p(x). The two terms pull apart: without
    the divergence the deviations go to 0 and the latents are those of a plain auto-encoder, which no prior describes.

    Args:
        encoder: module from events (B, *event_shape) to (B, 2 latent_dim): means, then logarithms of variances, both
            without an activation. The latter are limited to [-15, 10].
        decoder: module from latents (B, latent_dim) to events, in the terms of the likelihood; its output for a latent
            of 0 states `event_shape`.
        latent_dim: d, >= 1.
        likelihood: p(x | z), events in [-1, 1]. ``"gaussian"``: deviation `sigma` around the decoder's output;
            ``"gaussian_learned"``: the same, one deviation that is learned from `sigma` on; ``"bernoulli"``: black and
            white, the output is a logit and `sigma` has no meaning; ``"discretized_logistic"``: 256 levels; or a
            `Likelihood`, such as ``LogisticLikelihood(17)``.
        beta: weight of the divergence, >= 0.
        beta_warmup: steps in which this weight grows linearly from 0 to `beta`, >= 0. A step is a call of `loss` in
            training mode. In evaluation mode the weight is `beta`.
        free_bits: nats of divergence, >= 0, that each latent has for free: its mean over the batch counts as at least
            this. With several processes it is the mean of each process.
        sigma: deviation of p(x | z), above 0.0025, in units of x.
        prior: ``"standard"``: N(0, I); ``"class_mean"``: N(m_y, I) with a learned mean for each class y.
        num_classes: number of classes of ``"class_mean"``, >= 1.

    Attributes:
        event_shape: shape of one event.
        steps: number of steps so far, a buffer.
        clamp_count: how many logarithms of variances were outside [-15, 10] in these steps, a buffer; where it grows,
            the encoder diverges or the divergence has no weight.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> from kexue.generative import MLP
        >>> model = VAE(MLP((1, 8, 8), 16), MLP(8, (1, 8, 8)), 8, sigma=0.25)
        >>> x = model.sample(5, generator=0)
        >>> x.shape, model.encode(x).mean.shape, model.log_prob_bound(x, k=10).shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5, 8]), torch.Size([5]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        *,
        likelihood: Literal["gaussian", "gaussian_learned", "bernoulli", "discretized_logistic"]
        | Likelihood = "gaussian",
        beta: float = 1.0,
        beta_warmup: int = 0,
        free_bits: float = 0.0,
        sigma: float = 1.0,
        prior: Literal["standard", "class_mean"] = "standard",
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        check_counts(latent_dim=latent_dim)
        check_counts(0, beta_warmup=beta_warmup)
        for name, value in (("beta", beta), ("free_bits", free_bits)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be >= 0 and finite, got {value}")
        self.encoder, self.decoder, self.latent_dim = encoder, decoder, latent_dim
        self.likelihood = _make_likelihood(likelihood, sigma)
        self.beta, self.beta_warmup, self.free_bits = beta, beta_warmup, free_bits
        self.prior_means = _make_prior(prior, num_classes, latent_dim)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("clamp_count", torch.zeros((), dtype=torch.int64))
        self.steps: Tensor
        self.clamp_count: Tensor
        with torch.no_grad(), evaluating(decoder):
            self.event_shape = tuple(self.decode(torch.zeros(1, latent_dim, device=self.device)).shape[1:])

    # ---- sampling, encoding, decoding --------------------------------------------------------------------------------

    def draw(self, noise: Noise, *, condition: Tensor | None, temperature: float = 1.0) -> Tensor:  # type: ignore[override]
        """Return the decoded latents of the prior: the means of p(x | z), without the noise of pixels.

        Args:
            noise: of the latents.
            condition: classes (n,), where the prior has classes, and there needed.
            temperature: factor of the latents' deviation, >= 0.

        Raises:
            ValueError: a temperature that is negative or not finite; a condition that is missing or out of place.
        """
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be >= 0 and finite, got {temperature}")
        means = self._prior_mean(condition, len(noise))
        return self.decode(means + temperature * noise.normal((self.latent_dim,)))

    @overload  # type: ignore[override]
    def encode(self, x: Tensor, *, sample: Literal[False] = False) -> Posterior: ...

    @overload
    def encode(self, x: Tensor, *, sample: Literal[True], generator: torch.Generator | int | None = None) -> Tensor: ...

    def encode(
        self, x: Tensor, *, sample: bool = False, generator: torch.Generator | int | None = None
    ) -> Posterior | Tensor:
        """Return the distribution of the latents of events x (B, *event_shape), or with `sample` latents (B, d) of it.

        Only `sample` draws numbers; a seed as `generator` gives each event its own.
        """
        posterior = self._encode(x)[0]
        return posterior.sample(Noise(generator, len(x), x.device)) if sample else posterior

    def decode(self, z: Tensor) -> Tensor:  # type: ignore[override]
        """Return the mean of p(x | z) of latents z (B, d): events (B, *event_shape)."""
        check_batch(z, (self.latent_dim,), "z")
        return self.likelihood.mean(self._decode(z))

    # ---- loss and bounds ---------------------------------------------------------------------------------------------

    @property
    def current_beta(self) -> float | Tensor:
        """Weight of the divergence in the next call of `loss`."""
        if not self.training or not self.beta_warmup:
            return self.beta
        return self.beta * (self.steps / self.beta_warmup).clamp(max=1)

    def loss(self, batch: Any, *, generator: torch.Generator | int | None = None) -> LossOutput:
        """Return the mean of -log p(x | z) + beta KL over a batch, one z for each event, in nats.

        Args:
            batch: events x (B, *event_shape), B >= 1, or (x, classes), whose classes count where the prior has classes.
            generator: of the latents.

        Returns:
            `loss`; the parts ``kl`` and ``reconstruction`` are means over the batch, without beta and free bits, so
            that their sum bounds -log p(x).
        """
        x, condition = unpack_batch(batch, None if self.prior_means is None else len(self.prior_means))
        posterior, outside = self._encode(x)
        z = posterior.sample(Noise(generator, len(x), x.device))
        reconstruction = -self.likelihood.log_prob(x, self._decode(z)).mean()
        # the mean over events comes first: free bits are those of a latent
        kl = posterior.kl(self._prior_mean(condition, len(x))).mean(0)
        # section "The weight of the divergence"
        loss = reconstruction + self.current_beta * kl.clamp(min=self.free_bits).sum()
        if self.training:
            self.steps += 1
            self.clamp_count += outside
        return LossOutput(loss, {"kl": kl.sum(), "reconstruction": reconstruction})

    def log_prob_bound(  # type: ignore[override]
        self,
        x: Tensor,
        *,
        k: int = 1,
        condition: Tensor | None = None,
        generator: torch.Generator | int | None = None,
    ) -> Tensor:
        """Return an estimate (B,) of a lower bound of log p(x), in nats: log of the mean of k p(x, z) / q(z | x).

        Its expectation grows with k, from the loss's bound at k = 1 towards log p(x). Costs k passes of the decoder;
        one at a time, so memory does not grow with k unless gradients are recorded.

        Args:
            x: events (B, *event_shape).
            k: latents of each event, >= 1.
            condition: classes (B,), where the prior has classes.
            generator: of the latents.
        """
        check_counts(k=k)
        posterior = self._encode(x)[0]
        noise, prior = Noise(generator, len(x), x.device), self._prior_mean(condition, len(x))

        def draw_log_weight() -> Tensor:
            z = posterior.sample(noise)
            log_prior = -((z - prior).square() + math.log(2 * math.pi)).sum(1) / 2
            return self.likelihood.log_prob(x, self._decode(z)) + log_prior - posterior.log_prob(z)

        # section "Bounds"
        return reduce(torch.logaddexp, (draw_log_weight() for _ in range(k))) - math.log(k)

    # ---- which latents are in use ------------------------------------------------------------------------------------

    @torch.no_grad()
    def kl_per_dim(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """Return the mean divergence of each latent over events x, (d,) nats; 0 for a latent that says nothing."""
        with evaluating(self):
            return self._encode(x)[0].kl(self._prior_mean(condition, len(x))).mean(0)

    @torch.no_grad()
    def active_units(self, x: Tensor, *, threshold: float = 0.01) -> int:
        """Return the number of latents whose mean differs between events: its variance over x exceeds `threshold`.

        A latent that is not active has collapsed to the prior. Needs at least 2 events.
        """
        if len(x) < 2:
            raise ValueError(f"the variance over events needs at least 2 of them, got {len(x)}")
        with evaluating(self):
            return int((self._encode(x)[0].mean.var(0) > threshold).sum())

    # ---- inner steps -------------------------------------------------------------------------------------------------

    def _encode(self, x: Tensor) -> tuple[Posterior, Tensor]:
        """Return q(z | x) in float32 or wider, and how many logarithms of variances were limited."""
        self.check_events(x)
        with explaining_precision(self.encoder, x):
            output = at_least_float32(self.encoder(x))
        if output.shape != (len(x), 2 * self.latent_dim):
            raise ValueError(
                f"the encoder must return means and log-variances (B, 2 * {self.latent_dim}), got {tuple(output.shape)}"
            )
        mean, raw = output.chunk(2, 1)
        low, high = LOG_VAR_RANGE
        return Posterior(mean, raw.clamp(low, high)), ((raw < low) | (raw > high)).sum()

    def _decode(self, z: Tensor) -> Tensor:
        """Return the decoder's output of latents, which it gets in the type of its weights."""
        weight = next(self.decoder.parameters(), None)
        output: Tensor = self.decoder(z if weight is None else z.to(weight.dtype))
        return output

    def _prior_mean(self, condition: Tensor | None, n: int) -> Tensor | float:
        """Return the prior's mean for n events: that of the class of each, or 0."""
        if self.prior_means is None:
            if condition is not None:
                raise ValueError("a condition needs the prior 'class_mean'; this model has no classes")
            return 0.0
        if condition is None:
            raise ValueError("the prior 'class_mean' needs classes: (x, classes) as batch, or condition=")
        return self.prior_means[check_classes(condition, n, len(self.prior_means), "condition")]


def _make_likelihood(likelihood: str | Likelihood, sigma: float) -> Likelihood:
    """Return the likelihood of a name."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    match likelihood:
        case "gaussian":
            return GaussianLikelihood(sigma)
        case "gaussian_learned":
            return GaussianLikelihood(sigma, learned=True)
        case "bernoulli":
            return BernoulliLikelihood()
        case "discretized_logistic":
            return LogisticLikelihood(sigma=sigma)
    raise ValueError(
        "likelihood must be 'gaussian', 'gaussian_learned', 'bernoulli', 'discretized_logistic' or a Likelihood, "
        f"got {likelihood!r}"
    )


def _make_prior(prior: str, num_classes: int, latent_dim: int) -> nn.Parameter | None:
    """Return the means of the classes, all 0 at first; None for the standard prior."""
    if prior not in {"standard", "class_mean"}:
        raise ValueError(f"prior must be 'standard' or 'class_mean', got {prior!r}")
    if prior == "standard":
        return None
    check_counts(num_classes=num_classes)
    return nn.Parameter(torch.zeros(num_classes, latent_dim))
