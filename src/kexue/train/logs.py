"""Logs of a run: a line of JSON per step, curves and images for TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from kexue._files import replacing
from kexue._optional import import_optional
from kexue._text import parse_json
from kexue.errors import DataError, MissingDependencyError
from kexue.train.config import LOGS

EVENTS = ".kexue"  # suffix of our files for TensorBoard
_LOG = logging.getLogger(__name__)


class RunLog:
    """Writer of records ``{"kind": "train" | "eval", "step": ..., name: number}``.

    A number that is infinite or NaN is null in JSON. Lines after `step`, and evaluations after `evaluated`, are removed
    first: an interrupted run wrote them after its last checkpoint, and these steps are now repeated.

    Args:
        folder: folder of the run.
        kinds: any of ``"jsonl"`` and ``"tensorboard"``.
        step: finished steps.
        evaluated: step of the last evaluation that counts.

    Raises:
        MissingDependencyError: tensorboard was chosen and is not installed. With the default logs it is left out, with
            a warning.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], *, step: int, evaluated: int) -> None:
        self._lines: TextIO | None = None
        self._writer: Any = None
        if "tensorboard" in kinds:
            try:
                files = import_optional("tensorboard.summary.writer.event_file_writer", extra="train")
                self._events = import_optional("tensorboard.compat.proto.event_pb2", extra="train")
                self._summaries = import_optional("tensorboard.compat.proto.summary_pb2", extra="train")
                self._writer = files.EventFileWriter(str(folder / "tensorboard"), filename_suffix=EVENTS)
                start = self._events.SessionLog(status=self._events.SessionLog.START)
                self._add_event(step + 1, session_log=start)  # TensorBoard then drops older curves from this step on
            except MissingDependencyError:
                if tuple(kinds) != LOGS:
                    raise
                _LOG.warning("tensorboard is not installed: log.jsonl alone is written")
        if "jsonl" in kinds:
            path = folder / "log.jsonl"
            _remove_after(path, step, evaluated)
            self._lines = path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, record: Mapping[str, Any], *, drawn: bool = True) -> None:
        """Write a record to the log, and if `drawn` to TensorBoard; it is in the file after the next `flush`."""
        if self._lines is not None:
            numbers = {name: value if math.isfinite(value) else None for name, value in record.items()}
            self._lines.write(json.dumps({"kind": kind, "step": step, **numbers}, allow_nan=False) + "\n")
        if self._writer is not None and drawn:
            make = self._summaries.Summary
            values = [make.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in record.items()]
            self._add_event(step, summary=make(value=values))

    def write_image(self, name: str, step: int, png: bytes) -> None:
        """Write an image to TensorBoard, if that is a log of this run.

        Args:
            name: tag of the image; each of its steps is one of a series.
            step: finished steps.
            png: a PNG file.
        """
        if self._writer is None:
            return
        width, height = struct.unpack(">II", png[16:24])  # of its first chunk
        image = self._summaries.Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
        value = self._summaries.Summary.Value(tag=name, image=image)
        self._add_event(step, summary=self._summaries.Summary(value=[value]))

    def _add_event(self, step: int, **what: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step, **what))

    def flush(self) -> None:
        """Write buffered records to the files, so that the log is never shorter than the checkpoint."""
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


def _remove_after(path: str | os.PathLike[str], step: int, evaluated: int) -> None:
    """Keep the whole lines of a log up to `step`, and those of evaluations up to `evaluated`."""
    if not Path(path).exists():
        return
    with replacing(path) as temporary, Path(path).open("rb") as old, temporary.open("wb") as new:
        for number, line in enumerate(old, start=1):
            if not line.endswith(b"\n"):
                break
            record = parse_json(line, path, line=number)
            if not _is_record(record):
                raise DataError("this line is not a record of a training run.", path=path, line=number)
            if record["step"] > step:
                break
            if record["kind"] != "eval" or record["step"] <= evaluated:
                new.write(line)


def refuse_foreign_log(path: Path) -> None:
    """Raise a DataError where there is a log whose first line is not a record of a run."""
    if not path.exists():
        return
    if not path.is_file():
        raise DataError("exists, but is not a file.", path=path, remedy="Choose another folder for the run.")
    with path.open("rb") as lines:
        line = lines.readline()
    start = b'{"kind"'
    try:  # a kill may have cut the line short
        ours = _is_record(parse_json(line, path)) if line.endswith(b"\n") else line[: len(start)] == start[: len(line)]
    except DataError:
        ours = False
    if not ours:
        raise DataError(
            "its first line is not a record of a training run.", path=path, remedy="Choose another folder for the run."
        )


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {"kind", "step"} and isinstance(value["step"], int)
