"""Atomic files and folders, durable on the disk, and errors of the system in plain words."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kexue.errors import DataError


@contextmanager
def replacing(path: str | os.PathLike[str], *, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on a clean exit it replaces `path` in one rename.

    If the body raises, `path` is unchanged and the temporary file is removed. A symbolic link stays: the file it
    points to is replaced. The permissions are `mode`, else those of the file that is replaced, else 0666 less the
    umask. Temporary files of writers that were killed are removed; running writers hold a lock on theirs.

    Args:
        path: the file to write.
        mode: permissions; None: see above.

    Raises:
        DataError: `path` exists and is not a regular file.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        _refuse_irregular(target, path)
        mode = stat.S_IMODE(target.stat().st_mode) if mode is None else mode
    _sweep(target)
    temporary, handle = _claim(target, lambda name: os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode or 0o666))
    try:
        if mode is not None:
            os.fchmod(handle, mode)
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        yield temporary
        temporary.chmod(mode)  # some writers replace the file
        synchronise(temporary)
        temporary.replace(target)
        synchronise(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def check_output(path: str | os.PathLike[str], *endings: str, inputs: Iterable[str | os.PathLike[str]] = ()) -> str:
    """Return the ending of a file that is to be written, in small letters; raise where it could not be written.

    What takes long calls this first, so that a misspelt name does not cost its result.

    Args:
        path: the file; folders that are missing will be made.
        endings: those allowed, such as ``".png"``, in small letters; none: all.
        inputs: files that are read, which it would replace; names of no file are left out.

    Raises:
        ValueError: another ending; one of the inputs. DataError: `path` exists and is not a regular file.
        OSError: the folder cannot be written to.
    """
    ending = Path(path).suffix.lower()
    if endings and ending not in endings:
        *others, last = endings
        expected = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"a name that ends in {expected} is expected, got {os.fspath(path)!r}")
    target = Path(os.path.realpath(path))
    if target.exists():
        _refuse_irregular(target, path)
        if any(os.path.exists(name) and os.path.samefile(name, target) for name in inputs):
            raise ValueError(f"the output {os.fspath(path)!r} would replace an input: choose another name")
    folder = next(one for one in target.parents if one.exists())
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    return ending


def _refuse_irregular(target: Path, path: str | os.PathLike[str]) -> None:
    """Raise a DataError for a folder or a device in the place of a file."""
    if not target.is_file():
        raise DataError("exists, but is not a regular file.", path=path, remedy="Give the name of a file.")


@contextmanager
def replacing_folder(
    path: str | os.PathLike[str],
    *,
    foreign: Callable[[Path], list[str]],
    older: str | os.PathLike[str] | None = None,
) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on a clean exit it replaces `path`.

    A kill between the two renames leaves the old folder at `displaced_path(path)`. A symbolic link stays: the folder
    it points to is replaced. The permissions are those of the folder that is replaced, else 0777 less the umask; files
    get the same without the right to execute.

    Args:
        path: the folder to write.
        foreign: function that returns the names in an existing folder that its caller did not write; if there are
            any, nothing is replaced.
        older: where the replaced folder is kept, instead of what is there; None: it is deleted.

    Raises:
        DataError: `path` or `older` is not a folder, or holds foreign names.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    for folder in (path, older):
        if folder is not None:
            refuse_foreign(folder, foreign)
    _sweep(target)
    temporary, handle = _claim(target, _make_folder)
    try:
        if target.exists():
            os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
        yield temporary
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        for folder, _, files in os.walk(temporary):
            for file in (Path(folder, name) for name in files):
                if not file.is_symlink():
                    file.chmod(mode & 0o666)
                synchronise(file)
            synchronise(folder)
        old = displaced_path(target) if older is None else Path(older)
        if target.exists():
            remove_folder(old)
            target.rename(old)
        temporary.rename(target)
        synchronise(target.parent)
        if older is None:
            remove_folder(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Delete a folder, if it exists, after one rename: a kill leaves the whole folder at `path`, or nothing.

    Of a symbolic link, the folder it points to is deleted. What a kill has left under the temporary name is deleted
    by the next call.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        return
    _sweep(target)
    if target.is_dir():
        temporary = _temporary_name(target)
        target.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def temporary_folder(parent: str | os.PathLike[str], name: str) -> Iterator[Path]:
    """Yield an empty folder in `parent`, for its owner only, with a random name; it is deleted at the end.

    Folders with the same `name` whose processes were killed are removed.
    """
    target = Path(parent, name)
    _sweep(target)
    folder, handle = _claim(target, lambda path: _make_folder(path, 0o700))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def refuse_foreign(path: str | os.PathLike[str], foreign: Callable[[Path], list[str]]) -> None:
    """Raise a DataError if `path` exists and is not a folder, or if `foreign` returns names in it."""
    target = Path(os.path.realpath(path))
    if not target.exists():
        return
    if not target.is_dir():
        raise DataError("exists, but is not a folder.", path=path, remedy="Give the name of a folder.")
    if names := foreign(target):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise DataError(
            f"this folder would be replaced, but holds {', '.join(sorted(names)[:3])}{more}, not written by kexue.",
            path=path,
            remedy="Give the name of a new folder, or move these files away.",
        )


def displaced_path(path: str | os.PathLike[str]) -> Path:
    """Return where `replacing_folder` keeps the old folder between its two renames."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.kexue-old")


