"""Training within an experiment: `kexue.train.Trainer`, in float32 on the CPU, without files that remain.

Batches and noise are drawn by the experiment from its own generators, so that a report depends on its seed alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from kexue._optional import import_optional


class Training(NamedTuple):
    """Results of `evaluate` in order, number of steps, and seconds from the first step to the end of the last."""

    evaluations: list[Any]
    steps: int
    seconds: float


class _TargetReachedError(Exception):
    """Raised when `until` returned True."""


def fit(
    modules: Any,
    loss: Callable[..., Any],
    batches: Iterable[Any],
    optimizers: Any,
    *,
    scheduler: Any = None,
    evaluate: Callable[[], Any] | None = None,
    every: int | None = None,
    until: Callable[[], bool] | None = None,
) -> Training:
    """Take one optimization step for each of `batches`, in order.

    Args:
        modules: the module, or the list of modules, with every trained parameter.
        loss: ``loss(batch)``, a scalar tensor; with a list of optimizers ``loss(batch, index)``.
        batches: read into a list before the first step; a batch is anything that `loss` accepts, such as row numbers.
            An empty one changes nothing.
        optimizers: one optimizer, or a list of which each in turn takes a step on every batch; one may be listed twice.
        scheduler: a `torch.optim.lr_scheduler`, stepped after each step.
        evaluate: called in evaluation mode and without gradients, every `every` steps and after the last one.
        every: steps, >= 1; None = after the last step only.
        until: called after each step; True ends the training.

    Raises:
        NonFiniteLossError: the loss or a parameter became infinite or NaN.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP arrived.
    """
    from kexue.train import TrainConfig, Trainer

    batches = list(batches)
    answers: list[Any] = []
    times: list[float] = []

    def record(_model: Any) -> dict[str, float]:
        if evaluate is not None:
            answers.append(evaluate())
        return {}

    def after_step(_trainer: Any, _record: Any) -> None:
        times.append(time.perf_counter())
        if until is not None and until():
            raise _TargetReachedError

    if batches:
        task = _build_task(modules, loss, several=isinstance(optimizers, Sequence), times=times)
        with tempfile.TemporaryDirectory() as folder, suppress(_TargetReachedError):
            rare = len(batches)  # one checkpoint, at the end
            config = TrainConfig(
                folder, epochs=1, precision="fp32", device="cpu", log=(), eval_every=every or rare, save_every=rare
            )
            trainer = Trainer(task, optimizers, config, schedulers=scheduler, callbacks=[after_step])
            if trainer.fit(batches, evaluate=record).interrupted:
                raise KeyboardInterrupt
    return Training(answers, max(len(times) - 1, 0), times[-1] - times[0] if times else 0.0)


def train_by_name(config: Any) -> None:
    """Train a model of `kexue model train` as a `ModelConfig` says.

    Raises:
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP arrived, so that the model is not trained to the end.
    """
    generative = import_optional("kexue.generative", extra="generative")
    if generative.train_model(config).interrupted:
        raise KeyboardInterrupt


def _build_task(modules: Any, loss: Callable[..., Any], *, several: bool, times: list[float]) -> Any:
    """Return a module whose step is `loss`; it records in `times` when the first step begins."""
    nn = import_optional("torch.nn", extra="train")
    from kexue.train import LossOutput

    class Task(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(modules if isinstance(modules, Sequence) else [modules])

        def training_step(self, batch: Any, *, optimizer_index: int = 0, generator: Any = None) -> LossOutput:
            if not times:
                times.append(time.perf_counter())
            return LossOutput(loss(batch, optimizer_index) if several else loss(batch))

    return Task()


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """A block in which torch's global CPU generator starts from `seed`; afterwards it is as before."""
    torch = import_optional("torch", extra="train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def shuffled_rows(n: int, size: int, epochs: int, generator: Any = None) -> list[Any]:
    """Row numbers of the batches of several epochs, each epoch in a new order.

    Args:
        n: number of rows.
        size: rows of a batch; the last one of an epoch may be smaller.
        epochs: passes over the rows.
        generator: a torch or a numpy generator; None = torch's global one.
    """
    torch = import_optional("torch", extra="train")

    def permute() -> Any:
        if isinstance(generator, np.random.Generator):
            return torch.from_numpy(generator.permutation(n))
        return torch.randperm(n, generator=generator)

    return [rows for _ in range(epochs) for rows in permute().split(size)]


def build_mlp(*widths: int, activation: Any = None) -> Any:
    """Linear layers of the given widths with an activation (a module class, default ReLU) between them."""
    nn = import_optional("torch.nn", extra="train")
    layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), (activation or nn.ReLU)())]
    return nn.Sequential(*layers[:-1])


def share_right(classify: Callable[[Any], Any], x: Any, y: Any) -> float:
    """Accuracy: share of rows whose largest score is at the label."""
    torch = import_optional("torch", extra="train")
    with torch.no_grad():
        return float((classify(x).argmax(-1) == y).double().mean())
