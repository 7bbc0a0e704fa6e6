"""kexue.fm/archives/9969: the idempotent generative network, and the GAN that it is.

Measures, on scikit-learn's digits and by the weight and the clamp of tightness: Fréchet distance, classes and recall of
samples, idempotence, the projection of damaged digits; the gradient of the loss against that of a Wasserstein GAN whose
critic is the energy; a plain auto-encoder of the same network, and a GAN with as many weights and steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._digit_diffusion import CLASSES, SHAPE, Digits
from kexue.experiments._digit_ign import (
    BATCH,
    DAMAGE,
    LOOKS,
    SETTINGS,
    Trained,
    add_noise,
    count_classes,
    erase,
    square_error,
    train_gan,
    train_ign,
)
from kexue.experiments._measures import count_multiplications
from kexue.experiments._panels import draw_tiles
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_CLAMPS = ("clamp_distance", "clamp_rec")
_Runs = Mapping[str, Sequence[Mapping[str, float]]]  # the numbers of each run, by setting
_TIMES = {"once": 1, "twice": 2, "five times": 5}
_FEW = math.log(CLASSES) / 2  # entropy of the classes of samples, nats, below which they have collapsed


@experiment(
    "ign",
    claim="One network generates in a step and projects damaged data; it is a GAN of one network, and it collapses.",
    effect=(
        "error of noisy digits {noisy_error} to {noisy_projected_ign}, by an auto-encoder "
        "{noisy_projected_autoencoder}; idempotence error {idempotence_ign}; entropy of classes {entropy_ign}, of a "
        "GAN as large {entropy_gan}; Fréchet distance {fd_ign}, of the GAN {fd_gan}, of test digits {fd_reference_test}"
    ),
    minutes=7,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Train each setting and a GAN for each seed, and measure what they make and what they mend."""
    import_optional("torch", extra="generative")
    steps, count = {"smoke": (30, 1), "small": (1500, 3), "full": (10_000, 5)}[budget]
    seeds, digits = tuple(range(seed, seed + count)), Digits.load()
    settings = {name: [train_ign(digits, name, steps, s) for s in seeds] for name in SETTINGS}
    gans = [train_gan(digits, steps, s) for s in seeds]
    runs = {name: [one.measure(digits) for one in trained] for name, trained in {**settings, "gan": gans}.items()}
    figures = {
        f"{quantity}_{name}": Figure.over_runs([one[quantity] for one in values])
        for name, values in runs.items()
        for quantity in values[0]
    }
    figures |= digits.reference_figures() | _measure_sizes(settings["ign"][0].model, gans[0].model, digits)
    figures["noisy_error"] = Figure(square_error(add_noise(digits), digits.images.test), n=digits.count)
    figures["erased_error"] = Figure(square_error(erase(digits), digits.images.test), n=digits.count)
    gaps = [_compare_with_wgan(one.model, digits, one.seed) for one in settings["ign"]]
    figures["gradient_gap"] = Figure.over_runs(gaps)
    return Report(
        tuple(_decide(runs, figures)),
        figures,
        notes=(f"{steps} steps of batches of {BATCH} in every setting; samples are {digits.count} from one noise.",),
        seeds=seeds,
        data=({"name": "digits", "split": "test", "n": digits.count},),
        draw=lambda figure: _draw(figure, settings, gans, digits, steps),
    )


# ---- the loss, and what it costs ------------------------------------------------------------------------------------


def _compare_with_wgan(model: Any, digits: Digits, seed: int) -> float:
    """Largest difference of the gradient of the loss from that of a Wasserstein GAN, as part of the largest gradient.

    Its critic is D(y) = |f(y) - y|^2, low for real data, and its generator f, two networks with the weights of the
    model: D(x) - D(G(z)) trains the critic, D(G(z)) the generator.
    """
    torch = import_optional("torch", extra="generative")
    critic, generator = (copy.deepcopy(model.net).double() for _ in range(2))
    x = digits.images.train[:BATCH].double()
    z = generative.Noise(seed, len(x)).normal(SHAPE).double()

    def score(y: Any) -> Any:
        return (critic(y) - y).square().flatten(1).mean(1).mean()

    fake = generator(z)
    apart = torch.autograd.grad(score(x) - score(fake.detach()), list(critic.parameters()))
    made = torch.autograd.grad(score(fake), list(generator.parameters()))
    one = generative.IGN(copy.deepcopy(model.net).double(), event_shape=SHAPE, weights=(1.0, 1.0, 1.0))
    both = torch.autograd.grad(one.loss(x, generator=seed).loss, list(one.parameters()))
    gap = max(float((a + b - c).abs().max()) for a, b, c in zip(apart, made, both, strict=True))
    return gap / max(float(c.abs().max()) for c in both)


