"""What the experiments on optimizers share: a network of digits to train, and bytes of state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from kexue._optional import import_optional
from kexue.experiments._digits import digits_split

Make = Callable[[Any], Any]  # parameters -> optimizer


def digits_accuracies(make: Make, seed: int, epochs: int) -> list[float]:
    """Test accuracy after each epoch of a network 64-256-256-10 on 1,200 digits, batches of 64, rate falling to 0."""
    torch = import_optional("torch", extra="train")
    X, y, X_test, y_test = (torch.from_numpy(part) for part in digits_split(seed))
    torch.manual_seed(seed)
    widths = (64, 256, 256, 10)
    layers = [part for pair in pairwise(widths) for part in (torch.nn.Linear(*pair), torch.nn.ReLU())]
    network = torch.nn.Sequential(*layers[:-1])
    optimizer = make(network.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / epochs)
    accuracies = []
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(X[rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            accuracies.append(float((network(X_test).argmax(1) == y_test).double().mean()))
    return accuracies


def best_digits(make: Callable[[float], Make], rates: Sequence[float], seeds: Sequence[int], epochs: int) -> Any:
    """Accuracies (seed, epoch) at the rate that is best at the end, on average over the seeds."""
    runs = [np.array([digits_accuracies(make(rate), seed, epochs) for seed in seeds]) for rate in rates]
    return max(runs, key=lambda found: found[:, -1].mean())


def state_bytes(optimizer: Any) -> int:
    """Bytes of every tensor in the state."""
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())
