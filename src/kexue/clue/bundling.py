"""A zip file of predictions, as the site takes them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from kexue._files import check_output, replacing
from kexue._text import say_count
from kexue.clue.checking import check_submission
from kexue.errors import DataError

_TIME = (1980, 1, 1, 0, 0, 0)  # the same predictions give the same bytes


def bundle_submission(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write the predictions of a folder to a zip file, and return its path; other files of the folder stay out.

    Args:
        folder: its files have the names of `TaskInfo.submissions`.
        out: the zip file, which is replaced in one step.

    Raises:
        DataError: `check_submission` finds something wrong. ValueError: `out` does not end in ``.zip``.
    """
    check_output(out, ".zip")
    report = check_submission(folder)
    if not report.ok:
        first, more = report.problems[0], len(report.problems) - 1
        message = first.message + (f" (and {say_count(more, 'more problem')})" if more else "")
        raise DataError(
            message if message.endswith("?") else f"{message}.",
            path=Path(folder, first.file),
            line=first.line,
            remedy="See kexue clue check-submission.",
        )
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as bundle:
        for file in report.files:
            entry = zipfile.ZipInfo(file.name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            bundle.writestr(entry, Path(folder, file.name).read_bytes())
    return Path(out)
