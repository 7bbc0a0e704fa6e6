"""kexue.fm/archives/9209: a diffusion as a stochastic equation, whose steps are chosen after the training.

Closed form: the variance that Euler-Maruyama steps reach from Gaussian data. A denoiser of the ring of eight Gaussians,
and the exact one, are sampled with 20 to 1000 steps; noise is turned by the eight symmetries of the ring, so that all
Gaussians get equally many points in the mean. A denoiser of digits is sampled with and without Langevin corrections, at
equal numbers of calls. The minimum of the loss is computed for three weights of the times, by least squares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._denoisers import train_digits, train_ring
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report
from kexue.generative import diffusion
from kexue.generative.noise import Noise

_STEPS = (20, 50, 100, 200, 500, 1000)
_VARIANCE = {50: 4.0646, 100: 4.0322, 1000: 4.0029}  # of data N(0, 4), by steps, from an independent calculation
_WEIGHTINGS = ("simple", "likelihood", "min_snr")
_STD = 0.5  # of the data of the regression
_TERMS = 8  # of its polynomial
_SNR = 0.16  # length of Langevin steps


class Size(NamedTuple):
    """What a budget allows.

    Attributes:
        ring, digits: training steps.
        steps: numbers of Euler-Maruyama steps.
        points: samples of the ring, a multiple of 8.
        calls: of the network, for samples of digits.
        rows: of the regression, in thousands.
        seeds: number of runs.
    """

    ring: int
    digits: int
    steps: tuple[int, ...]
    points: int
    calls: tuple[int, ...]
    rows: int
    seeds: int


_SIZES: dict[Budget, Size] = {
    "smoke": Size(20, 20, (20, 100), 160, (8,), 200, 1),
    "small": Size(4000, 1500, _STEPS, 1600, (50, 200), 4000, 3),
    "full": Size(10_000, 6000, _STEPS, 8000, (50, 200, 1000), 8000, 5),
}


class Runs(NamedTuple):
    """What was measured for each seed.

    Attributes:
        network, exact: sliced Wasserstein distance by number of steps.
        floor: that of two sets of data.
        predictor, corrected: Fréchet distance by calls, without and with Langevin steps.
        points: samples of the trained model by number of steps.
    """

    network: dict[int, float]
    exact: dict[int, float]
    floor: float
    predictor: dict[int, float]
    corrected: dict[int, float]
    points: dict[int, Any]


@experiment(
    "sde",
    claim="Theory and discretisation are separate: one trained score is sampled with any number of steps.",
    effect=(
        "sliced Wasserstein distance to the ring: 20 steps {swd_20}, 100 steps {swd_100}, 1000 steps {swd_1000}, two "
        "sets of data {swd_floor}; Fréchet distance of digits at 200 calls: predictor {fd_predictor_200}, with "
        "corrections {fd_corrected_200}"
    ),
    minutes=6,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Train on the ring and on digits for each seed, and sample."""
    import_optional("torch", extra="train")
    size = _SIZES[budget]
    seeds = tuple(range(seed, seed + size.seeds))
    runs = [_measure(size, s) for s in seeds]
    figures = {
        f"variance_{n}": Figure(_reached_variance(n), expected=v, source="computed") for n, v in _VARIANCE.items()
    }
    for name, of in (
        ("swd", "network"),
        ("swd_exact", "exact"),
        ("fd_predictor", "predictor"),
        ("fd_corrected", "corrected"),
    ):
        for key in getattr(runs[0], of):
            figures[f"{name}_{key}"] = Figure.over_runs([getattr(one, of)[key] for one in runs])
    figures["swd_floor"] = Figure.over_runs([one.floor for one in runs])
    figures |= {f"fd_reference_{name}": Figure(value) for name, value in generative.reference_values("digits").items()}
    curves = {weighting: _fit_score(weighting, _TERMS, size.rows, seed) for weighting in _WEIGHTINGS}
    for weighting, curve in curves.items():
        figures[f"score_error_{weighting}"] = Figure(_score_error(curve), n=1000 * size.rows)
        figures[f"constant_{weighting}"] = Figure(float(_fit_score(weighting, 1, size.rows, seed)[0]))
    return Report(
        tuple(_claims(figures, size)),
        figures,
        notes=(
            "The paper's Fréchet distance on CIFAR-10, 2.20, needs its network and data and is not measured here.",
            f"Fréchet distances are of 540 samples; Langevin steps have the length of snr {_SNR}, fixed beforehand.",
        ),
        seeds=seeds,
        data=({"name": "digits", "split": "train", "n": 1257},),
        draw=lambda figure: _draw(figure, runs, figures, curves),
    )


