"""What can go wrong around a run, and must not: signals, other trainers, damage, files of others, odd values."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, TensorDataset

sys.path.insert(0, str(Path(__file__).parent))
from toys import Classifier, accuracy, loader, make_run, points

from kexue.errors import CheckpointError, DataError
from kexue.optim import EMA, DecoupledWeightDecay, LayerAdaptation, Lookahead
from kexue.train import LossOutput, TrainConfig, Trainer, load_checkpoint, save_checkpoint
from kexue.train.config import RunBusyError
from kexue.train.data import epoch_batches

PATIENT = Path(__file__).with_name("patient.py")


class Line(nn.Module):
    """The mean square of x w + b."""

    def __init__(self, **parts):
        super().__init__()
        self.line = nn.Linear(3, 1)
        self.parts = parts

    def forward(self, x):
        return self.line(x)

    def training_step(self, batch, **_):
        x = batch[0] if isinstance(batch, (list, tuple)) else batch
        return LossOutput(self(x).square().mean(), self.parts)


def run_of(out, model=None, *, optimizer=None, schedulers=(), **options):
    torch.manual_seed(0)
    model = Line() if model is None else model
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    config = TrainConfig(out, **{"steps": 6, "device": "cpu", "log": ("jsonl",)} | options)
    return Trainer(model, optimizer, config, schedulers=list(schedulers))


def rows(n=8):
    return list(torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(1)))


def records(out):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# signals


def patient(out, kind, sign):
    """The program of that name, in a process group of its own."""
    command = [sys.executable, str(PATIENT), str(out), kind, sign]
    return subprocess.run(command, check=False, start_new_session=True, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert patient(out, "alone", "none").returncode == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sign"), [
    ("fork", "SIGTERM"), ("fork", "SIGINT"), ("fork", "SIGHUP"), ("spawn", "SIGTERM"), ("spawn", "SIGINT"),
    ("forkserver", "SIGTERM"), ("iterable", "SIGTERM"), ("evaluating", "SIGTERM"), ("idle", "SIGTERM"),
])  # fmt: skip
def test_a_signal_to_the_whole_group_still_saves(tmp_path, undisturbed, kind, sign):
    """The workers of every loader hear it: those of training, however they are made, and those of evaluating."""
    done = patient(tmp_path / "run", kind, sign)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = json.loads(done.stdout.splitlines()[-1])
    assert steps["interrupted"]
    assert load_checkpoint(tmp_path / "run" / "last").step == steps["steps"] >= 3
    again = patient(tmp_path / "run", "alone", "none")
    assert again.returncode == 0, again.stderr[-3000:]
    one, other = (load_checkpoint(folder / "last") for folder in (tmp_path / "run", undisturbed))
    assert one.place == other.place
    assert same(one.model, other.model)
    assert records(tmp_path / "run") == records(undisturbed)


@pytest.mark.slow
def test_a_worker_that_dies_of_something_else_is_an_error(tmp_path):
    done = patient(tmp_path / "run", "mortal", "none")
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


# two trainers


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


# damage


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
    with pytest.raises(CheckpointError, match=f"{part}|no checkpoint"):
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


# files of others


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
    with pytest.raises(DataError, match="no record of a training run"):
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


def test_a_run_begun_anew_leaves_what_is_not_its_own(tmp_path):
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


# a smoke run


@pytest.mark.parametrize("limit", [1, 2, 4, 6, 8, 11, 13])
@pytest.mark.parametrize("options", [
    {"eval_every": 4, "patience": 3},
    {"eval_every": 3, "save_every": 2, "patience": 20},
    {"eval_every": None, "epochs": 3, "steps": None, "patience": 20},
], ids=["patience", "saves", "epochs"])  # fmt: skip
def test_a_smoke_run_gone_on_with_is_the_run_it_would_have_been(tmp_path, limit, options):
    """Evaluations, the best, patience, plateaus, schedules, logs, and where it ends."""

    def run(out, **more):
        torch.manual_seed(0)
        model = Classifier()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        schedulers = [ReduceLROnPlateau(optimizer, "max", patience=0, factor=0.5), StepLR(optimizer, 2, 0.9)]
        config = TrainConfig(
            out, **{"steps": 16, "device": "cpu", "log": ("jsonl",), "monitor": "score"} | options | more
        )
        scores = [0.1, 0.2, 0.2, 0.2, 0.2, 0.1]

        def evaluate(_):
            return {"score": scores[min(trainer.place.step // 3, 5)]}

        trainer = Trainer(model, optimizer, config, schedulers=schedulers)
        return trainer.fit(loader(16), evaluate=evaluate)

    whole = run(tmp_path / "whole")
    first = run(tmp_path / "cut", limit=limit)
    assert first.steps == min(limit, whole.steps)
    assert first.value is not None  # something was evaluated
    cut = run(tmp_path / "cut")
    assert (cut.steps, cut.best_step, cut.value) == (whole.steps, whole.best_step, whole.value)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    for name in ("last", "best"):
        one, other = (load_checkpoint(tmp_path / folder / name) for folder in ("cut", "whole"))
        assert one.place == other.place
        assert same(one.model, other.model)
        assert one.schedulers == other.schedulers


# numbers that are none


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null_in_the_log(tmp_path, value):
    pytest.importorskip("tensorboard")
    model = Line(precision=torch.tensor(value), other=value)
    run_of(tmp_path, model, log=("jsonl", "tensorboard")).fit(rows(), evaluate=lambda _: {"f1": value, "n": 3})
    assert all(record["precision"] is record["other"] is None for record in records(tmp_path) if "loss" in record)
    assert records(tmp_path)[-1]["f1"] is None
    assert records(tmp_path)[-1]["n"] == 3
    assert run_of(tmp_path, Line(precision=torch.tensor(value), other=value), steps=8).fit(rows()).steps == 8


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("values", [[math.nan, 0.3, 0.4], [0.3, math.nan, 0.3], [math.nan] * 3])
def test_an_evaluation_that_is_no_number_is_never_the_best(tmp_path, mode, values):
    rest = iter(values)
    result = run_of(tmp_path, steps=3, eval_every=1, monitor="x", mode=mode).fit(
        rows(), evaluate=lambda _: {"x": next(rest)}
    )
    real = [value for value in values if not math.isnan(value)]
    best = (max(real) if mode == "max" else min(real)) if real else None
    assert result.best_step == (values.index(best) + 1 if real else None)
    assert result.value == best or (not real and math.isnan(result.value))
    assert (tmp_path / "best").exists() == bool(real)


PARTS = {
    "float": (0.5, 0.5), "int": (2, 2.0), "bool": (True, 1.0), "numpy": (np.float64(0.25), 0.25),
    "numpy int": (np.int64(3), 3.0), "array": (np.array([1.0, 2.0]), 1.5), "0-d array": (np.array(4.0), 4.0),
    "tensor": (torch.tensor([1.0, 3.0]), 2.0), "whole": (torch.tensor(7), 7.0), "list": ([1.0, 2.0], 1.5),
    "double": (torch.tensor(0.5, dtype=torch.float64), 0.5), "half": (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
}  # fmt: skip


@pytest.mark.parametrize(("given", "logged"), PARTS.values(), ids=PARTS)
def test_numbers_of_any_make_are_logged(tmp_path, given, logged):
    result = run_of(tmp_path, Line(part=given), accumulate=2).fit(rows(), evaluate=lambda _: {"part": logged})
    assert result.steps == 6
    assert all(record["part"] == logged for record in records(tmp_path))


@pytest.mark.parametrize("bad", ["0.5", None, 1j, {"a": 1}, torch.tensor(1j)])
def test_what_is_no_number_at_all_is_refused_by_name(tmp_path, bad):
    with pytest.raises(TypeError, match="part 'accuracy' of training_step must be a real number"):
        run_of(tmp_path / "a", Line(accuracy=bad)).fit(rows())
    with pytest.raises(TypeError, match=r"evaluate must return numbers, got .* for 'f1'"):
        run_of(tmp_path / "b").fit(rows(), evaluate=lambda _: {"f1": bad})


@pytest.mark.parametrize("output", [torch.tensor(1.0), 0.5, None, LossOutput(0.5), LossOutput(torch.ones(3))])
def test_a_step_that_returns_something_else_is_refused(tmp_path, output):
    model = Line()
    model.training_step = lambda batch, **_: output
    with pytest.raises(TypeError, match="training_step must return a LossOutput"):
        run_of(tmp_path, model).fit(rows())


def test_a_loss_without_a_graph_is_refused(tmp_path):
    model = Line()
    model.training_step = lambda batch, **_: LossOutput(torch.tensor(1.0))
    with pytest.raises(ValueError, match="without a graph"):
        run_of(tmp_path, model).fit(rows())


def test_evaluate_must_return_numbers_by_name(tmp_path):
    with pytest.raises(TypeError, match=r"numbers by name, got 0\.5"):
        run_of(tmp_path).fit(rows(), evaluate=lambda _: 0.5)


# schedules and states of another kind


@pytest.mark.parametrize("evaluate", [None, lambda _: {"loss": 1.0}])
def test_a_plateau_that_nobody_watches_for_is_refused(tmp_path, evaluate):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = run_of(tmp_path, model, optimizer=optimizer, schedulers=[ReduceLROnPlateau(optimizer)])
    with pytest.raises(ValueError, match="ReduceLROnPlateau needs monitor"):
        run.fit(rows(), evaluate=evaluate)


def test_another_optimizer_or_schedule_is_refused(tmp_path):
    def run(kind, schedule, **options):
        model = Line()
        optimizer = kind(model.parameters())
        return run_of(tmp_path, model, optimizer=optimizer, schedulers=[schedule(optimizer, 5)], **options)

    run(torch.optim.Adamax, StepLR).fit(rows())
    with pytest.raises(CheckpointError, match=r"optimizers was \['Adamax'\], now \['RAdam'\]"):
        run(torch.optim.RAdam, StepLR).fit(rows())
    with pytest.raises(CheckpointError, match=r"optimizers was \['Adamax'\], now \['Adamax Lookahead'\]"):
        run(lambda params: Lookahead(torch.optim.Adamax(params)), StepLR).fit(rows())
    with pytest.raises(CheckpointError, match=r"schedulers was \['StepLR'\], now \['CosineAnnealingLR'\]"):
        run(torch.optim.Adamax, CosineAnnealingLR).fit(rows())
    saved = load_checkpoint(tmp_path / "last")
    with pytest.raises(CheckpointError, match=r"optimizers.*Adamax.*|the state is that of Adamax.* is SGD"):
        saved.restore(optimizers=[torch.optim.SGD(Line().parameters(), momentum=0.9)])


# names


class Nest(Line):
    """A compiled module within a plain one."""

    def __init__(self, compiled):
        super().__init__()
        inner = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.first = torch.compile(inner, backend="eager") if compiled else inner

    def forward(self, x):
        return self.line(self.first(x))


WAYS = {
    "plain": lambda: Nest(False),
    "compiled": lambda: torch.compile(Nest(False), backend="eager"),
    "within": lambda: Nest(True),
    "both": lambda: torch.compile(Nest(True), backend="eager"),
}


@pytest.mark.parametrize("saved", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("loaded", WAYS.values(), ids=WAYS)
def test_names_in_checkpoints_are_plain_however_the_model_is_wrapped(tmp_path, saved, loaded):
    torch.manual_seed(3)
    model = saved()
    save_checkpoint(tmp_path / "c", model=model)
    read = load_checkpoint(tmp_path / "c")
    assert set(read.model) == {"line.weight", "line.bias", "first.0.weight", "first.0.bias"}
    other = loaded()
    read.restore(model=other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    out = tmp_path / "run"
    run_of(out, model, steps=2, ema=0.9).fit(rows())
    assert set(load_checkpoint(out / "last").model) == set(load_checkpoint(out / "last").ema) == set(read.model)
    assert run_of(out, loaded(), steps=4, ema=0.9).fit(rows()).steps == 4


def test_a_data_parallel_wrapper_within_leaves_no_trace(tmp_path):
    plain, wrapped = Nest(False), Nest(False)
    wrapped.first = nn.DataParallel(wrapped.first)
    save_checkpoint(tmp_path / "c", model=wrapped)
    load_checkpoint(tmp_path / "c").restore(model=plain)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True))


def test_a_part_that_is_called_module_keeps_its_name(tmp_path):
    model = nn.ModuleDict({"module": nn.Linear(1, 1)})
    save_checkpoint(tmp_path / "c", model=model)
    assert set(load_checkpoint(tmp_path / "c").model) == {"module.weight", "module.bias"}


# frozen weights


def half_frozen():
    torch.manual_seed(4)
    model = Nest(False)
    model.first.requires_grad_(False)
    model.register_buffer("seen", torch.ones(1))
    return model


def test_checkpoints_may_hold_trained_weights_alone(tmp_path):
    def run(out, model=None, **options):
        model = model or half_frozen()
        trained = [p for p in model.parameters() if p.requires_grad]
        options = {"save_frozen": False, "ema": 0.9} | options
        return run_of(out, model, optimizer=torch.optim.Adam(trained), **options)

    whole = run(tmp_path / "whole", save_frozen=True)
    whole.fit(rows())
    run(tmp_path / "cut", limit=3).fit(rows())
    again = run(tmp_path / "cut")
    again.fit(rows())
    assert same(again.model.state_dict(), whole.model.state_dict())
    saved = load_checkpoint(tmp_path / "cut" / "last")
    assert set(saved.model) == set(saved.ema) == {"line.weight", "line.bias", "seen"}
    fresh = half_frozen()
    saved.restore(model=fresh)
    assert same(fresh.state_dict(), whole.model.state_dict())
    other = half_frozen()
    other.first[0].weight.data += 1
    with pytest.raises(CheckpointError, match="frozen was"):
        run(tmp_path / "cut", other, steps=9).fit(rows())


# batches that differ in size


@pytest.mark.parametrize(("precision", "clip"), [("fp32", None), ("fp32", 0.01), ("fp16", None)])
def test_batches_count_by_their_tokens(tmp_path, precision, clip):
    """Micro-batches of 1, 5 and 2 rows are one batch of 8: the same gradient, norm, loss and weights."""

    class Counted(Line):
        def training_step(self, batch, **options):
            return LossOutput(
                super().training_step(batch, **options).loss, {"tokens": len(batch), "first": batch[0, 0]}
            )

    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
    ways = {"parts": ([*x[:8].split([1, 5, 2]), *x[8:].split([3, 4, 1])], 3), "whole": (list(x.split(8)), 1)}
    ends = {}
    for name, (batches, accumulate) in ways.items():
        options = {"weight": "tokens", "accumulate": accumulate, "clip": clip, "precision": precision, "steps": 4}
        torch.manual_seed(0)
        model = Counted()
        run_of(tmp_path / name, model, optimizer=torch.optim.SGD(model.parameters(), 8.0), **options).fit(batches)
        ends[name] = list(model.parameters()), records(tmp_path / name)
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    torch.testing.assert_close(*(end[0] for end in ends.values()), rtol=tolerance, atol=tolerance)
    for one, other in zip(*(end[1] for end in ends.values()), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
        assert "tokens" not in one
        assert clip is None or one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=tolerance)


@pytest.mark.parametrize(("parts", "message"), [
    ({}, "weight is 'tokens', training_step returned the parts none"), ({"tokens": -1}, "finite and >= 0, got -1"),
    ({"tokens": math.nan}, "finite"), ({"tokens": 0}, "of all losses of a step are 0"),
])  # fmt: skip
def test_weights_that_make_no_mean_are_refused(tmp_path, parts, message):
    with pytest.raises(ValueError, match=message):
        run_of(tmp_path, Line(**parts), weight="tokens").fit(rows())


# modes, samplers


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_run_in_any_mode_trains(tmp_path, mode):
    run, other, data = run_of(tmp_path / "a", ema=0.9), run_of(tmp_path / "b", ema=0.9), rows()
    with mode():
        run.fit(data)
    other.fit(rows())
    assert same(run.model.state_dict(), other.model.state_dict())


@pytest.mark.parametrize("make", [
    lambda o: DecoupledWeightDecay(o, 0.1), LayerAdaptation, Lookahead, EMA, lambda o: EMA(Lookahead(o)),
])  # fmt: skip
def test_wrapped_optimizers_resume_exactly(tmp_path, make):
    def run(out, **options):
        torch.manual_seed(0)
        model = Line()
        return run_of(out, model, optimizer=make(torch.optim.Adam(model.parameters(), 0.05)), steps=9, **options)

    whole, cut = run(tmp_path / "a"), run(tmp_path / "b", limit=4)
    whole.fit(rows())
    cut.fit(rows())
    again = run(tmp_path / "b")
    again.fit(rows())
    assert same(again.model.state_dict(), whole.model.state_dict())


class Epochs(IterableDataset):
    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter(torch.zeros(4, 3))


def test_every_part_of_a_loader_hears_of_the_epoch(tmp_path):
    dataset = Epochs()
    run_of(tmp_path / "a", steps=None, epochs=3).fit(DataLoader(dataset, 2))
    assert dataset.epochs == [0, 1, 2]

    class Sampler(RandomSampler):
        heard = ()

        def set_epoch(self, epoch):
            self.heard = (*self.heard, epoch)

    data = TensorDataset(*points(8))
    sampler = Sampler(data)
    batches = torch.utils.data.BatchSampler(sampler, 4, drop_last=False)
    list(epoch_batches(DataLoader(data, batch_sampler=batches), seed=0, epoch=5))
    assert sampler.heard == (5,)


def test_a_sampler_that_shares_out_is_refused_and_one_for_one_process_is_taken():
    data = TensorDataset(torch.arange(8.0))
    with pytest.raises(ValueError, match="DistributedSampler shares out the data among 2 processes"):
        list(epoch_batches(DataLoader(data, 2, sampler=DistributedSampler(data, 2, 0)), seed=0, epoch=0))
    one = DataLoader(data, 2, sampler=DistributedSampler(data, 1, 0, seed=3))
    orders = [[x.tolist() for (x,) in epoch_batches(one, seed=0, epoch=epoch)] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


def test_in_another_thread_signals_and_locks_do_no_harm(tmp_path):
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread = threading.Thread(target=lambda: results.append(run_of(tmp_path).fit(rows())))
        thread.start()
        thread.join()
    assert results[0].steps == 6
