"""Vector quantisation, forward and backward, beside vector-quantize-pytorch at equal settings.

    python benchmarks/quantize.py [--quick] [--out FILE]

65,536 rows of 64 against 4,096 codes. Two races: a plain codebook learnt by gradient with straight-through, and SimVQ
(a frozen codebook behind a linear map) with the rotation. Both sides get the same codes, rows and weights of the
losses; the codes they choose and the gradients at the rows are compared first. Figures are medians over rounds taken
in turns.
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
from kexue.nn import VectorQuantizer

GOAL = 0.9
DIM = 64


def step(module: nn.Module, rows: Tensor, loss_of: Callable[[Any], Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    """Forward, the loss and something that depends on the output, backward; returns codes and gradient."""
    z = rows.clone().requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        z.grad = None
        module.zero_grad()
        out = module(z)
        (out[0].square().mean() + loss_of(out)).backward()
        assert z.grad is not None
        return out[1].flatten(), z.grad.reshape(-1, DIM)

    return run


def pair(kind: str, codes: int) -> tuple[VectorQuantizer, nn.Module]:
    """Ours and theirs with the same codes, the same weights of both losses."""
    from vector_quantize_pytorch import SimVQ, VectorQuantize

    if kind == "plain":
        ours = VectorQuantizer(DIM, codes)
        theirs = VectorQuantize(
            DIM, codes, learnable_codebook=True, ema_update=False, commitment_weight=0.25, rotation_trick=False
        )
        with torch.no_grad():
            theirs._codebook.embed.copy_(ours.codebook)
        return ours, theirs
    ours = VectorQuantizer(DIM, codes, parametrization="linear", gradient="rotation")
    simvq = SimVQ(DIM, codes)
    simvq.frozen_codebook.copy_(ours.codes)
    with torch.no_grad():
        simvq.code_transform.weight.copy_(torch.eye(DIM))
    return ours, simvq


def race(kind: str, rows: Tensor, codes: int, rounds: int) -> dict[str, float]:
    ours, theirs = pair(kind, codes)
    ways = {
        "ours": step(ours, rows, lambda out: out.loss),
        "peer": step(theirs, rows[None], lambda out: out[2].sum()),
    }
    (mine, my_gradient), (peer, peer_gradient) = (way() for way in ways.values())
    same = mine == peer
    gap = float((my_gradient - peer_gradient)[same].norm() / peer_gradient.norm())
    seconds = take_turns(ways, rounds, warmup=1)
    figures = {name: median(times) for name, times in seconds.items()}
    figures |= {"ratio": median(a / b for a, b in zip(seconds["ours"], seconds["peer"], strict=True))}
    figures |= {"same_codes": float(same.float().mean()), "gradient_gap": gap}
    print(
        f"{kind}: {figures['ours']:.2f} s, peer {figures['peer']:.2f} s: {figures['ratio']:.2f} of its time; "
        f"{100 * figures['same_codes']:.2f} % of the codes the same, gradients there to {gap:.0e}",
        flush=True,
    )
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4,096 rows, 512 codes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    try:
        import vector_quantize_pytorch  # noqa: F401
    except ImportError:
        print("vector-quantize-pytorch is not installed: no peer, nothing to measure")
        return 0
    count, codes, rounds = (4096, 512, 3) if arguments.quick else (65_536, 4096, 9)
    torch.manual_seed(0)
    rows = torch.randn(count, DIM)
    races = {kind: race(kind, rows, codes, rounds) for kind in ("plain", "simvq")}
    met = all(figures["ratio"] <= GOAL for figures in races.values())
    print(f"goal of {GOAL} of the peer's time: {'met' if met else 'MISSED'}")
    record = {"races": races, "rows": count, "dim": DIM, "codes": codes, "rounds": rounds, "goal": GOAL}
    write_record(arguments.out, record, "torch", "vector-quantize-pytorch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