def _measure_sizes(ign: Any, gan: Any, digits: Digits) -> dict[str, Figure]:
    """Weights, and multiplications of a training step and of a sample, which are the same on every machine."""
    x, figures = digits.images.train[:BATCH], dict[str, Figure]()

    def train(model: Any) -> None:
        for index in range(2 if model is gan else 1):
            model.training_step(x, optimizer_index=index).loss.backward()

    for name, model in (("ign", ign), ("gan", gan)):
        work = {"work": partial(train, model), "work_sample": partial(model.sample, BATCH, generator=0)}
        figures |= {
            f"{kind}_{name}": Figure(count_multiplications(call) / BATCH, "multiplications of an image")
            for kind, call in work.items()
        }
        figures[f"weights_{name}"] = Figure(sum(one.numel() for one in model.parameters()))
        model.zero_grad()
    return figures


# ---- claims --------------------------------------------------------------------------------------------------------


def _decide(runs: _Runs, figures: Mapping[str, Figure]) -> list[Claim]:
    reading = Claim.check(
        "Its loss is that of a Wasserstein GAN whose critic is the energy, with one network for both parts.",
        figures["gradient_gap"].value < 1e-12,
        rule="gradients of the two, weights 1, 1, 1, float64, after training: equal to 1e-12 of the largest one",
        figures=["gradient_gap"],
    )
    return [reading, *_decide_use(runs, figures), *_decide_collapse(runs, figures), *_decide_against_gan(runs)]


def _decide_use(runs: _Runs, figures: Mapping[str, Figure]) -> list[Claim]:
    """What it mends, and whether its samples are fixed points."""
    ign, plain = runs["ign"], runs["autoencoder"]
    noisy, erased = figures["noisy_error"].value, figures["erased_error"].value
    return [
        Claim.check_parts(
            "It brings damaged digits back to the data.",
            (
                max(one["noisy_projected"] for one in ign) < noisy / 2,
                max(one["erased_projected"] for one in ign) < erased / 2,
            ),
            rule=f"error at least halved in every seed: of noise of deviation {DAMAGE}, and of digits without a half",
            figures=["noisy_error", "noisy_projected_ign", "erased_error", "erased_projected_ign"],
        ),
        Claim.check(
            "Idempotence and tightness make it project better than a plain auto-encoder (our question).",
            all(a["noisy_projected"] < b["noisy_projected"] for a, b in zip(ign, plain, strict=True)),
            rule="smaller error of noisy digits than with reconstruction alone, in every seed",
            figures=["noisy_projected_ign", "noisy_projected_autoencoder", "noisy_projected_loose"],
        ),
        Claim.check(
            "Samples are fixed points, but only approximately.",
            all(0.01 < one["idempotence"] < 0.25 for one in ign),
            rule="|f(f(z)) - f(z)| / |f(z)| between 1 % and 25 % in every seed",
            figures=["idempotence_ign", "fd_ign", "fd_twice_ign", "fd_five_ign"],
        ),
    ]


def _decide_collapse(runs: _Runs, figures: Mapping[str, Figure]) -> list[Claim]:
    """How many digits it makes, by the weight and the clamp of tightness."""
    ign, tight = runs["ign"], runs["tight"]
    gaussian = figures["fd_reference_gaussian"].value
    return [
        Claim.check_parts(
            "It collapses to a few modes.",
            (
                max(one["entropy"] for one in ign) < _FEW,
                max(one["recall"] for one in ign) < 0.5,
                min(one["fd"] for one in ign) > gaussian,
            ),
            rule=(
                f"in every seed: entropy of the classes below {_FEW:.2f} nats, half of log 10; recall below 0.5; "
                "Fréchet distance above that of a Gaussian of pixels"
            ),
            figures=["entropy_ign", "classes_ign", "recall_ign", "precision_ign", "fd_ign", "fd_reference_gaussian"],
        ),
        Claim.check(
            "More tightness makes it more idempotent, and its samples less varied.",
            all(
                b["entropy"] < a["entropy"] and b["idempotence"] < a["idempotence"]
                for a, b in zip(ign, tight, strict=True)
            ),
            rule="from weight 0.1 to 1, entropy of the classes and idempotence error fall in every seed",
            figures=["entropy_ign", "entropy_tight", "idempotence_ign", "idempotence_tight", "fd_tight"],
        ),
        Claim.check_parts(
            "A clamp on tightness does not prevent the collapse.",
            [max(one["entropy"] for one in runs[name]) < _FEW for name in _CLAMPS],
            rule=f"entropy of the classes below {_FEW:.2f} nats in every seed, with both clamps",
            figures=[f"{quantity}_{name}" for quantity in ("entropy", "fd") for name in _CLAMPS],
        ),
    ]


