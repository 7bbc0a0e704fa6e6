"""The diffusion model of digits that several experiments sample from, and what its samples are measured by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._training import fit, shuffled_rows, torch_seed
from kexue.experiments.registry import Budget
from kexue.experiments.report import Figure

STEPS: dict[Budget, int] = {"smoke": 60, "small": 3000, "full": 6000}
SHAPE, CLASSES = (1, 8, 8), 10
_BATCH, _RATE, _DECAY, _DROPOUT = 256, 1e-3, 0.999, 0.15


@dataclass(frozen=True)
class Digits:
    """The digits, and the classifier in whose features samples are compared with those for training."""

    images: Any
    extractor: Any

    @classmethod
    def load(cls) -> Digits:
        images = generative.load_images("digits")
        return cls(images, generative.feature_extractor(images))

    @property
    def count(self) -> int:
        """Samples of a measurement: as many as there are test images."""
        return len(self.images.test)

    def labels(self) -> Any:
        """A class for each sample of a measurement, all classes equally often."""
        torch = import_optional("torch", extra="generative")
        return torch.arange(self.count) % CLASSES

    def measure(self, x: Any) -> Any:
        """Measures of samples against the training images, a `SampleQuality`."""
        return generative.measure_samples(x, self.images, extractor=self.extractor)

    def distance(self, x: Any) -> float:
        """Fréchet distance of samples from the training images."""
        return float(generative.frechet_distance(self.extractor(x), self.extractor(self.images.train)))

    def agreement(self, x: Any, labels: Any) -> float:
        """Share of samples that the classifier of clean digits takes for the class asked for."""
        return float((self.extractor.classify(x).argmax(1) == labels).double().mean())

    def reference_figures(self) -> dict[str, Figure]:
        """Fréchet distances of sets that are no model, and the accuracy of the classifier."""
        values = generative.reference_values(self.images, extractor=self.extractor)
        figures = {f"fd_reference_{name}": Figure(value, n=self.count) for name, value in values.items()}
        return figures | {"classifier_accuracy": Figure(self.extractor.accuracy, n=self.count)}


def train_model(digits: Digits, steps: int, seed: int) -> Any:
    """A `Diffusion` of digits by class, with the average of its weights.

    T = 1000 with the linear table, a residual MLP of width 256 that predicts the noise, Adam at 1e-3, batches of 256;
    15 % of the classes are left out.
    """
    torch = import_optional("torch", extra="generative")
    from kexue.generative.diffusion import Diffusion, DiscreteSchedule
    from kexue.optim import EMA

    with torch_seed(seed):
        net = generative.MLPDenoiser(SHAPE, num_classes=CLASSES)
    model = Diffusion(net, DiscreteSchedule.linear(), condition_dropout=_DROPOUT)
    train, labels = digits.images.train, digits.images.train_labels
    generator = torch.Generator().manual_seed(seed)
    rows = shuffled_rows(len(train), _BATCH, -(-steps * _BATCH // len(train)) + 1, generator)[:steps]
    optimizer = EMA(torch.optim.Adam(model.parameters(), _RATE), _DECAY)
    fit(model, lambda r: model.loss((train[r], labels[r]), generator=generator).loss, rows, optimizer)
    with optimizer.averaged_weights():
        state = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
