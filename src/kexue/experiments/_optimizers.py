"""What the experiments on optimizers share: a network of digits to train, and bytes of state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kexue._optional import import_optional
from kexue.experiments._data import split_digits
from kexue.experiments._training import build_mlp, fit, seeded, share_right, shuffled_rows

Make = Callable[[Any], Any]  # parameters -> optimizer


def digits_accuracies(make: Make, seed: int, epochs: int) -> list[float]:
    """Test accuracy after each epoch of a network 64-256-256-10 on 1,200 digits, batches of 64, rate falling to 0."""
    torch = import_optional("torch", extra="train")
    X, y, X_test, y_test = (torch.from_numpy(part) for part in split_digits(seed))
    with seeded(seed):
        network = build_mlp(64, 256, 256, 10)
        batches = shuffled_rows(len(X), 64, epochs)
    an_epoch = len(batches) // epochs
    optimizer = make(network.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step // an_epoch / epochs)
    return fit(
        network,
        lambda rows: torch.nn.functional.cross_entropy(network(X[rows]), y[rows]),
        batches,
        optimizer,
        scheduler=schedule,
        evaluate=lambda: share_right(network, X_test, y_test),
        every=an_epoch,
    ).evaluations


def best_digits(make: Callable[[float], Make], rates: Sequence[float], seeds: Sequence[int], epochs: int) -> Any:
    """Accuracies (seed, epoch) at the rate that is best at the end, on average over the seeds."""
    runs = [np.array([digits_accuracies(make(rate), seed, epochs) for seed in seeds]) for rate in rates]
    return max(runs, key=lambda found: found[:, -1].mean())


def state_bytes(optimizer: Any) -> int:
    """Bytes of every tensor in the state."""
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())
