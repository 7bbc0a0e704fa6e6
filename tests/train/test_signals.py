"""Signals to a run and to its workers: a checkpoint is saved, and handlers are put back."""

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from toys import records, rows, run_of, same

from kexue.train import load_checkpoint

PROGRAM = Path(__file__).with_name("signalled.py")


def run_program(out, kind, sign):
    """The program of that name, in a process group of its own."""
    command = [sys.executable, str(PROGRAM), str(out), kind, sign]
    return subprocess.run(command, check=False, start_new_session=True, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run_program(out, "alone", "none").returncode == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sign"), [
    ("fork", "SIGTERM"), ("fork", "SIGINT"), ("fork", "SIGHUP"), ("spawn", "SIGTERM"), ("spawn", "SIGINT"),
    ("forkserver", "SIGTERM"), ("iterable", "SIGTERM"), ("evaluating", "SIGTERM"), ("idle", "SIGTERM"),
])  # fmt: skip
def test_a_signal_to_the_whole_group_still_saves(tmp_path, undisturbed, kind, sign):
    """The workers of every loader hear it: those of training, however they are made, and those of evaluating."""
    done = run_program(tmp_path / "run", kind, sign)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = json.loads(done.stdout.splitlines()[-1])
    assert steps["interrupted"]
    assert load_checkpoint(tmp_path / "run" / "last").step == steps["steps"] >= 3
    again = run_program(tmp_path / "run", "alone", "none")
    assert again.returncode == 0, again.stderr[-3000:]
    one, other = (load_checkpoint(folder / "last") for folder in (tmp_path / "run", undisturbed))
    assert one.place == other.place
    assert same(one.model, other.model)
    assert records(tmp_path / "run") == records(undisturbed)


@pytest.mark.slow
def test_a_worker_that_dies_of_something_else_is_an_error(tmp_path):
    done = run_program(tmp_path / "run", "mortal", "none")
    assert done.returncode == 1
    assert "exited unexpectedly" in done.stderr


def test_what_was_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = run_of(tmp_path)
        run.callbacks = [lambda *_: os.kill(os.getpid(), signal.SIGHUP)]
        result = run.fit(rows())
        assert (result.steps, result.interrupted) == (6, False)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_handler_for_dead_children_is_put_back(tmp_path):
    run_of(tmp_path / "a").fit(rows())
    before = signal.getsignal(signal.SIGCHLD)
    run_of(tmp_path / "b").fit(rows())
    assert signal.getsignal(signal.SIGCHLD) is before


def test_in_another_thread_signals_and_locks_do_no_harm(tmp_path):
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread = threading.Thread(target=lambda: results.append(run_of(tmp_path).fit(rows())))
        thread.start()
        thread.join()
    assert results[0].steps == 6
