"""Can a model tell where it is? The probe: n equal tokens in, their places out.

Source: kexue.fm/archives/9105.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class ProbeResult(NamedTuple):
    """Share of right places, cross-entropy in nats, whether all places were right, and the steps it took."""

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
    """Train a copy of `model` to name the place of each of n equal tokens.

    A model whose attention rows sum to 1, with positions only inside the softmax, gives equal scores everywhere: its
    loss stays at ln n or above whatever the training, and its accuracy near 1/n, where rounding may tell equal scores
    apart. One that can express places reaches accuracy 1.

    Args:
        model: token ids (B, n) int64 to scores (B, n, n), one class a place; it is left as it is. Token id 1 is fed.
        n: tokens, at least 2.
        steps: at most so many steps of Adam with rate `lr`; it ends once every place is right.
        generator: drives dropout, if the model has any.

    Returns:
        Figures in evaluation mode. An accuracy between 1/n and 1 means: more steps.
    """
    if n < 2 or steps < 0:
        raise ValueError(f"n must be at least 2 and steps at least 0, got n={n}, steps={steps}")
    model = copy.deepcopy(model).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    ids, places = torch.ones(1, n, dtype=torch.int64, device=device), torch.arange(n, device=device)
    optimizer = torch.optim.Adam(parameters, lr=lr) if parameters else None
    seed = _seed(generator)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        taken = 0
        accuracy, loss = _judge(model, ids, places)
        while accuracy < 1 and taken < steps and optimizer is not None:
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(_scores(model, ids), places))
            optimizer.step()
            taken += 1
            accuracy, loss = _judge(model, ids, places)
    return ProbeResult(accuracy, loss, accuracy == 1, taken)


def _scores(model: nn.Module, ids: Tensor) -> Tensor:
    n = ids.shape[1]
    scores: Tensor = model(ids)
    if scores.shape != (1, n, n):
        raise ValueError(f"the model must map ids (B, n) to scores (B, n, n), got {tuple(scores.shape)} for n = {n}")
    return scores[0]


@torch.no_grad()
def _judge(model: nn.Module, ids: Tensor, places: Tensor) -> tuple[float, float]:
    model.eval()
    scores = _scores(model, ids).float()
    model.train()
    right = (scores.argmax(-1) == places).double().mean()
    return float(right), float(functional.cross_entropy(scores, places))


def _seed(generator: torch.Generator | int | None) -> int:
    if isinstance(generator, int):
        return generator
    if generator is None:
        return torch.Generator().seed()
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
