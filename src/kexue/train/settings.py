"""The file `settings.json` of a run: what decides its result, checked before the run continues."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kexue._files import replacing
from kexue._text import parse_json
from kexue.errors import CheckpointError
from kexue.train.folder import has_checkpoint

SETTINGS = "settings.json"


def check_settings(out: str | os.PathLike[str], settings: Mapping[str, Any], *, resume: bool) -> None:
    """Raise unless the run in `out`, if it would be continued, has these settings.

    Args:
        out: folder of the run; a new one, and one without a checkpoint, fits any settings.
        settings: JSON-ready values by name; names in the file that are not among them are not compared.
        resume: whether the run would be continued; False: nothing is checked.

    Raises:
        CheckpointError: a setting differs; the message says which, what it was and what it is.
        DataError: `settings.json` is not a JSON object.
    """
    path = Path(out) / SETTINGS
    if not (resume and path.is_file() and has_checkpoint(Path(out))):
        return
    before = parse_json(path.read_bytes(), path, kind=dict)
    differ = {name: value for name, value in settings.items() if before.get(name) != value}
    changed = [f"{name} was {before.get(name)!r}, is {value!r}" for name, value in differ.items()]
    if changed:
        raise CheckpointError(
            f"the run in {os.fspath(out)} has other settings: {'; '.join(changed)}.",
            remedy="Use another folder, the same settings, or start again with --no-resume (resume=False).",
        )


def write_settings(out: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write the settings of a run, and facts about it, to `settings.json` in its folder, which is made."""
    Path(out).mkdir(parents=True, exist_ok=True)
    with replacing(Path(out) / SETTINGS) as temporary:
        temporary.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
