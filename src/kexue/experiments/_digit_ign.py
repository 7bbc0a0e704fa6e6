"""Idempotent networks of digits in several settings, a GAN as large, what they make and what they mend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._digit_diffusion import CLASSES, SHAPE, Digits
from kexue.experiments._training import fit, shuffled_rows, torch_seed

SETTINGS: dict[str, dict[str, Any]] = {
    "ign": {},
    "loose": {"weights": (1.0, 1.0, 0.0)},
    "tight": {"weights": (1.0, 1.0, 1.0)},
    "clamp_distance": {"clamp": 1.5, "clamp_scale": "distance"},
    "clamp_rec": {"clamp": 1.5, "clamp_scale": "rec"},
    "spectral": {},  # noise with the mean and the spectrum of the digits
    "autoencoder": {"weights": (1.0, 0.0, 0.0)},
}
BATCH, LOOKS, _RATE = 128, 10, 1e-3
DAMAGE = 0.5  # deviation of the noise on test digits

# ---- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A trained model, and the Fréchet distance and the entropy of its samples at each look during the training."""

    model: Any
    seed: int
    looks: list[tuple[float, float]]

    def sample(self, digits: Digits, **options: Any) -> Any:
        """As many samples as there are test digits."""
        return self.model.sample(digits.count, generator=self.seed, **options)

    def measure(self, digits: Digits) -> dict[str, float]:
        """All numbers of the model."""
        x = self.sample(digits)
        quality = digits.measure(x)
        values = {
            "fd": quality.frechet_distance, "precision": quality.precision, "recall": quality.recall,
            "coverage": quality.coverage, "entropy": _measure_entropy(digits, x),
            "classes": int((count_classes(digits, x) >= 0.01 * len(x)).sum()),
            "relapse": self.looks[-1][0] / min(distance for distance, _ in self.looks),
        }  # fmt: skip
        if not isinstance(self.model, generative.IGN):
            return values
        torch, test = import_optional("torch", extra="generative"), digits.images.test
        with torch.no_grad():
            return values | {
                "fd_twice": digits.distance(self.sample(digits, steps=2)),
                "fd_five": digits.distance(self.sample(digits, steps=5)),
                "idempotence": self.model.idempotence_error(digits.count, generator=self.seed),
                "reconstruction": float(self.model.energy(test).mean()),
                "noisy_projected": square_error(self.model.project(add_noise(digits)), test),
                "erased_projected": square_error(self.model.project(erase(digits)), test),
            }


def train_ign(digits: Digits, name: str, steps: int, seed: int) -> Trained:
    """The network of the recipe, trained in one of the settings."""
    torch = import_optional("torch", extra="generative")
    with torch_seed(seed):
        net = _build_net()
    noise = generative.SpectralNoise(SHAPE).fit(digits.images.train) if name == "spectral" else None
    model = generative.IGN(net, event_shape=SHAPE, noise=noise, **SETTINGS[name])
    optimizer = torch.optim.Adam(model.parameters(), _RATE, betas=(0.5, 0.999))
    return _train(model, lambda x, draw: model.loss(x, generator=draw).loss, optimizer, digits, steps, seed)


def _build_net() -> Any:
    """The network of ``kexue model train ign``: an auto-encoder with a bottleneck of 32."""
    from kexue.generative.recipes import find_recipe

    recipe, facts = find_recipe("ign"), {"event_shape": SHAPE}
    return recipe.build(facts, recipe.choose_sizes(facts)).get_submodule("net")


def train_gan(digits: Digits, steps: int, seed: int) -> Trained:
    """A GAN with spectral normalisation and hinge loss, nearly as many weights and as many steps."""
    torch = import_optional("torch", extra="generative")
    with torch_seed(seed):
        model = generative.sngan(SHAPE)
    optimizers = [
        torch.optim.Adam(part.parameters(), rate, betas=(0.0, 0.9))
        for part, rate in ((model.critic, 8e-4), (model.generator_net, 2e-4))
    ]

    def loss(x: Any, draw: Any, index: int) -> Any:
        return model.training_step(x, optimizer_index=index, generator=draw).loss

    return _train(model, loss, optimizers, digits, steps, seed)


def _train(model: Any, loss: Callable[..., Any], optimizers: Any, digits: Digits, steps: int, seed: int) -> Trained:
    """Train a model, and look at its samples ten times."""
    torch = import_optional("torch", extra="generative")
    train, draw = digits.images.train, torch.Generator().manual_seed(seed)
    rows = shuffled_rows(len(train), BATCH, -(-steps * BATCH // len(train)) + 1, draw)[:steps]

    def look() -> tuple[float, float]:
        x = model.sample(digits.count, generator=seed)
        return digits.distance(x), _measure_entropy(digits, x)

    result = fit(
        model,
        lambda r, *index: loss(train[r], draw, *index),
        rows,
        optimizers,
        evaluate=look,
        every=max(steps // LOOKS, 1),
    )
    return Trained(model.eval(), seed, result.evaluations)


# ---- measures ------------------------------------------------------------------------------------------------------


def count_classes(digits: Digits, x: Any) -> Any:
    """How many samples the classifier takes for each digit."""
    return digits.extractor.classify(x).argmax(1).bincount(minlength=CLASSES)


def _measure_entropy(digits: Digits, x: Any) -> float:
    """Entropy of the classes of samples, nats; log 10 where all are as frequent."""
    shares = count_classes(digits, x).double() / len(x)
    return float(-shares.xlogy(shares).sum())


def add_noise(digits: Digits) -> Any:
    torch, test = import_optional("torch", extra="generative"), digits.images.test
    return test + DAMAGE * torch.randn(test.shape, generator=torch.Generator().manual_seed(0))


def erase(digits: Digits) -> Any:
    """Test digits whose right half is background."""
    test = digits.images.test.clone()
    test[..., SHAPE[2] // 2 :] = -1
    return test


def square_error(x: Any, y: Any) -> float:
    return float((x - y).square().mean())