def cache_folder() -> Path:
    """Return the folder of what can be made again: `KEXUE_CACHE`, else ``kexue`` in the user's cache folder."""
    named = os.environ.get("KEXUE_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kexue"


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def synchronise(path: str | os.PathLike[str]) -> None:
    """Write a file's bytes, or the names in a folder, through to the disk, so that they survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes to a file descriptor, however few the system accepts at a time."""
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while len(view):
        view = view[os.write(descriptor, view) :]


def explain(error: OSError) -> tuple[str, str]:
    """Return the message and the remedy for an error of the system about a file."""
    if is_disk_full(error):
        return "the disk is full.", "Free some space, then run the same again."
    known = {
        errno.ENOENT: ("no such file or folder.", "Check the spelling; a relative name starts at the current folder."),
        errno.EISDIR: ("a folder, where a file is expected.", "Name a file in it."),
        errno.ENOTDIR: ("a part of this name is a file, not a folder.", "Check the spelling of the folders in it."),
        errno.EACCES: ("permission denied.", "Check who owns it and its permissions (ls -l)."),
        errno.EPERM: ("permission denied.", "Check who owns it and its permissions (ls -l)."),
        errno.EROFS: ("the file system is read-only.", "Name a place that can be written to."),
        errno.ENAMETOOLONG: ("the name is too long.", "Choose a shorter name."),
        errno.ELOOP: ("the symbolic links lead in a circle.", "Give the name of the file itself."),
    }
    other = f"cannot be read or written: {error.strerror or error}."
    return known.get(error.errno or 0, (other, "Check the disk, and that nothing else uses the file."))


def system_error(error: OSError, path: str | os.PathLike[str]) -> DataError:
    """Return an error of the system about a file as a `DataError` with a remedy."""
    message, remedy = explain(error)
    return DataError(message, path=path, remedy=remedy)


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error is about a full disk or a used-up quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _claim(target: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Create a temporary file or folder beside `target`; return its name and an open, locked handle of it."""
    while True:
        temporary = _temporary_name(target)
        try:
            handle = create(temporary)
        except FileExistsError:
            continue
        with contextlib.suppress(OSError):  # some network file systems have no locks, or none of folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # 0: another writer removed it before the lock was taken
            return temporary, handle
        os.close(handle)


def _temporary_name(target: Path) -> Path:
    """Return a random name beside `target`, of the form that `_sweep` removes."""
    return target.with_name(f".{target.name}.kexue-{secrets.token_hex(4)}.tmp")


def _make_folder(path: Path, mode: int = 0o777) -> int:
    """Make a folder and open it."""
    path.mkdir(mode)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _sweep(target: Path) -> None:
    """Remove temporary files and folders of this target whose writers have ended."""
    pattern = re.compile(re.escape(f".{target.name}.kexue-") + r"[0-9a-f]{8}\.tmp")
    for name in os.listdir(target.parent):
        if not pattern.fullmatch(name):
            continue
        path = target.with_name(name)
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISDIR(os.fstat(handle).st_mode):
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(handle)
