"""`kexue model` through its own door."""

import json
import os
import signal

import numpy as np
import pytest

from kexue._optional import import_optional
from kexue.cli import main
from kexue.generative.run import train

TRAINED = ["run", "steps", "best_step", "metric", "value", "seconds", "checkpoint", "interrupted", "samples"]
SMALL = ["--steps", "4", "--batch-size", "16", "--device", "cpu"]


@pytest.fixture
def photos(tmp_path):
    """A folder of 40 colour images of 24 x 16."""
    image = import_optional("PIL.Image", extra="generative")
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(40):
        image.fromarray(draw.integers(0, 256, (24, 16, 3), np.uint8)).save(folder / f"{i:02}.jpg")
    return folder


def run(capsys, *arguments):
    code = main(["model", *map(str, arguments)])
    return code, capsys.readouterr()


def answer(capsys, *arguments):
    code, printed = run(capsys, *arguments, "--json")
    assert code == 0, printed.err
    return json.loads(printed.out)


def test_from_own_images_to_samples(capsys, photos, tmp_path, monkeypatch):
    """All verbs in the order in which a user meets them."""
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    result = answer(capsys, "train", "vae", "--data", photos, "--image-size", 8, "--out", out, *SMALL)
    assert list(result) == TRAINED
    assert (result["run"], result["steps"], result["interrupted"]) == (str(out), 4, False)
    assert result["samples"] == str(out / "samples.png")
    sampled = answer(capsys, "sample", out, "-n", 7, "--out", tmp_path / "x.npy", "--temperature", 0.5, "--seed", 2)
    assert list(sampled) == ["out", "n", "seconds", "network_calls"]
    assert np.load(tmp_path / "x.npy").shape == (7, 3, 8, 8)
    walk = answer(capsys, "interpolate", out, "--from", photos / "00.jpg", "--out", tmp_path / "w.gif", "-n", 5)
    assert walk == {"out": str(tmp_path / "w.gif"), "n": 5}
    encoded = answer(capsys, "encode", out, photos, "--out", tmp_path / "z.npy")
    assert list(encoded) == ["out", "n", "residual"]
    decoded = answer(capsys, "decode", out, tmp_path / "z.npy", "--out", tmp_path / "d.png")
    assert decoded == {"out": str(tmp_path / "d.png"), "n": 40}
    score = answer(capsys, "score", out, photos)
    assert list(score) == ["n", "mean", "stderr", "unit", "kind", "bits_per_dim"]
    assert (score["n"], score["unit"], score["kind"]) == (40, "nats", "bound")


def test_six_commands_of_a_diffusion(capsys, photos, tmp_path):
    """Train, sample, guide, invert, walk and score, with the sub-folders as classes."""
    for name, start in (("left", 0), ("right", 20)):
        (photos / name).mkdir()
        for i in range(start, start + 20):
            (photos / f"{i:02}.jpg").rename(photos / name / f"{i:02}.jpg")
    out, x = tmp_path / "run", tmp_path / "x.npy"
    answer(capsys, "train", "flow-matching", "--data", photos, "--image-size", 8, "--out", out, *SMALL)
    assert answer(capsys, "sample", out, "-n", 3, "--out", x, "--steps", 5)["network_calls"] == 5
    guided = ["--condition", "left", "--scale", 2, "--solver", "dpmpp_2m"]
    assert answer(capsys, "sample", out, "-n", 3, "--out", x, "--steps", 4, *guided)["network_calls"] == 4
    answer(capsys, "sample", out, "-n", 3, "--out", x, "--steps", 4, "--eta", 1.0)
    assert answer(capsys, "encode", out, x, "--out", tmp_path / "z.npy")["residual"] < 1e-4
    assert answer(capsys, "decode", out, tmp_path / "z.npy", "--out", tmp_path / "d.png")["n"] == 3
    assert answer(capsys, "interpolate", out, "--out", tmp_path / "w.gif", "-n", 3)["n"] == 3
    score = answer(capsys, "score", out, x)
    assert (score["kind"], score["unit"]) == ("bound", "nats")
    code, printed = run(capsys, "score", out, x)
    assert (code, f"{score['bits_per_dim']:.3f} bits per dimension" in printed.out) == (0, True)
    assert "estimate" in printed.out
    code, printed = run(capsys, "sample", out, "--out", x, "--condition", "up")
    assert (code, "the class must be one of left, right, got 'up'" in printed.err) == (1, True)


