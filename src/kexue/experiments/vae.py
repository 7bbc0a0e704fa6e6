"""kexue.fm/archives/5253: the variational auto-encoder, and what the divergence is for.

Measures, on scikit-learn's digits: reconstruction, divergence, bounds, the spread of all latents and the Fréchet
distance of samples, by the weight beta of the divergence; a model with a prior for each class; a quantised one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kexue import generative, nn as layers
from kexue._optional import import_optional
from kexue.experiments._fashion import measure_fashion
from kexue.experiments._training import fit, shuffled_rows, torch_seed
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_BETAS = (0.0, 0.3, 1.0, 3.0, 10.0)
_LATENT, _SIGMA, _BATCH = 8, 0.25, 128
_UNITS = {
    "mse": "", "kl": "nats", "elbo": "nats", "iwae": "nats", "variance": "", "active": f"of {_LATENT} latents",
    "fd": "", "fd_reconstructions": "", "detail": "of the data's",
}  # fmt: skip


@experiment(
    "vae",
    claim="The divergence makes the prior usable: without it a VAE is an auto-encoder whose samples are no digits.",
    effect=(
        "Fréchet distance of samples {fd_beta_0} without the divergence to {fd_beta_1} with it, of training digits "
        "{fd_train_test}; bound {elbo_beta_1}; agreement with the class asked for {cvae_agreement}"
    ),
    data=("fashion_mnist",),
    minutes=4,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Train one model for each weight and seed, models with classes and quantised ones."""
    import_optional("torch", extra="generative")
    steps, count = {"smoke": (100, 1), "small": (2500, 3), "full": (2500, 10)}[budget]
    seeds = tuple(range(seed, seed + count))
    world = _World.load()
    models = {(beta, s): _train_vae(world, beta, steps, s) for beta in _BETAS for s in seeds}
    runs = {beta: [_measure(models[beta, s], world, s) for s in seeds] for beta in _BETAS}
    conditional = {s: _train_conditional(world, steps, s) for s in seeds}
    quantised = [_measure_quantised(world, steps, s) for s in seeds]
    figures = {
        f"{name}_beta_{beta:g}": Figure.over_runs([one[name] for one in runs[beta]], unit)
        for beta in _BETAS
        for name, unit in _UNITS.items()
    }
    drops = [none["fd"] / whole["fd"] for none, whole in zip(runs[0.0], runs[1.0], strict=True)]
    agreements = [_measure_agreement(model, world, s) for s, model in conditional.items()]
    figures |= {
        "fd_drop": Figure.over_runs(drops, "times"),
        "fd_train_test": Figure(world.frechet(world.train[: len(world.test)]), n=len(world.test)),
        "classifier_accuracy": Figure(world.extractor.accuracy, n=len(world.test)),
        "cvae_agreement": Figure.over_runs(agreements, "of the samples"),
        "vqvae_mse": Figure.over_runs([one["mse"] for one in quantised]),
        "vqvae_usage": Figure.over_runs([one["usage"] for one in quantised], "of the codes"),
        "vqvae_fd": Figure.over_runs([one["fd"] for one in quantised]),
        "vqvae_fd_reconstructions": Figure.over_runs([one["fd_reconstructions"] for one in quantised]),
    }
    fashion, used = measure_fashion({"vae": 8000, "vqvae": 4000} if budget == "full" else {}, seed, data)
    figures |= fashion
    shown = {beta: models[beta, seed] for beta in _BETAS}
    return Report(
        tuple(_decide(runs, figures, drops, agreements)),
        figures,
        seeds=seeds,
        data=({"name": "digits", "split": "test", "n": len(world.test)}, *used),
        draw=lambda figure: _draw(figure, runs, figures, world, shown, conditional[seed], seed),
    )


# ---- measure -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _World:
    """The digits, and the features in which samples are compared with those for test."""

    train: Any
    labels: Any
    test: Any
    extractor: Any

    @classmethod
    def load(cls) -> _World:
        images = generative.load_images("digits")
        return cls(images.train, images.train_labels, images.test, generative.feature_extractor("digits"))

    def frechet(self, x: Any) -> float:
        """Fréchet distance of images from the test images."""
        return float(generative.frechet_distance(self.extractor(x), self.extractor(self.test)))


def _train(model: Any, batch: Any, world: _World, steps: int, seed: int) -> Any:
    """Train a model for `steps` batches; `batch` makes one of row numbers."""
    torch = import_optional("torch", extra="generative")
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-steps * _BATCH // len(world.train))
    rows = shuffled_rows(len(world.train), _BATCH, epochs, generator)[:steps]
    fit(
        model,
        lambda r: model.loss(batch(r), generator=generator).loss,
        rows,
        torch.optim.Adam(model.parameters(), 1e-3),
    )
    return model.eval()


