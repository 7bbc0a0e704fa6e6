"""One readable training loop, checkpoints that resume exactly, and contrastive batches larger than memory.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.train.checkpoint import (
        Checkpoint as Checkpoint,
        load_checkpoint as load_checkpoint,
        save_checkpoint as save_checkpoint,
    )
    from kexue.train.config import (
        LossOutput as LossOutput,
        NonFiniteLossError as NonFiniteLossError,
        RunBusyError as RunBusyError,
        TrainConfig as TrainConfig,
        TrainResult as TrainResult,
    )
    from kexue.train.gradcache import GradCache as GradCache
    from kexue.train.loop import Trainer as Trainer, reporting as reporting

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "checkpoint": ("Checkpoint", "load_checkpoint", "save_checkpoint"),
        "config": ("LossOutput", "NonFiniteLossError", "RunBusyError", "TrainConfig", "TrainResult"),
        "gradcache": ("GradCache",),
        "loop": ("Trainer", "reporting"),
    },
    needs={"checkpoint": "torch", "gradcache": "torch", "loop": "torch"},
    extra="train",
)
