"""kexue.fm/archives/6051: Lipschitz constraints, for generalisation and for generative models.

Shows: power iteration on the article's matrix and where its start fails; what flattening a kernel hides; that spectral
regularisation makes a classifier of digits sturdier; and spectral normalisation against gradient penalty in a WGAN.
"""

from __future__ import annotations

import math
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kexue.errors import MissingDependencyError
from kexue.experiments._data import Array, split_digits
from kexue.experiments._measures import count_multiplications
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_JUDGED = 0.1  # size of the attack, in pixels of [0, 1]
_COEFFICIENTS = {"none": (0.0,), "frobenius": (3e-4, 1e-3, 3e-3), "spectral": (3e-3, 1e-2, 3e-2)}
_ALLOWED = 0.01  # clean error that a penalty may cost
_CRITICS = {
    "normalised": 0.0,
    "penalty_0.1": 0.1,
    "penalty_1": 1.0,
    "penalty_10": 10.0,
}  # weight of the gradient penalty


@experiment(
    "lipschitz",
    claim="Small spectral norms make a classifier sturdier; dividing by them makes the critic of a WGAN Lipschitz.",
    effect=(
        "error under attack {none_attacked_error} to {spectral_attacked_error} (clean {none_clean_error} to "
        "{spectral_clean_error}); gain over weight decay {spectral_gain_over_frobenius}; "
        "critic bound {normalised_critic_bound}"
    ),
    minutes=2.0,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Power iteration, box filter, digits under attack, and eight Gaussians by two kinds of critic."""
    seeds, epochs, steps = {"smoke": (1, 5, 10), "small": (3, 60, 600), "full": (10, 60, 5000)}[budget]
    figures, claims = _norms()
    notes: tuple[str, ...] = ()
    runs: dict[tuple[str, float], Array] = {}
    try:
        runs = _digits(range(seed, seed + seeds), epochs)
        claims += _digit_claims(runs, figures)
        notes = (f"digits: {seeds} seeds, {epochs} epochs, network 64-128-128-10; attacks by the sign of the gradient",)
    except MissingDependencyError as missing:
        notes = (f"the claims on digits are left out: {missing}",)
    trained = {
        kind: [_wgan(weight, one, steps) for one in range(seed, seed + seeds)] for kind, weight in _CRITICS.items()
    }
    distance = {kind: np.array([run[0] for run in found]) for kind, found in trained.items()}
    work, milliseconds = _step_costs(5 if budget == "smoke" else 40)
    figures |= {
        "penalty_over_normalised_work": Figure(
            work["penalty"] / work["normalised"], unit="times", expected=2, source="article"
        ),
        "penalty_over_normalised_time": Figure(milliseconds["penalty"] / milliseconds["normalised"], unit="times"),
        **{f"{kind}_work": Figure(value / 1e6, unit="million multiplications a step") for kind, value in work.items()},
        **{f"{kind}_step": Figure(value, unit="ms a critic step, median") for kind, value in milliseconds.items()},
        **{
            f"{kind}_distance": Figure(float(d.mean()), low=float(d.min()), high=float(d.max()), n=seeds)
            for kind, d in distance.items()
        },
        **{f"{kind}_critic_bound": Figure(max(one[1] for one in found), n=seeds) for kind, found in trained.items()},
    }
    claims += [
        Claim.check(
            "Normalisation bounds the critic everywhere, near 1 (one round a step lags behind the weights); the "
            "gradient penalty acts between samples only.",
            figures["normalised_critic_bound"].value < 1.1,
            rule="largest Lipschitz bound of the normalised critics below 1.1 after training; the others' are shown",
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
            all(distance["normalised"].mean() < d.mean() for kind, d in distance.items() if kind != "normalised"),
            rule=f"after {steps} steps a smaller mean energy distance to the data than any weight of the penalty",
            figures=[f"{kind}_distance" for kind in _CRITICS],
        ),
    ]
    notes += (f"WGAN: {seeds} seeds, {steps} generator steps with 3 critic steps each, batches of 256",)

    def draw(figure: Any) -> None:
        names = list(_CRITICS)
        axes = figure.subplot_mosaic([["errors", "errors", *names[:2]], ["errors", "errors", *names[2:]]])
        errors = axes["errors"]
        for kind in _COEFFICIENTS if runs else ():
            found = np.array([found.mean(axis=0) for (name, _), found in runs.items() if name == kind])
            errors.plot(100 * found[:, 1], 100 * found[:, 2], "o-", label=kind if kind != "none" else "no penalty")
            for (clean, attacked), bound in zip(100 * found[:, 1:3], found[:, 0], strict=True):
                errors.annotate(f"  {bound:.0f}", (clean, attacked), fontsize=8)
        errors.set_title("Digits; numbers: Lipschitz bound")
        errors.set_xlabel("clean error (%)")
        errors.set_ylabel(f"error under attacks of {_JUDGED} (%)")
        if runs:
            errors.legend(title="penalty", loc="upper right")
        for kind, weight in _CRITICS.items():
            real, fake = trained[kind][0][2:]
            axes[kind].scatter(*real.T, s=2, color="0.75")
            axes[kind].scatter(*fake.T, s=2, color="tab:blue")
            title = f"gradient penalty x {weight:g}" if weight else "WGAN, normalised"
            axes[kind].set_title(f"{title}\ndistance {trained[kind][0][0]:.3f}", fontsize=10)
            axes[kind].set_aspect("equal")
            axes[kind].set_xlim(-3, 3)
            axes[kind].set_ylim(-3, 3)

    return Report(tuple(claims), figures, notes=notes, seeds=tuple(range(seed, seed + seeds)), draw=draw)


def _norms() -> tuple[dict[str, Figure], list[Claim]]:
    import torch

    from kexue.nn import spectral_norm_value

    matrix, ones = torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    trap = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.5]], dtype=torch.float64)  # exact from ones
    box = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    operator = spectral_norm_value(box, mode="operator", input_shape=(1, 16, 16), padding=1, n_iter=800, generator=0)
    values = {
        "sigma_after_5_rounds": (float(spectral_norm_value(matrix, u=ones, n_iter=5).sigma), math.sqrt(45)),
        "trap_from_ones": (float(spectral_norm_value(trap, u=torch.ones(3), n_iter=50).sigma), 1.5),
        "trap_from_random": (float(spectral_norm_value(trap, n_iter=50, generator=0).sigma), 2.0),
        "box_filter_reshaped": (float(spectral_norm_value(box, generator=0).sigma), 3.0),
        "box_filter_operator": (float(operator.sigma), (1 + 2 * math.cos(math.pi / 17)) ** 2),
    }
    figures = {name: Figure(value, expected=right, source="computed") for name, (value, right) in values.items()}
    gaps = {name: abs(value - right) for name, (value, right) in values.items()}
    return figures, [
        Claim.check(
            "Five rounds of power iteration give the spectral norm of the article's matrix.",
            gaps["sigma_after_5_rounds"] < 1e-6,
            rule="within 1e-6 of the square root of 45, from a start of ones",
            figures=["sigma_after_5_rounds"],
        ),
        Claim.check(
            "A start of ones can miss the largest singular value; a random one does not (an addition of ours).",
            gaps["trap_from_ones"] < 1e-9 and gaps["trap_from_random"] < 1e-6,
            rule="on [[1, -1, 0], [-1, 1, 0], [0, 0, 1.5]]: 1.5 from ones, 2 from a random start, after 50 rounds",
            figures=["trap_from_ones", "trap_from_random"],
        ),
        Claim.check(
            "The flattened kernel's norm is not that of the convolution (an addition of ours).",
            gaps["box_filter_reshaped"] < 1e-6 and gaps["box_filter_operator"] < 1e-4,
            rule="3 x 3 kernel of ones on 16 x 16 images: 3 against 8.7968",
            figures=["box_filter_reshaped", "box_filter_operator"],
        ),
    ]


def _digits(seeds: range, epochs: int) -> dict[tuple[str, float], Array]:
    """For each penalty and coefficient one row a seed: the network's bound, then clean and attacked error, twice."""
    return {
        (kind, coef): np.array([_digit_run(seed, epochs, kind, coef) for seed in seeds])
        for kind, coefs in _COEFFICIENTS.items()
        for coef in coefs
    }


def _digit_run(seed: int, epochs: int, kind: str, coef: float) -> list[float]:
    import torch
    from torch import nn

    from kexue.nn import frobenius_penalty, lipschitz_upper_bound, spectral_penalty

    X, y, X_test, y_test = (torch.from_numpy(part) for part in split_digits(seed))
    generator = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    cross_entropy = nn.CrossEntropyLoss()
    for _ in range(epochs):
        for rows in np.array_split(generator.permutation(len(X)), len(X) // 100):
            optimizer.zero_grad()
            loss = cross_entropy(net(X[rows]), y[rows])
            if kind == "spectral":
                loss = loss + spectral_penalty(net, coef)
            elif kind == "frobenius":
                loss = loss + frobenius_penalty(net, coef)
            loss.backward()
            optimizer.step()
    pixels = X_test.clone().requires_grad_()
    [gradient] = torch.autograd.grad(cross_entropy(net(pixels), y_test), pixels)
    with torch.no_grad():
        attacked = (X_test + _JUDGED * gradient.sign()).clamp(0, 1)
        wrong = [(net(x).argmax(-1) != y_test).double() for x in (X_test, attacked)]
    half = len(y_test) // 2  # the first half judges, the second chooses the coefficient
    errors = [float(each[rows].mean()) for rows in (slice(half), slice(half, None)) for each in wrong]
    return [lipschitz_upper_bound(net, (64,)), *errors]


def _digit_claims(runs: dict[tuple[str, float], Array], figures: dict[str, Figure]) -> list[Claim]:
    """Each penalty at the coefficient that withstands attacks best among those with a good clean error.

    It is chosen on one half of the images outside training, and judged on the other.
    """
    allowed = runs["none", 0.0][:, 3].mean() + _ALLOWED
    chosen: dict[str, Array] = {}
    for kind, coefs in _COEFFICIENTS.items():
        fair = [coef for coef in coefs if runs[kind, coef][:, 3].mean() <= allowed] or [coefs[0]]
        chosen[kind] = best = runs[kind, min(fair, key=lambda coef: float(runs[kind, coef][:, 4].mean()))]
        for column, what in enumerate(("bound", "clean_error", "attacked_error")):
            values = best[:, column]
            figures[f"{kind}_{what}"] = Figure(
                float(values.mean()), low=float(values.min()), high=float(values.max()), n=len(values)
            )
    bound, clean, attacked = (
        {kind: figures[f"{kind}_{what}"].value for kind in _COEFFICIENTS}
        for what in ("bound", "clean_error", "attacked_error")
    )
    gain = chosen["frobenius"][:, 2] - chosen["spectral"][:, 2]
    figures["spectral_gain_over_frobenius"] = Figure(
        float(gain.mean()), low=float(gain.min()), high=float(gain.max()), n=len(gain), unit="of the images, attacked"
    )
    return [
        Claim.check(
            "Spectral regularisation lowers the error under attack without harming the clean one.",
            attacked["spectral"] < attacked["none"] - 0.05 and clean["spectral"] <= clean["none"] + _ALLOWED,
            rule=f"error under attacks of {_JUDGED} lower by 5 points, clean error at most 1 point higher",
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
            bool(gain.min() > 0.01),
            rule="error under attack lower by 1 point for every seed, each at the coefficient, of three, best on "
            "images that do not judge",
            figures=[
                "frobenius_clean_error",
                "frobenius_attacked_error",
                "spectral_attacked_error",
                "spectral_gain_over_frobenius",
            ],
        ),
    ]


def _network(inputs: int, width: int, outputs: int, activation: type[Any]) -> Any:
    from torch import nn

    widths = [inputs, width, width, width, outputs]
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def _step_costs(rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Multiplications and milliseconds of a critic step, by turns, on a critic wide enough for arithmetic to count."""
    import torch
    from torch import nn

    from kexue.nn import apply_spectral_normalization

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        critics = {kind: _network(2, 512, 1, nn.LeakyReLU) for kind in ("normalised", "penalty")}
    apply_spectral_normalization(critics["normalised"])
    adams = {kind: torch.optim.Adam(critic.parameters()) for kind, critic in critics.items()}
    numbers = torch.Generator()
    x, fake = torch.randn(2, 256, 2, generator=numbers)
    seconds: dict[str, list[float]] = {kind: [] for kind in critics}
    for _ in range(rounds):
        for kind, critic in critics.items():
            start = time.perf_counter()
            _critic_step(10.0 * (kind == "penalty"), critic, adams[kind], x, fake, numbers)
            seconds[kind].append(time.perf_counter() - start)
    work = {
        kind: count_multiplications(
            partial(_critic_step, 10.0 * (kind == "penalty"), critic, adams[kind], x, fake, numbers)
        )
        for kind, critic in critics.items()
    }
    return work, {kind: 1e3 * float(np.median(times)) for kind, times in seconds.items()}


def _critic_step(weight: float, critic: Any, adam: Any, x: Any, fake: Any, numbers: Any) -> None:
    from kexue.nn import gradient_penalty

    adam.zero_grad()
    loss = critic(fake).mean() - critic(x).mean()
    if weight:
        loss = loss + weight * gradient_penalty(critic, x, fake, generator=numbers)
    loss.backward()
    adam.step()


def _wgan(weight: float, seed: int, steps: int) -> tuple[float, float, Array, Array]:
    """After `steps` generator steps: energy distance of samples and data, the critic's bound, data and samples."""
    import torch
    from torch import nn

    from kexue.nn import apply_spectral_normalization, lipschitz_upper_bound

    numbers = torch.Generator().manual_seed(seed)
    angles = torch.arange(8) * math.pi / 4
    centres = 2 * torch.stack([angles.cos(), angles.sin()], -1)

    def real(n: int) -> Any:
        which = torch.randint(8, (n,), generator=numbers)
        return centres[which] + 0.1 * torch.randn(n, 2, generator=numbers)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator, critic = _network(8, 64, 2, nn.ReLU), _network(2, 64, 1, nn.LeakyReLU)
    if not weight:
        apply_spectral_normalization(critic)
    adams = [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.9)) for net in (generator, critic)]
    for _ in range(steps):
        for _ in range(3):
            with torch.no_grad():
                fake = generator(torch.randn(256, 8, generator=numbers))
            _critic_step(weight, critic, adams[1], real(256), fake, numbers)
        adams[0].zero_grad()
        loss = -critic(generator(torch.randn(256, 8, generator=numbers))).mean()
        loss.backward()
        adams[0].step()
    with torch.no_grad():
        fake = generator(torch.randn(2000, 8, generator=numbers))
    data = real(2000)
    bound = lipschitz_upper_bound(critic.eval(), (2,))
    return _energy_distance(data, fake), bound, data.numpy(), fake.numpy()


def _energy_distance(a: Any, b: Any) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'|, zero for equal distributions."""
    import torch

    n, m = len(a), len(b)
    within = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return float(2 * torch.cdist(a, b).mean() - within)
