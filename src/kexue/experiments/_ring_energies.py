"""Energies of a ring of eight Gaussians, learned from short chains in several settings, and their densities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._training import fit, torch_seed
from kexue.experiments.report import Claim, Figure

SETTINGS: dict[str, dict[str, Any]] = {
    "sum": {},
    "difference": {"regulariser": "difference"},
    "none": {"regulariser": "none"},
    "fresh": {"reinit": 1.0},  # no chain goes on from another
}
CHAIN, EPSILON = 20, 0.02  # steps of a chain, and e in x - (e/2) grad U + sqrt(e) z
LATER = 1000  # more steps, after the training
_BATCH, _RATE, _WEIGHT = 128, 2e-2, 0.01
_BOX, _GRID = 4.0, 400  # half the side of the square in which densities are compared, and cells along it
_FAR = 3.0  # deviations from the nearest Gaussian
_ENOUGH = 0.45  # distance of densities, fixed beforehand
_SAMPLES, _KEPT = 4000, 1000  # of a model, and of these those that go on after the training


class Ring(NamedTuple):
    """A learned energy of the ring.

    Attributes:
        model: the `EnergyModel`.
        tv: total variation of its density from the true one, on a grid.
        excess: KL of the true density to it, nats.
        modes: Gaussians that get more than 2 % of its samples.
        imbalance: total variation of the shares of the Gaussians from 1/8.
        offset: mean energy of data.
        far, far_later: share of its samples beyond three deviations from the nearest Gaussian; of these after 1000 more
            steps.
    """

    model: Any
    tv: float
    excess: float
    modes: int
    imbalance: float
    offset: float
    far: float
    far_later: float

    def log_prob(self, x: Any) -> Any:
        """Log density of points, nats."""
        return -self.model.energy(x) - self.model.log_z_grid(-_BOX, _BOX, points=_GRID)


QUANTITIES = {
    "tv": "", "excess": "nats", "modes": "of 8", "imbalance": "", "offset": "", "far": "of the samples",
    "far_later": "of the samples",
}  # fmt: skip


def train_ring(name: str, steps: int, seed: int) -> Ring:
    """Learn an energy in one of the settings, from fresh points in every step, and measure it."""
    torch = import_optional("torch", extra="train")
    from kexue.generative.diffusion import UniformPrior
    from kexue.train.schedules import warm_then_fall

    ring, draw = generative.eight_gaussians(), torch.Generator().manual_seed(seed)
    setting = dict(SETTINGS[name])
    box = UniformPrior([-3.0, -3.0], [3.0, 3.0])
    buffer = generative.ReplayBuffer(10_000, 2, reinit=setting.pop("reinit", 0.05), init=box)
    sampler = partial(generative.langevin, steps=CHAIN, step_size=EPSILON / 2, bounds=(-3.5, 3.5))
    with torch_seed(seed):
        net = generative.MLP(2, 1, hidden=(128, 128))
    model = generative.EnergyModel(net, 2, sampler=sampler, buffer=buffer, weight=_WEIGHT, **setting)
    optimizer = torch.optim.Adam(model.parameters(), _RATE, betas=(0.9, 0.999))
    batches = [ring.sample(_BATCH, generator=draw) for _ in range(steps)]
    fit(
        model,
        lambda x: model.loss(x, generator=draw).loss,
        batches,
        optimizer,
        scheduler=warm_then_fall(optimizer, steps),
    )
    return _measure(model.eval(), seed)


def _measure(model: Any, seed: int) -> Ring:
    torch = import_optional("torch", extra="train")
    ring, draw = generative.eight_gaussians(), torch.Generator().manual_seed(seed)
    width = 2 * _BOX / _GRID
    axis = width * (torch.arange(_GRID) + 0.5) - _BOX
    grid, x = torch.cartesian_prod(axis, axis), ring.sample(20_000, generator=draw)
    log_z = model.log_z_grid(-_BOX, _BOX, points=_GRID)
    with torch.no_grad():
        gap = (-model.energy(grid) - log_z).exp() - ring.log_prob(grid).exp()
        energies = model.energy(x)
        excess = float((energies + log_z + ring.log_prob(x)).double().mean())
    samples = model.sample(_SAMPLES, generator=draw)
    later = model.sampler(model.energy, samples[:_KEPT], steps=LATER, generator=draw).x
    distances = torch.cdist(samples, ring.means)
    shares = distances.argmin(1).bincount(minlength=8).double() / _SAMPLES
    far = [float((torch.cdist(one, ring.means).amin(1) > _FAR * ring.std).double().mean()) for one in (samples, later)]
    return Ring(
        model,
        tv=float(gap.abs().sum()) * width**2 / 2,
        excess=excess,
        modes=int((shares > 0.02).sum()),
        imbalance=float((shares - 1 / 8).abs().sum() / 2),
        offset=float(energies.double().mean()),
        far=far[0],
        far_later=far[1],
    )


def ring_figures(rings: dict[str, list[Ring]]) -> dict[str, Figure]:
    """The numbers of all runs by setting, and the share of data that is as far."""
    figures = {
        f"ring_{quantity}_{name}": Figure.over_runs([getattr(one, quantity) for one in runs], unit)
        for name, runs in rings.items()
        for quantity, unit in QUANTITIES.items()
    }
    return figures | {"ring_far_data": Figure(math.exp(-(_FAR**2) / 2))}


def ring_claims(rings: dict[str, list[Ring]]) -> list[Claim]:
    """What the densities must show."""
    plus, fresh = rings["sum"], rings["fresh"]
    offsets = {name: [abs(one.offset) for one in rings[name]] for name in ("sum", "difference", "none")}
    return [
        Claim.check(
            "Chains of a few steps that go on from a buffer teach the density: every mode, and about where it is.",
            all(one.modes == 8 and one.tv <= _ENOUGH for one in plus),
            rule=f"all eight Gaussians in the samples, and total variation to the truth at most {_ENOUGH}, every seed",
            figures=["ring_modes_sum", "ring_tv_sum", "ring_excess_sum", "ring_imbalance_sum"],
        ),
        Claim.check(
            "The buffer helps: chains that start anew each time teach a worse density.",
            all(a.tv < b.tv for a, b in zip(plus, fresh, strict=True)),
            rule="smaller total variation with the buffer in every seed",
            figures=["ring_tv_sum", "ring_tv_fresh", "ring_far_sum", "ring_far_fresh"],
        ),
        Claim.check_parts(
            "Of the regularisers only the sum of squares pins the constant of the energy; it drifts least with it, and "
            "most without any.",
            [a < b for a, b in _pairs(offsets["sum"], offsets["difference"])]
            + [a < b for a, b in _pairs(offsets["difference"], offsets["none"])],
            rule="|mean energy of data| smaller with the sum than with the difference, and with this than without, for "
            "each seed",
            figures=[f"ring_offset_{name}" for name in offsets],
        ),
    ]


def _pairs(a: Sequence[float], b: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(a, b, strict=True))
