"""Evaluation of a model during its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kexue._tensors import evaluating
from kexue.train._random import fork_random
from kexue.train.config import TrainConfig
from kexue.train.distributed import Processes
from kexue.train.state import RunState

Evaluate = Callable[[Any], Mapping[str, float]]


def compute_metrics(state: RunState, evaluate: Evaluate, config: TrainConfig, processes: Processes) -> dict[str, float]:
    """Metrics of the model as it is: in evaluation mode, with averaged weights and separate random generators.

    Raises:
        TypeError: `evaluate` returned something other than numbers by name.
        ValueError: `config.monitor` is not among them.
    """
    model = state.model
    with (
        evaluating(model),
        fork_random(config.seed, state.position.step, 1, device=processes.device),
        torch.no_grad(),
        state.averaged_weights(),
        processes.gather_weights(model),
    ):
        metrics: dict[str, float] = processes.first(_read_metrics(evaluate(model)))
    if config.monitor is not None and config.monitor not in metrics:
        raise ValueError(f"monitor is {config.monitor!r}, evaluate returned {', '.join(metrics)}")
    return metrics


def record_metrics(state: RunState, metrics: Mapping[str, float], config: TrainConfig) -> bool:
    """Record an evaluation in the position of the run; return whether the model is the best so far."""
    position = state.position
    position.evaluated = position.step
    if config.monitor is None:
        return False
    value, best = metrics[config.monitor], position.best_value
    better = best is None or (value > best if config.mode == "max" else value < best)
    position.stale = 0 if better and not math.isnan(value) else position.stale + 1
    if position.stale == 0:
        position.best_step, position.best_value = position.step, value
    return position.stale == 0


def step_plateaus(state: RunState, value: float) -> None:
    """Step the schedulers that follow the monitored value."""
    for scheduler in state.schedulers:
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(value)


def _read_metrics(metrics: Any) -> dict[str, float]:
    """The numbers that `evaluate` returned, as floats."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"evaluate must return numbers by name, got {metrics!r}")
    numbers = {}
    for name, value in metrics.items():
        try:
            numbers[name] = float("" if isinstance(value, str) else value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"evaluate must return numbers, got {value!r} for {name!r}") from error
    return numbers
