"""What a shuffle leaves on the disk: whose folders it uses, modes and links of its outputs, which disk is full."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from kexue import _files
from kexue.corpus import permutation_keys, shuffle_dataset, shuffle_files
from kexue.corpus.shuffle import journal, output as output_module, plan
from kexue.corpus.shuffle.journal import lock_folder
from kexue.corpus.shuffle.options import check_options
from kexue.corpus.shuffle.output import OutputNames
from kexue.errors import DataError, DiskFullError

pa = pytest.importorskip("pyarrow")

LINES = [b"line %d\n" % i for i in range(30_000)]


def expected(seed: int, lines: list[bytes] = LINES) -> bytes:
    return b"".join(lines[i] for i in np.argsort(permutation_keys(seed, 0, len(lines))))


@pytest.fixture
def small(monkeypatch):
    """Small buffers, so that few lines go through files."""
    monkeypatch.setattr(plan, "_OVERHEAD", 0)
    monkeypatch.setattr(plan, "_CACHED", 1 << 14)
    monkeypatch.setattr(plan, "_FRAME", 1 << 10)
    monkeypatch.setattr(plan, "_CHUNK", 1 << 13)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in"
    path.write_bytes(b"".join(LINES))
    return path


@pytest.fixture
def tmp(tmp_path, monkeypatch):
    """The folder of everybody's temporary files."""
    path = tmp_path / "tmp"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def folder_of(source: object, output: object, tmp: Path | None = None) -> Path:
    """Where a shuffle's temporary files are."""
    return check_options(str(source), str(output), tmp=tmp).folder()


class Stop(BaseException):
    """As Ctrl-C."""


def interrupt(source: Path, output: Path, share: float, **options) -> None:
    def progress(done, total):
        if done >= share * total / 2:
            raise Stop

    with pytest.raises(Stop):
        shuffle_files(source, output, memory="1M", workers=1, progress=progress, **options)


# ---- whose folder ----------------------------------------------------------------------------------------------------


def plant(folder: Path, how: str, victim: Path) -> None:
    """What a stranger may leave under a name that he foresees."""
    if how == "link":
        victim.mkdir()
        folder.symlink_to(victim)
    elif how == "file":
        folder.write_bytes(b"")
    else:
        folder.mkdir()
        (folder / "lock").symlink_to(victim)
        folder.chmod(0o777 if how == "open to all" else 0o700)
        if how == "another user":
            os.chown(folder, 65534, 65534)


