"""Two processes of this file train with DDP and in shards beside the whole; rank 0 prints how far they are apart."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam

from kexue.optim import Adafactor, extend

LAMB = (("weight_decay", {"rate": 0.1}), "layer_adaptation")
WAYS = {
    "decay of ours": lambda p: extend(Adafactor(p, lr=0.02), *LAMB[:1]),
    "lamb": lambda p: extend(Adam(p, lr=0.02), *LAMB),
    "piecewise": lambda p: extend(SGD(p, lr=0.02, foreach=True), ("piecewise_linear", {"schedule": {4: 1.0}})),
    "accumulation": lambda p: extend(Adam(p, lr=0.02), ("gradient_accumulation", {"steps": 2})),
    "lookahead": lambda p: extend(SGD(p, lr=0.02), ("lookahead", {"k": 2})),
    "lazy": lambda p: extend(Adam(p := list(p), lr=0.02), ("lazy", {"params": p[:1]})),
    "lazy strict": lambda p: extend(Adam(p := list(p), lr=0.02), ("lazy", {"params": p[:1], "mode": "strict"})),
    "all": lambda p: extend(
        Adam(p, lr=0.02), *LAMB, ("gradient_accumulation", {"steps": 2}), ("lookahead", {"momentum": "pullback"}), "ema"
    ),
}
IDS = torch.randint(0, 20, (8, 16), generator=torch.Generator().manual_seed(3))


def build() -> nn.Module:
    torch.manual_seed(0)  # 31 words and 7 rows split unevenly; of the last row rank 1 holds nothing
    return nn.Sequential(nn.Embedding(31, 6), nn.Linear(6, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 1)).double()


def train(model, optimizer, start: int, stop: int, rows: slice, context=contextlib.nullcontext) -> None:
    for step in range(start, stop):
        ids = IDS[step, rows]
        optimizer.zero_grad()
        with context():
            (model(ids)[:, 0] - ids / 20).square().mean().backward()
        optimizer.step()


def gap(model, whole) -> float:
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    return max(
        float(((a.full_tensor() if hasattr(a, "full_tensor") else a) - b).detach().abs().max()) for a, b in pairs
    )


def shards(name, make, mesh, mine, folder, gaps) -> None:
    whole = build()
    train(whole, make(whole.parameters()), 0, 8, slice(None))
    model = fully_shard(build(), mesh=mesh)
    optimizer = make(model.parameters())
    train(model, optimizer, 0, 5, mine)  # in the middle of a window, and of a cycle
    weights, state = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder / name)
    train(model, optimizer, 5, 8, mine)
    gaps[name] = gap(model, whole)

    again = fully_shard(build(), mesh=mesh)
    optimizer = make(again.parameters())
    weights, state = get_state_dict(again, optimizer)
    loaded = {"model": weights, "optimizer": state}
    checkpoint.load(loaded, checkpoint_id=folder / name)
    set_state_dict(again, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    for options in (StateDictOptions(), StateDictOptions(flatten_optimizer_state_dict=True)):  # there and back
        state = get_optimizer_state_dict(again, optimizer, options=options)
        fresh = make(again.parameters())
        set_optimizer_state_dict(again, fresh, state, options=options)
        optimizer = fresh
    train(again, optimizer, 5, 8, mine)
    gaps[f"{name}, resumed"] = gap(again, whole)


def replicas(name, make, mine, gaps) -> None:
    """DDP; with accumulation also without sharing but at the update, by a hook."""
    whole = build()
    train(whole, make(whole.parameters()), 0, 8, slice(None))
    for views in (False, True):
        model = DistributedDataParallel(build(), gradient_as_bucket_view=views)
        train(model, make(model.parameters()), 0, 8, mine)
        gaps[f"{name}, ddp {views}"] = gap(model, whole)
    if name == "accumulation":
        model = DistributedDataParallel(build())
        optimizer = make(model.parameters())

        def share(inner, *_) -> None:
            for group in inner.param_groups:
                for p in group["params"]:
                    dist.all_reduce(p.grad)
                    p.grad /= dist.get_world_size()

        optimizer.inner.register_step_pre_hook(share)
        train(model, optimizer, 0, 8, mine, model.no_sync)
        gaps["accumulation, no_sync"] = gap(model, whole)


def accumulation_in_fsdp(mesh, mine, gaps) -> None:
    """Shards that share gradients at the update only: FSDP adds them up, and hands over the sum at the end."""
    whole = build()
    train(whole, WAYS["accumulation"](whole.parameters()), 0, 8, slice(None))
    model = fully_shard(build(), mesh=mesh)
    optimizer = WAYS["accumulation"](model.parameters())
    for step in range(8):
        model.set_requires_gradient_sync(optimizer.is_boundary)
        train(model, optimizer, step, step + 1, mine)
    gaps["accumulation, fsdp without sync"] = gap(model, whole)


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder / 'meet'}")
    mesh = init_device_mesh("cpu", (2,))
    mine = slice(8 * rank, 8 * rank + 8)
    gaps: dict[str, float] = {}
    for name, make in WAYS.items():
        shards(name, make, mesh, mine, folder, gaps)
    for name in ("accumulation", "lazy strict", "all"):
        replicas(name, WAYS[name], mine, gaps)
    accumulation_in_fsdp(mesh, mine, gaps)
    if rank == 0:
        print(json.dumps(gaps))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # without the interpreter's own end, at which a thread of gloo sometimes aborts the process
