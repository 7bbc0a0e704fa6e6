"""Flow matching: a network learns the velocity of a path from data to a prior, and an ODE makes events of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from kexue._counts import check_count
from kexue._tensors import as_generator, at_least_float32, evaluating
from kexue.generative.diffusion.denoiser import call_network
from kexue.generative.diffusion.divergence import Trace, choose_probes, odeint_with_divergence
from kexue.generative.diffusion.ode import Method, odeint
from kexue.generative.diffusion.path import Path
from kexue.generative.model import GenerativeModel, LossOutput, check_batch, check_condition, check_not_empty
from kexue.generative.noise import Noise

TimeSampling = Literal["uniform", "logit_normal"]


class Pairs(NamedTuple):
    """Events and the points of the prior that belong to them, as `FlowMatching.reflow` makes and `loss` takes them.

    Attributes:
        x0: events (n, *event).
        x_1: points of the prior (n, *event).
        condition: classes (n,); None without.
    """

    x0: Tensor
    x_1: Tensor
    condition: Tensor | None = None


def flow_matching_loss(
    net: nn.Module,
    x0: Tensor,
    path: Path,
    *,
    x_1: Tensor | None = None,
    condition: Tensor | None = None,
    time_sampling: TimeSampling = "uniform",
    generator: torch.Generator | int | None = None,
) -> LossOutput:
    """Return the mean square of net(x_t, t) - velocity of the trajectory at x_t, the part of the name `velocity`.

    Times are drawn between 0 and t_max of the path, points on its trajectories. The best network is the mean velocity
    at x_t, which carries the data to the prior.

    Args:
        net: as `Denoiser`'s: ``net(sample, timestep, class_labels=...)``; integers are given as class_labels.
        x0: events (B, *event).
        path: a `Path`.
        x_1: points of the prior that belong to the events; None draws them independently.
        condition: classes (B,); None without.
        time_sampling: ``"uniform"``, or ``"logit_normal"``: t = t_max sigmoid(z), z standard normal, which is more
            often in the middle, where the velocity is hardest to learn.
        generator: of times and points.

    Source: kexue.fm/archives/9379, the training objective.

    Example:
        >>> from kexue.generative import MLPDenoiser
        >>> from kexue.generative.diffusion import LinearPath, NormalPrior
        >>> output = flow_matching_loss(MLPDenoiser(2), torch.zeros(8, 2), LinearPath(NormalPrior(2)), generator=0)
        >>> output.loss.ndim
        0
    """
    _check_time_sampling(time_sampling)
    path.prior.check(x0)
    check_not_empty(x0)
    draw = as_generator(generator, x0.device)
    make = torch.rand if time_sampling == "uniform" else torch.randn
    share = make(len(x0), generator=draw, device=x0.device, dtype=x0.dtype)
    t = path.t_max * (share if time_sampling == "uniform" else share.sigmoid())
    if x_1 is None:
        x_1 = path.prior.draw(Noise(draw, len(x0), x0.device), dtype=x0.dtype)
    elif x_1.shape != x0.shape:
        raise ValueError(f"a point of the prior for each event is expected, {tuple(x0.shape)}, got {tuple(x_1.shape)}")
    x_t, target, _ = path.between(x0, x_1, t)
    error = at_least_float32(_velocity(net, x_t, t, condition) - target)
    loss = error.square().mean()  # section "The recipe", 4
    return LossOutput(loss, {"velocity": loss.detach()})


def _check_time_sampling(time_sampling: str) -> None:
    if time_sampling not in get_args(TimeSampling):
        raise ValueError(f"time_sampling must be 'uniform' or 'logit_normal', got {time_sampling!r}")


def _velocity(net: nn.Module, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    value = call_network(net, x, t, condition)
    if value.shape != x.shape:
        raise ValueError(f"net must return the shape of its input, {tuple(x.shape)}, got {tuple(value.shape)}")
    return value


class FlowMatching(GenerativeModel):
    """A network trained to be the velocity of a path; events are points of the prior, moved along it by an ODE.

    Any prior will do. Time 0 is data; sampling goes from t_max down. The latent of an event is the point of the prior
    that the ODE leads to.

    Args:
        net: called as ``net(sample, timestep, class_labels=None)``, such as `MLPDenoiser` and `TinyUNet`.
        path: a `Path`, such as ``LinearPath(NormalPrior(shape))``.
        time_sampling: of `flow_matching_loss`.
        coupling: which point of the prior an event of a batch is trained with: ``"independent"``, any; ``"ot"``, those
            of the batch are assigned so that the sum of squared distances is smallest, within each class: trajectories
            become straighter.

    A network with `num_classes` makes a conditional model: its batches have classes, and every operation needs them.

    Source: kexue.fm/archives/9379.

    Example:
        >>> from kexue.generative import MLPDenoiser
        >>> from kexue.generative.diffusion import LinearPath, NormalPrior
        >>> model = FlowMatching(MLPDenoiser(2), LinearPath(NormalPrior(2)))
        >>> model.sample(5, steps=4, generator=0).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        net: nn.Module,
        path: Path,
        *,
        time_sampling: TimeSampling = "uniform",
        coupling: Literal["independent", "ot"] = "independent",
    ) -> None:
        super().__init__()
        if coupling not in ("independent", "ot"):
            raise ValueError(f"coupling must be 'independent' or 'ot', got {coupling!r}")
        _check_time_sampling(time_sampling)
        if not isinstance(path, Path):
            raise TypeError(f"path must be a Path, such as LinearPath, got {type(path).__name__}")
        shape = getattr(net, "event_shape", None)
        if shape is not None and tuple(shape) != path.event_shape:
            raise ValueError(f"the network takes events {tuple(shape)}, the prior of the path has {path.event_shape}")
        self.net, self.path = net, path
        self.event_shape = path.event_shape
        self.time_sampling, self.coupling = time_sampling, coupling
        self.num_classes: int | None = getattr(net, "num_classes", None)

    def loss(self, batch: Any, *, generator: torch.Generator | int | None = None) -> LossOutput:
        """Return `flow_matching_loss` of a batch.

        Args:
            batch: events (B, *event); events and classes; events and points of the prior, as in `Pairs`; or all three.
            generator: of times, points and the coupling.
        """
        x0, x_1, condition = _unpack(batch)
        self.check_events(x0)
        if x_1 is not None:
            check_batch(x_1, self.event_shape, "points of the prior")
        condition = None if self.num_classes is None else check_condition(condition, len(x0), self.num_classes)
        draw = as_generator(generator, x0.device)
        if x_1 is None and self.coupling == "ot":
            drawn = self.path.prior.draw(Noise(draw, len(x0), x0.device), dtype=x0.dtype)
            x_1 = drawn[assign(x0, drawn, condition)]
        return flow_matching_loss(
            self.net, x0, self.path,
            x_1=x_1, condition=condition, time_sampling=self.time_sampling, generator=draw,
        )  # fmt: skip

    def velocity(self, x: Tensor, t: Tensor | float, *, condition: Tensor | None = None) -> Tensor:
        """Return the velocity (B, *event) of the network at events and times, one or (B,), in [0, t_max]."""
        return _velocity(self.net, x, self.path.spread_times(t, x), condition)

    def draw(
        self,
        noise: Noise,
        /,
        *,
        condition: Tensor | None = None,
        steps: int = 20,
        method: Method = "heun",
        **options: Any,
    ) -> Tensor:
        """Return len(noise) events: `decode` of points of the prior.

        Args:
            noise: of the points.
            condition: classes.
            steps: steps of the ODE, >= 1; "rk45" chooses its own.
            method: of `odeint`.
            options: of `odeint`.
        """
        z = self.path.prior.draw(noise, dtype=self._dtype)
        return self.decode(z, condition=condition, steps=steps, method=method, **options)

    def decode(
        self, z: Tensor, *, condition: Tensor | None = None, steps: int = 20, method: Method = "rk45", **options: Any
    ) -> Tensor:
        """Return the events (B, *event) of latents, points of the prior, without gradients.

        Args:
            z: (B, *event).
            condition: classes (B,), of a conditional model.
            steps: of methods with fixed steps.
            method: of `odeint`.
            options: of `odeint`.
        """
        check_batch(z, self.event_shape, "z")
        classes = check_condition(condition, len(z), self.num_classes)
        with torch.no_grad(), evaluating(self):
            x = self._solve(self.path.end_scale * z, self.path.make_grid(steps), classes, method, options)
            return self._jump(x, classes, -1.0)

    def encode(
        self, x: Tensor, *, condition: Tensor | None = None, steps: int = 20, method: Method = "rk45", **options: Any
    ) -> Tensor:
        """Return the latents (B, *event) of events, points of the prior, without gradients.

        Args:
            x: (B, *event).
            condition: classes (B,), of a conditional model.
            steps: of methods with fixed steps.
            method: of `odeint`.
            options: of `odeint`.
        """
        self.check_events(x)
        classes = check_condition(condition, len(x), self.num_classes)
        with torch.no_grad(), evaluating(self):
            start = self._jump(x, classes, 1.0)
            end = self._solve(start, self.path.make_grid(steps)[::-1], classes, method, options)
            return end / self.path.end_scale

    def _solve(
        self, x: Tensor, grid: list[float], classes: Tensor | None, method: Method, options: dict[str, Any]
    ) -> Tensor:
        def rhs(t: Tensor, x: Tensor) -> Tensor:
            return self.velocity(x, t, condition=classes)

        return odeint(rhs, x, grid, method=method, **options).x

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | int | None = None,
        trace: Trace | None = None,
        probes: int = 1,
        steps: int = 20,
        method: Method = "rk45",
        **options: Any,
    ) -> Tensor:
        """Return the log density (B,) of events, at t_min of the path, in nats, without gradients.

        log p(x) = log p(end of the ODE) + integral of the divergence of the velocity. The prior must have a density.

        Args:
            x: (B, *event).
            condition: classes (B,), of a conditional model.
            generator: of the probes, as of `Noise`.
            trace: ``"exact"``, which costs a pass backwards for each value of an event in each call of the network;
                ``"hutchinson"``, an unbiased estimate with random probes; None is exact up to 100 values.
            probes: number of probes of an event, the same on its whole way.
            steps: of methods with fixed steps.
            method: of `odeint`.
            options: of `odeint`.
        """
        self.check_events(x)
        classes = check_condition(condition, len(x), self.num_classes)
        vectors = choose_probes(x, trace, generator, probes)
        with evaluating(self):
            pushed = odeint_with_divergence(
                lambda t, x: self.velocity(x, t, condition=classes), x, self.path.make_grid(steps)[::-1],
                probes=vectors, method=method, **options,
            )  # fmt: skip
        scale = torch.tensor(self.path.end_scale, dtype=torch.float64).log() * self.path.prior.check(x).shape[1]
        return self.path.prior.log_prob(pushed.x / self.path.end_scale) - float(scale) + pushed.integral.mean(1)

    def reflow(
        self,
        n: int,
        *,
        condition: Tensor | int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | int | None = None,
        batch_size: int = 1024,
        steps: int = 20,
        method: Method = "rk45",
    ) -> Pairs:
        """Return n points of the prior with the events that the model makes of them; training on them is straighter.

        Args:
            n: number of pairs, >= 0.
            condition: classes (n,), or one for all.
            generator: as of `sample`.
            batch_size: events made at a time, >= 1.
            steps, method: of the ODE.

        Source: rectified flow, Liu, Gong, Liu 2022.
        """
        n, size = check_count(n, "n"), check_count(batch_size, "batch_size", 1)
        x_1 = self.path.prior.draw(Noise(generator, n, self.device), dtype=self._dtype)
        classes = self._spread(condition, n)
        parts = [
            self.decode(x_1[rows], condition=None if classes is None else classes[rows], steps=steps, method=method)
            for rows in torch.split(torch.arange(n, device=self.device), size)
        ]
        return Pairs(torch.cat(parts), x_1, classes)

    @property
    def _dtype(self) -> torch.dtype | None:
        return next((p.dtype for p in self.parameters()), None)

    def _jump(self, x: Tensor, classes: Tensor | None, sign: float) -> Tensor:
        """Return x after the way between time 0 and t_min, in one step."""
        if not self.path.t_min:
            return x
        t = torch.full((len(x),), self.path.t_min, dtype=x.dtype, device=x.device)
        return x + sign * self.path.t_min * self.velocity(x, t, condition=classes)


