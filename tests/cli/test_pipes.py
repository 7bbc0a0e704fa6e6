"""A reader that leaves before the output ends, and streams that belong to a caller of `main`."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

import kexue
from kexue.cli import main

PROGRAM = "import sys; from kexue.cli import main; sys.exit(main())"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are others there")
@pytest.mark.parametrize("arguments", [["x^2 - 1"], ["no equation"]])
def test_a_reader_that_left_is_no_error(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-c", PROGRAM, "solve", *arguments, "--json"]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_streams_of_the_caller_stay_open(monkeypatch, capsys) -> None:
    def leave(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("kexue.cli.app", leave)
    assert main(["doctor"]) == 0
    print("still here", file=sys.stderr)
    print(kexue.__version__)
    assert capsys.readouterr() == (f"{kexue.__version__}\n", "still here\n")


def test_a_closed_pipe_replaces_no_stream(monkeypatch, capsys) -> None:
    class Closed:
        encoding = "utf-8"

        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        def flush(self) -> None:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    streams = Closed(), sys.stderr
    monkeypatch.setattr(sys, "stdout", streams[0])
    assert main(["solve", "x^2 - 1", "--json"]) == 0
    assert (sys.stdout, sys.stderr) == streams
    assert capsys.readouterr().err == ""
