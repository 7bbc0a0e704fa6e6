"""kexue.fm/archives/5807 and 5776: affine against additive couplings, ways to mix, Glow, the temperature of samples.

Measures bits per dimension of scikit-learn's digits (8 x 8, 17 levels) that were not trained on: uniform, by pixel, two
Gaussians, NICE-like and RealNVP flows of 64 values, a small Glow of images. Few images are there, so each flow stops
where 200 images of the training part, kept out of training, cost least; test images are used once, at the end. Samples
are measured by their Fréchet distance from the training images, beside that of sets that are no model. Densities of the
plane, which are known exactly, show how near a flow comes, and what it puts between their pieces.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._fashion import measure_fashion
from kexue.experiments._panels import draw_bars
from kexue.experiments._plane import Fitted, Plane, draw_planes, fit_plane, make_planes, plane_claims, plane_figures
from kexue.experiments._training import fit, shuffled_rows, torch_seed
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_FLOWS: dict[str, Callable[[], Any]] = {
    "affine": lambda: generative.realnvp(64, couplings=8, margin=0.05),
    "additive": lambda: generative.realnvp(64, couplings=8, margin=0.05, kind="additive"),
    "reverse": lambda: generative.realnvp(64, couplings=8, margin=0.05, mixing="reverse"),
    "linear": lambda: generative.realnvp(64, couplings=8, margin=0.05, mixing="linear"),
    "glow": lambda: generative.glow((1, 8, 8), levels=2, steps=4, hidden=64, scale="tanh", margin=0.05),
}
_LABELS = {
    "affine": "RealNVP, random orders",
    "additive": "additive couplings",
    "reverse": "RealNVP, reversed",
    "linear": "RealNVP, matrices",
    "glow": "Glow",
}
_BARS = {
    "diagonal": "diag.\nGauss.",
    "gaussian": "full\nGauss.",
    "histogram": "pix-\nels",
    "additive": "addi-\ntive",
    "reverse": "re-\nversed",
    "affine": "ran-\ndom",
    "linear": "matri-\nces",
    "glow": "Glow",
}
_TEMPERATURES = (0.5, 0.7, 0.8, 1.0)
_COOL = 0.8
_CLEAR = 0.05  # bits per dimension
_LEVELS, _DIM, _VALIDATION, _EVERY = 17, 64, 200, 25


class Digits(NamedTuple):
    """Images in [-1, 1]: those trained on, those that stop the training, those of the test."""

    train: Any
    validation: Any
    test: Any


class Trained(NamedTuple):
    """A model at its best step, and what was measured.

    Attributes:
        bits: per dimension, on test images.
        curve: (step, bits on the images kept out of the training).
        distances: Fréchet distance of its samples by temperature.
    """

    model: Any
    bits: float
    curve: list[tuple[int, float]]
    distances: dict[float, float]


@experiment(
    "realnvp-glow",
    claim="Affine couplings model images better than additive ones; flows are exact, cool samples nearer to images.",
    effect=(
        "bits per dimension of digits: Gaussian {bits_gaussian}, additive {bits_additive}, affine {bits_affine}, "
        "Glow {bits_glow}; Fréchet distance of Glow's samples {fd_glow_1}, at temperature 0.8 {fd_glow_0.8}, of test "
        "images {fd_reference_test}"
    ),
    data=("fashion_mnist",),
    minutes=5,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Train every flow on digits, and on densities of the plane, for each seed."""
    import_optional("torch", extra="train")
    steps, plane_steps, count = {"smoke": (25, 30, 1), "small": (800, 1200, 3), "full": (2000, 1200, 5)}[budget]
    seeds = tuple(range(seed, seed + count))
    digits = {s: _load(s) for s in seeds}
    runs = {name: [_train(name, digits[s], steps, s) for s in seeds] for name in _FLOWS}
    bits = {name: [one.bits for one in trained] for name, trained in runs.items()}
    for name, measure in (("gaussian", _gaussian_bits), ("diagonal", _diagonal_bits), ("histogram", _histogram_bits)):
        bits[name] = [measure(digits[s]) for s in seeds]
    planes = make_planes()
    fitted = {name: [fit_plane(plane, plane_steps, s) for s in seeds] for name, plane in planes.items()}
    figures = {f"bits_{name}": Figure.over_runs(values, "bits/dim") for name, values in bits.items()}
    figures |= plane_figures(planes, fitted)
    for name, trained in runs.items():
        for t in _TEMPERATURES:
            figures[f"fd_{name}_{t:g}"] = Figure.over_runs([one.distances[t] for one in trained])
    fashion, used = measure_fashion({"realnvp": 2500, "glow": 2000} if budget == "full" else {}, seed, data)
    figures |= fashion
    references = {name: Figure(value) for name, value in generative.reference_values("digits").items()}
    figures |= {f"fd_reference_{name}": value for name, value in references.items()}
    figures["bits_uniform"] = Figure(
        _uniform_bits(digits[seed]), "bits/dim", expected=math.log2(_LEVELS), source="computed"
    )
    figures["inverse_error"] = Figure(max(_inverse_error(t[0].model, digits[seed].test) for t in runs.values()))
    return Report(
        (*_claims(bits, figures), *plane_claims(planes, fitted)),
        figures,
        notes=(
            "Every flow overfits 1,057 images within some hundred steps; its best step was chosen on 200 others.",
            "Eight Gaussians on a circle are drawn as the hard case: its flows miss them by more than filaments.",
            "Fréchet distances are of 540 samples, in the features of a small classifier of digits, from 1,257 images.",
        ),
        seeds=seeds,
        data=({"name": "digits", "split": "test", "n": len(digits[seed].test)}, *used),
        draw=lambda figure: _draw(figure, runs, figures, planes, fitted),
    )