def assign(x0: Tensor, x_1: Tensor, condition: Tensor | None = None) -> Tensor:
    """Return rows (B,) of x_1, one for each event: the assignment of least squared distances, within each class.

    Across classes it would give each class a part of the prior, while sampling draws from the whole.

    Args:
        x0, x_1: (B, *event).
        condition: classes (B,); None is one class.

    Example:
        >>> assign(torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0]]))
        tensor([1, 0])
    """
    from scipy.optimize import linear_sum_assignment

    rows = torch.arange(len(x0), device=x0.device)
    groups = [rows] if condition is None else [rows[condition == c] for c in torch.unique(condition)]
    order = torch.empty_like(rows)
    for group in groups:
        cost = torch.cdist(x0[group].flatten(1).double(), x_1[group].flatten(1).double()).square()
        order[group] = group[torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=x0.device)]
    return order


def _unpack(batch: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return events, points of the prior and classes of a batch; None where it has none."""
    if isinstance(batch, Tensor):
        return batch, None, None
    x0, *others = (part for part in batch if part is not None)
    points = [part for part in others if part.is_floating_point()]
    classes = [part for part in others if not part.is_floating_point()]
    if len(points) > 1 or len(classes) > 1:
        raise ValueError(f"a batch is events, points of the prior and classes at most, got {len(others) + 1} parts")
    return x0, next(iter(points), None), next(iter(classes), None)
