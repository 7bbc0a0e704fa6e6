"""Idempotent generative network: one network that leaves data as they are, and takes noise to where it leaves it.

Source: kexue.fm/archives/9969; Shocher et al. 2023, arXiv:2311.01462.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from kexue._counts import check_count
from kexue._tensors import at_least_float32, evaluating
from kexue.errors import NotFittedError
from kexue.generative.model import GenerativeModel, LossOutput, check_batch, check_not_empty, unpack_batch
from kexue.generative.networks.mlp import Shape, as_shape
from kexue.generative.noise import Noise

_SAME = 1e-4  # a network that changes noise by less than this part is the identity


class IGN(GenerativeModel):
    """A network f with f(x) = x for data and f(f(z)) = f(z) for noise z: it generates, and projects on the data.

    With the energy delta(y) = D(f(y), y), which says how far y is from a fixed point, the loss is

        L = w_r delta(x) + w_i delta*(f(z)) - w_t delta(f*(z)),

    where a star marks the use of f whose weights are held constant: reconstruction trains f; idempotence trains the
    inner f only, to make what the outer one leaves alone; tightness trains the outer f only, to change what the inner
    one has made. So f is both parts of a Wasserstein GAN: delta is the critic, low for data, and f the generator.

    Two properties of f decide whether this can work. The identity has no loss and no gradient: f needs a bottleneck,
    and no way around it from input to output. A batch norm would mix noise and data: use group or layer norms.

    Args:
        net: f, a module from events (B, *event_shape) to events of the same shape.
        event_shape: shape of one event; None is that of the first batch of `loss`, `energy` or `project`, before which
            nothing can be sampled.
        distance: D, a mean over the numbers of an event: ``"l2"`` of squares, ``"l1"`` of absolute values.
        weights: (w_r, w_i, w_t) of reconstruction, idempotence and tightness, each >= 0.
        clamp: a > 0: the term of tightness t = -delta(f*(z)) of an event, which has no lower bound where f has none,
            becomes a rho tanh(t / (a rho)), which is above -a rho. None: t itself.
        clamp_scale: rho, a constant for gradients. None: 1; ``"distance"``: D(f(z), z) of the event; ``"rec"``: the
            mean of delta(x) over the batch, of each process where there are several.
        noise: module from normal numbers (B, *event_shape) to z, such as a `SpectralNoise`; None: they are z.

    Attributes:
        event_shape: shape of one event.

    Raises:
        ValueError: an argument outside its range; a network that returns another shape, or is the identity.

    Example:
        >>> from kexue.generative import MLP
        >>> model = IGN(nn.Sequential(MLP(64, 8), MLP(8, 64), nn.Tanh()), event_shape=(64,))
        >>> model.sample(5, generator=0).shape, model.project(torch.rand(3, 64)).shape
        (torch.Size([5, 64]), torch.Size([3, 64]))
        >>> sorted(model.loss(torch.rand(3, 64), generator=0).parts)
        ['idempotence', 'reconstruction', 'tightness']
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        event_shape: Shape | None = None,
        distance: Literal["l2", "l1"] = "l2",
        weights: tuple[float, float, float] = (1.0, 1.0, 0.1),
        clamp: float | None = None,
        clamp_scale: Literal["distance", "rec"] | None = None,
        noise: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if distance not in {"l2", "l1"}:
            raise ValueError(f"distance must be 'l2' or 'l1', got {distance!r}")
        if len(weights) != 3 or not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(f"weights must be three numbers >= 0 and finite, got {weights}")
        if clamp is not None and not 0 < clamp < math.inf:
            raise ValueError(f"clamp must be > 0 and finite, or None, got {clamp}")
        if clamp_scale not in {None, "distance", "rec"} or (clamp is None and clamp_scale is not None):
            raise ValueError(
                f"clamp_scale must be None, 'distance' or 'rec', the latter two with a clamp, got {clamp_scale!r} "
                f"with clamp {clamp}"
            )
        self.net, self.noise = net, noise
        self.distance, self.weights, self.clamp, self.clamp_scale = distance, weights, clamp, clamp_scale
        self.event_shape = ()
        if event_shape is not None:
            self._set_shape(event_shape)

    # ---- use ---------------------------------------------------------------------------------------------------------

    def draw(self, noise: Noise, *, condition: Tensor | None, steps: int = 1) -> Tensor:  # type: ignore[override]
        """Return f(... f(z)), f applied `steps` times, >= 1: more than once refines what is not a fixed point yet.

        Raises:
            NotFittedError: the shape of the events is not known yet.
        """
        if condition is not None:
            raise ValueError("an IGN has no classes, so it takes no condition")
        if not self.event_shape:
            raise NotFittedError("the shape of the events is not known.", remedy="Give event_shape to IGN.")
        return self._repeat(self._draw_noise(noise), steps)

    def project(self, x: Tensor, *, steps: int = 1) -> Tensor:
        """Return events x (B, *event_shape), such as damaged ones, nearer to the data: f applied `steps` times."""
        self.check_events(x)
        return self._repeat(x, steps)

    def energy(self, x: Tensor) -> Tensor:
        """Return delta(x) = D(f(x), x) (B,), low near the data; it is no logarithm of a density."""
        self.check_events(x)
        return self._measure(self._map(x), x)

    @torch.no_grad()
    def idempotence_error(self, n: int, *, generator: torch.Generator | int | None = None) -> float:
        """Return |f(f(z)) - f(z)| / |f(z)| over n samples, norms over all their numbers; 0 for a projection.

        Args:
            n: number of samples, >= 1.
            generator: of the noise.
        """
        y = self.sample(check_count(n, "n", 1), generator=generator)
        with evaluating(self):
            change = (self._map(y) - y).double().norm()
        return float(change / y.double().norm()) if change else 0.0

    # ---- loss --------------------------------------------------------------------------------------------------------

    def loss(self, batch: Any, *, generator: torch.Generator | int | None = None) -> LossOutput:
        """Return a scalar with the gradient of the loss, and the terms of the loss.

        No weights are copied: with y = f(z) and y* its value without history, delta(y) - delta(y*) has the gradient of
        delta*(y), since both share that of the outer f; and delta(y*) is delta(f*(z)). Its value is therefore not the
        sum of the terms.

        Args:
            batch: events x (B, *event_shape), B >= 1; of (x, classes) the classes are not used.
            generator: of the noise.

        Returns:
            `loss`; the parts ``reconstruction`` delta(x), ``idempotence`` delta(f(z)) and ``tightness``
            -delta(f(z)), clamped, are means over the batch, without weights.
        """
        x = unpack_batch(batch, None)[0]
        self.check_events(x)
        z = self._draw_noise(Noise(generator, len(x), x.device)).to(x.dtype)
        fx, y = self._map(torch.cat([x, z])).chunk(2)
        constant = y.detach()
        both = torch.cat([y, constant])
        full, outer = self._measure(self._map(both), both).chunk(2)
        reconstruction = self._measure(fx, x)
        if self.clamp_scale is None:
            scale = torch.ones_like(outer)
        else:
            scale = self._measure(constant, z) if self.clamp_scale == "distance" else reconstruction.detach().mean()
        tightness = -outer if self.clamp is None else clamp_softly(-outer, self.clamp * scale)
        terms = (reconstruction, full - outer, tightness)  # section "One loss without copies"
        loss = sum(weight * term.mean() for weight, term in zip(self.weights, terms, strict=True))
        parts = {"reconstruction": reconstruction, "idempotence": outer, "tightness": tightness}
        return LossOutput(loss, {name: part.detach().mean() for name, part in parts.items()})  # type: ignore[arg-type]

    def check_events(self, x: Tensor) -> None:
        """Raise unless `x` is a batch of events; the first batch sets their shape where none was given."""
        if not self.event_shape:
            shape = tuple(x.shape[1:]) if isinstance(x, Tensor) else ()
            check_batch(x, shape)  # a batch that is refused sets nothing
            self._set_shape(shape)
        super().check_events(x)

    # ---- inner steps -------------------------------------------------------------------------------------------------

    def _map(self, x: Tensor) -> Tensor:
        """Return f(x) in float32 or wider; the network gets x in the type of its weights."""
        weight = next(self.net.parameters(), None)
        return at_least_float32(self.net(x if weight is None else x.to(weight.dtype)))

    def _repeat(self, x: Tensor, steps: int) -> Tensor:
        for _ in range(check_count(steps, "steps", 1)):
            x = self._map(x)
        return x

    def _draw_noise(self, noise: Noise) -> Tensor:
        """Return z, one for each item of the noise."""
        g = noise.normal(self.event_shape)
        z: Tensor = g if self.noise is None else self.noise(g)
        if z.shape != g.shape:
            raise ValueError(f"noise must return events {self.event_shape}, got {tuple(z.shape[1:])}")
        return z

    def _measure(self, a: Tensor, b: Tensor) -> Tensor:
        """Return D(a, b) (B,) of events."""
        gap = (a - b).flatten(1)
        return gap.square().mean(1) if self.distance == "l2" else gap.abs().mean(1)

    def _set_shape(self, shape: Shape) -> None:
        """Set the shape of events; ValueError where the network returns another one, or its input."""
        event_shape = as_shape(shape, "event_shape")
        x = Noise(0, 2, self.device).normal(event_shape)
        with torch.no_grad(), evaluating(self):
            y = self._map(x)
        if y.shape != x.shape:
            raise ValueError(f"net must return events {event_shape}, got {tuple(y.shape[1:])}")
        if (y - x).norm() <= _SAME * x.norm():
            raise ValueError(
                "net is the identity, where all terms of the loss are stationary; use a network with a bottleneck and "
                "no way around it, and no last layer of zeros beside one"
            )
        self.event_shape = event_shape