# ---- data and training ---------------------------------------------------------------------------------------------


def _load(seed: int) -> Digits:
    """Digits, of whose training part the images that stop the training are drawn from the seed."""
    torch = import_optional("torch", extra="train")
    images = generative.load_images("digits")
    order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(seed))
    validation, train = order[:_VALIDATION], order[_VALIDATION:]
    return Digits(images.train[train], images.train[validation], images.test)


def _train(name: str, digits: Digits, steps: int, seed: int) -> Trained:
    """Train one flow, stop early, measure it on the test images."""
    torch = import_optional("torch", extra="train")
    with torch_seed(seed):
        flow = _FLOWS[name]()
    model = generative.DequantizedFlow(flow, _LEVELS)
    train, validation, test = (_shape(x, model) for x in digits)
    model.initialize(train)
    generator = torch.Generator().manual_seed(seed)
    best: dict[str, Any] = {"bits": math.inf, "state": copy.deepcopy(model.state_dict())}
    curve: list[tuple[int, float]] = []

    def evaluate() -> float:
        bits = _bits(model, validation, draws=4)
        curve.append((_EVERY * (len(curve) + 1), bits))
        if bits < best["bits"]:
            best.update(bits=bits, state=copy.deepcopy(model.state_dict()))
        return bits

    def overfits() -> bool:
        return len(curve) >= 6 and min(bits for _, bits in curve[-6:]) > best["bits"]

    batches = shuffled_rows(len(train), 128, math.ceil(steps * 128 / len(train)), generator)[:steps]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    fit(
        model, lambda rows: model.loss(train[rows], generator=generator).loss, batches, optimizer,
        evaluate=evaluate, every=_EVERY, until=overfits,
    )  # fmt: skip
    model.load_state_dict(best["state"])
    return Trained(model, _bits(model, test, draws=20), curve, _distances(model, seed))


def _shape(x: Any, model: Any) -> Any:
    """Images in the shape that a model reads."""
    return x.reshape(len(x), *model.event_shape)


