"""Position probe: whether a model can tell the position of each of n equal tokens.

Source: kexue.fm/archives/9105.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue._tensors import as_generator


class ProbeResult(NamedTuple):
    """Result of `position_probe`, in evaluation mode.

    Attributes:
        accuracy: share of the positions told correctly.
        loss: cross-entropy in nats.
        passed: whether all positions are correct.
        steps: training steps taken.
    """

    accuracy: float
    loss: float
    passed: bool
    steps: int


def position_probe(
    model: nn.Module,
    *,
    n: int = 32,
    steps: int = 1000,
    lr: float = 1e-3,
    generator: torch.Generator | int | None = None,
) -> ProbeResult:
    """Train a copy of `model` to tell the position of each of n equal tokens.

    A model whose attention rows sum to 1, with positions only inside the softmax, gives equal scores at every position:
    its loss stays at ln n or above whatever the training, and its accuracy near 1/n, where rounding decides between
    equal scores. A model that can express positions reaches accuracy 1.

    Args:
        model: token ids (B, n) int64 to scores (B, n, n), one class per position; it is not changed. Its
            input is n times the token id 1.
        n: number of tokens, >= 2.
        steps: largest number of steps of Adam, >= 0; training ends once every position is correct.
        lr: learning rate, > 0.
        generator: seed of the dropout, if the model has any.

    Returns:
        The result in evaluation mode. An accuracy between 1/n and 1 calls for more steps.
    """
    if n < 2 or steps < 0:
        raise ValueError(f"n must be at least 2 and steps at least 0, got n={n}, steps={steps}")
    model = copy.deepcopy(model).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    ids, places = torch.ones(1, n, dtype=torch.int64, device=device), torch.arange(n, device=device)  # eq. 1
    optimizer = torch.optim.Adam(parameters, lr=lr) if parameters else None
    seed = generator if isinstance(generator, int) else _draw_seed(generator)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        done = 0
        accuracy, loss = _evaluate(model, ids, places)
        while accuracy < 1 and done < steps and optimizer is not None:
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(_score(model, ids), places))
            optimizer.step()
            done += 1
            accuracy, loss = _evaluate(model, ids, places)
    return ProbeResult(accuracy, loss, accuracy == 1, done)


def _score(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the model's scores (n, n); ValueError for another shape."""
    n = ids.shape[1]
    scores: Tensor = model(ids)
    if scores.shape != (1, n, n):
        raise ValueError(f"the model must map ids (B, n) to scores (B, n, n), got {tuple(scores.shape)} for n = {n}")
    return scores[0]


@torch.no_grad()
def _evaluate(model: nn.Module, ids: Tensor, places: Tensor) -> tuple[float, float]:
    """Return accuracy and loss in evaluation mode."""
    model.eval()
    scores = _score(model, ids).float()
    model.train()
    accuracy = (scores.argmax(-1) == places).double().mean()
    return float(accuracy), float(functional.cross_entropy(scores, places))


def _draw_seed(generator: torch.Generator | None) -> int:
    """Return a seed drawn from the generator, or from the system for None."""
    source = as_generator(generator, "cpu" if generator is None else generator.device)
    return int(torch.randint(2**62, (), generator=source, device=source.device))