def test_a_gan_samples_walks_decodes_and_scores_but_does_not_encode(capsys, photos, tmp_path):
    out, x = tmp_path / "run", tmp_path / "x.npy"
    result = answer(capsys, "train", "gan", "--data", photos, "--image-size", 8, "--out", out, *SMALL)
    assert (result["best_step"], result["metric"], result["value"] > 0) == (None, "loss", True)
    drawn = {}
    for name, options in (("all", []), ("typical", ["--truncation", 0.1])):
        answer(capsys, "sample", out, "-n", 5, "--out", x, *options)
        drawn[name] = np.load(x)
    assert np.ptp(drawn["typical"], axis=0).max() < np.ptp(drawn["all"], axis=0).max()
    assert answer(capsys, "interpolate", out, "--out", tmp_path / "w.gif", "-n", 3)["n"] == 3
    np.save(tmp_path / "z.npy", np.zeros((2, 32)))
    assert answer(capsys, "decode", out, tmp_path / "z.npy", "--out", tmp_path / "d.png")["n"] == 2
    score = answer(capsys, "score", out, x)
    assert (score["kind"], score["unit"], score["bits_per_dim"]) == ("energy", "", None)
    code, printed = run(capsys, "score", out, x)
    assert (code, printed.out) == (
        0,
        f"energy, low for what is like the data: {score['mean']:.4f} +- {score['stderr']:.2g}, mean over 5\n",
    )
    for arguments, message in (
        (["encode", out, photos, "--out", tmp_path / "z.npy"], "GAN does not support encode"),
        (["interpolate", out, "--from", photos / "00.jpg", "--out", x.with_suffix(".gif")], "not support encode"),
        (["sample", out, "--out", x, "--temperature", 1.0], "GAN does not sample with temperature"),
        (["sample", out, "--out", x, "--truncation", 0.0], "truncation must be > 0 and finite, got 0.0"),
    ):
        code, printed = run(capsys, *arguments)
        assert (code, message in printed.err) == (1, True), printed.err


def test_captions_are_learnt_and_prompts_are_read_by_the_same_encoder(
    capsys, photos, tmp_path, monkeypatch, tiny_model, other_tiny_model
):
    monkeypatch.setenv("KEXUE_MODEL", str(tiny_model))
    lines = [{"file": f"{i:02}.jpg", "text": ("a dog", "a cat")[i % 2]} for i in range(40)]
    table = tmp_path / "captions.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, x = tmp_path / "run", tmp_path / "x.npy"
    common = ["train", "diffusion", "--data", photos, "--image-size", 8, "--out", out, *SMALL]
    assert answer(capsys, *common, "--captions", table, "--limit", 2)["steps"] == 2
    csv = tmp_path / "captions.csv"  # another form of the same table
    csv.write_text("text,file\n" + "".join(f"{line['text']},{line['file']}\n" for line in lines))
    assert answer(capsys, *common, "--captions", csv)["steps"] == 4
    encoder = json.loads((out / "settings.json").read_text())["facts"]["encoder"]
    assert encoder == {"model": str(tiny_model), "fingerprint": encoder["fingerprint"], "dim": 32}
    monkeypatch.setenv("KEXUE_MODEL", str(other_tiny_model))  # not asked: the run remembers its own
    images = {}
    for prompt in ("a dog", "a cat"):
        answer(capsys, "sample", out, "-n", 3, "--out", x, "--steps", 3, "--scale", 2, "--prompt", prompt)
        images[prompt] = np.load(x)
    assert (images["a dog"] != images["a cat"]).any()
    run_of_others = json.loads((out / "settings.json").read_text())
    run_of_others["facts"]["encoder"]["model"] = str(other_tiny_model)
    (out / "settings.json").write_text(json.dumps(run_of_others))
    code, printed = run(capsys, "sample", out, "--out", x, "--prompt", "a dog")
    assert (code, "is not the encoder that the captions of" in printed.err) == (1, True)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,text\n00.jpg,a\n00.jpg,b\n", "captions.csv, line 3: 00.jpg has two captions."),
        ("name,text\n00.jpg,a\n", "Name a table (.csv, .tsv, .jsonl) with the columns file and text."),
        ("file,text\n", "the file has no text"),
        ("file,text\n00.jpg,a\n", "39 images without a caption: 01.jpg"),
    ],
)
def test_captions_that_cannot_be_used(capsys, photos, tmp_path, monkeypatch, tiny_model, table, message):
    monkeypatch.setenv("KEXUE_MODEL", str(tiny_model))
    (tmp_path / "captions.csv").write_text(table)
    common = ["train", "diffusion", "--data", photos, "--image-size", 8, "--out", tmp_path / "run", *SMALL]
    code, printed = run(capsys, *common, "--captions", tmp_path / "captions.csv")
    assert (code, message in printed.err) == (1, True), printed.err
    assert "--id" not in printed.err
    assert not (tmp_path / "run").exists()


