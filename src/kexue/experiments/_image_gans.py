"""Adversarial networks of digits that several experiments train."""

from __future__ import annotations

from typing import Any, NamedTuple

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._digit_diffusion import SHAPE, Digits
from kexue.experiments._training import fit, shuffled_rows, torch_seed

_BATCH, _RATE, _DECAY = 64, 2e-4, 0.99


class Trained(NamedTuple):
    """A GAN with the average of its generator's weights, and Fréchet distances of this average on the way, by step."""

    model: Any
    distances: dict[int, float]


def train_gan(digits: Digits, steps: int, seed: int, *, every: int | None = None, **options: Any) -> Trained:
    """A GAN of digits with the networks of `sngan`.

    Adam at 2e-4 for the generator and at 8e-4 for the critic, beta 0 and 0.9, batches of 64, a step of each in turn.

    Args:
        digits: their training part is learnt, and distances are measured from it; the test part is not used.
        steps: of each network.
        seed: of the weights, the batches and the noise.
        every: steps between two measurements; None: after the last step only.
        options: of `GAN`.
    """
    torch = import_optional("torch", extra="generative")
    from kexue.optim import EMA

    with torch_seed(seed):
        model = generative.sngan(SHAPE, **options)
    generator = torch.Generator().manual_seed(seed)
    train = digits.images.train
    epochs = -(-steps // (len(train) // _BATCH))
    whole = [rows for rows in shuffled_rows(len(train), _BATCH, epochs, generator) if len(rows) == _BATCH][:steps]
    critic = torch.optim.Adam(model.critic.parameters(), 4 * _RATE, (0.0, 0.9))
    average = EMA(torch.optim.Adam(model.generator_net.parameters(), _RATE, (0.0, 0.9)), _DECAY)

    def measure() -> float:
        with average.averaged_weights():
            return digits.distance(model.sample(digits.count, generator=seed))

    training = fit(
        model,
        lambda rows, index: model.training_step(train[rows], optimizer_index=index, generator=generator).loss,
        whole,
        [critic, average],
        evaluate=measure,
        every=every,
    )
    with average.averaged_weights():
        state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    at = [step for step in range(1, steps + 1) if step == steps or (every is not None and step % every == 0)]
    return Trained(model.eval().requires_grad_(False), dict(zip(at, training.evaluations, strict=True)))