@pytest.mark.parametrize(
    "how",
    [
        "link",
        "file",
        "open to all",
        pytest.param("another user", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")),
    ],
)
@pytest.mark.parametrize("kind", ["file", "shards", "sample"])
def test_a_strangers_folder_is_refused(source, tmp_path, tmp, how, kind, small):
    output = tmp_path / "out"
    plant(folder_of(source, output, tmp), how, tmp_path / "victim")
    options = {"file": {}, "shards": {"shards": 2}, "sample": {"sample": 5}}[kind]
    with pytest.raises(DataError, match=r"a link or a file|another user") as caught:
        shuffle_files(source, output, tmp=tmp, memory="1M", **options)
    assert "--tmp" in str(caught.value.remedy)
    assert not (tmp_path / "victim").is_file()
    assert not (tmp_path / "victim").is_dir() or not list((tmp_path / "victim").iterdir())


def test_what_goes_into_a_pipe_waits_under_a_name_nobody_can_foretell(source, tmp_path, tmp, small):
    foretold = folder_of(source, "/dev/null")
    assert foretold.parent == tmp
    plant(foretold, "link", tmp_path / "victim")
    seen = []

    def look(done, total):
        seen.extend(path for path in tmp.iterdir() if path != foretold)

    for _ in range(2):
        shuffle_files(source, "/dev/null", memory="1M", progress=look)
    folders = set(seen)
    assert len(folders) == 2
    assert foretold.is_symlink()
    assert not list((tmp_path / "victim").iterdir())
    assert list(tmp.iterdir()) == [foretold]


def test_temporary_folders_are_for_their_owner_alone(source, tmp_path, tmp, small):
    modes = set()

    def look(done, total):
        modes.update(stat.S_IMODE(path.stat().st_mode) for path in tmp.iterdir())

    shuffle_files(source, "/dev/null", memory="1M", progress=look)
    shuffle_files(source, tmp_path / "out", memory="1M", tmp=tmp, progress=look)
    assert modes == {0o700}


def test_pipelines_do_not_meet(tmp_path, tmp, small, source):
    meanwhile = []

    def again(done, total):
        if not meanwhile:
            meanwhile.append(shuffle_files(source, "/dev/null", memory="1M"))

    shuffle_files(source, "/dev/null", memory="1M", progress=again)
    assert meanwhile[0].records == len(LINES)
    assert not list(tmp.iterdir())


@pytest.mark.parametrize("second", [{"seed": 2}, {"seed": 1, "header": 1}, {"seed": 1, "sample": 10}])
def test_two_shuffles_to_one_output_do_not_mix(source, tmp_path, small, second):
    """Whatever their arguments: the second is refused while the first is at work."""

    def again(done, total):
        with pytest.raises(DataError, match="another process is writing this output"):
            shuffle_files(source, tmp_path / "out", memory="1M", **second)

    shuffle_files(source, tmp_path / "out", seed=1, memory="1M", progress=again, verify=False)
    assert (tmp_path / "out").read_bytes() == expected(1)


def test_two_shuffles_to_one_output_with_folders_of_their_own_do_not_mix(source, tmp_path, small):
    """Where no lock is shared, each has its own unfinished file; the last one whole stands."""
    begun = []

    def again(done, total):
        if not begun and done > 0.7 * total:  # when the first has begun to write
            begun.append(True)
            shuffle_files(source, tmp_path / "out", seed=2, tmp=tmp_path / "other", memory="1M")
            assert (tmp_path / "out").read_bytes() == expected(2)

    shuffle_files(source, tmp_path / "out", seed=1, memory="1M", workers=1, progress=again, verify=False)
    assert begun
    assert (tmp_path / "out").read_bytes() == expected(1)


@pytest.mark.parametrize("share", [0.5, 1.5])
def test_an_interrupted_shuffle_does_not_harm_another_to_the_same_output(source, tmp_path, small, share):
    interrupt(source, tmp_path / "out", share, seed=1)
    shuffle_files(source, tmp_path / "out", memory="1M", seed=2, verify=False)
    assert (tmp_path / "out").read_bytes() == expected(2)
    report = shuffle_files(source, tmp_path / "out", memory="1M", seed=1, verify=False)
    assert not report.resumed
    assert (tmp_path / "out").read_bytes() == expected(1)
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


@pytest.mark.parametrize("harm", ["gone", "shorter"])
def test_an_unfinished_output_that_was_touched_is_written_anew(source, tmp_path, small, harm):
    interrupt(source, tmp_path / "out", 1.6, seed=1)
    [partial] = tmp_path.glob(".out.*.partial")
    assert partial.stat().st_size > 10
    if harm == "gone":
        partial.unlink()
    else:
        os.truncate(partial, 5)
    assert not shuffle_files(source, tmp_path / "out", memory="1M", seed=1, verify=False).resumed
    assert (tmp_path / "out").read_bytes() == expected(1)


def test_the_lock_is_held_until_the_folder_is_gone(tmp_path):
    handle = lock_folder(tmp_path / "f")
    with pytest.raises(DataError, match="another process"):
        lock_folder(tmp_path / "f")
    os.close(handle)
    os.close(lock_folder(tmp_path / "f"))
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o700


def test_file_systems_without_locks_are_used_all_the_same(source, tmp_path, small, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(journal.fcntl, "flock", none)
    monkeypatch.setattr(_files.fcntl, "flock", none)
    shuffle_files(source, tmp_path / "out", memory="1M", seed=1)
    assert (tmp_path / "out").read_bytes() == expected(1)
    with _files.replacing_folder(tmp_path / "folder", foreign=os.listdir) as folder:
        (folder / "a").write_text("x")
    assert (tmp_path / "folder" / "a").read_text() == "x"


# ---- modes and links -------------------------------------------------------------------------------------------------

OUTPUTS = {"one file": ("out.txt", {}), "packed": ("out.txt.gz", {}), "shards": ("out-00001.txt", {"shards": 2})}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_output_that_is_replaced_keeps_its_mode_from_the_first_byte_on(source, tmp_path, small, kind, mode):
    name, options = OUTPUTS[kind]
    old = tmp_path / name
    old.write_bytes(b"old")
    old.chmod(mode)
    seen = set()

    def look(done, total):
        seen.update(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob(f".{name}.*.partial"))

    output = tmp_path / ("out.txt" if options else name)
    shuffle_files(source, output, seed=1, memory="1M", progress=look, **options)
    assert old.read_bytes() != b"old"
    assert stat.S_IMODE(old.stat().st_mode) == mode
    assert seen == {mode}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_new_output_obeys_the_umask(source, tmp_path, umask):
    before = os.umask(umask)
    try:
        shuffle_files(source, tmp_path / "out", seed=1)
        table = pa.table({"n": list(range(10))})
        rows = shuffle_dataset(table, tmp_path / "rows")
    finally:
        os.umask(before)
    for path in (tmp_path / "out", *rows.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_and_what_it_points_to_is_replaced(source, tmp_path, small, kind, dangling):
    name, options = OUTPUTS[kind]
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "real"
    if not dangling:
        target.write_bytes(b"old")
    (tmp_path / name).symlink_to(target)
    beside = set()

    def look(done, total):
        beside.update(path.name[:6] for path in target.parent.glob(".real.*.partial"))

    output = tmp_path / ("out.txt" if options else name)
    shuffle_files(source, output, seed=1, memory="1M", workers=1, progress=look, **options)
    assert beside == {".real."}, "on the disk of the file itself"
    assert (tmp_path / name).is_symlink()
    assert target.read_bytes() != b"old"
    if kind == "one file":
        assert target.read_bytes() == expected(1)
    assert os.listdir(tmp_path / "elsewhere") == ["real"]
    assert not [path for path in os.listdir(tmp_path) if path.startswith(".")]


def test_a_planted_unfinished_file_is_not_written_through(source, tmp_path):
    options = check_options(source, tmp_path / "out")
    partial = OutputNames(options, options.folder()).partial(0)
    partial.symlink_to(tmp_path / "victim")
    shuffle_files(source, tmp_path / "out", seed=1)
    assert not (tmp_path / "victim").exists()
    assert (tmp_path / "out").read_bytes() == expected(1)


# ---- full disks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("full", ["output", "sync of the output", "temporary files"])
def test_the_disk_that_is_full_is_named(source, tmp_path, small, monkeypatch, full, number):
    (tmp_path / "results").mkdir()
    (tmp_path / "scratch").mkdir()

    def fail(*_):
        raise OSError(number, os.strerror(number))

    if full == "output":
        monkeypatch.setattr(output_module.os, "write", fail)
    elif full == "sync of the output":
        monkeypatch.setattr(output_module.os, "fsync", fail)
    else:
        monkeypatch.setattr(os, "writev", fail)
    with pytest.raises(DiskFullError) as caught:
        shuffle_files(source, tmp_path / "results" / "out", seed=1, memory="1M", tmp=tmp_path / "scratch")
    place, other = tmp_path / "results", tmp_path / "scratch"
    if full == "temporary files":
        place, other = other, place
    assert str(place) in caught.value.message
    assert str(other) not in caught.value.message
    assert ("--tmp" in str(caught.value.remedy)) == (full == "temporary files")


def test_a_full_disk_behind_standard_output_is_named(source, tmp_path, tmp):
    code = "import sys; from kexue.cli import main; sys.exit(main(['shuffle', sys.argv[1], '-o', '-']))"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, source], stdout=full, stderr=subprocess.PIPE, check=False, cwd=tmp_path
        )
    assert done.returncode == 1
    assert b"standard output: no room for output" in done.stderr
    assert b"Traceback" not in done.stderr


def test_closed_standard_streams_are_errors_with_a_remedy(source, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        shuffle_files("-", source.parent / "out")
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(DataError, match="standard output is closed"):
        shuffle_files(source, "-")


# ---- killed ----------------------------------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
import pyarrow as pa
from kexue.corpus import shuffle_dataset, shuffle_files
from kexue.corpus.shuffle import plan, tables
plan._OVERHEAD, plan._CACHED, plan._FRAME, plan._CHUNK = 0, 1 << 14, 1 << 10, 1 << 13
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "rows":
    tables._write_shards = die
    shuffle_dataset(pa.table({"n": list(range(1000))}), sys.argv[3])
else:
    output = sys.argv[3] if sys.argv[1] == "file" else "/dev/null"
    shuffle_files(sys.argv[2], output, memory="1M", tmp=sys.argv[4] if sys.argv[1] == "pipe" else None, progress=die)
"""


@pytest.mark.parametrize("kind", ["file", "pipe", "rows"])
def test_what_a_killed_shuffle_leaves_the_next_one_removes(source, tmp_path, tmp, small, kind):
    output = tmp_path / "out"
    command = [sys.executable, "-c", _KILLED, kind, source, output, tmp]
    assert subprocess.run(list(map(str, command)), check=False).returncode == -signal.SIGKILL
    if kind == "file":
        assert list(tmp_path.glob(".kexue-shuffle-*"))
        shuffle_files(source, output, seed=3, memory="1M")  # another shuffle to the same output
        assert sorted(os.listdir(tmp_path)) == ["in", "out", "tmp"]
    elif kind == "pipe":
        assert len(os.listdir(tmp)) == 1
        shuffle_files(source, "/dev/null", memory="1M", tmp=tmp)
        assert not os.listdir(tmp)
    else:
        assert len(os.listdir(output)) == 1
        shuffle_dataset(pa.table({"n": [1, 2]}), output)
        assert os.listdir(output) == ["part-00000.parquet"]
