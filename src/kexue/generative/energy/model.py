"""Energy-based model: a network U whose density is exp(-U) / Z, learned from data and from chains that sample it.

Source: kexue.fm/archives/6612; Du and Mordatch 2019, arXiv:1903.08689.
Difference: the regulariser of the article has a minus, that of the released code of the paper, and the default, a plus.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kexue._counts import check_counts
from kexue._tensors import at_least_float32, evaluating, may_read
from kexue.errors import KexueError, NotSupported
from kexue.generative.energy.buffer import ReplayBuffer
from kexue.generative.energy.chains import LangevinResult, differentiate, langevin
from kexue.generative.model import GenerativeModel, LossOutput, check_not_empty, unpack_batch
from kexue.generative.networks.mlp import Shape, as_shape
from kexue.generative.noise import Noise

Sampler = Callable[..., LangevinResult]
_SAMPLER: Sampler = partial(langevin, steps=40, step_size=0.01)
_SIGNS = {"sum": (1, 1), "difference": (1, -1), "none": (0, 0)}  # of the squares of energies of data and of chains
_BLOCK = 65_536  # points of a grid that go through the network at a time


class DivergenceError(KexueError, ArithmeticError):
    """The energies of an energy-based model have left all bounds: its chains no longer sample it."""


class ChainReport(NamedTuple):
    """What the chains of an energy-based model do.

    Attributes:
        temperature: T of the law exp(-U/T) that they sample, but for the bias of their steps.
        acceptance: share of their steps that a Metropolis test accepts: near 1 the bias is small. None without noise.
        data_energy, chain_energy: mean of U on data and at the ends of chains; equal where the model fits its data.
    """

    temperature: float
    acceptance: float | None
    data_energy: float
    chain_energy: float


class EnergyModel(GenerativeModel):
    """An energy U, low where data are; the density exp(-U) / Z is known but for the constant Z.

    The gradient of -log p over the weights is E_data[grad U] - E_model[grad U]. So the loss is, with chains x_f that
    start in a buffer of earlier ends and are constants for the gradient,

        L = mean U(x) - mean U(x_f) + weight (mean U^2(x) + mean U^2(x_f)).

    The first part does not change when a constant is added to U; the second one pins that constant, and bounds U. The
    loss says nothing about quality: near 0 the chains sample what the model says, whatever that is. Look at samples.

    Args:
        net: U, a module from events (B, *event_shape) to (B,) or (B, 1). Smooth activations make chains stable; a batch
            norm would mix data and chains.
        event_shape: shape of one event, or the size of a vector.
        sampler: called as ``sampler(energy, starts, generator=noise)``; usually `langevin` with its settings. It
            returns a `LangevinResult` with an end for each start; `sample` with `steps` passes ``steps`` as well, and
            `diagnose` ``metropolis``. None: ``partial(langevin, steps=40, step_size=0.01)``.
        buffer: starts of chains; None: a `ReplayBuffer` of 10,000 events in [-1, 1].
        regulariser: ``"sum"``: as above. ``"difference"``: U^2(x) - U^2(x_f), as the article has it, which pins
            nothing. ``"none"``: 0.
        weight: of the regulariser, >= 0.
        limit: bound of the mean energy of data and of chains, > 0, beyond which `loss` raises.

    Attributes:
        event_shape: shape of one event.

    Raises:
        ValueError: an argument out of range, or a buffer for events of another shape.

    Example:
        >>> from kexue.generative import MLP, eight_gaussians
        >>> model = EnergyModel(MLP(2, 1), 2)
        >>> x = eight_gaussians().sample(64, generator=0)
        >>> sorted(model.loss(x, generator=0).parts)
        ['chain_energy', 'contrastive', 'data_energy', 'regularisation']
        >>> model.energy(x).shape, model.score(x).shape, model.sample(5, generator=0).shape
        (torch.Size([64]), torch.Size([64, 2]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        net: nn.Module,
        event_shape: Shape,
        *,
        sampler: Sampler | None = None,
        buffer: ReplayBuffer | None = None,
        regulariser: Literal["sum", "difference", "none"] = "sum",
        weight: float = 0.1,
        limit: float = 1000.0,
    ) -> None:
        super().__init__()
        if regulariser not in _SIGNS:
            raise ValueError(f"regulariser must be 'sum', 'difference' or 'none', got {regulariser!r}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be >= 0 and finite, got {weight}")
        if not limit > 0:
            raise ValueError(f"limit must be > 0, got {limit}")
        self.net, self.event_shape = net, as_shape(event_shape, "event_shape")
        self.sampler = _SAMPLER if sampler is None else sampler
        self.buffer = ReplayBuffer(10_000, self.event_shape) if buffer is None else buffer
        if tuple(self.buffer.items.shape[1:]) != self.event_shape:
            raise ValueError(
                f"the buffer must hold events of shape {self.event_shape}, got {tuple(self.buffer.items.shape[1:])}"
            )
        self.regulariser, self.weight, self.limit = regulariser, weight, limit

    # ---- energy and samples ------------------------------------------------------------------------------------------

    def energy(self, x: Tensor) -> Tensor:
        """Return U (B,) of events: -log p - log Z, where chains have the temperature 1."""
        self.check_events(x)
        return self._measure(x)

    def score(self, x: Tensor) -> Tensor:
        """Return -grad U, the gradient (B, *event_shape) of log p in the events, without a graph."""
        self.check_events(x)
        with evaluating(self):
            return -differentiate(self._measure, x)[1]

    def draw(  # type: ignore[override]
        self, noise: Noise, *, condition: Tensor | None, steps: int | None = None, from_buffer: bool = True
    ) -> Tensor:
        """Return ends of chains. The buffer stays as it is.

        Args:
            noise: of starts and chains.
            condition: None; there are no classes.
            steps: of the chains; None: as in training.
            from_buffer: whether chains start at events of the buffer, where it has some, which makes them much longer
                in effect; otherwise at new events.
        """
        if condition is not None:
            raise ValueError("an EnergyModel has no classes, so it takes no condition")
        options = {} if steps is None else {"steps": steps}
        return self._run_chains(noise, 0.0 if from_buffer else 1.0, **options).x

    # ---- learning ----------------------------------------------------------------------------------------------------

    def loss(self, batch: Any, *, generator: torch.Generator | int | None = None) -> LossOutput:
        """Return the contrastive loss with as many chains as events; in training mode their ends go to the buffer.

        Args:
            batch: events x (B, *event_shape), B >= 1; of (x, classes) the classes are not used.
            generator: of the chains.

        Returns:
            `loss`; the parts ``contrastive`` and ``regularisation``, whose sum it is, ``data_energy`` and
            ``chain_energy``, the mean energies.

        Raises:
            DivergenceError: the mean energy of data or of chains is beyond `limit`, or not a number.
        """
        x = unpack_batch(batch, None)[0]
        self.check_events(x)
        chains = self._run_chains(Noise(generator, len(x), x.device)).x.detach()
        # one call of the network, so that a spectral norm takes one step
        u, u_chains = self._measure(torch.cat([x, chains.to(x.dtype)])).chunk(2)
        contrastive = u.mean() - u_chains.mean()  # section "Maximum likelihood"
        of_data, of_chains = _SIGNS[self.regulariser]  # section "The regulariser"
        regularisation = self.weight * (of_data * u.square().mean() + of_chains * u_chains.square().mean())
        means = {"data_energy": u.detach().mean(), "chain_energy": u_chains.detach().mean()}
        self._check_energies(means)
        if self.training:
            self.buffer.push(chains)
        parts = {"contrastive": contrastive.detach(), "regularisation": regularisation.detach(), **means}
        return LossOutput(contrastive + regularisation, parts)

    # ---- diagnosis ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, generator: torch.Generator | int | None = None) -> ChainReport:
        """Return what as many chains as there are events x do.

        Args:
            x: data (B, *event_shape), B >= 1, better not those of the training.
            generator: of the chains.
        """
        self.check_events(x)
        check_not_empty(x)
        noise = Noise(generator, len(x), x.device)
        chains = self._run_chains(noise)
        tested = self._run_chains(noise, metropolis=True).acceptance if chains.temperature else None
        with evaluating(self):
            energies = [float(self._measure(one.to(x.dtype)).double().mean()) for one in (x, chains.x)]
        return ChainReport(chains.temperature, None if tested is None else float(tested.mean()), *energies)

    @torch.no_grad()
    def log_z_grid(self, low: float, high: float, *, points: int = 400) -> float:
        """Return log Z, the logarithm of the integral of exp(-U) over the box [low, high]^d, d <= 2: midpoint rule.

        With it -U - log Z is the log density, if nearly all of its mass is in the box.

        Args:
            low, high: ends of the box in every direction, low < high.
            points: of the grid in every direction, >= 1.

        Raises:
            NotSupported: events of more than two numbers.
        """
        if not (math.isfinite(low) and low < high < math.inf):
            raise ValueError(f"low < high is expected, and both finite, got {low} and {high}")
        check_counts(points=points)
        d = math.prod(self.event_shape)
        if d > 2:
            raise NotSupported(f"a grid in {d} dimensions is too large; log_z_grid takes events of one or two numbers.")
        width = (high - low) / points
        axis = low + width * (torch.arange(points, device=self.device) + 0.5)
        grid = torch.cartesian_prod(*[axis] * d).reshape(-1, *self.event_shape)
        with evaluating(self):
            u = torch.cat([self._measure(part) for part in torch.split(grid, _BLOCK)])
        return float((-u.double()).logsumexp(0)) + d * math.log(width)

    # ---- inner steps -------------------------------------------------------------------------------------------------

    def _measure(self, x: Tensor) -> Tensor:
        """Return U (B,) in float32 or wider; the network gets x in the type of its weights."""
        weight = next(self.net.parameters(), None)
        u = at_least_float32(self.net(x if weight is None else x.to(weight.dtype)))
        if u.shape not in {(len(x),), (len(x), 1)}:
            raise ValueError(f"net must return energies (B,) or (B, 1), got {tuple(u.shape)} for {len(x)} events")
        return u.reshape(len(x))

    def _run_chains(self, noise: Noise, reinit: float | None = None, **options: Any) -> LangevinResult:
        """Return the ends of chains, run in evaluation mode: each step has the same energy, and the same norms."""
        _check_takes(self.sampler, "generator", *options)
        with evaluating(self), parametrize.cached():
            starts = self.buffer.draw(noise, reinit=reinit)
            chains = self.sampler(self._measure, starts, generator=noise, **options)
        if not isinstance(chains, LangevinResult):
            raise TypeError(f"the sampler must return a LangevinResult, got {type(chains).__name__}")
        if chains.x.shape != starts.shape:
            ends, expected = tuple(chains.x.shape), tuple(starts.shape)
            raise ValueError(f"the sampler must return an end for each start, {expected}, got {ends}")
        return chains

    def _check_energies(self, means: dict[str, Tensor]) -> None:
        for name, mean in means.items():
            if may_read(mean) and not abs(float(mean)) <= self.limit:
                raise DivergenceError(
                    f"the mean {name.replace('_', ' ')} is {float(mean):g}, beyond the limit of {self.limit:g}.",
                    remedy="Take more or smaller steps of the sampler, a lower learning rate, regulariser='sum', or "
                    "spectral norms; the last checkpoint comes from before.",
                )


def _check_takes(sampler: Sampler, *names: str) -> None:
    """Raise a TypeError for a sampler that cannot be called with an energy, starts and arguments of these names."""
    try:
        inspect.signature(sampler).bind(None, None, **dict.fromkeys(names))
    except TypeError as error:
        call = ", ".join(["energy", "starts", *(f"{name}=..." for name in names)])
        raise TypeError(
            f"the sampler must take ({call}): {error}; give these parameters to it, or use langevin"
        ) from None
    except ValueError:  # one whose signature Python does not know
        return
