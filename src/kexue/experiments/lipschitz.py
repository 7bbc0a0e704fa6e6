"""kexue.fm/archives/6051: Lipschitz constraints, for generalisation and for generative models.

Measures: power iteration on the article's matrix, and where its start fails; the norm of a flattened kernel against
that of the convolution; errors on digits under attack with spectral regularisation and with weight decay; and spectral
normalisation against gradient penalty in a WGAN, of points and of images.

The cost of a critic step is measured on the bare step, so that seconds and multiplications count nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.experiments import _critic_constraints as images
from kexue.experiments._data import attempt, split_digits
from kexue.experiments._measures import count_multiplications, time_in_turns
from kexue.experiments._training import build_mlp, fit, shuffled_rows, torch_seed
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_ATTACK = 0.1  # size of the attack, in pixels of [0, 1]
_COEFFICIENTS = {"none": (0.0,), "frobenius": (3e-4, 1e-3, 3e-3), "spectral": (3e-3, 1e-2, 3e-2)}
_ALLOWED = 0.01  # increase of the clean error that a penalty may cost
_CRITICS = {"normalised": 0.0, "penalty_0.1": 0.1, "penalty_1": 1.0, "penalty_10": 10.0}  # weight of the penalty


class _Penalised(NamedTuple):
    """A trained classifier: bound of its Lipschitz constant, errors on the test half and on the validation half."""

    bound: float
    clean_error: float
    attacked_error: float
    clean_error_validation: float
    attacked_error_validation: float


class _Gan(NamedTuple):
    """A trained WGAN: energy distance of samples to data, the critic's Lipschitz bound, 2,000 points of each."""

    distance: float
    bound: float
    data: Array
    samples: Array


