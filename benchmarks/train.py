"""What the training loop costs beyond a loop by hand, per step.

    python benchmarks/train.py [--quick] [--out FILE]

Both sides train the same network on the same batches with AdamW and clipping; the weights must come out the same. The
network is tiny, so that the loop is what is measured: against a step of 10 ms its cost is a hundredth of what is shown.
Each round is a whole run on 64 batches of 32; opening the run (folders, one checkpoint at the end) is part of ours.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from _shared import take_turns, write_record
from kexue.train import LossOutput, TrainConfig, Trainer


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, width), nn.Tanh(), nn.Linear(width, 10))

    def training_step(self, batch: list[Tensor], **_: object) -> LossOutput:
        return LossOutput(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))


def fresh(width: int) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net(width)
    return net, torch.optim.AdamW(net.parameters(), lr=1e-3)


def by_hand(batches: list[list[Tensor]], width: int, epochs: int) -> Net:
    net, optimizer = fresh(width)
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            loss = net.training_step(batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            loss.item()  # as everybody does, to show it
    return net


def by_trainer(batches: list[list[Tensor]], width: int, epochs: int, log: tuple[str, ...]) -> Net:
    net, optimizer = fresh(width)
    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(out, epochs=epochs, clip=1.0, log=log, device="cpu", save_every=10**9)
        Trainer(net, optimizer, config).fit(batches)
    return net


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rounds, epochs = (3, 2) if arguments.quick else (15, 8)
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    batches = [[torch.randn(32, 32, generator=draw), torch.randint(0, 10, (32,), generator=draw)] for _ in range(64)]
    steps = epochs * len(batches)
    figures = {}
    for width in (32, 2048):
        ways: dict[str, Callable[[], Net]] = {
            "by hand": lambda width=width: by_hand(batches, width, epochs),
            "jsonl": lambda width=width: by_trainer(batches, width, epochs, ("jsonl",)),
            "jsonl, tensorboard": lambda width=width: by_trainer(batches, width, epochs, ("jsonl", "tensorboard")),
        }
        ends = [list(way().parameters()) for way in ways.values()]
        assert all(torch.equal(a, b) for end in ends for a, b in zip(end, ends[0], strict=True))
        seconds = take_turns(ways, rounds, warmup=1)
        each = {name: 1e6 * median(times) / steps for name, times in seconds.items()}
        figures[str(width)] = each
        for name, value in each.items():
            print(f"width {width}, {name}: {value:.0f} us a step ({value / each['by hand']:.2f} of the loop by hand)")
    write_record(arguments.out, {"microseconds_per_step": figures}, "torch", "tensorboard")
    return 0


if __name__ == "__main__":
    sys.exit(main())
