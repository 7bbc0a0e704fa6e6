"""The loop against a loop by hand, and against itself interrupted."""

import io
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from toys import Classifier, Contrastive, TinyGAN, accuracy, loader, make_run, points, train_slowly

from kexue._optional import import_optional
from kexue.errors import CheckpointError, MissingDependencyError
from kexue.train import (
    LossOutput,
    NonFiniteLossError,
    TrainConfig,
    Trainer,
    load_checkpoint,
    logs,
    reporting,
)
from kexue.train.data import epoch_batches


def weights(model):
    return [value.clone() for value in model.state_dict().values()]


def equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def lines(out, *without):
    records = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in without} for record in records]


def parts(out, name="last"):
    """All a run depends on, as comparable lists."""
    saved = load_checkpoint(Path(out) / name)
    flat = []

    def walk(tree):
        for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ():
            walk(value)
        if isinstance(tree, (torch.Tensor, np.ndarray)):
            flat.append(torch.as_tensor(tree))
        elif isinstance(tree, (int, float)):
            flat.append(torch.tensor(float(tree), dtype=torch.float64))

    walk(dict(saved))
    return flat


# what a step is


def test_it_is_the_loop_one_would_write(tmp_path):
    torch.manual_seed(1)
    trainer = make_run(
        tmp_path,
        model=Classifier(dropout=0, noise=0),
        accumulate=1,
        clip=0.5,
        ema=None,
        monitor=None,
        epochs=2,
        steps=None,
    )
    trainer.fit(loader())
    torch.manual_seed(1)
    model = Classifier(dropout=0, noise=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for epoch in range(2):
        for x, y in epoch_batches(loader(), seed=0, epoch=epoch):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
    assert equal(weights(trainer.model), weights(model))
    assert trainer.place.step == trainer.total == 2 * 12


def test_batches_that_accumulate_weigh_like_one(tmp_path):
    """45 rows of 3 batches and the 15 left over are two steps on the means of equal batches: SGD, no statistics."""
    x, y = points(60)
    ways = {
        "parts": [(x[i : i + 15], y[i : i + 15]) for i in range(0, 60, 15)],
        "whole": [(x[:45], y[:45]), (x[45:], y[45:])],
    }
    found = {}
    for name, batches in ways.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        model.training_step = lambda batch, model=model, **_: LossOutput(
            functional.cross_entropy(model(batch[0].double()), batch[1])
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        config = TrainConfig(tmp_path / name, epochs=2, accumulate=3 if name == "parts" else 1, log=())
        assert Trainer(model, optimizer, config).fit(batches).steps == 4
        found[name] = weights(model)
    torch.testing.assert_close(found["parts"], found["whole"])


def test_the_global_generators_are_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    run = make_run(tmp_path / "a")
    torch.set_rng_state(before[0])
    run.fit(loader(), evaluate=accuracy)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    again = make_run(tmp_path / "b")
    torch.manual_seed(99)
    again.fit(loader(), evaluate=accuracy)
    assert equal(weights(run.model), weights(again.model))
    other = make_run(tmp_path / "c", seed=1)
    other.fit(loader(), evaluate=accuracy)
    assert not equal(weights(run.model), weights(other.model))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(tmp_path, precision):
    seen = []

    class Spy(Classifier):
        def training_step(self, batch, **options):
            seen.append(self.net[0](batch[0]).dtype)
            return super().training_step(batch, **options)

    run = make_run(tmp_path, model=Spy(), precision=precision)
    first = lines(tmp_path) if (tmp_path / "log.jsonl").exists() else []
    result = run.fit(loader(), evaluate=accuracy)
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert not first
    assert result.value > 0.75


def test_a_skipped_step_moves_no_schedule(tmp_path):
    """A gradient that overflows in fp16 halves the scale; weights, averages and schedule wait."""
    run = make_run(tmp_path, precision="fp16", steps=3, accumulate=1, monitor=None, eval_every=1)
    grow = run.model.net[4].weight.register_hook(lambda g: g * (torch.inf if run.place.step == 0 else 1))
    initial = run.model.net[0].weight.detach().clone()
    states = []

    def note(trainer, _record):
        unchanged = torch.equal(trainer.model.net[0].weight, initial)
        states.append((trainer.schedulers[0].last_epoch, trainer.state.scaler.get_scale(), unchanged))

    run.callbacks = [note]
    run.fit(loader())
    grow.remove()
    assert states == [(0, 32768.0, True), (1, 32768.0, False), (2, 32768.0, False)]


# evaluation


def test_the_best_is_kept_and_patience_ends_the_run(tmp_path):
    values = iter([0.3, 0.5, 0.4, 0.5, 0.1, 0.9])
    seen = []

    def evaluate(model):
        seen.append(weights(model))
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"score": next(values)}

    run = make_run(tmp_path, steps=100, eval_every=2, monitor="score", patience=3)
    result = run.fit(loader(), evaluate=evaluate)
    assert (result.steps, result.best_step, result.metric, result.value) == (10, 4, "score", 0.5)
    assert result.checkpoint == str(tmp_path / "best")
    best = load_checkpoint(result.checkpoint)
    assert best.step == 4
    assert equal(list(best.ema.values()), seen[1])  # what was evaluated are the averages
    assert not equal(list(best.model.values()), seen[1])
    assert load_checkpoint(tmp_path / "last").step == 10
    assert run.model.training
    assert run.fit(loader(), evaluate=evaluate).steps == 10  # over is over


def test_smaller_may_be_better(tmp_path):
    values = iter([3.0, float("nan"), 1.0, 2.0])
    result = make_run(tmp_path, steps=4, eval_every=1, mode="min", monitor="loss").fit(
        loader(), evaluate=lambda _: {"loss": next(values)}
    )
    assert (result.best_step, result.value) == (3, 1.0)


def test_evaluating_more_often_changes_no_weight(tmp_path):
    def noisy(model):
        torch.rand(7)
        return accuracy(model)

    a, b = make_run(tmp_path / "a", eval_every=1), make_run(tmp_path / "b", eval_every=7)
    a.fit(loader(), evaluate=noisy)
    b.fit(loader(), evaluate=noisy)
    assert equal(weights(a.model), weights(b.model))


def test_the_average_is_one(tmp_path):
    run = make_run(tmp_path, ema=0.5, steps=4, monitor=None, model=Classifier(0, 0))
    path = [run.model.net[0].weight.detach().clone()]
    run.callbacks = [lambda trainer, _: path.append(trainer.model.net[0].weight.detach().clone())]
    run.fit(loader())
    average = path[0]
    for t, weight in enumerate(path[1:], start=1):
        d = min(0.5, (1 + t) / (10 + t))
        average = d * average + (1 - d) * weight
    torch.testing.assert_close(load_checkpoint(tmp_path / "last").ema["net.0.weight"], average)


def test_plateaus_lower_the_rate(tmp_path):
    run = make_run(tmp_path, steps=6, eval_every=1)
    run.schedulers = [torch.optim.lr_scheduler.ReduceLROnPlateau(run.optimizers[0], "max", factor=0.1, patience=1)]
    run.fit(loader(), evaluate=lambda _: {"accuracy": 0.5})
    assert [record["lr"] for record in lines(tmp_path) if record["kind"] == "train"][-1] == pytest.approx(0.0002)


# resuming


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, make_run(out, save_every=1).fit(loader(), evaluate=accuracy)


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"accumulate": 3, "save_every": 5}])
def test_stopped_anywhere_it_goes_on_to_the_bit(tmp_path, options):
    make_run(tmp_path / "whole", **options).fit(loader(), evaluate=accuracy)
    for stop in (1, 6, 7, 13):  # 6 steps of 2 batches are an epoch; the others lie within one

        def halt(trainer, _, stop=stop):
            if trainer.place.step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        out = tmp_path / str(stop)
        first = make_run(out, callbacks=[halt], **options).fit(loader(), evaluate=accuracy)
        assert (first.interrupted, first.steps) == (True, stop)
        result = make_run(out, callbacks=[halt], **options).fit(loader(), evaluate=accuracy)
        assert not result.interrupted
        assert equal(parts(out), parts(tmp_path / "whole"))
        assert lines(out) == lines(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_random_it_goes_on_to_the_bit(tmp_path, uninterrupted):
    """SIGKILL from outside, whenever it hits; how often depends on the machine, the outcome must not."""
    whole, expected = uninterrupted
    out, draw, kills = tmp_path / "run", random.Random(0), 0
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        ["kexue.losses.contrastive", "kexue.optim.ema", "kexue.train.loop"]
    )  # torch is loaded once, not once a kill
    for _ in range(7):
        child = server.Process(target=train_slowly, args=(out,))
        child.start()
        if kills < 6:
            _wait_for_progress(out / "log.jsonl", child)
            time.sleep(draw.uniform(0, 0.1))
            child.kill()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        kills += 1
    assert kills
    for name in ("last", "best"):
        saved = load_checkpoint(out / name)
        assert (saved.place["best_step"], saved.place["best_value"]) == (expected.best_step, expected.value)
        assert equal(parts(out, name), parts(whole, name))
    assert lines(out) == lines(whole)


