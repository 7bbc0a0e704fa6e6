"""The sparse multi-label loss beside the dense one: time and peak memory of forward and backward.

    python benchmarks/losses.py [--quick] [--rows 16] [--classes 100000] [--rounds 20] [--out FILE]

Each sample has 5 to 50 positives. The ways take turns. Peak memory is that of the tensors allocated during one forward
and backward, from the allocation events of torch.profiler (a running sum of bytes, its largest value); scores and
labels are there before and are not counted. Goals: at most 0.7 of the time and 0.6 of the memory of the dense loss on
bool labels, value and gradient within 1e-6.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from _shared import take_turns, write_record
from kexue.losses import sparse_zlpr_loss, zlpr_loss

TIME_GOAL, MEMORY_GOAL, ERROR_GOAL = 0.7, 0.6, 1e-6


def peak_bytes(work: Callable[[], object]) -> int:
    """Largest sum of the bytes that torch holds at a time for `work`, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    held = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="few classes, few rounds")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    rows, classes = arguments.rows, (10_000 if arguments.quick else arguments.classes)
    rounds = 3 if arguments.quick else arguments.rounds

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(rows, classes, generator=generator).requires_grad_()
    indices = torch.stack([torch.randperm(classes, generator=generator)[:50] for _ in range(rows)])
    counts = torch.randint(5, 51, (rows, 1), generator=generator)
    indices[torch.arange(50) >= counts] = -100
    dense = torch.zeros(rows, classes + 1, dtype=torch.bool)
    dense = dense.scatter_(1, indices.masked_fill(indices < 0, classes), True)[:, :-1].contiguous()
    numbers = dense.float()

    def trained(loss: Callable[[], torch.Tensor]) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        def work() -> tuple[torch.Tensor, torch.Tensor]:
            scores.grad = None
            value = loss()
            value.backward()
            return value.detach(), scores.grad

        return work

    ways = {
        "sparse": trained(lambda: sparse_zlpr_loss(scores, indices)),
        "dense, bool labels": trained(lambda: zlpr_loss(scores, dense)),
        "dense, float labels": trained(lambda: zlpr_loss(scores, numbers)),
    }
    seconds = take_turns(ways, rounds, warmup=2)
    memory, results = {}, {}
    for name, work in ways.items():
        value, gradient = work()
        results[name] = (value, gradient.clone())
        scores.grad = None
        memory[name] = peak_bytes(work)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name in ways:
        print(f"{name:20s} {1e3 * medians[name]:7.2f} ms, peak {memory[name] / 2**20:6.1f} MiB", flush=True)
    ours, peer = results["sparse"], results["dense, bool labels"]
    found = {
        f"time <= {TIME_GOAL} of dense": (medians["sparse"] / medians["dense, bool labels"], TIME_GOAL),
        f"memory <= {MEMORY_GOAL} of dense": (memory["sparse"] / memory["dense, bool labels"], MEMORY_GOAL),
        f"value within {ERROR_GOAL:g}": (float((ours[0] - peer[0]).abs()), ERROR_GOAL),
        f"gradient within {ERROR_GOAL:g}": (float((ours[1] - peer[1]).abs().max()), ERROR_GOAL),
    }
    for goal, (value, bound) in found.items():
        print(f"goal {goal}: {value:.3g} {'met' if value <= bound else 'MISSED'}", flush=True)
    record = {
        "rows": rows,
        "classes": classes,
        "rounds": rounds,
        "seconds": seconds,
        "peak_bytes": memory,
        "goals": {goal: {"value": value, "met": value <= bound} for goal, (value, bound) in found.items()},
    }
    write_record(arguments.out, record, "torch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
