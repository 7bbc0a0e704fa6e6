"""Latents of trained generators chosen by their hubness: what it does to the quality and the variety of digits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._digit_diffusion import SHAPE, Digits
from kexue.experiments._image_gans import train_gan
from kexue.experiments._measures import student_interval
from kexue.experiments._training import fit, shuffled_rows, torch_seed
from kexue.experiments.report import Claim, Figure
from kexue.similarity import HubSampler, k_occurrence

Measured = Mapping[tuple[str, str], Sequence[Mapping[str, float]]]  # of each seed, by model and kind of latents
_MODELS = ("gan", "vae")
_LATENTS = ("random", "hubs", "antihubs", "truncated", "same_norms")
_DIM, _DRAWS, _K, _THRESHOLD = 32, 2000, 5, 20  # of 2,000 draws about 5 % are among the 5 nearest of 20 others
_UNITS = {
    "distance": "Fréchet distance", "precision": "of the samples", "nearest": "to the nearest real digit",
    "recall": "of the digits", "coverage": "of the digits", "variance": "of the digits' variance",
}  # fmt: skip


# ---- measure -------------------------------------------------------------------------------------------------------


def measure_latents(seeds: Sequence[int], steps: int) -> Measured:
    """Quality and variety of samples, as many as there are test digits, for each model, kind of latents and seed."""
    digits = Digits.load()
    measured: dict[tuple[str, str], list[dict[str, float]]] = {(m, kind): [] for m in _MODELS for kind in _LATENTS}
    for seed in seeds:
        models = {"gan": train_gan(digits, steps, seed).model, "vae": _train_vae(digits, steps, seed)}
        for kind, z in _choose_latents(models["gan"], digits.count, seed).items():
            for name, model in models.items():
                measured[name, kind].append(_measure(digits, model.sample(len(z), latents=z)))
    return measured


def _train_vae(digits: Digits, steps: int, seed: int) -> Any:
    """A VAE of digits with as many latents as the GAN."""
    torch = import_optional("torch", extra="generative")
    with torch_seed(seed):
        encoder, decoder = generative.MLP(SHAPE, 2 * _DIM), generative.MLP(_DIM, SHAPE)
        model = generative.VAE(encoder, decoder, _DIM, sigma=0.25)
    generator, train = torch.Generator().manual_seed(seed), digits.images.train
    rows = shuffled_rows(len(train), 128, -(-steps // (len(train) // 128)), generator)[:steps]
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    fit(model, lambda r: model.loss(train[r], generator=generator).loss, rows, adam)
    return model.eval()


def _choose_latents(model: Any, n: int, seed: int) -> dict[str, Any]:
    """n latents (n, d) of each kind: normal draws; hubs, with N_5 >= 20 among 2,000 draws; antihubs, with N_5 = 0.

    Truncated ones lie in the interval that gives them the mean square of the hubs; those of the same norms have the
    lengths of the hubs and random directions.
    """
    torch = import_optional("torch", extra="generative")
    hubs = HubSampler(_DIM, n=_DRAWS, k=_K, threshold=_THRESHOLD).sample(n, generator=seed).latents
    rng = np.random.default_rng([seed, 1])
    draws = rng.normal(size=(n, _DIM))
    antihubs = np.empty((0, _DIM))
    while len(antihubs) < n:
        more = rng.normal(size=(_DRAWS, _DIM))
        antihubs = np.concatenate([antihubs, more[k_occurrence(more, _K, generator=rng) == 0]])
    chosen = {
        "random": draws,
        "hubs": hubs,
        "antihubs": antihubs[:n],
        "truncated": model.latents(n, generator=seed, truncation=find_truncation(float(np.square(hubs).mean()))),
        "same_norms": draws * (np.linalg.norm(hubs, axis=1) / np.linalg.norm(draws, axis=1))[:, None],
    }
    return {kind: torch.as_tensor(z, dtype=torch.float32) for kind, z in chosen.items()}


def find_truncation(square: float) -> float:
    """Return the t > 0 for which normal numbers within [-t, t] have this mean square, in (0, 1)."""

    def excess(t: float) -> float:
        return 1 - t * math.sqrt(2 / math.pi) * math.exp(-t * t / 2) / math.erf(t / math.sqrt(2)) - square

    return float(brentq(excess, 1e-3, 10.0))


def _measure(digits: Digits, x: Any) -> dict[str, float]:
    """Measures of samples against the training digits."""
    torch = import_optional("torch", extra="generative")
    quality, pixels, real = digits.measure(x), x.flatten(1), digits.images.train.flatten(1)
    return {
        "distance": quality.frechet_distance,
        "precision": quality.precision,
        "nearest": float(torch.cdist(pixels, real).amin(1).mean()),
        "recall": quality.recall,
        "coverage": quality.coverage,
        "variance": float(pixels.var(0).sum() / real.var(0).sum()),
    }


# ---- figures and claims --------------------------------------------------------------------------------------------


def make_figures(measured: Measured) -> dict[str, Figure]:
    """Means over the seeds with their range; differences of hubs to other latents with Student's 95 % intervals."""
    figures = {
        f"{model}_{what}_{kind}": Figure.over_runs([run[what] for run in measured[model, kind]], unit)
        for model in _MODELS
        for kind in _LATENTS
        for what, unit in _UNITS.items()
    }
    for model in _MODELS:
        for kind in (kind for kind in _LATENTS if kind != "hubs"):
            for what, unit in _UNITS.items():
                pairs = zip(measured[model, "hubs"], measured[model, kind], strict=True)
                gaps = [hubs[what] - others[what] for hubs, others in pairs]
                mean, low, high = student_interval(gaps)
                figures[f"{model}_{what}_hubs_minus_{kind}"] = Figure(mean, unit, low, high, len(gaps))
    return figures


