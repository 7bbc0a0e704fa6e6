"""The folder of a run: its lock, damaged checkpoints, and files of others."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import accuracy, loader, make_run, records, rows, run_of, same

from kexue.errors import CheckpointError, DataError
from kexue.train import load_checkpoint, save_checkpoint
from kexue.train.checkpoint import write_checkpoint
from kexue.train.config import RunBusyError
from kexue.train.folder import check_folder, clear_run, move_damaged_last


def test_a_second_trainer_is_refused_and_the_first_goes_on(tmp_path):
    refusals = []

    def second(*_):
        with pytest.raises(RunBusyError, match=r"another trainer is at work in .* holds its lock") as caught:
            run_of(tmp_path).fit(rows())
        refusals.append(caught.value)

    first = run_of(tmp_path)
    first.callbacks = [second]
    assert first.fit(rows()).steps == 6
    assert len(refusals) == 6
    assert run_of(tmp_path, steps=8).fit(rows()).steps == 8  # it is free again


def test_a_trainer_of_another_process_is_refused_and_a_dead_one_is_no_obstacle(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from kexue.train._lock import run_lock\n"
        "with run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunBusyError, match="another trainer"):
            run_of(tmp_path).fit(rows())
    finally:
        holder.kill()
        holder.communicate()
    assert run_of(tmp_path).fit(rows()).steps == 6


def test_the_lock_ends_with_an_error(tmp_path):
    run = run_of(tmp_path)
    run.callbacks = [lambda *_: 1 / 0]
    with pytest.raises(ZeroDivisionError):
        run.fit(rows())
    assert run_of(tmp_path).fit(rows()).steps == 6


def flip(path, place=-3):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def deepen(path):
    path.write_bytes(b"[" * 200_000)


@pytest.mark.parametrize("part", ["model.safetensors", "optimizers.safetensors", "rng.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("harm", [flip, lambda p: flip(p, 20), truncate, empty, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(tmp_path, part, harm):
    make_run(tmp_path / "whole", save_every=3).fit(loader(), evaluate=accuracy)
    make_run(tmp_path / "run", save_every=3, limit=9).fit(loader(), evaluate=accuracy)
    last = tmp_path / "run" / "last"
    assert (load_checkpoint(last).step, load_checkpoint(tmp_path / "run" / "previous").step) == (9, 6)
    harm(last / part)
    with pytest.raises(CheckpointError, match=f"{part}|not a checkpoint"):
        load_checkpoint(last)
    with pytest.warns(UserWarning, match=r"last.*(damaged|incomplete|has no checkpoint\.json).*previous"):
        result = make_run(tmp_path / "run", save_every=3).fit(loader(), evaluate=accuracy)
    assert result.steps == 20
    one, other = (load_checkpoint(tmp_path / name / "last") for name in ("run", "whole"))
    assert same(one.model, other.model)
    assert same(one.ema, other.ema)
    assert one.place == other.place
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert load_checkpoint(tmp_path / "run" / "previous").step < 20  # the damaged one did not take the good one's place


def test_a_checkpoint_without_manifest_is_ours_only_beside_a_whole_one_with_the_same_files(tmp_path):
    run_of(tmp_path, save_every=2).fit(rows())
    (tmp_path / "last" / "checkpoint.json").unlink()
    (tmp_path / "last" / "thesis.txt").write_text("years")
    with pytest.raises(DataError, match=r"holds thesis\.txt, not"):
        run_of(tmp_path, steps=9).fit(rows())
    (tmp_path / "last" / "thesis.txt").unlink()
    (tmp_path / "previous" / "checkpoint.json").unlink()
    with pytest.raises(DataError, match=r"holds .*safetensors"):
        run_of(tmp_path, steps=9).fit(rows())
    assert (tmp_path / "last" / "model.safetensors").exists()


def test_two_damaged_checkpoints_end_the_run_and_the_newer_is_named(tmp_path):
    run_of(tmp_path, save_every=2).fit(rows())
    for name in ("last", "previous"):
        flip(tmp_path / name / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"last/model\.safetensors is damaged"):
        run_of(tmp_path, steps=9).fit(rows())


class Kill(BaseException):
    """Not an error that anything handles."""


DELETIONS = {
    "before last": lambda run: write_checkpoint(run / "last", {"step": 2}, older=run / "previous"),
    "best": lambda run: save_checkpoint(run / "best", step=2),
    "all": lambda run: clear_run(run, ()),
    "damaged": move_damaged_last,
}


@pytest.mark.parametrize("which", DELETIONS)
def test_a_kill_while_a_checkpoint_is_deleted_leaves_it_whole_or_gone(tmp_path, monkeypatch, which):
    def delete_partly(path, **_):
        monkeypatch.undo()
        (Path(path) / "checkpoint.json").unlink()
        raise Kill

    for name in ("last", "previous", "best", "damaged"):
        save_checkpoint(tmp_path / name, step=1, weight=torch.zeros(2))
    monkeypatch.setattr(shutil, "rmtree", delete_partly)
    with pytest.raises(Kill):
        DELETIONS[which](tmp_path)
    check_folder(tmp_path, ())  # nothing looks as if others had written it
    for folder in tmp_path.glob("[!.]*"):
        load_checkpoint(folder)
    if not (tmp_path / "last").exists():
        save_checkpoint(tmp_path / "last", step=1)
    DELETIONS[which](tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_newer_version_is_refused_not_passed_over(tmp_path):
    from kexue.train import checkpoint

    run_of(tmp_path, save_every=2).fit(rows())
    file = tmp_path / "last" / "checkpoint.json"
    body = json.loads(file.read_text())["body"] | {"version": 99}
    file.write_text(json.dumps({"digest": checkpoint._digest(body), "body": body}))
    with pytest.raises(CheckpointError, match="version 99"):
        run_of(tmp_path, steps=9).fit(rows())


def test_json_that_is_too_deep_is_a_damaged_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "c", step=1)
    deepen(tmp_path / "c" / "checkpoint.json")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "c")
    nest = []
    nest.append(nest)
    with pytest.raises(TypeError, match="cannot save nest: it is nested too deeply"):
        save_checkpoint(tmp_path / "d", nest=nest)
    (tmp_path / "file").write_text("text")
    with pytest.raises(CheckpointError, match="not a folder"):
        load_checkpoint(tmp_path / "file")


@pytest.mark.parametrize("name", ["last", "previous", "best"])
@pytest.mark.parametrize("resume", [True, False])
def test_what_others_wrote_stops_a_run_before_its_first_step(tmp_path, name, resume):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years")
    run = run_of(tmp_path, resume=resume)
    run.callbacks = [lambda *_: pytest.fail("it began")]
    with pytest.raises(DataError, match=r"holds thesis\.txt"):
        run.fit(rows())
    assert (tmp_path / name / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("content", ["step,loss\n1,2\n", "notes", '["a"]\n', '{"kind": "x"}\n'])
@pytest.mark.parametrize("resume", [True, False])
def test_a_log_of_others_is_not_removed(tmp_path, content, resume):
    (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(DataError, match="not a record of a training run"):
        run_of(tmp_path, resume=resume).fit(rows())
    assert (tmp_path / "log.jsonl").read_text() == content
    run_of(tmp_path, resume=resume, log=()).fit(rows())  # nor touched by one without a log
    assert (tmp_path / "log.jsonl").read_text() == content


def test_curves_of_others_stay(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard" / "mine").mkdir(parents=True)
    (tmp_path / "tensorboard" / "mine" / "events.out.tfevents.1.host").write_text("a")
    (tmp_path / "tensorboard" / "events.out.tfevents.1.host").write_text("b")
    for _ in range(2):
        run_of(tmp_path, resume=False, log=("tensorboard",)).fit(rows())
    found = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert len(found) == 3
    assert found[1:] == ["events.out.tfevents.1.host", "mine"] or "events.out.tfevents.1.host" in found
    assert (tmp_path / "tensorboard" / "mine" / "events.out.tfevents.1.host").read_text() == "a"


def test_a_run_from_scratch_leaves_the_files_of_others(tmp_path):
    run_of(tmp_path, save_every=2).fit(rows())
    (tmp_path / "notes.txt").write_text("mine")
    assert run_of(tmp_path, resume=False, steps=2).fit(rows()).steps == 2
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "previous").exists()
    assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(DataError, match="not a folder"):
            run_of(out).fit(rows())
    assert (tmp_path / "out").read_text() == "mine"


def test_a_link_to_another_disk_stays_a_link(tmp_path):
    (tmp_path / "disk" / "last").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last").symlink_to(tmp_path / "disk" / "last")
    for steps in (4, 6):
        assert run_of(tmp_path / "run", steps=steps, save_every=2).fit(rows()).steps == steps
        assert (tmp_path / "run" / "last").is_symlink()
        assert load_checkpoint(tmp_path / "disk" / "last").step == steps


def test_start_is_called_once_the_folder_belongs_to_the_run(tmp_path):
    steps, refused = [], []

    def start(trainer):
        steps.append((trainer.place.step, (tmp_path / "last").exists()))

    def second(*_):
        with pytest.raises(RunBusyError):
            run_of(tmp_path).fit(rows(), start=refused.append)

    first = run_of(tmp_path)
    first.callbacks = [second]
    first.fit(rows(), start=start)
    run_of(tmp_path, steps=8).fit(rows(), start=start)
    run_of(tmp_path, resume=False).fit(rows(), start=start)
    assert steps == [(0, False), (6, True), (0, False)]  # new, continued, begun again with the old one removed
    assert refused == []
