"""What each optimizer wrapper adds to a step of AdamW on the parameters of BERT-base.

    python benchmarks/optimizer_wrappers.py [--quick] [--device cpu|cuda] [--only NAME] [--out FILE]

110 million float32 parameters in 199 tensors, without a model: gradients are fixed. The inner optimizer is AdamW, as
foreach and as fused; bare and wrapped take turns on the same parameters and moments. Beside the step alone stands the
share of a training step: that of the same model on 8 x 128 tokens, forward and backward. GradientAccumulation is timed
over a window of four, beside autograd's way of adding up in `p.grad`; Lookahead over a whole cycle of five updates.
Figures are medians over rounds of the ratio within a round, of CPU time on a CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW

from _shared import write_record
from kexue.optim import extend

GOAL, GOAL_OF_FOUR = 0.05, 0.10
WINDOW = 4
STACKS: dict[str, tuple[object, ...]] = {
    "weight_decay": ("weight_decay",),
    "piecewise_linear": (("piecewise_linear", {"schedule": {0: 1.0}}),),
    "piecewise_linear, warm": (("piecewise_linear", {"schedule": {1000: 1.0}}),),
    "lazy, strict": ("lazy strict",),
    "lazy, strict, marked": ("lazy strict",),
    "lazy, masked": ("lazy masked",),
    "lazy, masked, marked": ("lazy masked",),
    "lookahead": ("lookahead",),
    "gradient_accumulation": (("gradient_accumulation", {"steps": WINDOW}),),
    "ema": ("ema",),
    "layer_adaptation": ("layer_adaptation",),
    "four: decay, schedule, accumulation, lookahead": (
        "weight_decay",
        ("piecewise_linear", {"schedule": {1000: 1.0}}),
        ("gradient_accumulation", {"steps": WINDOW}),
        "lookahead",
    ),
    "four: decay, layer_adaptation, schedule, ema": (
        "weight_decay",
        "layer_adaptation",
        ("piecewise_linear", {"schedule": {1000: 1.0}}),
        "ema",
    ),
}


def shapes(quick: bool) -> list[tuple[int, ...]]:
    """Those of BERT-base without a head; the word embedding comes first."""
    d, layers = (96, 2) if quick else (768, 12)
    block: list[tuple[int, ...]] = [(d, d), (d,)] * 4 + [(d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,), (d,), (d,)]
    return [(30_522, d), (512, d), (2, d), (d,), (d,), *block * layers, (d, d), (d,)]


def prepare(quick: bool, device: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Parameters and two sets of gradients; those of the word embedding stand in 1,024 rows, as of 8 x 128 tokens."""
    generator = torch.Generator().manual_seed(0)
    sets = [[torch.randn(shape, generator=generator).to(device) for shape in shapes(quick)] for _ in range(3)]
    for grads in sets[1:]:
        touched = torch.randperm(len(grads[0]), generator=generator)[:1024].to(device)
        grads[0] = torch.zeros_like(grads[0]).index_copy_(0, touched, grads[0][touched])
    return [Parameter(p) for p in sets[0]], sets[1], sets[2]


def race(name: str, kind: str, data: tuple[list[Tensor], list[Tensor], list[Tensor]], rounds: int) -> dict[str, float]:
    params, grads, more = data
    inner = AdamW(params, lr=1e-6, weight_decay=0.0, foreach=kind == "foreach", fused=kind == "fused")
    layers = STACKS[name]
    made = [("lazy", {"params": params[:1], "mode": str(w)[5:]}) if str(w).startswith("lazy ") else w for w in layers]
    wrapped = extend(inner, *made)  # type: ignore[arg-type]
    updates = 5 if "lookahead" in name else 1
    micro = WINDOW if "accumulation" in name else 1

    words = grads[0].any(1).nonzero()[:, 0]

    def give(tensors: list[Tensor]) -> None:
        for p, g in zip(params, tensors, strict=True):
            p.grad = g

    def plain() -> None:
        for _ in range(updates):
            give(grads)
            for _ in range(micro - 1):
                torch._foreach_add_(grads, more)  # what autograd does where a gradient is there already
            inner.step()
        sync(params)

    def ours() -> None:
        for _ in range(updates):
            for number in range(micro):
                give(more if number else grads)
                if "marked" in name:
                    wrapped.mark(params[0], words)  # type: ignore[attr-defined]
                wrapped.step()
        sync(params)

    seconds = measure({"plain": plain, "ours": ours}, rounds, params[0].is_cuda)
    ratio = median(a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True))
    figures = {"step": median(seconds["plain"]) / updates, "overhead": ratio - 1}
    figures["extra"] = figures["step"] * figures["overhead"]  # seconds an update
    print(f"{kind:8}{name:52}{1e3 * figures['step']:8.1f} ms {100 * figures['overhead']:+7.1f} %", flush=True)
    give([None] * len(params))  # type: ignore[list-item]
    return figures


def backward(quick: bool, device: str) -> float:
    """Seconds of forward and backward of BERT-base on 8 x 128 tokens."""
    from kexue.nn import Transformer, TransformerConfig

    torch.manual_seed(0)
    config = TransformerConfig(30_522, 96, 2, 4) if quick else TransformerConfig(30_522, 768, 12, 12)
    model = Transformer(config).to(device)
    ids = torch.randint(30_522, (8, 128), device=device)

    def run() -> None:
        model.zero_grad()
        model(ids).last_hidden_state.square().mean().backward()
        sync([ids])

    return median(measure({"model": run}, 3, ids.is_cuda)["model"])


def measure(ways: dict[str, Callable[[], None]], rounds: int, cuda: bool) -> dict[str, list[float]]:
    """Seconds of each way, in turns after a warm-up; on a CPU of this process alone, which shuts out other jobs."""
    clock = time.perf_counter if cuda else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, rounds):
        for name in sorted(ways, reverse=number % 2 == 0):
            start = clock()
            ways[name]()
            if number >= 0:
                seconds[name].append(clock() - start)
    return seconds


def sync(tensors: list[Tensor]) -> None:
    if tensors[0].is_cuda:
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers of width 96")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", help="wrappers whose name contains this")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else 7
    data = prepare(arguments.quick, arguments.device)
    model = backward(arguments.quick, arguments.device)
    print(f"forward and backward, 8 x 128 tokens: {model:.2f} s; {sum(p.numel() for p in data[0]):,} parameters")
    races: dict[str, dict[str, dict[str, float]]] = {}
    for kind in ("foreach", "fused"):
        for name in STACKS:
            if arguments.only is None or arguments.only in name:
                figures = race(name, kind, data, rounds)
                micro = WINDOW if "accumulation" in name else 1
                figures["of_training"] = figures["extra"] / (figures["step"] + micro * model)
                races.setdefault(kind, {})[name] = figures
    for kind, figures_of in races.items():
        for what in ("overhead", "of_training"):
            goal = {name: GOAL_OF_FOUR if name.startswith("four") else GOAL for name in figures_of}
            missed = {name: f"{100 * f[what]:.1f} %" for name, f in figures_of.items() if f[what] > goal[name]}
            print(f"{kind}, {what} within 5 % (four: 10 %): {'all' if not missed else f'all but {missed}'}")
    record = {"races": races, "forward_backward": model, "rounds": rounds, "device": arguments.device, "goal": GOAL}
    write_record(arguments.out, record, "torch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
