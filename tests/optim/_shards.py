"""Two processes of this file train shards beside the whole; rank 0 prints as JSON how far they are apart."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from kexue.optim import Adafactor, AdaX

WAYS = {
    "adafactor": lambda params: Adafactor(params, lr=0.05, beta1=0.5, weight_decay=0.1),
    "adafactor_relative": lambda params: Adafactor(params, lr=None, foreach=True),
    "adax": lambda params: AdaX(params, lr=0.01, weight_decay=0.1),
    "adax_foreach": lambda params: AdaX(params, lr=0.01, foreach=True),
}
X = torch.randn(16, 130, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def build() -> nn.Module:
    torch.manual_seed(0)  # 171 rows split unevenly; of the one row of the last layer rank 1 holds nothing
    return nn.Sequential(nn.Linear(130, 171), nn.Tanh(), nn.LayerNorm(171), nn.Linear(171, 1)).double()


def train(model, optimizer, steps: int, x) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).sub(1).square().mean().backward()
        optimizer.step()


def gap(model, whole) -> float:
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    return max(float((a.full_tensor() - b).detach().abs().max()) for a, b in pairs)


def columns(mesh) -> float:
    """A matrix split along its columns, so that it is the other mean that needs the sum over processes."""
    whole = torch.randn(130, 171, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    split = nn.Parameter(distribute_tensor(whole, mesh, [Shard(1)]))
    whole = nn.Parameter(whole)
    for p in (whole, split):
        optimizer = Adafactor([p], lr=0.1)
        for _ in range(3):
            p.grad = (p * p * p).detach()
            optimizer.step()
    return float((split.full_tensor() - whole).detach().abs().max())


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder / 'meet'}")
    mesh = init_device_mesh("cpu", (2,))
    mine = X[8 * rank : 8 * rank + 8]
    gaps = {"columns": columns(mesh)}
    for name, make in WAYS.items():
        whole = build()
        train(whole, make(whole.parameters()), 6, X)
        model = fully_shard(build(), mesh=mesh)
        optimizer = make(model.parameters())
        train(model, optimizer, 3, mine)
        weights, state = get_state_dict(model, optimizer)
        checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder / name)
        train(model, optimizer, 3, mine)
        gaps[name] = gap(model, whole)

        again = fully_shard(build(), mesh=mesh)
        optimizer = make(again.parameters())
        weights, state = get_state_dict(again, optimizer)
        loaded = {"model": weights, "optimizer": state}
        checkpoint.load(loaded, checkpoint_id=folder / name)
        set_state_dict(again, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
        train(again, optimizer, 3, mine)
        gaps[f"{name}_resumed"] = gap(again, whole)
    if rank == 0:
        print(json.dumps(gaps))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # without the interpreter's own end, at which a thread of gloo sometimes aborts the process