@experiment(
    "lipschitz",
    claim="Small spectral norms make a classifier more robust; dividing by them makes the critic of a WGAN Lipschitz.",
    effect=(
        "error under attack {none_attacked_error} to {spectral_attacked_error} (clean {none_clean_error} to "
        "{spectral_clean_error}); gain over weight decay {spectral_gain_over_frobenius}; "
        "critic bound {normalised_critic_bound}; WGAN of digits: {digits_normalised_steps} to a distance of 5, with "
        "the gradient penalty {digits_penalty_10_steps}"
    ),
    minutes=6.0,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Measure power iteration, a box filter, digits under attack, and GANs of points and digits by kinds of critic."""
    import_optional("torch", extra="train")
    count, epochs, steps = {"smoke": (1, 5, 10), "small": (3, 60, 600), "full": (10, 60, 5000)}[budget]
    seeds = tuple(range(seed, seed + count))
    figures = _norm_figures()
    claims = _norm_claims(figures)
    notes: list[str] = []
    digits = attempt(lambda: _train_penalised(seeds, epochs), "the claims on digits", notes)
    if digits:
        figures |= _digit_figures(digits)
        claims += _digit_claims(figures)
        notes.append(
            f"digits: {count} seeds, {epochs} epochs, network 64-128-128-10; attacks by the sign of the gradient"
        )
    gans = {kind: [_train_gan(weight, s, steps) for s in seeds] for kind, weight in _CRITICS.items()}
    figures |= _cost_figures(5 if budget == "smoke" else 40) | _gan_figures(gans)
    claims += _gan_claims(figures, steps)
    notes.append(f"WGAN: {count} seeds, {steps} generator steps with 3 critic steps each, batches of 256")
    length, every, rounds = {"smoke": (20, 10, 2), "small": (2000, 50, 40), "full": (5000, 50, 100)}[budget]
    curves = attempt(lambda: images.measure_curves(seeds, length, every), "the claims on GANs of digits", notes) or {}
    if curves:
        figures |= images.make_figures(curves, seeds, rounds)
        claims += images.make_claims(curves, figures)
        notes.append(f"WGAN of digits: {count} seeds, {length} steps of each network, batches of 64")
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        seeds=seeds,
        draw=lambda figure: _draw(figure, digits or {}, gans, curves),
    )


# ---- measure: norms ------------------------------------------------------------------------------------------------


def _norm_figures() -> dict[str, Figure]:
    """Power iteration, and the flattened kernel, against values known in closed form."""
    import torch

    from kexue.nn import spectral_norm_value

    matrix, ones = torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    # its norm is 2, but a start of ones finds only 1.5
    block = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.5]], dtype=torch.float64)
    box = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    operator = spectral_norm_value(box, mode="operator", input_shape=(1, 16, 16), padding=1, n_iter=800, generator=0)
    values = {
        "sigma_after_5_rounds": (float(spectral_norm_value(matrix, u=ones, n_iter=5).sigma), math.sqrt(45)),
        "trap_from_ones": (float(spectral_norm_value(block, u=torch.ones(3), n_iter=50).sigma), 1.5),
        "trap_from_random": (float(spectral_norm_value(block, n_iter=50, generator=0).sigma), 2.0),
        "box_filter_reshaped": (float(spectral_norm_value(box, generator=0).sigma), 3.0),
        "box_filter_operator": (float(operator.sigma), (1 + 2 * math.cos(math.pi / 17)) ** 2),
    }
    return {name: Figure(value, expected=exact, source="computed") for name, (value, exact) in values.items()}


# ---- measure: digits -----------------------------------------------------------------------------------------------


def _train_penalised(seeds: Sequence[int], epochs: int) -> dict[tuple[str, float], list[_Penalised]]:
    """One classifier per seed for each penalty and coefficient."""
    return {
        (kind, coef): [_train_classifier(seed, epochs, kind, coef) for seed in seeds]
        for kind, coefs in _COEFFICIENTS.items()
        for coef in coefs
    }


def _train_classifier(seed: int, epochs: int, kind: str, coef: float) -> _Penalised:
    """A network 64-128-128-10 under a penalty, and its errors on clean and on attacked test images."""
    import torch

    from kexue.nn import frobenius_penalty, lipschitz_upper_bound, spectral_penalty

    X, y, X_test, y_test = (torch.from_numpy(part) for part in split_digits(seed))
    with torch_seed(seed):
        network = build_mlp(64, 128, 128, 10)
    cross_entropy = torch.nn.functional.cross_entropy
    penalties = {"spectral": spectral_penalty, "frobenius": frobenius_penalty}

    def loss(rows: Any) -> Any:
        value = cross_entropy(network(X[rows]), y[rows])
        return value + penalties[kind](network, coef) if kind in penalties else value

    batches = shuffled_rows(len(X), 100, epochs, np.random.default_rng(seed))
    fit(network, loss, batches, torch.optim.Adam(network.parameters(), lr=2e-3))
    pixels = X_test.clone().requires_grad_()
    [gradient] = torch.autograd.grad(cross_entropy(network(pixels), y_test), pixels)
    with torch.no_grad():
        attacked = (X_test + _ATTACK * gradient.sign()).clamp(0, 1)
        wrong = [(network(x).argmax(-1) != y_test).double() for x in (X_test, attacked)]
    half = len(y_test) // 2
    errors = [float(each[rows].mean()) for rows in (slice(half), slice(half, None)) for each in wrong]
    return _Penalised(lipschitz_upper_bound(network, (64,)), *errors)


def _digit_figures(runs: Mapping[tuple[str, float], list[_Penalised]]) -> dict[str, Figure]:
    """Figures of each penalty at its best coefficient.

    On the validation half of the held-out images the coefficient has the smallest error under attack among those with
    an allowed clean error; the figures are of the test half.
    """

    def mean(kind: str, coef: float, what: str) -> float:
        return float(np.mean([getattr(run, what) for run in runs[kind, coef]]))

    allowed = mean("none", 0.0, "clean_error_validation") + _ALLOWED
    figures, attacked = {}, {}
    for kind, coefs in _COEFFICIENTS.items():
        fair = [coef for coef in coefs if mean(kind, coef, "clean_error_validation") <= allowed] or [coefs[0]]
        best = runs[kind, min(fair, key=lambda coef: mean(kind, coef, "attacked_error_validation"))]
        attacked[kind] = np.array([run.attacked_error for run in best])
        for what in ("bound", "clean_error", "attacked_error"):
            figures[f"{kind}_{what}"] = Figure.over_runs(getattr(run, what) for run in best)
    gain = attacked["frobenius"] - attacked["spectral"]
    return figures | {"spectral_gain_over_frobenius": Figure.over_runs(gain, unit="of attacked images")}


# ---- measure: critics ----------------------------------------------------------------------------------------------


def _build_critic(width: int) -> Any:
    from torch import nn

    return build_mlp(2, width, width, width, 1, activation=nn.LeakyReLU)


def _critic_loss(critic: Any, x: Any, fake: Any, weight: float, numbers: Any) -> Any:
    """Loss of a WGAN's critic, with a gradient penalty of `weight`."""
    from kexue.nn import gradient_penalty

    loss = critic(fake).mean() - critic(x).mean()
    return loss + weight * gradient_penalty(critic, x, fake, generator=numbers) if weight else loss


def _cost_figures(rounds: int) -> dict[str, Figure]:
    """Multiplications and milliseconds of a critic step, on a critic wide enough for arithmetic to dominate."""
    import torch

    from kexue.nn import apply_spectral_normalization

    weights = {"normalised": 0.0, "penalty": 10.0}
    with torch_seed(0):
        critics = {kind: _build_critic(512) for kind in weights}
    apply_spectral_normalization(critics["normalised"])
    adams = {kind: torch.optim.Adam(critic.parameters()) for kind, critic in critics.items()}
    numbers = torch.Generator()
    x, fake = torch.randn(2, 256, 2, generator=numbers)

    def step(kind: str) -> None:
        adams[kind].zero_grad()
        _critic_loss(critics[kind], x, fake, weights[kind], numbers).backward()
        adams[kind].step()

    seconds = time_in_turns({kind: partial(partial, step, kind) for kind in critics}, rounds)
    work = {kind: count_multiplications(partial(step, kind)) for kind in critics}
    milliseconds = {kind: 1e3 * float(np.median(times)) for kind, times in seconds.items()}
    return {
        "penalty_over_normalised_work": Figure(
            work["penalty"] / work["normalised"], unit="times", expected=2, source="article"
        ),
        "penalty_over_normalised_time": Figure(milliseconds["penalty"] / milliseconds["normalised"], unit="times"),
        **{f"{kind}_work": Figure(value / 1e6, unit="million multiplications a step") for kind, value in work.items()},
        **{f"{kind}_step": Figure(value, unit="ms a critic step, median") for kind, value in milliseconds.items()},
    }


def _train_gan(weight: float, seed: int, steps: int) -> _Gan:
    """A WGAN on eight Gaussians, `steps` generator steps with three critic steps before each."""
    import torch
    from torch import nn

    from kexue.nn import apply_spectral_normalization, lipschitz_upper_bound

    numbers = torch.Generator().manual_seed(seed)
    angles = torch.arange(8) * math.pi / 4
    centres = 2 * torch.stack([angles.cos(), angles.sin()], -1)

    def draw_data(n: int) -> Any:
        which = torch.randint(8, (n,), generator=numbers)
        return centres[which] + 0.1 * torch.randn(n, 2, generator=numbers)

    with torch_seed(seed):
        generator, critic = build_mlp(8, 64, 64, 64, 2, activation=nn.ReLU), _build_critic(64)
    if not weight:
        apply_spectral_normalization(critic)

    def draw_samples(n: int) -> Any:
        return generator(torch.randn(n, 8, generator=numbers))

    def loss(_step: int, turn: int) -> Any:
        if turn == 3:
            return -critic(draw_samples(256)).mean()
        with torch.no_grad():
            fake = draw_samples(256)
        return _critic_loss(critic, draw_data(256), fake, weight, numbers)

    of_generator, of_critic = (
        torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.9)) for net in (generator, critic)
    )
    fit([generator, critic], loss, range(steps), [of_critic, of_critic, of_critic, of_generator])
    with torch.no_grad():
        samples = draw_samples(2000)
    data = draw_data(2000)
    bound = lipschitz_upper_bound(critic.eval(), (2,))
    return _Gan(_energy_distance(data, samples), bound, data.numpy(), samples.numpy())