def _build_vae(seed: int, **options: Any) -> Any:
    with torch_seed(seed):
        encoder = generative.MLP((1, 8, 8), 2 * _LATENT, hidden=(256, 128))
        decoder = generative.MLP(_LATENT, (1, 8, 8), hidden=(128, 256))
        return generative.VAE(encoder, decoder, _LATENT, sigma=_SIGMA, **options)


def _train_vae(world: _World, beta: float, steps: int, seed: int) -> Any:
    return _train(_build_vae(seed, beta=beta), lambda rows: world.train[rows], world, steps, seed)


def _train_conditional(world: _World, steps: int, seed: int) -> Any:
    model = _build_vae(seed, prior="class_mean", num_classes=10)
    return _train(model, lambda rows: (world.train[rows], world.labels[rows]), world, steps, seed)


def _measure(model: Any, world: _World, seed: int) -> dict[str, float]:
    """The numbers of one model, all on test digits and on as many samples."""
    torch = import_optional("torch", extra="generative")
    x = world.test
    with torch.no_grad():
        posterior = model.encode(x)
        reconstructions = model.decode(posterior.mean)
        samples = model.sample(len(x), generator=seed)
        variance = posterior.mean.var(0) + posterior.log_var.exp().mean(0)
        return {
            "mse": float((reconstructions - x).square().mean()),
            "kl": float(model.kl_per_dim(x).sum()),
            "elbo": float(torch.stack([model.log_prob_bound(x, generator=s) for s in range(10)]).mean()),
            "iwae": float(model.log_prob_bound(x, k=100, generator=0).mean()),
            "variance": float(variance.mean()),
            "active": model.active_units(x),
            "fd": world.frechet(samples),
            "fd_reconstructions": world.frechet(reconstructions),
            "detail": _measure_detail(samples) / _measure_detail(x),
        }


def _measure_detail(x: Any) -> float:
    """Mean square of the second differences of neighbouring pixels: the energy of high frequencies."""
    across = x[..., 1:-1, :-2] + x[..., 1:-1, 2:] + x[..., :-2, 1:-1] + x[..., 2:, 1:-1] - 4 * x[..., 1:-1, 1:-1]
    return float(across.square().mean())


def _measure_agreement(model: Any, world: _World, seed: int) -> float:
    """Share of 1,000 samples that the classifier takes for the class asked for."""
    torch = import_optional("torch", extra="generative")
    classes = torch.arange(1000) % 10
    samples = model.sample(1000, condition=classes, generator=seed)
    return float((world.extractor.classify(samples).argmax(1) == classes).double().mean())


def _measure_quantised(world: _World, steps: int, seed: int) -> dict[str, float]:
    """A VQVAE with four codes of 64 for a digit, sampled by counts of the codes at each position."""
    torch = import_optional("torch", extra="generative")
    with torch_seed(seed):
        encoder = generative.MLP((1, 8, 8), (4, _LATENT), hidden=(256, 128))
        decoder = generative.MLP((4, _LATENT), (1, 8, 8), hidden=(128, 256))
        quantizer = layers.VectorQuantizer(_LATENT, 64, parametrization="linear", train_codebook=True)
        model = generative.VQVAE(encoder, decoder, quantizer, event_shape=(1, 8, 8))
    _train(model, lambda rows: world.train[rows], world, steps, seed).fit_prior([world.train])
    with torch.no_grad():
        codes = model.encode(world.test)
        reconstructions = model.decode(codes)
    return {
        "mse": float((reconstructions - world.test).square().mean()),
        "usage": len(torch.unique(codes)) / 64,
        "fd": world.frechet(model.sample(len(world.test), generator=seed)),
        "fd_reconstructions": world.frechet(reconstructions),
    }


# ---- claims --------------------------------------------------------------------------------------------------------


