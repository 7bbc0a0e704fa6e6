"""One step of a run: every optimizer in turn, each on the mean loss of some batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kexue.optim.stack import parameters
from kexue.train._weights import BatchWeights
from kexue.train.config import LossOutput, TrainConfig, nonfinite_error
from kexue.train.data import move
from kexue.train.distributed import Processes, full_state
from kexue.train.gradcache import gradient_weight
from kexue.train.state import RunState


class StepRunner:
    """Forward and backward passes, accumulation, clipping, updates and schedules, in mixed precision.

    Args:
        state: state of the run, already prepared.
        forward: called for a `training_step` of the model.
        processes: device and processes of the run.
        config: settings of the run.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
    """

    def __init__(
        self, state: RunState, forward: nn.Module, processes: Processes, config: TrainConfig, precision: str
    ) -> None:
        self.state, self.forward, self.processes, self.config = state, forward, processes, config
        half = torch.float16 if precision == "fp16" else torch.bfloat16
        self.autocast = torch.autocast(processes.device.type, dtype=half, enabled=precision != "fp32")

    def run(self, batches: list[object]) -> dict[str, float]:
        """Make the step and return the numbers to log.

        Raises:
            NonFiniteLossError: the loss, or without a GradScaler the gradient, is infinite or NaN.
        """
        state = self.state
        record: dict[str, float] = {"epoch": state.position.epoch}
        losses, scale = [], state.scaler.get_scale()
        for index, optimizer in enumerate(state.optimizers):
            values = self._update(index, optimizer, batches, scale)
            losses.append(values.pop("loss"))
            suffix = f"_{index}" if len(state.optimizers) > 1 else ""
            record[f"loss{suffix}"] = losses[-1]
            if (rate := optimizer.param_groups[0].get("lr")) is not None:  # Adafactor may have none
                record[f"lr{suffix}"] = float(rate)
            record |= {(f"{name}{suffix}" if name == "gradient_norm" else name): x for name, x in values.items()}
        state.scaler.update()
        if state.scaler.get_scale() >= scale:  # it falls if a gradient in fp16 was too large and the step was skipped
            for scheduler in state.schedulers:
                if not isinstance(scheduler, ReduceLROnPlateau):
                    scheduler.step()
        state.position.loss = record["loss"] = sum(losses)
        return record

    def _update(self, index: int, optimizer: Optimizer, batches: list[object], scale: float) -> dict[str, float]:
        """The update of one optimizer; returns the loss, its parts and the norm of the gradient."""
        state, config = self.state, self.config
        state.model.zero_grad(set_to_none=True)
        weights = BatchWeights(self.processes, len(batches), config.weight)
        values, counts = self._add_gradients(index, batches, scale, weights)
        mine, factor = weights.close()
        if factor != 1:
            torch._foreach_mul_([p.grad for p in state.model.parameters() if p.grad is not None], factor)
        names = list(values)
        means = [torch.stack(x).mean() if mine is None else _weighted_mean(x, counts[n]) for n, x in values.items()]
        if config.clip is not None:
            state.scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(parameters(optimizer), config.clip)
            names.append("gradient_norm")
            means.append(full_state(norm))
        overall = self.processes.mean(torch.stack(means) if mine is None else torch.stack(means) * mine)
        numbers = dict(zip(names, overall.tolist(), strict=True))
        self._check_finite(numbers)
        state.scaler.step(optimizer)
        return numbers

    def _add_gradients(
        self, index: int, batches: list[object], scale: float, weights: BatchWeights
    ) -> tuple[dict[str, list[Tensor]], dict[str, list[float]]]:
        """Forward and backward of every batch; the values to log by name, and the weight of each."""
        size = len(batches)
        values: dict[str, list[Tensor]] = {"loss": []}
        counts: dict[str, list[float]] = {}
        for number, batch in enumerate(batches, start=1):
            with self.processes.accumulating(self.forward, last=number == size):
                with self.autocast, gradient_weight(scale / size):
                    output: LossOutput = self.forward(
                        move(batch, self.processes.device), optimizer_index=index, generator=self.state.generator
                    )
                parts = dict(output.parts)
                share = weights.add(output.loss, parts)
                loss = output.loss / size if share is None else output.loss * share
                self.state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": output.loss, **parts}.items():
                values.setdefault(name, []).append(torch.as_tensor(value).detach().float().mean())
                counts.setdefault(name, []).append(1.0 if share is None else share)
        return values, counts

    def _check_finite(self, numbers: Mapping[str, float]) -> None:
        wrong = "loss" if not math.isfinite(numbers["loss"]) else None
        if "gradient_norm" in numbers and not math.isfinite(numbers["gradient_norm"]):
            wrong = wrong or (None if self.state.scaler.is_enabled() else "gradient_norm")
        if wrong is not None:
            what = f"the {wrong.replace('_', ' ')} is {numbers[wrong]}"
            raise nonfinite_error(what, self.state.position.step + 1, Path(self.config.out))


def _weighted_mean(values: list[Tensor], weights: list[float]) -> Tensor:
    return sum((value * weight for value, weight in zip(values, weights, strict=True)), start=0 * values[0]) / (
        sum(weights) or 1.0
    )
