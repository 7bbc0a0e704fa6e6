"""Files replaced whole: permissions, links, temporary files of the dead and of the living."""

import multiprocessing
import os
import pickle
import signal
import stat
import subprocess
import sys

import pytest

from kexue import errors
from kexue._files import check_output, displaced_path, replacing, replacing_folder
from kexue._text import parse_json
from kexue.corpus.decoding import read_lines
from kexue.errors import DataError


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_replaced_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(mode)
    with replacing(path) as temporary:
        assert mode_of(temporary) == mode
        temporary.write_text("new")
    assert (path.read_text(), mode_of(path)) == ("new", mode)


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_a_replaced_folder_keeps_its_permissions_and_its_files_have_them(tmp_path, mode):
    path = tmp_path / "folder"
    path.mkdir()
    path.chmod(mode)
    with replacing_folder(path, foreign=os.listdir) as temporary:
        (temporary / "a").write_text("x")
        (temporary / "a").chmod(0o600)  # as some writers have it
        (temporary / "link").symlink_to("a")
    assert mode_of(path) == mode
    assert mode_of(path / "a") == mode & 0o666


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_new_file_or_folder_obeys_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("x")
        with replacing_folder(tmp_path / "folder", foreign=os.listdir):
            pass
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "file") == 0o666 & ~umask
    assert mode_of(tmp_path / "folder") == 0o777 & ~umask


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_what_is_not_a_file_is_not_replaced(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    with pytest.raises(DataError, match="not a regular file"), replacing(path):
        pass
    assert path.exists()


def test_temporaries_of_the_dead_go_those_of_the_living_stay(tmp_path):
    script = (
        "import os, sys, signal\nfrom kexue._files import replacing, replacing_folder\n"
        "with replacing(sys.argv[1] + '/a'), replacing_folder(sys.argv[1] + '/b', foreign=os.listdir):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    with replacing(tmp_path / "a") as first:
        with replacing(tmp_path / "a") as second:
            assert first.exists()
            second.write_text("second")
        first.write_text("first")
    with replacing_folder(tmp_path / "b", foreign=os.listdir):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "a").read_text() == "first"


def test_a_folder_with_something_foreign_is_not_replaced(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "years.txt").write_text("of work")
    with pytest.raises(DataError, match=r"years\.txt"), replacing_folder(folder, foreign=os.listdir):
        pass
    assert (folder / "years.txt").read_text() == "of work"
    assert not displaced_path(folder).exists()


def test_lines_end_with_line_feeds_or_where_there_are_none_with_returns(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes("\ufeffa\u2028b\r\nc\x0b\x0c\x1c\x85d\n\ne".encode())
    assert read_lines(path) == ["a\u2028b", "c\x0b\x0c\x1c\x85d", "", "e"]
    path.write_bytes(b"good\nb\xffd\n")
    with pytest.raises(DataError) as caught:
        read_lines(path)
    assert (caught.value.path, caught.value.line, caught.value.column) == (str(path), 2, 2)
    path.write_bytes(b"a\rb\rc\r")
    assert read_lines(path) == ["a", "b", "c"]


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a": }', b"\xff"])
def test_json_that_cannot_be_read_names_its_file(data):
    with pytest.raises(DataError, match=r"config\.json"):
        parse_json(data, "config.json")


EXAMPLES = [
    errors.KexueError("a", remedy="b"),
    errors.MissingDependencyError("faiss", "search"),
    errors.NotFittedError("a"),
    errors.NotSupported("a", remedy="b"),
    errors.DataError("a", remedy="b", path="p", line=3, column="c"),
    errors.ModelNotFoundError("a", tried=["b"], remedy="c"),
    errors.SpaceMismatchError("a", expected=1, received=2, remedy="c"),
    errors.IndexFormatError("a", remedy="b"),
    errors.CheckpointError("a"),
    errors.DiskFullError("a", needed=2, free=1),
    errors.InfeasibleError("a"),
    errors.RetryError("a", exceptions=[OSError("b")], tries=2),
    errors.UnknownArticleError("a", remedy="b"),
]


def test_there_is_an_example_of_every_error():
    own = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.KexueError)}
    assert own == {type(error) for error in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert {k: repr(v) for k, v in vars(copy).items()} == {k: repr(v) for k, v in vars(error).items()}


def _raise():
    raise errors.DiskFullError("no room", needed=2, free=1)


def test_an_error_of_a_worker_reaches_its_parent():
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(errors.DiskFullError) as caught:
        pool.apply_async(_raise).get(timeout=60)
    assert (caught.value.needed, caught.value.free) == (2, 1)


def test_a_name_for_output_is_checked_and_nothing_is_made(tmp_path):
    assert check_output(tmp_path / "new" / "x.PNG", ".png", ".npy") == ".png"
    assert list(tmp_path.iterdir()) == []
    for name in ("x", "x.jpg", ".png", "x.png.gz"):
        with pytest.raises(ValueError, match=r"ends in \.png or \.npy is expected, got"):
            check_output(tmp_path / name, ".png", ".npy")
    (tmp_path / "x.png").mkdir()
    with pytest.raises(DataError, match="not a regular file"):
        check_output(tmp_path / "x.png", ".png")
    (tmp_path / "file").touch()
    assert check_output(tmp_path / "file", inputs=["-", tmp_path / "gone", tmp_path]) == ""
    with pytest.raises(ValueError, match="file' would replace an input"):
        check_output(tmp_path / "x.png" / ".." / "file", inputs=["-", tmp_path / "file"])
    with pytest.raises(NotADirectoryError):
        check_output(tmp_path / "file" / "x.png", ".png")


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)  # the superuser may write anywhere
    with pytest.raises(PermissionError):
        check_output(tmp_path / "new" / "x.png", ".png")
