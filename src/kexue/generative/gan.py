"""Generative adversarial network: a generator makes events of latents, a critic scores how real events are.

The critic's score D is high where events are real; U = -D is an energy, which the critic digs at real events and into
which the generator's events roll.

Source: kexue.fm/archives/6316 and 6331 (energies), 9969 (a single loss); Goodfellow et al. 2014, arXiv:1406.2661
(logistic); Arjovsky et al. 2017, arXiv:1701.07875 (Wasserstein, clipping); Miyato et al. 2018, arXiv:1802.05957 (hinge,
spectral norms); Gulrajani et al. 2017, arXiv:1704.00028, and Mescheder et al. 2018, arXiv:1801.04406 (penalties).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import relu, softplus

from kexue._counts import check_count, check_counts
from kexue._tensors import at_least_float32, evaluating, explaining_precision
from kexue.errors import NotSupported
from kexue.generative.model import GenerativeModel, LossOutput, check_batch, unpack_batch
from kexue.generative.networks.convolution import ConvDecoder
from kexue.generative.networks.critic import build_critic
from kexue.generative.networks.mlp import MLP, is_small
from kexue.generative.noise import Noise
from kexue.nn import apply_spectral_normalization, clip_weights_, gradient_penalty

Constraint = Literal["spectral", "gradient_penalty", "zero_centred", "clip", "none"]
_STRENGTHS = {"spectral": 1.0, "gradient_penalty": 10.0, "zero_centred": 1.0, "clip": 0.01}


class AdversarialLoss(NamedTuple):
    """What critic and generator minimise, of the scores of real and of generated events."""

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


LOSSES = {
    "hinge": AdversarialLoss(
        lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(), lambda fake: -fake.mean()
    ),
    "logistic": AdversarialLoss(
        lambda real, fake: softplus(-real).mean() + softplus(fake).mean(), lambda fake: softplus(-fake).mean()
    ),
    "wasserstein": AdversarialLoss(lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean()),
}


class GAN(GenerativeModel):
    """A generator of standard normal latents, and a critic that it learns from.

    With real events x and generated ones y = G(z), the losses of critic and generator are means over a batch of

    - ``hinge``: max(0, 1 - D(x)) + max(0, 1 + D(y)), and -D(y);
    - ``logistic``: log(1 + exp(-D(x))) + log(1 + exp(D(y))), and log(1 + exp(-D(y))); D is then an estimate of the
      logarithm of p(x) / q(x), of the densities of real and of generated events;
    - ``wasserstein``: D(y) - D(x), and -D(y).

    None of them tells how good the samples are: each is measured by the other network. `training_step` has two
    optimizers, the critic's first; `loss` trains both networks by one.

    Args:
        generator_net: module from latents (B, latent_dim) to events; its output for a latent of 0 states `event_shape`.
        critic: module from events (B, *event_shape) to scores (B,) or (B, 1). Events are scored apart, so it must not
            mix them, as batch normalisation does.
        latent_dim: >= 1.
        loss: ``"hinge"``, ``"logistic"`` or ``"wasserstein"``.
        constraint: what keeps the critic's slopes small. ``"spectral"``: its linear and convolutional layers are
            normalised now, by `apply_spectral_normalization`; ``"gradient_penalty"``: that between real and generated
            events; ``"zero_centred"``: the mean of |grad D|^2 at real events, which keeps them in hollows of U;
            ``"clip"``: weights are clipped before each training step, as the last one has left them; ``"none"``.
        strength: > 0; norm of a spectral layer (1), weight of a penalty (10; 1 for zero_centred), or largest weight
            (0.01). None is this default.
        instance_noise: deviation, >= 0, of noise on all events that the critic sees in training.

    Attributes:
        event_shape: shape of one event.

    Raises:
        ValueError: an argument outside its range, or a critic that is normalised already.

    Example:
        >>> model = sngan((1, 8, 8))
        >>> x = model.sample(5, generator=0, truncation=1.0)
        >>> x.shape, model.energy(x).shape, model.features(x).shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5]), torch.Size([5, 256]))
    """

    def __init__(
        self,
        generator_net: nn.Module,
        critic: nn.Module,
        latent_dim: int,
        *,
        loss: Literal["hinge", "logistic", "wasserstein"] = "hinge",
        constraint: Constraint = "spectral",
        strength: float | None = None,
        instance_noise: float = 0.0,
    ) -> None:
        super().__init__()
        check_counts(latent_dim=latent_dim)
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if not 0 <= instance_noise < math.inf:
            raise ValueError(f"instance_noise must be >= 0 and finite, got {instance_noise}")
        self.generator_net, self.critic, self.latent_dim = generator_net, critic, latent_dim
        self.constraint, self.strength = constraint, _check_strength(constraint, strength)
        self.instance_noise = instance_noise
        self._losses = LOSSES[loss]
        if constraint == "spectral":
            apply_spectral_normalization(critic, coef=self.strength)
        with torch.no_grad(), evaluating(generator_net):
            self.event_shape = tuple(self.decode(torch.zeros(1, latent_dim, device=self.device)).shape[1:])

    # ---- sampling, scores --------------------------------------------------------------------------------------------

    def draw(self, noise: Noise, *, condition: Tensor | None, truncation: float | None = None) -> Tensor:  # type: ignore[override]
        """Return the events of latents; `truncation` as of `latents`."""
        if condition is not None:
            raise ValueError("a GAN has no classes, so it takes no condition")
        return self._decode(self._draw_latents(noise, truncation))

    def latents(
        self,
        n: int,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | int | None = None,
        truncation: float | None = None,
    ) -> Tensor:
        """Return latents (n, latent_dim): standard normal numbers.

        Args:
            n: >= 0.
            generator: as of `sample`, which decodes the latents of the same generator.
            truncation: t > 0: numbers of the normal distribution within [-t, t]; less variety, more typical events.
        """
        return self._draw_latents(Noise(generator, check_count(n, "n"), self.device), truncation)

    def _draw_latents(self, noise: Noise, truncation: float | None) -> Tensor:
        if truncation is None:
            return noise.normal((self.latent_dim,))
        if not 0 < truncation < math.inf:
            raise ValueError(f"truncation must be > 0 and finite, got {truncation}")
        tail = torch.special.ndtr(torch.tensor(-truncation, dtype=torch.float64)).item()
        u = noise.uniform((self.latent_dim,), torch.float64)
        z: Tensor = torch.special.ndtri(tail + u * (1 - 2 * tail))
        return z.clamp(-truncation, truncation).to(torch.get_default_dtype())

    def decode(self, z: Tensor) -> Tensor:  # type: ignore[override]
        """Return the events (B, *event_shape) of latents z (B, latent_dim), finite floats of any precision."""
        check_batch(z, (self.latent_dim,), "z")
        return self._decode(z)

    def _decode(self, z: Tensor) -> Tensor:
        weight = next(self.generator_net.parameters(), None)
        events: Tensor = self.generator_net(z if weight is None else z.to(weight.dtype))
        return events

    def score(self, x: Tensor) -> Tensor:
        """Return the critic's scores D (B,) of events; high for those that it finds real."""
        self.check_events(x)
        return self._judge(x)

    def energy(self, x: Tensor) -> Tensor:
        """Return U = -D (B,) of events; it tells real events from generated ones, and is no log density."""
        return -self.score(x)

    def features(self, x: Tensor) -> Tensor:
        """Return what the critic's last layer reads of events.

        Raises:
            NotSupported: the critic is not an `nn.Sequential`, of which the layers are known.
        """
        self.check_events(x)
        if not isinstance(self.critic, nn.Sequential):
            raise NotSupported(
                f"the layers of a {type(self.critic).__name__} are not known.",
                remedy="Give a critic that is an nn.Sequential.",
            )
        with explaining_precision(self.critic, x):
            features: Tensor = self.critic[:-1](x)
        return features

    # ---- training ----------------------------------------------------------------------------------------------------

    def training_step(
        self, batch: Any, *, optimizer_index: int = 0, generator: torch.Generator | None = None
    ) -> LossOutput:
        """Return the loss of the critic for index 0, that of the generator for index 1.

        The other network is frozen: it gets no gradient. Latents and noise are drawn from `generator`.
        """
        if optimizer_index not in (0, 1):
            raise ValueError(f"optimizer_index must be 0 (the critic's) or 1 (the generator's), got {optimizer_index}")
        x, noise = self._start(batch, generator)
        if optimizer_index == 0:
            with torch.no_grad():
                fake = self._make(noise)
            real = self._disturb(x, noise)
            value = self._losses.critic(*self._judge(torch.cat([real, fake])).chunk(2))
            penalty = self._penalize(real, fake, generator)
            return LossOutput(value + penalty, {"critic": value.detach(), "penalty": penalty.detach()})
        frozen = {name: one.detach() for name, one in self.critic.named_parameters()}
        value = self._losses.generator(_as_scores(functional_call(self.critic, frozen, self._make(noise)), len(x)))
        return LossOutput(value, {"generator": value.detach()})

    def loss(self, batch: Any, *, generator: torch.Generator | int | None = None) -> LossOutput:
        """Return one loss for both networks: its gradients are those that `training_step` has for each.

        With l_D and l_G of D(x), D(sg y) and D(y), where sg is without gradient: l_D(D(x), D(sg y)) + l_G(D(y)) -
        l_G(D(sg y)). For ``wasserstein`` this is the article's U(x) - 2 U(sg y) + U(y). Its value is the critic's loss.

        Args:
            batch: events x (B, *event_shape), B >= 1; of (x, classes) the classes are not used.
            generator: of latents and noise.

        Returns:
            `loss` and its parts ``critic``, ``generator`` and ``penalty``.
        """
        x, noise = self._start(batch, generator)
        fake = self._make(noise)
        events = torch.cat([self._disturb(x, noise), fake.detach(), fake])
        real, apart, through = self._judge(events).chunk(3)
        critic, goal = self._losses.critic(real, apart), self._losses.generator(through)
        penalty = self._penalize(events[: len(x)], fake, generator)
        # 9969, the section on a single loss
        value = critic + goal - self._losses.generator(apart) + penalty
        parts = {"critic": critic, "generator": goal, "penalty": penalty}
        return LossOutput(value, {name: part.detach() for name, part in parts.items()})

    def _start(self, batch: Any, generator: torch.Generator | int | None) -> tuple[Tensor, Noise]:
        """Return the events of a batch and the noise of as many; in training clip the weights, where that is asked."""
        x = unpack_batch(batch, None)[0]
        self.check_events(x)
        if self.constraint == "clip" and self.training:
            clip_weights_(self.critic, self.strength)
        return x, Noise(generator, len(x), x.device)

    def _make(self, noise: Noise) -> Tensor:
        """Return new events as the critic sees them."""
        return self._disturb(self._decode(noise.normal((self.latent_dim,))), noise)

    def _judge(self, events: Tensor) -> Tensor:
        """Return the scores of events that are checked, or made here; the critic runs once."""
        with explaining_precision(self.critic, events):
            return _as_scores(self.critic(events), len(events))

    def _disturb(self, x: Tensor, noise: Noise) -> Tensor:
        if not self.instance_noise:
            return x
        return x + self.instance_noise * noise.normal(x.shape[1:], x.dtype)

    def _penalize(self, real: Tensor, fake: Tensor, generator: torch.Generator | int | None) -> Tensor:
        """Return the penalty on the critic's slopes; 0 where the constraint is another."""
        if self.constraint == "gradient_penalty":
            return self.strength * gradient_penalty(self.critic, real, fake.to(real.dtype), generator=generator)
        if self.constraint == "zero_centred":  # 6316: at the real events themselves
            return self.strength * gradient_penalty(self.critic, real, real, center=0.0, generator=generator)
        return real.new_zeros(())