def _energy_distance(a: Any, b: Any) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'|, zero for equal distributions."""
    import torch

    n, m = len(a), len(b)
    within = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return float(2 * torch.cdist(a, b).mean() - within)


def _gan_figures(gans: Mapping[str, list[_Gan]]) -> dict[str, Figure]:
    return {
        **{f"{kind}_distance": Figure.over_runs(run.distance for run in runs) for kind, runs in gans.items()},
        **{f"{kind}_critic_bound": Figure(max(run.bound for run in runs), n=len(runs)) for kind, runs in gans.items()},
    }


# ---- claims --------------------------------------------------------------------------------------------------------


def _norm_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    gaps = {name: abs(figure.value - (figure.expected or 0.0)) for name, figure in figures.items()}
    return [
        Claim.check(
            "Five rounds of power iteration give the spectral norm of the article's matrix.",
            gaps["sigma_after_5_rounds"] < 1e-6,
            rule="within 1e-6 of the square root of 45, from a start of ones",
            figures=["sigma_after_5_rounds"],
        ),
        Claim.check(
            "A start of ones can miss the largest singular value; a random one does not (our addition).",
            gaps["trap_from_ones"] < 1e-9 and gaps["trap_from_random"] < 1e-6,
            rule="on [[1, -1, 0], [-1, 1, 0], [0, 0, 1.5]]: 1.5 from ones, 2 from a random start, after 50 rounds",
            figures=["trap_from_ones", "trap_from_random"],
        ),
        Claim.check(
            "The flattened kernel's norm is not that of the convolution (our addition).",
            gaps["box_filter_reshaped"] < 1e-6 and gaps["box_filter_operator"] < 1e-4,
            rule="3 x 3 kernel of ones on 16 x 16 images: 3 against 8.7968",
            figures=["box_filter_reshaped", "box_filter_operator"],
        ),
    ]