def clamp_softly(t: Tensor, limit: Tensor) -> Tensor:
    """Return limit tanh(t / limit), which is near t where t is small and lies between -limit and limit; 0 at limit 0.

    Args:
        t: any shape.
        limit: >= 0, of the shape of t, or one number.
    """
    positive = limit > torch.finfo(limit.dtype).tiny
    safe = torch.where(positive, limit, 1.0)
    return torch.where(positive, safe * torch.tanh(t / safe), 0.0)


class SpectralNoise(nn.Module):
    """Makes normal numbers g into noise with the mean of data m and their variance s^2 at each frequency.

    z = m + F^-1[s F g], with the orthonormal Fourier transform F of the last two axes, or of the only one. Before `fit`
    m = 0 and s = 1, so that z = g. It looks like data without phases: it has their edges nowhere.

    Args:
        event_shape: shape of one event.

    Example:
        >>> noise = SpectralNoise((1, 8, 8)).fit(torch.rand(100, 1, 8, 8))
        >>> noise(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(self, event_shape: Shape) -> None:
        super().__init__()
        shape = as_shape(event_shape, "event_shape")
        self._axes = tuple(range(-min(2, len(shape)), 0))
        zeros = torch.zeros(shape)
        self.register_buffer("mean", zeros)
        self.register_buffer("amplitude", torch.ones_like(self._transform(zeros[None])[0].real))
        self.mean: Tensor
        self.amplitude: Tensor

    @torch.no_grad()
    def fit(self, x: Tensor) -> SpectralNoise:
        """Set m and s from data x (n, *event_shape), n >= 1, finite floats; return the module."""
        check_batch(x, tuple(self.mean.shape))
        check_not_empty(x)
        x = at_least_float32(x)
        mean = x.mean(0)
        self.mean.copy_(mean)
        self.amplitude.copy_(self._transform(x - mean).abs().square().mean(0).sqrt())
        return self

    def forward(self, g: Tensor) -> Tensor:
        """Return z (B, *event_shape) of normal numbers g of the same shape."""
        if g.shape[1:] != self.mean.shape:
            raise ValueError(f"g must have shape (B, {', '.join(map(str, self.mean.shape))}), got {tuple(g.shape)}")
        if not len(g):
            return g  # of which torch has no transform
        sizes = [g.shape[axis] for axis in self._axes]
        waves = self.amplitude * self._transform(at_least_float32(g))
        return self.mean + cast(Tensor, torch.fft.irfftn(waves, s=sizes, dim=self._axes, norm="ortho"))

    def _transform(self, x: Tensor) -> Tensor:
        return cast(Tensor, torch.fft.rfftn(x, dim=self._axes, norm="ortho"))