def test_prompts_that_cannot_be_used(capsys, photos, tmp_path):
    out = tmp_path / "run"
    answer(capsys, "train", "diffusion", "--data", photos, "--image-size", 8, "--out", out, *SMALL)
    for given, expected, message in (
        (["--prompt", "a dog"], 1, "has learnt no captions: it does not take a prompt"),
        (["--prompt", " "], 1, "the prompt is blank"),
        (["--prompt", "a dog", "--condition", "dogs"], 2, "--condition or --prompt, not both"),
    ):
        code, printed = run(capsys, "sample", out, "--out", tmp_path / "x.npy", *given)
        assert (code, message in printed.err) == (expected, True), printed.err
    assert not (tmp_path / "x.npy").exists()


def test_an_ebm_runs_chains_and_scores_by_its_energy_but_has_no_latents(capsys, photos, tmp_path):
    out, x = tmp_path / "run", tmp_path / "x.npy"
    result = answer(capsys, "train", "ebm", "--data", photos, "--image-size", 8, "--out", out, *SMALL)
    assert (result["best_step"], result["metric"]) == (None, "loss")
    assert answer(capsys, "sample", out, "-n", 5, "--out", x)["network_calls"] == 20
    drawn = np.load(x)
    assert np.abs(drawn).max() <= 1
    assert answer(capsys, "sample", out, "-n", 5, "--out", x, "--steps", 3)["network_calls"] == 3
    score = answer(capsys, "score", out, x)
    assert (score["n"], score["kind"], score["unit"], score["bits_per_dim"]) == (5, "energy", "", None)
    for arguments, message in (
        (["interpolate", out, "--out", tmp_path / "w.gif"], "EnergyModel does not support encode; it supports: sample"),
        (["encode", out, photos, "--out", tmp_path / "z.npy"], "EnergyModel does not support encode"),
        (["decode", out, x, "--out", tmp_path / "d.png"], "EnergyModel does not support decode"),
        (["sample", out, "--out", x, "--temperature", 1.0], "EnergyModel does not sample with temperature"),
    ):
        code, printed = run(capsys, *arguments)
        assert (code, message in printed.err) == (1, True), printed.err


@pytest.mark.slow
def test_evaluate_prints_the_reference_values_beside_the_distance(capsys, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "cache"))
    for i in range(40, 80):
        (photos / f"{i}.jpg").write_bytes((photos / f"{i - 40:02}.jpg").read_bytes())
    answer(capsys, "train", "vae", "--data", photos, "--image-size", 8, "--out", tmp_path / "run", *SMALL)
    record = answer(capsys, "evaluate", tmp_path / "run")
    contract = {"model", "frechet_distance", "reference", "precision", "recall", "density", "coverage"}
    contract |= {"sliced_wasserstein", "bits_per_dim", "parameters"}
    assert contract <= record.keys()
    assert record["nearest_train_ratio"] is None  # the test images are among the training images
    assert set(record["reference"]) == {"test", "noisy_test", "gaussian", "uniform"}
    code, printed = run(capsys, "evaluate", tmp_path / "run")
    assert code == 0
    assert f"uniform pixels {record['reference']['uniform']:.3g}" in printed.out
    assert f"at most {record['bits_per_dim']:.3f}" in printed.out


