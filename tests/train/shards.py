"""Optimizers built, and some used, before Trainer shards the model; prints how far they end from those unsharded."""

import json
import os
import socket
import tempfile

with socket.socket() as _free:
    _free.bind(("127.0.0.1", 0))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free.getsockname()[1])}

import torch
from torch import nn
from torch.optim import Adagrad, Adam

from kexue.optim import EMA, Adafactor, DecoupledWeightDecay, LayerAdaptation, Lazy, Lookahead
from kexue.train import LossOutput, TrainConfig, Trainer
from kexue.train.distributed import full_state

ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
MAKERS = {
    "state from the start": lambda m: Adagrad(m.named_parameters(), lr=0.1, initial_accumulator_value=0.5),
    "lazy": lambda m: Lazy(Adam(m.named_parameters(), lr=0.1), [m.table.weight]),
    "lazy strict, used": lambda m: EMA(Lazy(Adam(m.named_parameters(), lr=0.1), [m.table.weight], mode="strict")),
    "excluded": lambda m: LayerAdaptation(
        DecoupledWeightDecay(Adam(m.named_parameters(), lr=0.1), 0.5, exclude=[m.line.bias]),
        exclude=lambda name, p: p.dim() < 2,
    ),
    "lookahead, used": lambda m: Lookahead(Adafactor(m.named_parameters(), lr=0.1), 2),
}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.line = nn.Embedding(5, 2), nn.Linear(2, 2)

    def training_step(self, batch, **_):
        return LossOutput(self.line(self.table(batch)).square().sum())


def end(name, kind):
    torch.manual_seed(0)
    model = Model()
    optimizer = MAKERS[name](model)
    if "used" in name:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    config = TrainConfig(tempfile.mkdtemp(), steps=5, distributed=kind, device="cpu", log=())
    Trainer(model, optimizer, config).fit([torch.tensor([0, 1]), torch.tensor([1, 3]), torch.tensor([2, 2])])
    return {key: full_state(value) for key, value in model.state_dict().items()}


def main():
    whole = {name: end(name, "none") for name in MAKERS}
    os.environ |= ONE
    gaps = {}
    for name, wanted in whole.items():
        got = end(name, "fsdp2")
        gaps[name] = max(float((got[key] - wanted[key]).abs().max()) for key in wanted)
    print(json.dumps(gaps), flush=True)
    os._exit(0)  # without the farewells of gloo


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
