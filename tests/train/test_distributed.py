"""Two processes on this machine, joined by torchrun: together like one, and after a kill like before."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import MODELS, accuracy, loader, make_run

from kexue.errors import CheckpointError
from kexue.train import load_checkpoint

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs in one start of two processes, the second of which kills itself once; torchrun starts them again."""
    out = tmp_path_factory.mktemp("runs")
    common = {"save_every": 3, "accumulate": 2}
    runs = [
        {"out": "ddp", "model": "classifier", "distributed": "ddp", **common},
        {"out": "plain", "model": "plain", "distributed": "ddp", "batch_size": 4, **common},
        {"out": "chunks", "model": "chunks", "distributed": "ddp", "batch_size": 4, **common},
        {"out": "branches", "model": "branches", "distributed": "ddp", "batch_size": 4, "weight": "tokens", **common},
        {"out": "fsdp2", "model": "classifier", "distributed": "fsdp2", **common},
        {"out": "sharded", "model": "plain", "distributed": "fsdp2", "batch_size": 4, **common},
        {"out": "ddp-killed", "model": "classifier", "distributed": "ddp", "die": [0, 1, 7], **common},
        {"out": "fsdp2-halted", "model": "classifier", "distributed": "fsdp2", "limit": 7, **common},
        {"out": "fsdp2-halted", "model": "classifier", "distributed": "fsdp2", **common},
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=2", str(HERE / "toys.py"), json.dumps(runs)]
    launcher = subprocess.Popen(command, cwd=out, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = launcher.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)  # what it started, should it hang
    assert launcher.returncode == 0, errors[-4000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("out", "again"), [("ddp", "ddp-killed"), ("fsdp2", "fsdp2-halted")])
def test_stopped_they_go_on(runs, out, again):
    whole, resumed = (load_checkpoint(runs / name / "last") for name in (out, again))
    assert whole.step == resumed.step == 20
    assert len(whole.rng) == 2
    for part in ("model", "ema"):
        torch.testing.assert_close(dict(resumed[part]), dict(whole[part]), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_log_of_a_kill_is_that_of_none(runs):
    assert (runs / "ddp-killed" / "log.jsonl").read_text() == (runs / "ddp" / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("out", "model"), [("plain", "plain"), ("sharded", "plain"), ("chunks", "chunks"), ("branches", "branches")]
)
def test_two_processes_are_like_twice_the_batches_in_one(runs, tmp_path, out, model):
    """Without dropout and statistics, 2 batches in each of 2 processes give the mean gradient of 4 batches in one."""
    torch.manual_seed(1)
    weight = "tokens" if model == "branches" else None
    single = make_run(tmp_path, model=MODELS[model](), accumulate=4, monitor=None, weight=weight)
    single.fit(loader(4, drop_last=True))
    together = load_checkpoint(runs / out / "last")
    alone = load_checkpoint(tmp_path / "last")
    for part in ("model", "ema"):
        torch.testing.assert_close(dict(together[part]), dict(alone[part]), rtol=1e-5, atol=1e-6)
    assert together.step == alone.step
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (runs / out, tmp_path)]
    records = [[json.loads(line) for line in log if '"kind": "train"' in line] for log in logs]
    for one, other in zip(*records, strict=True):  # means over both processes
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_a_run_of_two_is_not_continued_by_one(runs):
    with pytest.raises(CheckpointError, match="processes was 2, now 1"):
        make_run(runs / "ddp").fit(loader(drop_last=True), evaluate=accuracy)


@pytest.mark.slow
def test_what_an_optimizer_knew_of_its_parameters_holds_for_their_shards():
    done = subprocess.run(
        [sys.executable, str(HERE / "shards.py")], check=True, capture_output=True, text=True, timeout=300
    )
    gaps = json.loads(done.stdout.splitlines()[-1])
    assert len(gaps) == 5
    assert max(gaps.values()) < 1e-6, gaps