def _wait_for_progress(path, child):
    """Until the run has begun (again): the log is rewritten when it does."""
    before = path.stat().st_ino if path.exists() else None
    while child.is_alive() and not (path.exists() and path.stat().st_ino != before):
        time.sleep(0.002)


def test_a_smoke_run_can_be_continued(tmp_path, uninterrupted):
    assert make_run(tmp_path, limit=3).fit(loader(), evaluate=lambda _: {"accuracy": 0.0}).steps == 3
    run = make_run(tmp_path)
    assert run.fit(loader(), evaluate=accuracy).steps == 20
    assert equal(weights(run.model), list(load_checkpoint(uninterrupted[0] / "last").model.values()))


def test_ctrl_c_is_heard_once_then_acts_as_usual(tmp_path):
    def twice(trainer, _):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = make_run(tmp_path, callbacks=[twice]).fit(loader(), evaluate=accuracy)
    assert (result.interrupted, result.steps) == (True, 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_may_train(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(make_run(tmp_path).fit(loader(), evaluate=accuracy)))
    thread.start()
    thread.join()
    assert results[0].steps == 20


def test_callbacks_with_state_are_resumed(tmp_path):
    class Counter:
        def __init__(self):
            self.n = 0

        def __call__(self, trainer, record):
            self.n += 1
            assert record["loss"] > 0

        def state_dict(self):
            return {"n": self.n}

        def load_state_dict(self, state):
            self.n = state["n"]

    done = []
    for limit in (4, None):
        counter = Counter()
        bar = reporting(lambda step, total: done.append((step, total)))
        make_run(tmp_path, limit=limit, callbacks=[counter, bar]).fit(loader(), evaluate=accuracy)
    assert counter.n == 20
    assert done == [(i, 4) for i in range(1, 5)] + [(i, 20) for i in range(5, 21)]


def test_another_run_in_the_folder_is_refused(tmp_path):
    make_run(tmp_path, limit=2).fit(loader(), evaluate=accuracy)
    with pytest.raises(CheckpointError, match=r"seed was 0, now 1; accumulate was 2, now 4.*batches was 12, now 9"):
        make_run(tmp_path, seed=1, accumulate=4).fit(loader(10), evaluate=accuracy)
    with pytest.raises(CheckpointError, match="number of schedulers was 1, now 0"):
        make_run(tmp_path, schedule=False).fit(loader(), evaluate=accuracy)
    other = Classifier()
    other.net[4] = nn.Linear(8, 3)
    with pytest.raises(CheckpointError, match=r"net\.4\.weight \(2, 8\) instead of \(3, 8\)"):
        make_run(tmp_path, model=other).fit(loader(), evaluate=accuracy)
    fresh = make_run(tmp_path, seed=1, resume=False, limit=1)
    assert fresh.fit(loader(), evaluate=accuracy).steps == 1
    assert len(lines(tmp_path)) == 2


# what goes wrong


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_loss_that_is_no_number_names_its_step(tmp_path, clip):
    class Breaks(Classifier):
        def training_step(self, batch, **options):
            loss, parts = super().training_step(batch, **options)
            return LossOutput(loss * (torch.nan if run.place.step == 6 else 1), parts)

    run = make_run(tmp_path, model=Breaks(), clip=clip, save_every=2)
    with pytest.raises(NonFiniteLossError, match=r"loss is nan in step 7\."):
        run.fit(loader(), evaluate=accuracy)
    saved = load_checkpoint(tmp_path / "last")
    assert saved.step == 6
    assert all(value.isfinite().all() for value in saved.model.values())


@pytest.mark.parametrize(
    ("clip", "what"), [(1.0, "gradient norm is nan in step 4"), (None, "became infinite or NaN in step 4")]
)
def test_a_gradient_that_is_no_number_is_never_saved(tmp_path, clip, what):
    run = make_run(tmp_path, clip=clip, save_every=1)
    run.model.net[4].weight.register_hook(lambda g: g * (torch.nan if run.place.step == 3 else 1))
    with pytest.raises(NonFiniteLossError, match=what):
        run.fit(loader(), evaluate=accuracy)
    assert load_checkpoint(tmp_path / "last").step == 3


def test_mistakes(tmp_path):
    for options, message in [
        ({"steps": None}, "no end"),
        ({"accumulate": 0}, "accumulate must be a whole number >= 1, got 0"),
        ({"precision": "fp8"}, "precision must be one of .*got 'fp8'"),
        ({"mode": "up"}, "'max' or 'min', got 'up'"),
        ({"clip": 0.0}, "clip must be > 0"),
        ({"ema": 1.0}, "between 0 and 1"),
        ({"seed": -1}, "seed must be"),
        ({"monitor": None, "patience": 2}, "patience needs monitor"),
        ({"log": ("csv",)}, "log must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_run(tmp_path, **options)
    model, other = Classifier(), nn.Linear(2, 2)
    with pytest.raises(ValueError, match="optimizer 0 trains 2 tensors that are not parameters of the model"):
        Trainer(model, torch.optim.SGD(other.parameters(), 1), TrainConfig(tmp_path, steps=1))
    with pytest.raises(TypeError, match="Linear has no training_step"):
        Trainer(other, torch.optim.SGD(other.parameters(), 1), TrainConfig(tmp_path, steps=1))
    with pytest.raises(ValueError, match="monitor='accuracy' needs evaluate"):
        make_run(tmp_path).fit(loader())
    with pytest.raises(ValueError, match="monitor is 'f1', evaluate returned accuracy"):
        make_run(tmp_path, monitor="f1").fit(loader(), evaluate=accuracy)
    with pytest.raises(ValueError, match="no batch in epoch 0"):
        make_run(tmp_path / "empty").fit([], evaluate=accuracy)
    with pytest.raises(ValueError, match="torchrun --standalone --nproc-per-node"):
        make_run(tmp_path / "alone", distributed="ddp").fit(loader(), evaluate=accuracy)
    with pytest.raises(ValueError, match="device 'nowhere' cannot be used"):
        make_run(tmp_path / "device", device="nowhere").fit(loader(), evaluate=accuracy)


# logs


def test_curves_for_tensorboard(tmp_path):
    events = import_optional("tensorboard.backend.event_processing.event_accumulator", extra="train")
    for limit in (5, None):
        make_run(tmp_path, limit=limit, steps=8, eval_every=4, log=("jsonl", "tensorboard")).fit(
            loader(), evaluate=accuracy
        )
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    records = [record for record in lines(tmp_path) if record["kind"] == "train"]
    curve = read.Scalars("train/loss")
    assert [point.step for point in curve] == [record["step"] for record in records] == list(range(1, 9))
    assert [point.value for point in curve] == pytest.approx([record["loss"] for record in records])
    assert "eval/accuracy" in read.Tags()["scalars"]


def test_images_for_tensorboard(tmp_path):
    events = import_optional("tensorboard.backend.event_processing.event_accumulator", extra="train")
    picture = io.BytesIO()
    import_optional("PIL.Image", extra="generative").new("L", (5, 3), 128).save(picture, format="PNG")

    def draw(trainer, _record):
        trainer.log.write_image("samples", trainer.place.step, picture.getvalue())

    for kinds in (("jsonl", "tensorboard"), ("jsonl",)):
        trainer = make_run(tmp_path / kinds[-1], steps=3, log=kinds)
        trainer.callbacks = (draw,)
        trainer.fit(loader(), evaluate=accuracy)
        assert trainer.log is None
    read = events.EventAccumulator(str(tmp_path / "tensorboard" / "tensorboard"))
    read.Reload()
    images = read.Images("samples")
    assert [(one.step, one.width, one.height) for one in images] == [(1, 5, 3), (2, 5, 3), (3, 5, 3)]
    assert images[0].encoded_image_string == picture.getvalue()
    assert not (tmp_path / "jsonl" / "tensorboard").exists()


def test_without_tensorboard(tmp_path, monkeypatch, caplog):
    def absent(name, *, extra):
        raise MissingDependencyError(name, extra)

    monkeypatch.setattr(logs, "import_optional", absent)
    make_run(tmp_path, log=("jsonl", "tensorboard")).fit(loader(), evaluate=accuracy)
    assert "log.jsonl alone is written" in caplog.text
    assert lines(tmp_path)
    with pytest.raises(MissingDependencyError, match=r'pip install "kexue\[train\]"'):
        make_run(tmp_path / "b", log=("tensorboard",)).fit(loader(), evaluate=accuracy)


# the models to come


def test_a_classifier_learns(tmp_path):
    assert make_run(tmp_path, steps=150, schedule=False).fit(loader(), evaluate=accuracy).value > 0.93


def test_two_optimizers_play_against_each_other(tmp_path):
    """A GAN finds a shifted Gaussian; each optimizer moves its own network alone, and a resume is exact."""

    def train(out, limit=None, steps=400):
        torch.manual_seed(0)
        model = TinyGAN()
        optimizers = [torch.optim.Adam(net.parameters(), 5e-3, (0.5, 0.9)) for net in (model.critic, model.make)]
        target = torch.randn(512, 2, generator=torch.Generator().manual_seed(3)) * 0.5 + torch.tensor([2.0, -1.0])
        config = TrainConfig(out, steps=steps, ema=0.9, limit=limit, log=("jsonl",), device="cpu", save_every=100)
        result = Trainer(model, optimizers, config).fit(list(target.split(64)))
        return model, result

    model, result = train(tmp_path / "a")
    record = lines(tmp_path / "a")[-1]
    assert {"loss", "loss_0", "loss_1", "critic", "generator", "lr_0", "lr_1"} <= record.keys()
    assert result.value == record["loss"] == pytest.approx(record["loss_0"] + record["loss_1"])
    model.load_state_dict(load_checkpoint(tmp_path / "a" / "last").ema)
    centre = model.sample(2000, torch.Generator().manual_seed(0)).mean(0)
    assert (centre - torch.tensor([2.0, -1.0])).norm() < 0.5  # it began near the origin, 2.2 away
    train(tmp_path / "b", limit=33)
    again, _ = train(tmp_path / "b", limit=60)
    whole, _ = train(tmp_path / "c", limit=60)
    assert equal(weights(again), weights(whole))


def test_chunks_train_like_the_whole_batch(tmp_path):
    """`GradCache` in a step: its gradient is divided for accumulation and multiplied for fp16 like any other."""
    found = {}
    for precision in ("fp32", "fp16"):
        for chunk_size in (None, 3):
            torch.manual_seed(2)
            model = Contrastive(chunk_size)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            settings = {"precision": precision, "accumulate": 2, "clip": 0.5, "log": (), "device": "cpu"}
            config = TrainConfig(tmp_path / f"{precision}-{chunk_size}", steps=12, **settings)
            result = Trainer(model, optimizer, config).fit(loader(drop_last=True))
            found[precision, chunk_size] = weights(model), result.value
    whole = found.pop(("fp32", None))
    for (precision, _), chunked in found.items():
        tolerance = 1e-5 if precision == "fp32" else 1e-2  # half precision: 3 digits
        torch.testing.assert_close(chunked, whole, rtol=tolerance, atol=tolerance)
