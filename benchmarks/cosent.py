"""CoSENT beside sentence-transformers, from cosines to their gradient, in one run.

    python benchmarks/cosent.py [--quick] [--rounds 20] [--out FILE]

Three ways: ours (sorted, linear memory); the matrix of all pairs, as the author's code and sentence-transformers up to
6.1 compute it; and the installed sentence-transformers, which sorts from 6.2 on. They take turns; times are medians.
Goals at a batch of 4,096: at least 10 times less memory than the matrix, and its gradient (in float64) to 1e-6.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from _shared import take_turns, write_record
from kexue.losses import cosent_loss

BATCH, MEMORY_GOAL, GRADIENT_GOAL = 4096, 10.0, 1e-6
WAYS = ("ours", "matrix", "sentence-transformers")
FLOOR = 64 * 1024  # bytes; less cannot be told apart from the pages a process has anyway


def matrix(cosines: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log(1 + sum exp) over the differences of all pairs, those that do not count pushed down by 1e12."""
    scores = 20 * cosines
    differences = scores[:, None] - scores[None, :]
    counted = (labels[:, None] < labels[None, :]).to(scores.dtype)
    terms = (differences - (1 - counted) * 1e12).view(-1)
    return torch.cat([torch.zeros(1, dtype=scores.dtype), terms]).logsumexp(0)


def loss_of(way: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if way != "sentence-transformers":
        return cosent_loss if way == "ours" else matrix
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers.losses import CoSENTLoss

    peer = CoSENTLoss(None, similarity_fct=lambda cosines, _: cosines)
    return lambda cosines, labels: peer.compute_loss_from_embeddings([cosines, cosines], labels)


def batch(size: int, levels: int = 6, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    cosines = 2 * torch.rand(size, generator=generator) - 1
    return cosines.to(dtype).requires_grad_(), torch.randint(levels, (size,), generator=generator).float()


def gradient(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], size: int, **options: object) -> torch.Tensor:
    cosines, labels = batch(size, **options)
    return torch.autograd.grad(loss(cosines, labels), cosines)[0].double()


def peak(way: str, size: int) -> int:
    """Bytes at the peak of loss and gradient beyond what was there, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (way, size))


def _peak(way: str, size: int) -> int:
    torch.set_num_threads(1)
    loss = loss_of(way)
    gradient(loss, 16)  # libraries are loaded
    cosines, labels = batch(size)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _status("VmRSS")
    torch.autograd.grad(loss(cosines, labels), cosines)
    return max(1024 * (_status("VmHWM") - before), FLOOR)


def _status(field: str) -> int:
    """A figure of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.rounds

    wanted = [(way, BATCH) for way in WAYS] + [(WAYS[0], size * BATCH) for size in (4, 64)]
    memory = {(way, size): peak(way, size) for way, size in wanted}
    for (way, size), used in memory.items():
        print(f"memory, batch {size:>7,}: {way} {used / 2**20:.2f} MiB", flush=True)
    losses = {way: loss_of(way) for way in WAYS}
    seconds = take_turns({way: partial(gradient, loss, BATCH) for way, loss in losses.items()}, rounds, warmup=1)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    print(f"loss and gradient, batch {BATCH:,}: " + ", ".join(f"{w} {1000 * m:.2f} ms" for w, m in medians.items()))
    exact = gradient(matrix, BATCH, dtype=torch.float64)
    errors = {way: (gradient(loss, BATCH) - exact).abs().max().item() for way, loss in losses.items()}
    double = (gradient(losses["ours"], BATCH, dtype=torch.float64) - exact).abs().max().item()
    print("largest error of the float32 gradient: " + ", ".join(f"{way} {e:.1e}" for way, e in errors.items()))
    print(f"ours in float64: {double:.1e}")

    ratio = memory["matrix", BATCH] / memory["ours", BATCH]
    goals = {
        f"memory <= 1/{MEMORY_GOAL:g} of the matrix": {"value": ratio, "met": ratio >= MEMORY_GOAL},
        f"gradient within {GRADIENT_GOAL:g}": {"value": errors["ours"], "met": errors["ours"] <= GRADIENT_GOAL},
    }
    for goal, verdict in goals.items():
        print(f"goal {goal}: {verdict['value']:.3g} {'met' if verdict['met'] else 'MISSED'}", flush=True)
    record = {
        "batch": BATCH,
        "memory_bytes": {f"{way} {size}": used for (way, size), used in memory.items()},
        "seconds": seconds,
        "gradient_error_float32": errors,
        "gradient_error_float64": double,
        "goals": goals,
    }
    write_record(arguments.out, record, "torch", "sentence-transformers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
