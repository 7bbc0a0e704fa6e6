"""Two densities of the plane that are in pieces, and flows fitted to them: their error, and what lies between."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._training import fit, torch_seed
from kexue.experiments.report import Claim, Figure

_BATCH, _TEST = 256, 20_000
_WIDTH, _CENTRE = 0.3, 2.0  # of a crescent: deviation across it; distance of its middle from 0
_NEAR = 0.05  # nats
_FAR = 3.0  # deviations from the nearest Gaussian of the ring


class Plane(NamedTuple):
    """A density in pieces.

    Attributes:
        draw: ``draw(n, generator)``, points (n, 2).
        log_prob: of points, in nats.
        between: ``between(x)``, whether points lie between the pieces.
        share: probability of these, or its upper bound.
        steps: of a training, as a part of those of the experiment.
        box: what is drawn: left, right, bottom, top.
    """

    draw: Callable[[int, Any], Any]
    log_prob: Callable[[Any], Any]
    between: Callable[[Any], Any]
    share: float
    steps: float
    box: tuple[float, float, float, float]


class Fitted(NamedTuple):
    """A flow fitted to a density: KL(density || flow) in nats, share of its samples between the pieces."""

    flow: Any
    kl: float
    between: float


def fit_plane(plane: Plane, steps: int, seed: int) -> Fitted:
    """Train a flow on fresh points in every step; measure it on 20,000 others."""
    torch = import_optional("torch", extra="train")
    generator = torch.Generator().manual_seed(seed)
    with torch_seed(seed):
        flow = generative.realnvp(2, couplings=8, hidden=(64, 64))
    flow.initialize(plane.draw(_BATCH, generator))
    steps = max(1, round(plane.steps * steps))
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = [plane.draw(_BATCH, generator) for _ in range(steps)]
    fit(flow, lambda x: flow.loss(x).loss, batches, optimizer, scheduler=schedule)
    x = plane.draw(_TEST, generator)
    with torch.no_grad():
        kl = float((plane.log_prob(x) - flow.log_prob(x)).double().mean())
        samples = flow.sample(_TEST, generator=generator)
    return Fitted(flow, kl, float(plane.between(samples).double().mean()))


def make_planes() -> dict[str, Plane]:
    """Two crescents, one above the other; eight Gaussians on a circle."""
    torch = import_optional("torch", extra="train")
    ring = generative.eight_gaussians()
    return {
        "crescents": Plane(
            _draw_crescents, _crescents_log_prob,
            between=lambda x: _height(x).abs() < _CENTRE / 2,
            share=math.erfc(_CENTRE / 2 / _WIDTH / math.sqrt(2)) / 2,
            steps=1.0,
            box=(-3.0, 3.0, -4.0, 6.0),
        ),
        "ring": Plane(
            lambda n, generator: ring.sample(n, generator=generator), ring.log_prob,
            between=lambda x: torch.cdist(x, ring.means).amin(1) > _FAR * ring.std,
            share=math.exp(-(_FAR**2) / 2),
            steps=0.5,
            box=(-3.0, 3.0, -3.0, 3.0),
        ),
    }  # fmt: skip


def _draw_crescents(n: int, generator: Any) -> Any:
    """Points (a, a^2 / 2 + b), a ~ N(0, 1), b ~ N(2 or -2, 0.3^2)."""
    torch = import_optional("torch", extra="train")
    side = torch.randint(2, (n,), generator=generator) * 2.0 - 1
    a, b = torch.randn(2, n, generator=generator)
    return torch.stack([a, a**2 / 2 + _WIDTH * b + _CENTRE * side], 1)


def _crescents_log_prob(x: Any) -> Any:
    torch = import_optional("torch", extra="train")
    sides = [torch.distributions.Normal(centre, _WIDTH).log_prob(_height(x)) for centre in (-_CENTRE, _CENTRE)]
    along = torch.distributions.Normal(0.0, 1.0).log_prob(x[:, 0])
    return along + torch.logaddexp(*sides) - math.log(2)


def _height(x: Any) -> Any:
    """Height of points above the parabola in the middle."""
    return x[:, 1] - x[:, 0] ** 2 / 2


def plane_figures(planes: Mapping[str, Plane], fitted: Mapping[str, Sequence[Fitted]]) -> dict[str, Figure]:
    """Errors, and shares between the pieces, of the flows by density."""
    figures = {}
    for name, plane in planes.items():
        figures[f"kl_{name}"] = Figure.over_runs([one.kl for one in fitted[name]], "nats")
        figures[f"between_{name}"] = Figure.over_runs([one.between for one in fitted[name]])
        figures[f"between_{name}_truth"] = Figure(plane.share)
    return figures


def plane_claims(planes: Mapping[str, Plane], fitted: Mapping[str, Sequence[Fitted]]) -> list[Claim]:
    """What the flows must show; a bad fit, too, puts much between the pieces, so the second claim needs the first."""
    near = max(one.kl for one in fitted["crescents"]) < _NEAR
    return [
        Claim.check(
            "A flow learns the density of two crescents nearly exactly.",
            near,
            rule=f"KL of two crescents to the flow, on 20,000 points not trained on, below {_NEAR} nat for every seed",
            figures=["kl_crescents"],
        ),
        Claim.check(
            "Between the crescents a flow leaves filaments, which join them.",
            near and all(one.between > 2 * planes["crescents"].share for one in fitted["crescents"]),
            rule="share of 20,000 samples between the crescents above twice the true one for every seed, although "
            f"the flows meet them within {_NEAR} nat",
            figures=["between_crescents", "between_crescents_truth"],
        ),
    ]


def draw_planes(panels: Sequence[Any], planes: Mapping[str, Plane], fitted: Mapping[str, Sequence[Fitted]]) -> None:
    """Draw each density beside that of its first flow."""
    pairs = [
        (f"{name}: {title}", log_prob, plane.box)
        for name, plane in planes.items()
        for title, log_prob in (
            ("true density", plane.log_prob),
            ("a flow", fitted[name][0].flow.log_prob),
        )
    ]
    for panel, (title, log_prob, box) in zip(panels, pairs, strict=True):
        draw_density(panel, log_prob, box)
        panel.set(title=title, xlabel="first value", ylabel="second value")


def draw_density(panel: Any, log_prob: Callable[[Any], Any], box: tuple[float, float, float, float]) -> None:
    """Draw a log density as a picture; at -9 nats and below it is white."""
    torch = import_optional("torch", extra="train")
    left, right, bottom, top = box
    points = torch.cartesian_prod(torch.linspace(bottom, top, 200), torch.linspace(left, right, 200)).flip(1)
    with torch.no_grad():
        values = log_prob(points).reshape(200, 200).numpy()
    panel.imshow(values, origin="lower", extent=box, aspect="auto", cmap="Blues", vmin=-9, vmax=0)
