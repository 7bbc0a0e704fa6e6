"""Files of a split in the folder of a task, as CLUE, FewCLUE and their copies name them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from kexue.clue.tasks import Task
from kexue.errors import DataError

_NAME = re.compile(r"(?P<part>[md]-)?(?P<split>train|dev|test)(?P<rest>[\w.-]*?)\.jsonl?(\.gz|\.xz|\.bz2)?")
_WHOLE = ("", "_few_all", ".50k")  # what may follow the split in the name of its whole file, the best first


def read_split(task: Task, folder: str | os.PathLike[str], split: str) -> list[Any]:
    """Return the examples of ``train`` or ``dev`` in a folder; both files of C3, one after the other.

    Args:
        task: of the folder.
        folder: with ``train.json``, ``train_few_all.json``, ``train.50k.json`` or ``m-train.json`` and
            ``d-train.json``, also as .jsonl and compressed; likewise for dev.
        split: ``"train"`` or ``"dev"``.

    Raises:
        DataError: no such file, or one that cannot be read as the task's.
    """
    files = find_files(Path(folder), split)
    return [example for file in files for example in task.read(file)]


def find_files(folder: Path, split: str) -> list[Path]:
    """Return the files of a split: one, or the two parts of C3, the mixed one first; DataError where there is none."""
    if not folder.is_dir():
        raise DataError("there is no such folder.", path=folder, remedy="Name the folder with the task's files.")
    kinds: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir(), reverse=True):
        match = _NAME.fullmatch(path.name)
        if match and match["split"] == split:
            kinds.setdefault(match["rest"], []).append(path)
    files = next((kinds[rest] for rest in _WHOLE if rest in kinds), [])
    parts = {re.split(r"-", path.name)[0] for path in files if path.name[1] == "-"}
    if not files or len(files) > max(1, len(parts)):
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        raise DataError(
            f"expected one file of {split}, such as {split}.json; there is {names}.",
            path=folder,
            remedy="Name the folder with the task's files, and leave one copy of each there.",
        )
    return files