def sngan(event_shape: Sequence[int], latent_dim: int = 32, **options: Any) -> GAN:
    """Return a GAN with hinge loss and spectral normalisation for images (C, H, W) in [-1, 1].

    For up to 256 numbers an image its networks are perceptrons with two hidden layers of 256; for larger images they
    are convolutional. The generator has no batch normalisation, whose statistics an average of the weights would not
    fit.

    Args:
        event_shape: of an image; height and width of larger ones must be divisible by 4.
        latent_dim: >= 1.
        options: of `GAN`, such as another loss or constraint on the same networks.

    Raises:
        ValueError: an argument outside its range.
    """
    shape = tuple(event_shape)
    decoder = MLP(latent_dim, shape) if is_small(shape) else ConvDecoder(latent_dim, shape, channels=64)
    return GAN(
        nn.Sequential(decoder, nn.Tanh()), build_critic(shape), latent_dim, **{"instance_noise": 0.02, **options}
    )


def _check_strength(constraint: str, strength: float | None) -> float:
    """Return the strength of a constraint, by default its usual one; 0 for none."""
    if constraint not in get_args(Constraint):
        raise ValueError(f"constraint must be one of {', '.join(get_args(Constraint))}, got {constraint!r}")
    if constraint == "none":
        if strength is not None:
            raise ValueError(f"the constraint 'none' has no strength, got {strength}")
        return 0.0
    value = _STRENGTHS[constraint] if strength is None else strength
    if not 0 < value < math.inf:
        raise ValueError(f"strength must be > 0 and finite, got {strength}")
    return value


def _as_scores(output: Tensor, n: int) -> Tensor:
    """Return a critic's output as n scores, in float32 or wider."""
    if output.shape not in ((n,), (n, 1)):
        raise ValueError(f"the critic must return one score for each of {n} events, got {tuple(output.shape)}")
    return at_least_float32(output).reshape(n)