def _digit_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    bound, clean, attacked = (
        {kind: figures[f"{kind}_{what}"].value for kind in _COEFFICIENTS}
        for what in ("bound", "clean_error", "attacked_error")
    )
    gain = figures["spectral_gain_over_frobenius"]
    return [
        Claim.check(
            "Spectral regularisation lowers the error under attack without harming the clean one.",
            attacked["spectral"] < attacked["none"] - 0.05 and clean["spectral"] <= clean["none"] + _ALLOWED,
            rule=f"error under attacks of {_ATTACK} lower by 5 points, clean error at most 1 point higher",
            figures=[f"{kind}_{what}" for what in ("clean_error", "attacked_error") for kind in ("none", "spectral")],
        ),
        Claim.check(
            "It lowers the network's Lipschitz bound.",
            bound["spectral"] < bound["none"] / 2,
            rule="mean of the bounds less than half",
            figures=["none_bound", "spectral_bound"],
        ),
        Claim.check(
            "It withstands attacks better than weight decay, which penalises the larger Frobenius norm.",
            gain.low is not None and gain.low > 0.01,
            rule="error under attack lower by 1 point for every seed, each at the best of three coefficients, chosen "
            "on other images",
            figures=[
                "frobenius_clean_error",
                "frobenius_attacked_error",
                "spectral_attacked_error",
                "spectral_gain_over_frobenius",
            ],
        ),
    ]


def _gan_claims(figures: Mapping[str, Figure], steps: int) -> list[Claim]:
    distance = {kind: figures[f"{kind}_distance"].value for kind in _CRITICS}
    return [
        Claim.check(
            "Normalisation bounds the critic everywhere, near 1 (one power iteration per step lags behind the "
            "weights); the gradient penalty acts between samples only.",
            figures["normalised_critic_bound"].value < 1.1,
            rule="largest Lipschitz bound of the normalised critics below 1.1 after training; those of the others "
            "for comparison",
            figures=[f"{kind}_critic_bound" for kind in _CRITICS],
        ),
        Claim.check(
            "A critic step with gradient penalty costs about twice one with spectral normalisation.",
            1.5 < figures["penalty_over_normalised_work"].value < 2.5,
            rule="ratio of multiplications in matrix products between 1.5 and 2.5, critic 2-512-512-512-1, batch 256",
            figures=["penalty_over_normalised_work", "normalised_work", "penalty_work"],
        ),
        Claim.check(
            "Spectral normalisation converges faster than the gradient penalty (the author's experience).",
            all(distance["normalised"] < d for kind, d in distance.items() if kind != "normalised"),
            rule=f"after {steps} steps a smaller mean energy distance to the data than any weight of the penalty",
            figures=[f"{kind}_distance" for kind in _CRITICS],
        ),
    ]


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(
    figure: Any,
    digits: Mapping[tuple[str, float], list[_Penalised]],
    gans: Mapping[str, list[_Gan]],
    curves: images.Curves,
) -> None:
    names = list(_CRITICS)
    figure.set_size_inches(15, 6)
    rows = [["errors", "errors", "curves", "curves", *pair] for pair in (names[:2], names[2:])]
    panels = figure.subplot_mosaic(rows)
    if curves:
        images.draw_curves(panels["curves"], curves)
    errors = panels["errors"]
    for kind in _COEFFICIENTS if digits else ():
        means = np.array([np.mean(runs, axis=0)[:3] for (name, _), runs in digits.items() if name == kind])
        errors.plot(100 * means[:, 1], 100 * means[:, 2], "o-", label=kind if kind != "none" else "no penalty")
        for bound, clean, attacked in means:
            errors.annotate(f"  {bound:.0f}", (100 * clean, 100 * attacked), fontsize=8)
    errors.set(
        title="Digits; numbers: Lipschitz bound",
        xlabel="clean error, %",
        ylabel=f"error under attacks of {_ATTACK}, %",
    )
    if digits:
        errors.legend(title="penalty", loc="upper right")
    for kind, weight in _CRITICS.items():
        gan, panel = gans[kind][0], panels[kind]
        panel.scatter(*gan.data.T, s=2, color="0.75")
        panel.scatter(*gan.samples.T, s=2, color="tab:blue")
        title = f"penalty of weight {weight:g}" if weight else "WGAN, normalised"
        panel.set_title(f"{title}\ndistance {gan.distance:.3f}", fontsize=10)
        panel.set(aspect="equal", xlim=(-3, 3), ylim=(-3, 3), xlabel="x", ylabel="y")