def test_sentences_in_and_out(capsys, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text(
        "".join(f"{a}在{b}{c}\n" for a in "猫狗鸟" for b in "家里河边" for c in "吃睡跑"), encoding="utf-8"
    )
    out = tmp_path / "run"
    result = answer(capsys, "train", "univae", "--data", lines, "--out", out, *SMALL)
    assert (out / "samples.txt").read_text(encoding="utf-8").count("\n") == 64
    assert result["samples"] == str(out / "samples.txt")
    answer(capsys, "interpolate", out, "--from", "猫在家吃", "--to", "狗在河睡", "-n", 3, "--out", tmp_path / "w.txt")
    assert (tmp_path / "w.txt").read_text(encoding="utf-8").count("\n") == 3
    answer(capsys, "encode", out, lines, "--out", tmp_path / "z.npy")
    assert np.load(tmp_path / "z.npy").shape == (36, 3, 32)
    assert answer(capsys, "decode", out, tmp_path / "z.npy", "--out", tmp_path / "d.txt")["n"] == 36
    record = answer(capsys, "evaluate", out)
    assert record["model"] == "univae"
    assert 0 <= record["tokens_right"] <= 1
    code, printed = run(capsys, "evaluate", out)
    assert (code, "tokens right" in printed.out) == (0, True)


def test_limit_resume_and_other_settings(capsys, photos, tmp_path):
    common = ["train", "vae", "--data", photos, "--image-size", 8, "--out", tmp_path / "run", *SMALL]
    assert answer(capsys, *common, "--limit", 2)["steps"] == 2
    assert answer(capsys, *common)["steps"] == 4
    code, printed = run(capsys, *common, "--lr", 0.1, "--json")
    assert code == 1
    assert "lr was 0.001, is 0.1" in json.loads(printed.out)["error"]["message"]
    assert answer(capsys, *common, "--lr", 0.1, "--no-resume")["steps"] == 4


def test_a_signal_ends_with_a_code_and_the_same_command_continues(capsys, photos, tmp_path, monkeypatch):
    def stop_at_two(_progress):
        return lambda trainer, _record: os.kill(os.getpid(), signal.SIGTERM) if trainer.place.step == 2 else None

    monkeypatch.setattr(train, "reporting", stop_at_two)
    common = ["train", "vae", "--data", photos, "--image-size", 8, "--out", tmp_path / "run", *SMALL]
    code, printed = run(capsys, *common, "--json")
    assert (code, json.loads(printed.out)["interrupted"]) == (130, True)
    assert "run the same command again to continue" in printed.err
    assert answer(capsys, *common)["steps"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "gen", "--data", "digits", "--out", "run"], "model must be one of vae, vqvae, nice, realnvp, glow"),
        (["train", "vae", "--data", "no-such-folder", "--out", "run"], "neither the name of a set nor a folder"),
        (["sample", "no-such-run", "--out", "x.png"], "no-such-run is not the folder of a run"),
    ],
)
def test_bad_input(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, printed = run(capsys, *arguments)
    assert code == 1
    assert message in printed.err
    assert list(tmp_path.iterdir()) == []


def test_images_of_several_sizes_name_the_remedy(capsys, photos, tmp_path):
    image = import_optional("PIL.Image", extra="generative")
    image.new("RGB", (10, 10)).save(photos / "99.png")
    code, printed = run(capsys, "train", "vae", "--data", photos, "--out", tmp_path / "run", *SMALL)
    assert code == 1
    assert "99.png: the image is 10 x 10 pixels" in printed.err
    assert "--image-size" in printed.err


def test_help_has_examples(capsys):
    for name in ("train", "sample", "evaluate", "interpolate", "encode", "decode", "score"):
        code, printed = run(capsys, name, "--help")
        assert code == 0
        assert f"kexue model {name}" in printed.out
