"""Output containers of a transformer, as scikit-learn's `set_output` defines them: arrays, pandas or polars frames."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from kexue._arrays import Array, host
from kexue._optional import import_optional

CONTAINERS = ("default", "pandas", "polars")


def check_container(name: str | None) -> None:
    """Raise ValueError unless `name` is a container, or None."""
    if name not in (None, *CONTAINERS):
        raise ValueError(f"transform must be one of {', '.join(CONTAINERS)} or None, got {name!r}.")


def wrap_output(result: Any, X: Any, container: str | None, column_names: Callable[[], Array]) -> Any:
    """Return `result` in a container; None follows `sklearn.set_config(transform_output=...)` where it is loaded.

    Args:
        result: (n, k).
        X: the input; its index becomes the index of a pandas frame.
        container: one of `CONTAINERS`, or None.
        column_names: gives the k names; called for frames only.
    """
    if container is None and (sklearn := sys.modules.get("sklearn")) is not None:
        container = sklearn.get_config()["transform_output"]
    if container in (None, "default"):
        return result
    frames = import_optional(str(container), extra="bench")
    columns = column_names()
    if container == "polars":
        return frames.DataFrame(host(result), schema=columns.tolist())
    return frames.DataFrame(host(result), columns=columns, index=getattr(X, "index", None))
