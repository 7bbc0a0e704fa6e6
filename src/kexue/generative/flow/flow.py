"""The flow: a base distribution seen through invertible transforms, with exact density, samples and latents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from kexue._counts import check_count
from kexue._tensors import at_least_float32, evaluating
from kexue.errors import CheckpointError
from kexue.generative.flow.chain import Chain
from kexue.generative.flow.transforms import Transform, sum_events
from kexue.generative.model import GenerativeModel, LossOutput, check_batch, check_condition, unpack_batch
from kexue.generative.noise import Noise


class Base(Protocol):
    """A distribution of latents: its shape, its log density, and latents made of noise."""

    shape: tuple[int, ...]

    def log_prob(self, z: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Return the log density (B,) of latents, in nats."""
        ...

    def draw(self, noise: Noise, *, temperature: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Return len(noise) latents."""
        ...


class StandardNormal:
    """Independent normal latents, of mean 0 and standard deviation `temperature`.

    Args:
        shape: of one latent.

    Example:
        >>> StandardNormal((2,)).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    def log_prob(self, z: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Return the log density (B,), in nats; the temperature is > 0."""
        constant = math.prod(self.shape) * (0.5 * math.log(2 * math.pi) + math.log(temperature))
        return sum_events(z.square()) * (-0.5 / temperature**2) - constant

    def draw(self, noise: Noise, *, temperature: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Return len(noise) latents; at temperature 0 all of them are 0."""
        return noise.normal(self.shape, dtype) * temperature


class Flow(GenerativeModel):
    """A base distribution seen through transforms: log p(x) = log p(z) + log |det dz/dx|, z = transforms(x).

    The density is exact and belongs to continuous events. Images with levels, such as integers from 0 to 255, have no
    density: `DequantizedFlow` makes a model of them.

    Args:
        transforms: from events to latents.
        base: distribution of the latents, such as `StandardNormal`.
        event_shape: of an event, where it is not that of a latent.
        num_classes: of conditional models: every operation then needs `condition`, classes (B,), which reach the
            networks of the couplings; None for a model without classes.

    Source: kexue.fm/archives/5776, 5807.

    Example:
        >>> from kexue.generative import Scaling
        >>> flow = Flow([Scaling((2,))], StandardNormal((2,)))
        >>> flow.log_prob(torch.zeros(1, 2)), tuple(flow.sample(3, generator=0).shape)
        (tensor([-1.8379], grad_fn=...), (3, 2))
    """

    def __init__(
        self,
        transforms: Iterable[Transform],
        base: Base,
        *,
        event_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = base.shape if event_shape is None else tuple(event_shape)
        self.num_classes = None if num_classes is None else check_count(num_classes, "num_classes", 1)
        self.base = base
        self.transforms = Chain(transforms)
        self.register_load_state_dict_pre_hook(_refuse_singular)  # type: ignore[no-untyped-call]

    def log_prob(
        self, x: Tensor, *, condition: Tensor | None = None, generator: torch.Generator | int | None = None
    ) -> Tensor:
        """Return the exact log density (B,) of events, in nats; nothing is drawn.

        Raises:
            ValueError: events of another shape, NaN or infinity; a condition that is missing or not expected;
                transforms whose latents do not have the shape of the base.
        """
        z, logdet = self._push(x, condition)
        return self.base.log_prob(z) + logdet  # section "An exact density"

    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return the latents (B, *base.shape) of events."""
        return self._push(x, condition)[0]

    def decode(self, z: Tensor, *, condition: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return the events (B, *event_shape) of latents."""
        check_batch(z, self.base.shape, "z")
        return self.transforms.inverse(at_least_float32(z), self.check_condition(condition, len(z)))[0]

    def draw(  # type: ignore[override]
        self, noise: Noise, *, condition: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Return len(noise) events; latents have the standard deviation `temperature`, >= 0, at every scale."""
        _check_temperature(temperature, zero=True)
        z = self.base.draw(noise, temperature=temperature, dtype=self._dtype)
        return self.decode(z, condition=condition)

    def sample_and_log_prob(
        self,
        n: int,
        *,
        temperature: float = 1.0,
        condition: Tensor | int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return `n` events and the log density (n,) of the distribution they come from, with gradients, in one pass.

        Args:
            n: number of events, >= 0.
            temperature: standard deviation of the latents, > 0; the density is that of the tempered model.
            condition: classes (n,), or one for all.
            generator: as for `sample`.
        """
        n = check_count(n, "n")
        _check_temperature(temperature, zero=False)
        z = self.base.draw(Noise(generator, n, self.device), temperature=temperature, dtype=self._dtype)
        x, logdet = self.transforms.inverse(z, self.check_condition(self._spread(condition, n), n))
        return x, self.base.log_prob(z, temperature=temperature) - logdet

    def loss(self, batch: Any, *, generator: torch.Generator | int | None = None) -> LossOutput:
        """Return the mean of -log p(x), in nats an event; `batch` is x, or (x, classes) for a conditional model."""
        x, condition = unpack_batch(batch, self.num_classes)
        loss = -self.log_prob(x, condition=condition).mean()
        return LossOutput(loss, {"nats_per_dim": loss.detach() / math.prod(self.event_shape)})

    @torch.no_grad()
    def initialize(self, batch: Any) -> None:
        """Set what depends on data, such as `ActNorm`, from one batch of >= 2 events; call it once, before training.

        With several processes call it in the first and copy its weights to the others.
        """
        x, condition = unpack_batch(batch, self.num_classes)
        self.check_events(x)
        with evaluating(self):
            self.transforms.initialize(x, self.check_condition(condition, len(x)))

    def check_condition(self, condition: Tensor | None, n: int) -> Tensor | None:
        """Return the classes of n events as int64; raise where they are missing, not expected or out of range."""
        return check_condition(condition, n, self.num_classes)

    @property
    def _dtype(self) -> torch.dtype | None:
        return next((p.dtype for p in self.parameters()), None)

    def _push(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        self.check_events(x)
        z, logdet = self.transforms(x, self.check_condition(condition, len(x)))
        if tuple(z.shape[1:]) != self.base.shape:
            raise ValueError(
                f"the transforms must end with latents of the base's shape, {self.base.shape}, got {tuple(z.shape[1:])}"
            )
        return z, logdet


def _check_temperature(temperature: float, *, zero: bool) -> None:
    if not (temperature > 0 or (zero and temperature == 0)) or not math.isfinite(temperature):
        raise ValueError(f"temperature must be {'>= 0' if zero else '> 0'} and finite, got {temperature}")


def _refuse_singular(flow: Flow, weights: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Raise CheckpointError for weights with which a transform cannot be inverted, before any is loaded."""
    own = {name: weights[prefix + name] for name in flow.state_dict() if prefix + name in weights}
    faults = [f"{name} has NaN or infinity" for name, value in own.items() if not bool(value.isfinite().all())]
    faults = faults or [f"{name}: {fault}" for name, fault in _find_faults(flow, own)]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"the weights do not make an invertible flow: {'; '.join(faults[:3])}{more}.",
            remedy="Go back to an earlier checkpoint, and train with a smaller learning rate.",
        )


def _find_faults(flow: Flow, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    for name, part in flow.named_modules():
        if isinstance(part, Transform):
            own = {key: weights[f"{name}.{key}"] for key in part.state_dict() if f"{name}.{key}" in weights}
            if len(own) == len(part.state_dict()):
                for fault in part.find_faults(own):
                    yield name, fault
