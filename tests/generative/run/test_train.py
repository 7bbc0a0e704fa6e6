"""Training of a model by its name: exact resume, files of a run, what is refused."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import SMALL, write_classes

from kexue._optional import import_optional
from kexue.errors import CheckpointError, DataError
from kexue.generative import ModelConfig, list_models, open_run, train_model
from kexue.generative.recipes import RECIPES, Course, train_all
from kexue.generative.run import train
from kexue.generative.run.train import measure_loss
from kexue.train import RunBusyError
from kexue.train.state import hash_tensors

NAMES = ["vae", "vqvae", "nice", "realnvp", "glow", "univae", "diffusion", "flow-matching", "ebm", "gan", "ign"]
NOT_WATCHED = {"ebm", "gan", "ign"}  # their loss does not tell how good they are


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_every_name_is_known():
    assert list_models() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_cut_off_ends_with_the_same_bits(name, pictures, lines, tmp_path):
    data = lines if name == "univae" else pictures
    whole = train_model(ModelConfig(name, data, tmp_path / "whole", **SMALL))
    best = None if name in NOT_WATCHED else 4
    assert (whole.steps, whole.best_step, whole.metric, whole.interrupted) == (4, best, "loss", False)
    for limit in (2, None):
        result = train_model(ModelConfig(name, data, tmp_path / "parts", limit=limit, **SMALL))
        assert result.steps == (limit or 4)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert expected.keys() == found.keys()
    for one in expected:
        assert torch.equal(expected[one], found[one]), one
    assert (tmp_path / "whole" / os.path.basename(whole.samples)).stat().st_size > 0


def test_classes_are_learnt_and_others_leave_them_out(tmp_path):
    write_classes(tmp_path / "pets")
    run = {}
    for name in ("diffusion", "vae"):
        train_model(ModelConfig(name, tmp_path / "pets", tmp_path / name, **SMALL))
        run[name] = open_run(tmp_path / name)
    settings = json.loads((tmp_path / "diffusion" / "settings.json").read_text())
    assert settings["facts"]["classes"] == ["cats", "dogs"]
    assert settings["facts"]["class_shares"] == pytest.approx([2 / 3, 1 / 3], abs=0.02)
    parts = run["vae"].medium.load(tmp_path / "pets", None)[1]
    assert parts.train_classes is not None
    assert (run["diffusion"].data, run["vae"].data) == (parts.hash(), parts.without_classes().hash())
    assert parts.without_classes().hash() == hash_tensors(
        {"train": parts.train, "validation": parts.validation, "test": parts.test}
    )  # as it was before there were classes


def test_the_classes_of_a_batch_are_those_of_its_items(tmp_path):
    """The loss of items that are told their class is smaller, once it is learnt, than that of items told another."""
    write_classes(tmp_path / "pets", plain=True)
    config = ModelConfig(
        "diffusion", tmp_path / "pets", tmp_path / "run", steps=150, batch_size=32, ema=0.9, device="cpu"
    )
    train_model(config)
    run = open_run(tmp_path / "run", device="cpu")
    parts = run.medium.load(tmp_path / "pets", None)[1]
    with torch.no_grad():
        right = measure_loss(run.model, parts.train, parts.train_classes)["loss"]
        wrong = measure_loss(run.model, parts.train, 1 - parts.train_classes)["loss"]
    assert right < 0.8 * wrong


def test_a_seed_is_another_run(pictures, tmp_path):
    for seed in (0, 1):
        train_model(ModelConfig("vae", pictures, tmp_path / str(seed), seed=seed, **SMALL))
    first, second = weights(tmp_path / "0"), weights(tmp_path / "1")
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_kept_weights_are_the_averages_unless_there_are_none(pictures, tmp_path):
    for ema, part in ((0.5, "ema"), (0.0, "model")):
        out = tmp_path / part
        train_model(ModelConfig("vae", pictures, out, ema=ema, **SMALL))
        saved = load_file(out / "best" / f"{part}.safetensors")
        found = weights(out)
        assert all(torch.equal(saved[name], found[name]) for name in saved)


def test_a_signal_ends_the_run_and_the_same_call_continues(pictures, tmp_path, monkeypatch):
    def stop_at_two(_progress):
        return lambda trainer, _record: os.kill(os.getpid(), signal.SIGTERM) if trainer.place.step == 2 else None

    monkeypatch.setattr(train, "reporting", stop_at_two)
    config = ModelConfig("vae", pictures, tmp_path / "run", **SMALL)
    first = train_model(config)
    assert (first.steps, first.interrupted) == (2, True)
    assert open_run(tmp_path / "run").model.sample(1, generator=0).shape == (1, 1, 8, 8)
    again = train_model(config)
    assert (again.steps, again.interrupted) == (4, False)


@pytest.mark.slow
def test_the_training_ends_when_the_validation_loss_no_longer_falls(pictures, tmp_path):
    """Random pixels cannot be learnt, so a flow that overfits them stops early, and keeps an early step."""
    result = train_model(ModelConfig("nice", pictures, tmp_path / "run", batch_size=16, lr=1e-2, device="cpu"))
    assert result.steps < 1000
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {one["step"]: one["loss"] for one in records if one["kind"] == "eval"}
    assert result.best_step == min(losses, key=losses.get)
    assert result.value == pytest.approx(losses[result.best_step])
    assert result.steps > result.best_step


def test_two_optimizers_and_a_loss_that_tells_nothing(pictures, tmp_path, monkeypatch):
    """Each optimizer has its own rate, falling as that of one does; nothing is measured, the last averages are kept."""

    def optimizers(model, course):
        return [*train_all(model.encoder, course, rate=4.0), *train_all(model.decoder, course)]

    vae = RECIPES["vae"]
    steps = SMALL["steps"]
    recipe = replace(vae, optimizers=optimizers, choose_course=lambda _facts: Course(steps, lr=0.01, patience=None))
    monkeypatch.setitem(RECIPES, "vae", recipe)
    for out, limit in (("whole", None), ("parts", 2), ("parts", None)):
        result = train_model(ModelConfig("vae", pictures, tmp_path / out, limit=limit, **SMALL))
    assert (result.best_step, result.metric) == (None, "loss")
    records = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [one["kind"] for one in records] == ["train"] * steps
    for one in records:
        assert one["lr_0"] == pytest.approx(4 * one["lr_1"])
    assert (records[0]["lr_1"], records[-1]["lr_1"]) == pytest.approx((0.01, 0.01 / 3))
    last = load_file(tmp_path / "whole" / "last" / "ema.safetensors")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() == last.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name])
        assert torch.equal(value, last[name])


def test_samples_appear_in_tensorboard(pictures, tmp_path):
    events = import_optional("tensorboard.backend.event_processing.event_accumulator", extra="train")
    train_model(ModelConfig("vae", pictures, tmp_path / "run", steps=100, batch_size=16, device="cpu"))
    read = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    [image] = read.Images("samples")
    assert image.step == 100
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_other_settings_or_data_are_refused(pictures, tmp_path):
    config = {"model": "vae", "data": pictures, "out": tmp_path / "run"}
    train_model(ModelConfig(**config, **SMALL))
    with pytest.raises(CheckpointError, match=r"lr was 0\.001, is 0\.1"):
        train_model(ModelConfig(**config, lr=0.1, **SMALL))
    with pytest.raises(CheckpointError, match="model was 'vae', is 'vqvae'"):
        train_model(ModelConfig(**config | {"model": "vqvae"}, **SMALL))
    next(pictures.iterdir()).unlink()
    with pytest.raises(CheckpointError, match="data was '"):
        train_model(ModelConfig(**config, **SMALL))
    assert train_model(ModelConfig(**config, lr=0.1, resume=False, **SMALL)).steps == 4


def test_a_run_started_anew_and_killed_has_no_model_of_the_one_before(pictures, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killing(_progress):
        def kill(*_arguments):
            raise Killed

        return kill

    config = ModelConfig("vae", pictures, tmp_path / "run", **SMALL)
    train_model(config)
    monkeypatch.setattr(train, "reporting", killing)
    with pytest.raises(Killed):
        train_model(replace(config, lr=0.1, resume=False))
    with pytest.raises(CheckpointError, match="its training has not ended"):
        open_run(tmp_path / "run")
    assert not (tmp_path / "run" / "samples.png").exists()


def test_a_second_trainer_leaves_the_settings_of_the_first(pictures, tmp_path, monkeypatch):
    config = ModelConfig("vae", pictures, tmp_path / "run", **SMALL)
    silent = train.reporting
    refused = []

    def second(_trainer, _record):
        with monkeypatch.context() as inner:
            inner.setattr(train, "reporting", silent)
            with pytest.raises(RunBusyError):
                train_model(replace(config, lr=0.1, resume=False))
        refused.append(json.loads((tmp_path / "run" / "settings.json").read_text(encoding="utf-8"))["lr"])

    monkeypatch.setattr(train, "reporting", lambda _progress: second)
    train_model(config)
    assert refused == [0.001] * 4
    monkeypatch.setattr(train, "reporting", silent)
    assert train_model(config).steps == 4


def test_a_run_is_not_written_among_its_images(pictures, tmp_path, monkeypatch):
    """Its sheet of samples would be learnt from, and the images would no longer be those that it began with."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for out in ("pictures", pictures / "run", "pictures/../pictures/a/b"):
        with pytest.raises(DataError, match="would be written into the folder of its images") as caught:
            train_model(ModelConfig("vae", "pictures", out, **SMALL))
        assert caught.value.remedy == "Name a folder outside of pictures."
    assert sorted(tmp_path.rglob("*")) == before
    assert train_model(ModelConfig("vae", "pictures", "pictures2", **SMALL)).steps == 4