def _decide_against_gan(runs: _Runs) -> list[Claim]:
    """The network beside a GAN as large."""
    ign, gan = runs["ign"], runs["gan"]
    return [
        Claim.check(
            "A GAN as large, of two networks, makes nearer and more varied digits.",
            all(
                b["fd"] < a["fd"] and b["entropy"] > a["entropy"] and b["recall"] > a["recall"]
                for a, b in zip(ign, gan, strict=True)
            ),
            rule="smaller Fréchet distance, higher entropy of classes and recall in every seed, after as many steps",
            figures=["fd_gan", "entropy_gan", "recall_gan", "weights_ign", "weights_gan", "work_ign", "work_gan"],
        ),
        Claim.check(
            "Its training is at least as unstable as that of a GAN.",
            all(a["relapse"] >= b["relapse"] for a, b in zip(ign, gan, strict=True)),
            rule="last Fréchet distance over the smallest of ten looks during training not below the GAN's, every seed",
            figures=["relapse_ign", "relapse_gan"],
        ),
    ]


# ---- figure --------------------------------------------------------------------------------------------------------


def _draw(
    figure: Any,
    settings: Mapping[str, Sequence[Trained]],
    gans: Sequence[Trained],
    digits: Digits,
    steps: int,
) -> None:
    figure.set_size_inches(15, 9)
    above, below = figure.subplots(2, 3)
    shown = {"IGN": settings["ign"], "tightness 1": settings["tight"], "GAN as large": gans}
    for panel, item, title, name in (
        (above[0], 0, "distance during the training, each seed", "Fréchet distance"),
        (above[1], 1, "variety during the training, each seed", "entropy of classes, nats"),
    ):
        for at, (label, trained) in enumerate(shown.items()):
            for number, one in enumerate(trained):
                looks = [look[item] for look in one.looks]
                times = np.arange(1, len(looks) + 1) * max(steps // LOOKS, 1)
                panel.plot(times, looks, color=f"C{at}", alpha=0.7, label=None if number else label)
        if panel is above[1]:
            panel.axhline(math.log(CLASSES), color="gray", linestyle=":", label="all ten as frequent")
        panel.set(xlabel="steps", ylabel=name, title=title)
        panel.legend()
    above[0].set_yscale("log")
    _draw_classes(above[2], shown, digits)
    _draw_samples(below[0], settings, gans)
    _draw_damage(below[1], settings, add_noise(digits)[:10], digits, f"digits with noise of deviation {DAMAGE}")
    _draw_damage(below[2], settings, erase(digits)[:10], digits, "digits without their right half")


def _draw_classes(panel: Any, shown: Mapping[str, Sequence[Trained]], digits: Digits) -> None:
    """Which digits the samples of the first seed are."""
    for at, (label, trained) in enumerate(shown.items()):
        shares = count_classes(digits, trained[0].sample(digits)).numpy() / digits.count
        panel.bar(np.arange(CLASSES) + 0.27 * (at - 1), shares, 0.25, color=f"C{at}", label=label)
    panel.set(xlabel="digit, by the classifier", ylabel="share of the samples", xticks=range(CLASSES))
    panel.set_title("classes of the samples, first seed")
    panel.legend()


def _draw_samples(panel: Any, settings: Mapping[str, Sequence[Trained]], gans: Sequence[Trained]) -> None:
    torch = import_optional("torch", extra="generative")
    ign = settings["ign"][0]
    labels = {
        "tightness 1": "tight",
        "tightness 0": "loose",
        "clamp by distance": "clamp_distance",
        "noise like data": "spectral",
    }
    rows = {
        **{f"IGN, {times}": ign.model.sample(10, generator=0, steps=steps) for times, steps in _TIMES.items()},
        **{label: settings[name][0].model.sample(10, generator=0) for label, name in labels.items()},
        "GAN": gans[0].model.sample(10, generator=0),
    }
    draw_tiles(panel, torch.stack(list(rows.values())), list(rows))
    panel.set(title="samples of the first seed", xlabel="ten samples", ylabel="model")


def _draw_damage(
    panel: Any, settings: Mapping[str, Sequence[Trained]], damaged: Any, digits: Digits, name: str
) -> None:
    torch = import_optional("torch", extra="generative")
    with torch.no_grad():
        rows = {
            "digit": digits.images.test[:10],
            "damaged": damaged.clamp(-1, 1),
            "IGN": settings["ign"][0].model.project(damaged),
            "auto-encoder": settings["autoencoder"][0].model.project(damaged),
        }
    draw_tiles(panel, torch.stack(list(rows.values())), list(rows))
    panel.set(title=name, xlabel="ten test digits", ylabel="what becomes of them")
