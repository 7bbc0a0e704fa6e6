"""What a run leaves to read: a line of JSON a step, and curves for TensorBoard."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kexue._files import replacing
from kexue._optional import import_optional
from kexue.errors import MissingDependencyError
from kexue.train.config import LOGS

_LOG = logging.getLogger(__name__)


class RunLog:
    """Write records ``{"kind": "train" | "eval", "step": ..., name: number}`` to the logs that were asked for.

    Lines after `step` are dropped first: they come from steps that were lost with an interrupted run and are now
    taken again.

    Raises:
        MissingDependencyError: tensorboard was asked for by name and is not installed. With the default logs it is left
            out, with a warning.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], *, step: int) -> None:
        self._lines = self._writer = None
        if "tensorboard" in kinds:
            try:
                import_optional("tensorboard", extra="train")
                from torch.utils.tensorboard.writer import SummaryWriter

                if step == 0:
                    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
                self._writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
            except MissingDependencyError:
                if tuple(kinds) != LOGS:
                    raise
                _LOG.warning("tensorboard is not installed: log.jsonl alone is written")
        if "jsonl" in kinds:
            path = folder / "log.jsonl"
            _cut(path, step)
            self._lines = path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, record: Mapping[str, Any]) -> None:
        """Add a record; it is on disk after the next `flush`."""
        if self._lines is not None:
            self._lines.write(json.dumps({"kind": kind, "step": step, **record}) + "\n")
        if self._writer is not None:
            for name, value in record.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        """Hand what was written to the system, so that the log is no shorter than the checkpoint."""
        if self._lines is not None:
            self._lines.flush()
        if self._writer is not None:
            self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._writer is not None:
            self._writer.close()


def _cut(path: str | os.PathLike[str], step: int) -> None:
    """Keep the whole lines of a log up to `step`."""
    if not Path(path).exists():
        return
    with replacing(path) as temporary, Path(path).open("rb") as old, temporary.open("wb") as new:
        for line in old:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            new.write(line)