def _bits(model: Any, x: Any, *, draws: int) -> float:
    """Bits per dimension, the mean over draws of the noise."""
    torch = import_optional("torch", extra="train")
    with torch.no_grad():
        bound = model.log_prob_bound(x, draws=draws, generator=0)
    return generative.bits_per_dim(bound, model.event_shape, levels=1)


def _distances(model: Any, seed: int) -> dict[float, float]:
    """Fréchet distance of as many samples as there are test images, from the training images, by temperature."""
    images = generative.load_images("digits")
    features = generative.feature_extractor(images)
    real = features(images.train)
    samples = {t: model.sample(len(images.test), generator=seed, temperature=t) for t in _TEMPERATURES}
    return {t: generative.frechet_distance(features(x.reshape(-1, 1, 8, 8)), real) for t, x in samples.items()}


def _inverse_error(model: Any, test: Any) -> float:
    """Largest difference of an image to the inverse of its latents, in float64."""
    torch = import_optional("torch", extra="train")
    exact = copy.deepcopy(model.flow).double()
    u = generative.dequantize(_shape(test, model).double(), _LEVELS, generator=0)
    with torch.no_grad():
        return float((exact.decode(exact.encode(u)) - u).abs().max())


# ---- models without couplings --------------------------------------------------------------------------------------


def _uniform_bits(digits: Digits) -> float:
    """Bits of a model whose density is 1 everywhere."""
    torch = import_optional("torch", extra="train")
    return generative.bits_per_dim(torch.zeros(len(digits.test)), (_DIM,), levels=_LEVELS)


def _gaussian_bits(digits: Digits, *, diagonal: bool = False) -> float:
    """Bits of one Gaussian of the logits that the flows see, fitted on the images trained on."""
    torch = import_optional("torch", extra="train")
    logit = generative.Logit(0.05)

    def read(x: Any, draws: int) -> tuple[Any, Any]:
        stream = torch.Generator().manual_seed(0)
        u = generative.dequantize(x.flatten(1).double().repeat(draws, 1), _LEVELS, generator=stream)
        z, logdet = logit(u)
        return z, logdet

    z, _ = read(digits.train, 10)
    covariance = torch.cov(z.T, correction=0)
    if diagonal:
        covariance = torch.diag(covariance.diagonal())
    normal = torch.distributions.MultivariateNormal(z.mean(0), covariance)
    z, logdet = read(digits.test, 20)
    return generative.bits_per_dim(normal.log_prob(z) + logdet, (_DIM,), levels=_LEVELS)


def _diagonal_bits(digits: Digits) -> float:
    return _gaussian_bits(digits, diagonal=True)


def _histogram_bits(digits: Digits) -> float:
    """Bits of independent pixels: the share of each level at each place, with one added to every count."""
    torch = import_optional("torch", extra="train")
    train, test = (((x.flatten(1) + 1) * 8).round().long() for x in (digits.train, digits.test))
    counts = torch.nn.functional.one_hot(train, _LEVELS).sum(0).double() + 1
    shares = counts / counts.sum(1, keepdim=True)
    log_prob = shares.log()[torch.arange(_DIM), test].sum(1)
    return generative.bits_per_dim(log_prob, (_DIM,), levels=1)


# ---- claims and figures --------------------------------------------------------------------------------------------