# ---- the variance of Gaussian data ---------------------------------------------------------------------------------


def _reached_variance(steps: int) -> float:
    """Variance of samples of N(0, 4) by the exact score, with noise in all steps.

    A step is linear, x_s = a x + c z; a and c are read off it.
    """
    torch = import_optional("torch", extra="train")
    schedule = diffusion.VP()
    denoiser = diffusion.MixtureDenoiser(generative.GaussianMixture(torch.zeros(1, 1).double(), 2.0), schedule)
    one, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    times = diffusion.make_grid(schedule, steps, kind="uniform")
    variance = 1.0
    for t, s in pairwise(times):
        a = diffusion.euler_maruyama_step(denoiser, one, t, s).x
        c = diffusion.euler_maruyama_step(denoiser, zero, t, s, z=one).x
        variance = float(a) ** 2 * variance + float(c) ** 2
    return variance


# ---- samples -------------------------------------------------------------------------------------------------------


def _measure(size: Size, seed: int) -> Runs:
    torch = import_optional("torch", extra="train")
    ring = generative.eight_gaussians()
    model = train_ring(size.ring, seed)
    data = [_turn(ring.sample(size.points // 8, generator=1000 * seed + i)) for i in (1, 2)]
    points: dict[str, dict[int, Any]] = {"network": {}, "exact": {}}
    with torch.no_grad():
        denoisers = {"network": model.denoiser, "exact": diffusion.MixtureDenoiser(ring, model.schedule)}
        for name, denoiser in denoisers.items():
            for steps in size.steps:
                noise = _TurnedNoise(torch.Generator().manual_seed(seed), size.points)
                grid = diffusion.make_grid(model.schedule, steps, kind="uniform")
                x = noise.normal((2,))
                points[name][steps] = diffusion.solve(denoiser, x, grid, solver="euler_maruyama", generator=noise)
    distances = {
        name: {n: generative.sliced_wasserstein(x, data[0]) for n, x in by_steps.items()}
        for name, by_steps in points.items()
    }
    floor = generative.sliced_wasserstein(data[1], data[0])
    predictor, corrected = _measure_digits(size, seed)
    return Runs(distances["network"], distances["exact"], floor, predictor, corrected, points["network"])


def _turn(x: Any) -> Any:
    """Points (n, 2), and these turned by 45, 90, ... degrees: (8 n, 2)."""
    torch = import_optional("torch", extra="train")
    angles = torch.arange(8, dtype=x.dtype) * (math.pi / 4)
    cos, sin = angles.cos(), angles.sin()
    turns = torch.stack([cos, -sin, sin, cos], -1).reshape(8, 2, 2)
    return torch.einsum("kij,nj->kni", turns, x).reshape(-1, 2)


class _TurnedNoise(Noise):
    """Noise of which one eighth is drawn, and the others are turned copies: the symmetries of the ring."""

    def normal(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Return standard normal numbers (n, 2), items of one symmetry beside each other."""
        return _turn(Noise.normal(self[: len(self) // 8], shape, dtype))


def _measure_digits(size: Size, seed: int) -> tuple[dict[int, float], dict[int, float]]:
    """Fréchet distance to the training images, without and with Langevin steps, by calls of the network."""
    torch = import_optional("torch", extra="train")
    images = generative.load_images("digits")
    features = generative.feature_extractor(images)
    real = features(images.train)
    model = train_digits(images.train, size.digits, seed)

    def distance(steps: int, solver: str, **options: Any) -> float:
        stream = torch.Generator().manual_seed(seed)
        x = model.sample(len(images.test), steps=steps, solver=solver, generator=stream, **options)
        return generative.frechet_distance(features(x.clamp(-1, 1)), real)

    predictor = {calls: distance(calls, "ancestral") for calls in size.calls}
    corrected = {  # the last step has no correction: steps + (steps - 1) calls, and one is left over
        calls: distance(calls // 2, "predictor_corrector", snr=_SNR, norm="noise") for calls in size.calls
    }
    return predictor, corrected


# ---- the minimum of the loss ---------------------------------------------------------------------------------------


def _fit_score(weighting: Any, terms: int, thousands: int, seed: int) -> Any:
    """Coefficients (terms,) of b(t), b(t) x being the best estimate of the noise of data N(0, 0.25) under a weighting.

    The loss is quadratic in them, so that its gradient and second derivatives at 0 give the minimum.
    """
    torch = import_optional("torch", extra="train")
    generator = torch.Generator().manual_seed(seed)
    schedule = diffusion.VP()
    hessian, slope = 0.0, 0.0
    for _ in range(max(thousands // 200, 1)):
        x0 = _STD * torch.randn(1000 * min(thousands, 200), 1, generator=generator, dtype=torch.float64)
        draws = int(torch.randint(2**40, (), generator=generator))

        def loss(c: Any, x0: Any = x0, draws: int = draws) -> Any:
            denoiser = diffusion.Denoiser(lambda x, t: (_basis(t, terms) @ c)[:, None] * x, schedule)
            stream = torch.Generator().manual_seed(draws)
            importance = weighting == "likelihood"
            return diffusion.score_matching_loss(
                denoiser, x0, weighting=weighting, importance=importance, generator=stream
            ).loss

        zero = torch.zeros(terms, dtype=torch.float64)
        slope = slope + torch.autograd.functional.jacobian(loss, zero)
        hessian = hessian + torch.autograd.functional.hessian(loss, zero)
    return -torch.linalg.solve(hessian, slope)


def _basis(t: Any, terms: int) -> Any:
    """Powers of 2 sigma(t) - 1, (B, terms)."""
    torch = import_optional("torch", extra="train")
    place = 2 * diffusion.VP().sigma(t) - 1
    return place[:, None] ** torch.arange(terms)


def _regression_times() -> Any:
    torch = import_optional("torch", extra="train")
    return torch.linspace(0.05, 1, 39, dtype=torch.float64)


def _exact_slope(t: Any) -> Any:
    """b(t) = sigma/(alpha^2 s^2 + sigma^2): the score is -b/sigma x."""
    schedule = diffusion.VP()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return sigma / (alpha.square() * _STD**2 + sigma.square())


def _score_error(curve: Any) -> float:
    """Largest relative error of the score between times 0.05 and 1."""
    t = _regression_times()
    return float((_basis(t, len(curve)) @ curve / _exact_slope(t) - 1).abs().max())


# ---- claims and figures --------------------------------------------------------------------------------------------


def _claims(figures: Mapping[str, Figure], size: Size) -> list[Claim]:
    value = {name: figure.value for name, figure in figures.items()}
    many = [n for n in size.steps if n >= 100]
    later = [value[f"swd_{n}"] for n in many]
    last = size.steps[-1]
    calls = size.calls
    return [
        Claim.check(
            "Euler-Maruyama steps reach the variance of Gaussian data, the better the more steps there are.",
            all(abs(value[f"variance_{n}"] - v) < 1e-3 for n, v in _VARIANCE.items()),
            rule="variances of 50, 100, 1000 steps from the exact score of N(0, 4) within 0.001 of the closed form",
            figures=[f"variance_{n}" for n in _VARIANCE],
        ),
        Claim.check(
            "The number of steps is chosen after training, and more steps help until the network is the limit.",
            value["swd_20"] > max(later) and max(later) - min(later) < value["swd_floor"],
            rule="sliced Wasserstein distance to the ring at 20 steps above that of any number from 100 on; these "
            "differ by less than the distance of two sets of data; means over seeds",
            figures=[f"swd_{n}" for n in size.steps] + ["swd_floor"],
        ),
        Claim.check(
            "With the exact score the same steps reach the data.",
            value[f"swd_exact_{last}"] < 1.5 * value["swd_floor"],
            rule="distance at the largest number of steps below 1.5 times that of two sets of data, mean over seeds",
            figures=[f"swd_exact_{last}", "swd_floor"],
        ),
        Claim.check_parts(
            "Langevin corrections are worth their calls.",
            [value[f"fd_corrected_{n}"] <= value[f"fd_predictor_{n}"] for n in calls],
            rule="Fréchet distance of digits with one correction a step at most that of twice as many steps without, "
            f"at {', '.join(map(str, calls))} calls, means over seeds",
            figures=[f"fd_{kind}_{n}" for n in calls for kind in ("corrected", "predictor")],
        ),
        Claim.check(
            "All weights of the times have one minimum.",
            all(value[f"score_error_{w}"] < 0.02 for w in _WEIGHTINGS),
            rule="linear score of Gaussian data within 2 % of the exact one from time 0.05 to 1, for three weights",
            figures=[f"score_error_{w}" for w in _WEIGHTINGS],
        ),
    ]


def _draw(figure: Any, runs: Sequence[Runs], figures: Mapping[str, Figure], curves: Mapping[str, Any]) -> None:
    figure.set_size_inches(15, 8)
    panels = figure.subplots(2, 3)
    steps, calls = list(runs[0].network), list(runs[0].predictor)
    panel = panels[0, 0]
    for name, label in (("swd", "trained network"), ("swd_exact", "exact score")):
        panel.plot(steps, [figures[f"{name}_{n}"].value for n in steps], "o-", label=label)
    panel.axhline(figures["swd_floor"].value, color="gray", linestyle=":", label="two sets of data")
    panel.set(
        title="ring", xlabel="Euler-Maruyama steps", ylabel="sliced Wasserstein distance", xscale="log", ylim=(0, None)
    )
    panel.legend()
    for panel, n in ((panels[0, 1], steps[0]), (panels[0, 2], steps[-1])):
        panel.plot(*runs[0].points[n].T.numpy(), ".", markersize=2)
        panel.set(title=f"samples of the network, {n} steps", xlabel="$x_1$", ylabel="$x_2$")
        panel.axis([-3.2, 3.2, -3.2, 3.2])
        panel.set_aspect("equal")
    panel = panels[1, 0]
    for at, (name, label) in enumerate({"predictor": "predictor", "corrected": "predictor and corrector"}.items()):
        panel.plot(calls, [[getattr(one, name)[n] for one in runs] for n in calls], f"C{at}.", alpha=0.5)
        panel.plot(calls, [figures[f"fd_{name}_{n}"].value for n in calls], f"C{at}o-", label=label)
    panel.set(title="digits", xlabel="calls of the network", ylabel="Fréchet distance", ylim=(0, None))
    panel.legend()
    panel = panels[1, 1]
    t = _regression_times()
    for at, (weighting, curve) in enumerate(curves.items()):
        panel.plot(t, _basis(t, len(curve)) @ curve / _exact_slope(t), color=f"C{at}", label=weighting)
    panel.axhline(1, color="gray", linestyle=":")
    panel.set(title="linear score of Gaussian data", xlabel="time", ylabel="learned / exact", ylim=(0.97, 1.03))
    panel.legend()
    panel = panels[1, 2]
    panel.plot(t, _exact_slope(t), "k", label="exact")
    for at, weighting in enumerate(_WEIGHTINGS):
        panel.axhline(figures[f"constant_{weighting}"].value, color=f"C{at}", label=f"constant, {weighting}")
    panel.set(
        title="a model too small: one number for all times", xlabel="time", ylabel="noise estimate / x", ylim=(0, None)
    )
    panel.legend()
