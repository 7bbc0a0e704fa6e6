"""A run whose whole process group hears a signal; `signalled.py OUT KIND SIGNAL` prints how it ended.

KIND: fork, spawn, forkserver (of the workers of training), iterable (a data set without length), evaluating (the signal
comes while workers make the data of an evaluation), idle (an evaluation's workers wait all the time), mortal (a worker
dies by itself), alone (no workers).
"""

import json
import os
import signal
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kexue.train import LossOutput, TrainConfig, Trainer


class Rows(Dataset):
    def __init__(self, n=40, sign=None, fatal=None):
        self.n, self.sign, self.fatal = n, sign, fatal

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if self.sign is not None and index == 3:
            os.killpg(0, self.sign)
        if index == self.fatal:
            time.sleep(1)  # until the batches before it were taken over
            os._exit(3)
        return torch.full((2,), index / 10.0)


class Stream(IterableDataset):
    def __len__(self):
        return 40

    def __iter__(self):
        return (torch.full((2,), index / 10.0) for index in range(40))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 1)

    def training_step(self, batch, **_):
        return LossOutput((self.line(batch) - batch.sum(1, keepdim=True)).square().mean())


def loader_of(kind):
    if kind == "alone":
        return DataLoader(Rows(), 2)
    context = kind if kind in {"spawn", "forkserver"} else None
    data = Stream() if kind == "iterable" else Rows(fatal=13 if kind == "mortal" else None)
    return DataLoader(data, 2, num_workers=1, multiprocessing_context=context)


def main(out, kind, name):
    sign = getattr(signal, name, None)
    torch.manual_seed(0)
    model = Model()
    idle = DataLoader(Rows(6), 2, num_workers=1, persistent_workers=True)

    def evaluate(tested):
        loader = DataLoader(Rows(6), 2)
        if kind == "idle":
            loader = idle
        elif kind == "evaluating" and trainer.place.step == 6 and sign:
            loader = DataLoader(Rows(6, sign), 2, num_workers=1)
        return {"loss": sum(float(tested.training_step(batch).loss) for batch in loader)}

    def strike(trainer, _record):
        if sign and trainer.place.step == 5 and kind != "evaluating":
            os.killpg(0, sign)

    config = TrainConfig(
        out, steps=12, eval_every=3, save_every=4, monitor="loss", mode="min", log=("jsonl",), device="cpu"
    )
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.01), config, callbacks=[strike])
    result = trainer.fit(loader_of(kind), evaluate=evaluate)
    print(json.dumps({"steps": result.steps, "interrupted": result.interrupted}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