def _claims(bits: Mapping[str, Sequence[float]], figures: Mapping[str, Figure]) -> list[Claim]:
    mean = {name: float(np.mean(values)) for name, values in bits.items()}
    best = min(mean["gaussian"], mean["histogram"], mean["diagonal"])
    return [
        Claim.check(
            "A flow goes back from latents to images exactly.",
            figures["inverse_error"].value < 1e-10,
            rule="largest error of the inverses of all trained flows on test images, in float64, below 1e-10",
            figures=["inverse_error"],
        ),
        Claim.check(
            "Affine couplings model images better than additive ones.",
            mean["affine"] < mean["additive"] - _CLEAR,
            rule=f"bits per dimension of test images lower by {_CLEAR} at least, mean over seeds",
            figures=["bits_affine", "bits_additive"],
        ),
        Claim.check(
            "Even additive couplings, which keep volumes, model images better than one Gaussian.",
            mean["additive"] < mean["gaussian"] - _CLEAR,
            rule=f"bits per dimension of test images lower by {_CLEAR} at least, mean over seeds",
            figures=["bits_additive", "bits_gaussian"],
        ),
        Claim.check(
            "Better mixing costs fewer bits: a learned matrix fewer than random orders, these fewer than reversal.",
            mean["linear"] < mean["affine"] < mean["reverse"],
            rule="bits per dimension of test images, means over seeds, in this order",
            figures=["bits_linear", "bits_affine", "bits_reverse"],
        ),
        Claim.check(
            "Glow, with convolutions, models images better than pixels or Gaussians do.",
            mean["glow"] < best - _CLEAR,
            rule=f"lower than the best model without couplings by {_CLEAR} bits per dimension at least",
            figures=["bits_glow", "bits_gaussian", "bits_histogram", "bits_diagonal"],
        ),
        Claim.check(
            "Samples of a lower temperature are nearer to real images.",
            all(figures[f"fd_{n}_{_COOL}"].value < figures[f"fd_{n}_1"].value for n in ("affine", "glow")),
            rule=f"Fréchet distance at temperature {_COOL} below that at 1, RealNVP and Glow, means over seeds",
            figures=[f"fd_{n}_{t:g}" for n in ("affine", "glow") for t in (_COOL, 1.0)],
        ),
    ]


def _draw(
    figure: Any, runs: Mapping[str, Sequence[Trained]], figures: Mapping[str, Figure],
    planes: Mapping[str, Plane], fitted: Mapping[str, Sequence[Fitted]],
) -> None:  # fmt: skip
    figure.set_size_inches(15, 12)
    grid = figure.add_gridspec(3, 12, height_ratios=(1, 0.85, 0.9))
    panel = figure.add_subplot(grid[0, :4])
    for at, (name, trained) in enumerate(runs.items()):
        for number, one in enumerate(trained):
            label = _LABELS[name] if number == 0 else None
            panel.plot(*zip(*one.curve, strict=True), color=f"C{at}", label=label)
    panel.set(title="images kept out of the training", xlabel="step", ylabel="bits per dimension")
    panel.legend()
    panel = figure.add_subplot(grid[0, 4:8])
    bars = {label: figures[f"bits_{name}"].value for name, label in _BARS.items()}
    draw_bars(panel, bars, form="%.2f")
    panel.set(title="test images", xlabel="model", ylabel="bits per dimension")
    panel.axhline(math.log2(_LEVELS), color="gray", linestyle=":", label="uniform")
    panel.legend()
    panel = figure.add_subplot(grid[0, 8:])
    for at, name in enumerate(runs):
        panel.plot(_TEMPERATURES, [figures[f"fd_{name}_{t:g}"].value for t in _TEMPERATURES], f"C{at}o-")
    for name, style, label in (("test", ":", "test images"), ("gaussian", "--", "Gaussian of pixels")):
        panel.axhline(figures[f"fd_reference_{name}"].value, color="gray", linestyle=style, label=label)
    panel.set(title="samples, colours as on the left", xlabel="temperature", ylabel="Fréchet distance", ylim=(0, None))
    panel.legend()
    model = runs["glow"][0].model
    for at, t in enumerate(_TEMPERATURES):
        samples = model.sample(30, generator=0, temperature=t).reshape(5, 6, 8, 8)
        tiles = np.pad(samples.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
        panel = figure.add_subplot(grid[1, 3 * at : 3 * at + 3])
        panel.imshow(tiles.transpose(0, 2, 1, 3).reshape(50, 60), cmap="gray_r", vmin=-1, vmax=1)
        panel.set(title=f"Glow, temperature {t:g}", xlabel="6 samples a row", ylabel="5 rows", xticks=[], yticks=[])
    draw_planes([figure.add_subplot(grid[2, 3 * at : 3 * at + 3]) for at in range(4)], planes, fitted)