def test_a_file_in_the_place_of_the_folder(pictures, tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(DataError, match="exists, but is not a folder"):
        train_model(ModelConfig("vae", pictures, tmp_path / "run", **SMALL))


def test_an_unknown_name(pictures, tmp_path):
    with pytest.raises(ValueError, match=r"model must be one of vae, .*, univae, diffusion, .*, got 'magic'"):
        train_model(ModelConfig("magic", pictures, tmp_path / "run", **SMALL))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"batch_size": 1}, "batch_size must be a whole number >= 2, got 1"),
        ({"lr": float("inf")}, "lr must be > 0 and finite, got inf"),
        ({"ema": 1.0}, r"ema is a decay in \(0, 1\), or 0 for no average, got 1\.0"),
        ({"seed": -1}, r"seed must be a whole number from 0 to 2\^63 - 1, got -1"),
        ({"seed": 2**63}, "seed must be a whole number from 0"),
        ({"image_size": -8}, "image_size must be a whole number >= 1, got -8"),
    ],
)
def test_settings_outside_their_range(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig("vae", "digits", "run", **changes)


@pytest.mark.parametrize(
    ("name", "size", "multiple", "next_size"),
    [
        ("vqvae", 6, 4, 8),
        ("realnvp", 7, 2, 8),
        ("glow", 5, 2, 6),
        ("vae", 18, 4, 20),
        ("gan", 17, 4, 20),
        ("ebm", 17, 4, 20),
    ],
)
def test_a_size_that_does_not_suit_the_model_is_refused_with_one_that_does(
    pictures, tmp_path, name, size, multiple, next_size
):
    def train(size):
        return train_model(ModelConfig(name, pictures, tmp_path / "run", image_size=size, **SMALL | {"steps": 1}))

    with pytest.raises(DataError, match=rf"{size} x {size} pixels; {name} takes .* divisible by {multiple}") as caught:
        train(size)
    assert f"--image-size {next_size} " in caught.value.remedy
    assert not (tmp_path / "run").exists()
    assert train(next_size).steps == 1


@pytest.mark.parametrize("name", ["nice", "vae", "flow-matching"])
def test_images_of_one_number_are_refused(pictures, tmp_path, name):
    with pytest.raises(DataError, match="the images are grey and have one pixel") as caught:
        train_model(ModelConfig(name, pictures, tmp_path / "run", image_size=1, **SMALL))
    assert "--image-size 8" in caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_the_validation_loss_draws_other_noise_for_each_batch(runs):
    """Of one image 512 times over, the second half is not told the same noise as the first."""
    model = open_run(runs / "diffusion", device="cpu").model
    x = torch.zeros(512, 1, 8, 8)
    with torch.no_grad():
        halves = [measure_loss(model, x[:256])["loss"], measure_loss(model, x)["loss"]]
    assert abs(halves[0] - halves[1]) > 1e-4
    with torch.no_grad():
        assert measure_loss(model, x)["loss"] == halves[1]


def test_texts_that_cannot_be_learnt_from_again(lines, tmp_path):
    for data, expected in (("-", "standard input cannot be read again"), ("digits", "no such file")):
        with pytest.raises(DataError, match=expected):
            train_model(ModelConfig("univae", data, tmp_path / "run", **SMALL))
    with pytest.raises(ValueError, match=r"--image-size .* is for models of images"):
        train_model(ModelConfig("univae", lines, tmp_path / "run", image_size=8, **SMALL))
    assert not (tmp_path / "run").exists()


def test_images_of_which_there_is_nothing_to_learn(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither images nor sub-folders"):
        train_model(ModelConfig("vae", tmp_path / "empty", tmp_path / "run", **SMALL))
    first = (pictures / "00.png").read_bytes()
    for path in pictures.iterdir():
        path.write_bytes(first)
    with pytest.raises(DataError, match="all images are the same"):
        train_model(ModelConfig("vae", pictures, tmp_path / "run", **SMALL))
    for path in sorted(pictures.iterdir())[4:]:
        path.unlink()
    with pytest.raises(DataError, match="3 images for training, expected at least 4"):
        train_model(ModelConfig("vae", pictures, tmp_path / "run", **SMALL))


def test_a_diverging_training_names_the_remedy(pictures, tmp_path):
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train_model(ModelConfig("vae", pictures, tmp_path / "run", steps=50, batch_size=16, lr=1e30, device="cpu"))


def test_few_or_wrong_sentences(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("一句话\n" * 20 + "二\n", encoding="utf-8")
    with pytest.raises(DataError, match="2 different sentences of at most 62 characters, expected 10"):
        train_model(ModelConfig("univae", path, tmp_path / "run", **SMALL))
    with pytest.raises(DataError, match="no such file"):
        train_model(ModelConfig("univae", tmp_path / "no.txt", tmp_path / "run", **SMALL))


def test_long_sentences_are_left_out_with_a_warning(lines, tmp_path, caplog):
    with lines.open("a", encoding="utf-8") as file:
        file.write("长" * 63 + "\n")
    train_model(ModelConfig("univae", lines, tmp_path / "run", **SMALL))
    assert "1 sentence of more than 62 characters left out of 37" in caplog.text