def _decide(
    runs: Mapping[float, Sequence[Mapping[str, float]]],
    figures: Mapping[str, Figure],
    drops: Sequence[float],
    agreements: Sequence[float],
) -> list[Claim]:
    """The claims; each must hold in every run."""
    count = len(drops)

    def names(name: str, betas: Sequence[float] = _BETAS) -> list[str]:
        return [f"{name}_beta_{beta:g}" for beta in betas]

    def ordered(name: str, sign: int) -> bool:
        return all(
            sign * runs[a][i][name] < sign * runs[b][i][name] for i in range(count) for a, b in pairwise(_BETAS[1:])
        )

    best = [max(_BETAS, key=lambda beta: runs[beta][i]["elbo"]) for i in range(count)]
    spread = [one["variance"] for beta in (1.0, 3.0, 10.0) for one in runs[beta]]
    return [
        Claim.check(
            "Without the divergence the model is an auto-encoder and its prior useless; with it the prior can be used.",
            min(drops) > 10,
            rule="Fréchet distance of samples of the prior falls more than 10 times from beta 0 to 1, in every run",
            figures=["fd_drop", "fd_beta_0", "fd_beta_1", "fd_train_test"],
        ),
        Claim.check(
            "Reconstruction and divergence pull against each other.",
            ordered("mse", 1) and ordered("kl", -1),
            rule="from beta 0.3 to 10, the error of reconstructions rises and the divergence falls, in every run",
            figures=[*names("mse"), *names("kl")],
        ),
        Claim.check(
            "The bound of the likelihood is best where it is what was trained, at beta = 1.",
            set(best) == {1.0},
            rule="largest mean bound of test digits at beta 1, in every run",
            figures=[*names("elbo"), *names("iwae")],
        ),
        Claim.check(
            "The latents of all digits together are spread like the prior.",
            max(abs(v - 1) for v in spread) <= 0.25,
            rule="variance of the latents of test digits within 25 % of 1 at beta 1, 3 and 10, in every run",
            figures=names("variance"),
        ),
        Claim.check(
            "With a learned mean for each class in the prior, the class of a sample can be chosen.",
            min(agreements) > 0.8,
            rule="a classifier takes more than 80 % of the samples for the class asked for, in every run",
            figures=["cvae_agreement", "classifier_accuracy"],
        ),
        Claim.check(
            "Samples are blurred.",
            max(one["detail"] for one in runs[1.0]) < 1,
            rule="energy of second differences of pixels at beta 1 below that of test digits, in every run",
            figures=["detail_beta_1"],
        ),
    ]


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(
    figure: Any,
    runs: Mapping[float, Sequence[Mapping[str, float]]],
    figures: Mapping[str, Figure],
    world: _World,
    models: Mapping[float, Any],
    conditional: Any,
    seed: int,
) -> None:
    """Three panels of numbers by beta, three of images."""
    torch = import_optional("torch", extra="generative")
    figure.set_size_inches(14, 7.5)
    above, below = figure.subplots(2, 3)
    _plot(above[0], runs, {"fd": "samples of the prior", "fd_reconstructions": "reconstructions"})
    above[0].axhline(figures["fd_train_test"].value, color="0.5", ls=":", label="training digits")
    above[0].set(yscale="log", ylabel="Fréchet distance from test digits")
    _plot(above[1], runs, {"elbo": "1 latent", "iwae": "100 latents"})
    above[1].set(ylabel="bound of log p(x), nats", ylim=(min(o["elbo"] for o in runs[_BETAS[-1]]) - 10, None))
    _plot(above[2], runs, {"kl": "divergence, nats", "variance": "variance of all latents", "active": "active latents"})
    above[2].set(yscale="log", ylabel="of test digits")
    for panel in above:
        panel.legend()
    with torch.no_grad():
        x, model = world.test[:30], models[1.0]
        pairs = torch.stack([x, model.decode(model.encode(x).mean)], 1).unflatten(0, (3, 10)).transpose(1, 2)
        _show(
            below[0], pairs.flatten(0, 2), "test digits and their reconstructions", "beta = 1", ["digit", "again"] * 3
        )
        samples = torch.cat([models[beta].sample(20, generator=seed) for beta in (0.0, 1.0, 10.0)])
        _show(below[1], samples, "samples of the prior", "beta", ["0", "0", "1", "1", "10", "10"])
        by_class = conditional.sample(30, condition=torch.arange(30) % 10, generator=seed)
        ends = model.encode(world.test[:6]).mean
        walks = [model.decode(generative.interpolate(ends[i], ends[i + 3], 10)) for i in range(3)]
        _show(
            below[2],
            torch.cat([by_class, *walks]),
            "classes 0 to 9; walks between two test digits",
            "beta = 1",
            ["classes"] * 3 + ["walk"] * 3,
        )


def _plot(panel: Any, runs: Mapping[float, Sequence[Mapping[str, float]]], names: Mapping[str, str]) -> None:
    """Means over the runs, with the range of the runs, against beta."""
    at = np.arange(len(_BETAS))
    for name, label in names.items():
        values = np.array([[one[name] for one in runs[beta]] for beta in _BETAS])
        panel.plot(at, values.mean(1), "o-", label=label)
        panel.fill_between(at, values.min(1), values.max(1), alpha=0.2)
    panel.set_xticks(at, [f"{beta:g}" for beta in _BETAS])
    panel.set_xlabel("weight beta of the divergence")


def _show(panel: Any, images: Any, below: str, left: str, names: Sequence[str]) -> None:
    """Images (10 m, 1, 8, 8) in m rows with names."""
    tiles = np.pad(images[:, 0].numpy(), ((0, 0), (0, 1), (0, 1)), constant_values=1.0)
    rows = tiles.reshape(-1, 10, *tiles.shape[1:]).transpose(0, 2, 1, 3)
    panel.imshow(rows.reshape(-1, 10 * tiles.shape[2]), cmap="gray_r", vmin=-1, vmax=1)
    panel.grid(visible=False)
    panel.set_yticks(4 + tiles.shape[1] * np.arange(len(names)), names)
    panel.set(xlabel=below, ylabel=left, xticks=[])
