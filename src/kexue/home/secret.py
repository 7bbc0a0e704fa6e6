"""Secrets: read from the environment or a private file, printed masked."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kexue.errors import DataError


class Secret:
    """A text that prints as its last four characters at most; `reveal` returns it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __repr__(self) -> str:
        return f"****{self._text[-4:]}" if len(self._text) >= 12 else "****"

    def redact(self, text: object) -> str:
        """Return `text` with every occurrence of the secret masked."""
        return str(text).replace(self._text, repr(self)) if self._text else str(text)


def secret_from_environment(variable: str) -> Secret:
    """Return the secret in `variable`, or in the file that `variable`_FILE names.

    Raises:
        DataError: neither is set, or others can read the file.
    """
    if text := os.environ.get(variable, "").strip():
        return Secret(text)
    if path := os.environ.get(f"{variable}_FILE"):
        return secret_from_file(path)
    raise DataError(
        f"{variable} is not set.",
        remedy=f"Set {variable}, or {variable}_FILE to a file with mode 0600. It is never taken from the command line.",
    )


def secret_from_file(path: str | os.PathLike[str]) -> Secret:
    """Return the text of a file that only its owner may read, without surrounding white space.

    Raises:
        DataError: others can read the file, or it is empty.
    """
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise DataError("others can read this secret.", path=path, remedy=f"Run: chmod 600 {os.fspath(path)}")
    text = Path(path).read_text(encoding="utf-8").strip()
    if not text:
        raise DataError("the file of the secret is empty.", path=path)
    return Secret(text)
