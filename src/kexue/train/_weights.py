"""Weights of the batches of a step, so that their means over, say, tokens give the mean over all tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kexue.train.distributed import Processes


class BatchWeights:
    """The weights of one step, whose gradient is sum w_i g_i / sum w_i over its batches in all processes.

    The sum is known only after the last batch. Until then each batch counts w_i / (n w), with w the mean over processes
    of the first weight, so that gradients in half precision keep their usual size; `close` returns the
    factor that makes up for this.

    Args:
        processes: the processes of the run.
        size: number n of batches of the step in each process.
        name: name of the part that is the weight; None: equal weights.
    """

    def __init__(self, processes: Processes, size: int, name: str | None) -> None:
        self.processes, self.size, self.name = processes, size, name
        self.reference: float | None = None
        self.total = 0.0

    def add(self, loss: Tensor, parts: dict[str, Any]) -> float | None:
        """Return the factor of the loss of the next batch (None: 1 / n), and remove the weight from `parts`.

        Raises:
            ValueError: no such part, a negative or non-finite one, or a loss whose backward pass has been made.
        """
        if self.name is None:
            return None
        if self.name not in parts:
            raise ValueError(f"weight is {self.name!r}, training_step returned the parts {', '.join(parts) or 'none'}")
        if loss.is_leaf:
            raise ValueError("a loss whose gradient is computed already, as that of GradCache, cannot be weighted")
        w = float(parts.pop(self.name))
        if not (w >= 0 and math.isfinite(w)):
            raise ValueError(f"the weight {self.name!r} of a loss must be finite and >= 0, got {w}")
        if self.reference is None:
            self.reference = self._mean(w) or 1.0
        self.total += w
        return w / (self.reference * self.size)

    def close(self) -> tuple[float | None, float]:
        """Weight of this process relative to the mean of all (None without weights), and factor of the gradients.

        Raises:
            ValueError: all weights are 0.
        """
        if self.reference is None:
            return None, 1.0
        mean = self._mean(self.total)
        if mean == 0:
            raise ValueError(f"the weights {self.name!r} of all losses of a step are 0")
        return self.total / mean, self.size * self.reference / mean

    def _mean(self, value: float) -> float:
        device = self.processes.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return float(self.processes.mean(torch.tensor(value, dtype=dtype, device=device)))
