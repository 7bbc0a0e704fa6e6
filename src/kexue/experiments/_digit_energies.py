"""Energies of digits: nearly cold chains and warm ones, what is unlike a digit, and trainings that diverge."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._digit_diffusion import SHAPE, Digits
from kexue.experiments._training import fit, shuffled_rows, torch_seed

CHAIN, STEP, NOISE = 20, 1.0, 0.1  # steps of a chain, factor of the gradient, deviation of the noise
LONG = 400  # steps of long chains
DRAWS = 5  # samples of which a distance is the mean: some have outliers
_BATCH, _RATE = 64, 1e-3


class Energies(NamedTuple):
    """A learned energy of digits.

    Attributes:
        model: the `EnergyModel`.
        numbers: what was measured, by name.
    """

    model: Any
    numbers: dict[str, float]


def train_digits(
    digits: Digits, steps: int, seed: int, *, warm: bool = False, spectral: bool = False, **options: Any
) -> Any:
    """An `EnergyModel` of digits.

    Args:
        digits: to train on.
        steps: of the training; the learning rate falls to 0.
        seed: of weights, batches and chains.
        warm: whether steps are as short as the noise demands at the temperature 1.
        spectral: whether the layers have spectral norm 1.
        options: of the model.

    Raises:
        DivergenceError: energies out of bounds.
    """
    torch = import_optional("torch", extra="generative")
    from kexue.nn import apply_spectral_normalization
    from kexue.train.schedules import warm_then_fall

    size = NOISE**2 / 2 if warm else STEP
    sampler = partial(generative.langevin, steps=CHAIN, step_size=size, noise_scale=NOISE, bounds=(-1.0, 1.0))
    with torch_seed(seed):
        net = generative.MLP(SHAPE, 1)
        if spectral:
            apply_spectral_normalization(net)
        model = generative.EnergyModel(net, SHAPE, sampler=sampler, **options)
    draw, train = torch.Generator().manual_seed(seed), digits.images.train
    rows = shuffled_rows(len(train), _BATCH, -(-steps * _BATCH // len(train)) + 1, draw)[:steps]
    optimizer = torch.optim.Adam(model.parameters(), _RATE, betas=(0.9, 0.999))
    fit(
        model,
        lambda r: model.loss(train[r], generator=draw).loss,
        rows,
        optimizer,
        scheduler=warm_then_fall(optimizer, steps),
    )
    return model.eval()


def diverges(digits: Digits, steps: int, seed: int, **options: Any) -> bool:
    """Whether a training raises because its energies leave all bounds, or its loss is no number."""
    from kexue.train import NonFiniteLossError

    try:
        train_digits(digits, steps, seed, **options)
    except (generative.DivergenceError, NonFiniteLossError):
        return True
    return False


def measure_digits(digits: Digits, model: Any, seed: int) -> Energies:
    """Distances of samples from the training digits, chains, and energies of what is not a digit."""
    torch = import_optional("torch", extra="generative")
    test, draw = digits.images.test, torch.Generator().manual_seed(seed)

    def distance(**options: Any) -> float:
        return digits.distance(model.sample(digits.count, generator=draw, **options))

    quality = digits.measure(model.sample(digits.count, generator=draw))
    report = model.diagnose(test, generator=draw)
    numbers = {
        "fd": sum(distance() for _ in range(DRAWS)) / DRAWS,
        "fd_long": distance(steps=LONG),
        "fd_anew": distance(steps=10 * CHAIN, from_buffer=False),
        "precision": quality.precision, "recall": quality.recall, "coverage": quality.coverage,
        "nearest_train_ratio": quality.nearest_train_ratio,
        "acceptance": float(report.acceptance),
        "energy_gap": report.chain_energy - report.data_energy,
        **{f"auc_{name}": _measure_auc(model, x, test) for name, x in draw_strange(digits, draw).items()},
        "auc_samples": _measure_auc(model, model.sample(digits.count, generator=draw), test),
    }  # fmt: skip
    return Energies(model, numbers)


def draw_strange(digits: Digits, draw: Any) -> dict[str, Any]:
    """Images that are not digits, as many as test digits of each kind: mirrored; pixels from a Gaussian or uniform.

    The Gaussian has the mean and the covariance of the training pixels.
    """
    torch, test = import_optional("torch", extra="generative"), digits.images.test
    flat = digits.images.train.flatten(1)
    weights = torch.randn(len(test), len(flat), generator=draw) / (len(flat) - 1) ** 0.5
    gaussian = flat.mean(0) + weights @ (flat - flat.mean(0))
    uniform = 2 * torch.rand(test.shape, generator=draw) - 1
    return {"mirrored": test.flip(3), "gaussian": gaussian.clamp(-1, 1).reshape(test.shape), "uniform": uniform}


def _measure_auc(model: Any, strange: Any, test: Any) -> float:
    """Share of the pairs of a strange image and a test digit in which the strange one has more energy."""
    torch = import_optional("torch", extra="generative")
    with torch.no_grad():
        return float((model.energy(strange)[:, None] > model.energy(test)).double().mean())