def make_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    """What the paper says of hubs as latents, each part for both models."""

    def compare(what: str, kind: str, sign: int) -> list[bool]:
        gaps = [figures[f"{model}_{what}_hubs_minus_{kind}"] for model in _MODELS]
        return [bool((gap.low or 0.0) > 0 if sign > 0 else (gap.high or 0.0) < 0) for gap in gaps]

    def names(kind: str, *measures: str) -> list[str]:
        return [f"{model}_{what}_hubs_minus_{kind}" for model in _MODELS for what in measures]

    intervals = "95 % intervals of the paired differences of the seeds, for the GAN and for the VAE"
    return [
        Claim.check_parts(
            "Hubs among the latents make better images than random latents.",
            [*compare("precision", "random", 1), *compare("nearest", "random", -1)],
            rule=f"larger precision and a smaller distance to the nearest real digit: {intervals}",
            figures=names("random", "precision", "nearest", "distance"),
        ),
        Claim.check_parts(
            "They make less varied images (not in the paper's claim, but the price of it).",
            [*compare("recall", "random", -1), *compare("variance", "random", -1)],
            rule=f"smaller recall and a smaller variance of the pixels: {intervals}",
            figures=names("random", "recall", "variance", "coverage"),
        ),
        Claim.check_parts(
            "Hubs are better than truncation, which is a crude form of choosing them.",
            [*compare("precision", "truncated", 1), *compare("nearest", "truncated", -1)],
            rule="larger precision and a smaller distance to the nearest real digit than truncated latents of the same "
            f"mean square: {intervals}",
            figures=names("truncated", "precision", "nearest", "recall", "variance"),
        ),
        Claim.check_parts(
            "It is not only their length: hubs are better than latents of the same lengths in random directions "
            "(our addition).",
            [*compare("precision", "same_norms", 1), *compare("nearest", "same_norms", -1)],
            rule=f"larger precision and a smaller distance to the nearest real digit: {intervals}",
            figures=names("same_norms", "precision", "nearest", "recall", "variance"),
        ),
    ]


# ---- draw ----------------------------------------------------------------------------------------------------------


def draw_trade(panel: Any, measured: Measured) -> None:
    """Quality against variety: precision over the variance of the pixels, a dot a seed and a large one for the mean."""
    for marker, model in zip("os", _MODELS, strict=True):
        for at, kind in enumerate(_LATENTS):
            x, y = (np.array([run[what] for run in measured[model, kind]]) for what in ("variance", "precision"))
            panel.plot(x, y, marker, markersize=3, alpha=0.4, color=f"C{at}")
            label = kind.replace("_", " ") if marker == "o" else None
            panel.plot(x.mean(), y.mean(), marker, markersize=9, color=f"C{at}", label=label)
    panel.set(xlabel="variance of the pixels, over that of real digits", ylabel="precision")
    panel.set_title("latents of a GAN (circles), a VAE (squares)")
    panel.legend(title="latents")
