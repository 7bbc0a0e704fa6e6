"""Small models and data for the tests of the loop; a test of a kill runs this file as a program."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from kexue.losses import InfoNCELoss
from kexue.train import GradCache, LossOutput, TrainConfig, Trainer


def points(n=90, dim=5):
    """Points around the origin and on which side of a plane they lie."""
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(11))
    return x, (x.sum(1) > 0).long()


def loader(batch_size=8, **options):
    return DataLoader(TensorDataset(*points()), batch_size, **{"shuffle": True} | options)


class Classifier(nn.Module):
    """Has all a resume can get wrong: dropout, running statistics, and noise from the step's generator."""

    def __init__(self, dropout=0.3, noise=0.1, norm=True):
        super().__init__()
        middle = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.net = nn.Sequential(nn.Linear(5, 8), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2))
        self.noise = noise

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, *, optimizer_index=0, generator=None):
        x, y = batch
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator, device=x.device)
        scores = self.net(x)
        right = (scores.argmax(1) == y).float().mean()
        return LossOutput(functional.cross_entropy(scores.float(), y), {"accuracy": right})


class TinyGAN(nn.Module):
    """Two optimizers: index 0 trains the critic, 1 the generator."""

    def __init__(self):
        super().__init__()
        self.make = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
        self.critic = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))

    def sample(self, n, generator=None):
        return self.make(torch.randn(n, 3, generator=generator))

    def training_step(self, batch, *, optimizer_index=0, generator=None):
        fake = self.sample(len(batch), generator)
        if optimizer_index == 0:
            loss = (
                functional.relu(1 - self.critic(batch)).mean() + functional.relu(1 + self.critic(fake.detach())).mean()
            )
            return LossOutput(loss, {"critic": loss})
        loss = -self.critic(fake).mean()
        return LossOutput(loss, {"generator": loss})


class Contrastive(nn.Module):
    """Two noisy views of a row find one another; whole batch or in chunks."""

    def __init__(self, chunk_size=None, noise=0.1):
        super().__init__()
        self.noise = noise
        self.encoder = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4))
        self.loss = InfoNCELoss(0.2)
        self.cache = chunk_size and GradCache(self.encoder, self.loss, chunk_size=chunk_size)

    def training_step(self, batch, *, optimizer_index=0, generator=None):
        a, b = (batch[0] + self.noise * torch.randn(batch[0].shape, generator=generator) for _ in range(2))
        return self.cache.step((a, b)) if self.cache else LossOutput(self.loss(self.encoder(a), self.encoder(b)))


def accuracy(model):
    x, y = points(60)
    return {"accuracy": (model(x).argmax(1) == y).float().mean()}


def make_run(out, *, callbacks=(), model=None, schedule=True, **options):
    """A trainer of the classifier with everything in it, and what `fit` takes."""
    torch.manual_seed(1)
    model = model or Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)] if schedule else []
    settings = {"steps": 20, "accumulate": 2, "clip": 1.0, "ema": 0.9, "monitor": "accuracy", "log": ("jsonl",)}
    config = TrainConfig(out, **settings | {"device": "cpu"} | options)
    return Trainer(model, optimizer, config, schedulers=schedules, callbacks=callbacks)


def train_slowly(out):
    """A run that takes long enough to be killed."""
    make_run(out, save_every=1, callbacks=[lambda *_: time.sleep(0.005)]).fit(loader(), evaluate=accuracy)


class Branches(nn.Module):
    """Uses one of its two branches, a third one never, and says what its loss is a mean over."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(5, 1) for _ in range(3))

    def training_step(self, batch, **_):
        x, y = batch
        scores = self.branches[int(x[0, 0] > 0)](x)
        return LossOutput((scores[:, 0] - y).square().mean(), {"tokens": 1 + y.sum(), "score": scores.mean()})


class Line(nn.Module):
    """The mean square of x w + b."""

    def __init__(self, **parts):
        super().__init__()
        self.line = nn.Linear(3, 1)
        self.parts = parts

    def forward(self, x):
        return self.line(x)

    def training_step(self, batch, **_):
        x = batch[0] if isinstance(batch, (list, tuple)) else batch
        return LossOutput(self(x).square().mean(), self.parts)


def run_of(out, model=None, *, optimizer=None, schedulers=(), **options):
    torch.manual_seed(0)
    model = Line() if model is None else model
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    config = TrainConfig(out, **{"steps": 6, "device": "cpu", "log": ("jsonl",)} | options)
    return Trainer(model, optimizer, config, schedulers=list(schedulers))


def rows(n=8):
    return list(torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(1)))


def records(out):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


MODELS = {
    "branches": Branches,
    "classifier": Classifier,
    "plain": lambda: Classifier(dropout=0, noise=0, norm=False),
    "chunks": lambda: Contrastive(chunk_size=2, noise=0),
}


def main():
    """Make the runs on the command line (JSON), in all the processes that torchrun started.

    ``die`` in a run: where a process kills itself, as (times restarted, rank, step).
    """
    for options in json.loads(sys.argv[1]):
        fatal, batch_size = options.pop("die", None), options.pop("batch_size", 8)

        def die(trainer, _record, fatal=fatal):
            place = [int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), trainer.processes.rank, trainer.place.step]
            if place == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.manual_seed(1)
        model = MODELS[options.pop("model")]()
        monitor = {} if isinstance(model, Classifier) else {"monitor": None}
        run = make_run(callbacks=[die], model=model, **options, **monitor)
        run.fit(loader(batch_size, drop_last=True), evaluate=accuracy if isinstance(model, Classifier) else None)


if __name__ == "__main__":
    main()
