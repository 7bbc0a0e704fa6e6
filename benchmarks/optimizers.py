"""A step of Adafactor on the parameters of BERT-base, beside PyTorch's own: time, and bytes of state.

    python benchmarks/optimizers.py [--quick] [--out FILE]

All sides hold 109 million float32 parameters of their own and step on the same gradients, in turns; `foreach` and the
loop over tensors are both PyTorch's. AdaX is timed beside Adam in its two ways. First both take ten steps in float64
on small shapes from equal starts, and their distance is told. Figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from _shared import take_turns, write_record
from kexue.optim import Adafactor, AdaX

GOAL = 1.0
Optimizers = dict[str, Callable[[Any], torch.optim.Optimizer]]
RACES: dict[str, Optimizers] = {
    "adafactor": {
        "ours": lambda params: Adafactor(params, 1e-3, factor_dims="last", min_dim_size_to_factor=0),
        "torch foreach": lambda params: torch.optim.Adafactor(params, 1e-3, eps=(1e-30, 1e-3), foreach=True),
        "torch loop": lambda params: torch.optim.Adafactor(params, 1e-3, eps=(1e-30, 1e-3), foreach=False),
    },
    "adax": {
        "ours": AdaX,
        "torch Adam foreach": lambda params: torch.optim.Adam(params, foreach=True),
        "torch Adam loop": lambda params: torch.optim.Adam(params, foreach=False),
    },
}


def bert_shapes(layers: int, words: int) -> list[tuple[int, ...]]:
    d, inner = 768, 3072
    block = [*[(d, d), (d,)] * 4, (inner, d), (inner,), (d, inner), (d,), *[(d,)] * 4]
    return [(words, d), (512, d), (2, d), (d,), (d,), *block * layers, (d, d), (d,)]


def stepper(make: Callable[[Any], torch.optim.Optimizer], starts: list[Tensor], grads: list[Tensor]) -> Any:
    params = [nn.Parameter(x.clone()) for x in starts]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    return make(params)


def distance(ways: Optimizers) -> float:
    """Between ours and the first peer, after ten steps from equal starts in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(130, 150), (20, 30), (7,)]
    sides = [[nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in shapes] for _ in range(2)]
    optimizers = [make(params) for make, params in zip(ways.values(), sides, strict=False)]
    for _ in range(10):
        for p, q in zip(*sides, strict=True):
            p.grad = q.grad = torch.randn(p.shape, dtype=torch.float64, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    return max(float((p - q).detach().abs().max()) for p, q in zip(*sides, strict=True))


def race(name: str, shapes: list[tuple[int, ...]], rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    starts = [0.02 * torch.randn(s, generator=generator) for s in shapes]
    grads = [1e-3 * torch.randn(s, generator=generator) for s in shapes]
    optimizers = {way: stepper(make, starts, grads) for way, make in RACES[name].items()}
    seconds = take_turns({way: o.step for way, o in optimizers.items()}, rounds, warmup=2)
    figures: dict[str, Any] = {way: median(times) for way, times in seconds.items()}
    for way in list(optimizers)[1:]:
        ratio = median(a / b for a, b in zip(seconds["ours"], seconds[way], strict=True))
        figures[f"ratio to {way}"] = ratio
        print(f"{name}: {1e3 * figures['ours']:.0f} ms, {way} {1e3 * figures[way]:.0f} ms: {ratio:.2f} of its time")
    figures["state_bytes"] = sum(v.nbytes for state in optimizers["ours"].state.values() for v in state.values())
    figures["distance"] = distance(RACES[name]) if name == "adafactor" else None
    print(f"{name}: {figures['state_bytes'] / 2**20:.2f} MiB of state", flush=True)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one block, 1,000 words, 3 rounds")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    shapes, rounds = (bert_shapes(1, 1000), 3) if arguments.quick else (bert_shapes(12, 30522), 11)
    numbers = sum(torch.Size(shape).numel() for shape in shapes)
    races = {name: race(name, shapes, rounds) for name in RACES}
    state, gap = races["adafactor"]["state_bytes"], races["adafactor"]["distance"]
    print(f"Adafactor and torch's: {gap:.0e} apart after ten steps; state {state / (8 * numbers):.2%} of Adam's")
    met = races["adafactor"]["ratio to torch foreach"] <= GOAL
    print(f"goal of {GOAL} of the time of torch's foreach: {'met' if met else 'MISSED'}")
    record = {"races": races, "parameters": numbers, "rounds": rounds, "goal": GOAL}
    write_record(arguments.out, record, "torch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
