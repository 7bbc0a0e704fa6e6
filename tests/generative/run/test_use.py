"""What one does with a trained model: samples, walks, latents, likelihoods; and runs that cannot be opened."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import SMALL, write_images
from torch import nn

from kexue._optional import import_optional
from kexue.errors import CheckpointError, DataError, NotSupported
from kexue.generative import (
    GenerativeModel,
    ModelConfig,
    decode_run,
    encode_run,
    evaluate_run,
    open_run,
    sample_generators,
    sample_run,
    score_run,
    train_model,
    walk_run,
)
from kexue.generative.run import use


@pytest.fixture
def vae(runs):
    return open_run(runs / "vae")


def frames_of(path):
    with import_optional("PIL.Image", extra="generative").open(path) as image:
        return image.size, getattr(image, "n_frames", 1)


# ---- samples


def test_a_sample_is_the_same_whatever_their_number_is(vae, tmp_path):
    for n in (3, 300):
        assert sample_run(vae, n, tmp_path / f"{n}.npy", seed=5).n == n
    few, many = (np.load(tmp_path / f"{n}.npy") for n in (3, 300))
    assert many.shape == (300, 1, 8, 8)
    np.testing.assert_allclose(few, many[:3], atol=1e-6)
    assert np.abs(many[0] - many[1]).max() > 1e-4


def test_generators_are_made_batch_by_batch_and_progress_is_told(vae, tmp_path, monkeypatch):
    made, seen = [], []

    def generators(seed, n, **options):
        made.append(n)
        return sample_generators(seed, n, **options)

    monkeypatch.setattr(use, "sample_generators", generators)
    sample_run(vae, 600, tmp_path / "x.npy", seed=5, progress=lambda done, total: seen.append((done, total)))
    assert made == [256, 256, 88]
    assert seen == [(256, 600), (512, 600), (600, 600)]
    expected = vae.model.sample(600, generator=5, batch_size=256)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected.numpy(), atol=1e-6)


def test_more_items_than_a_picture_shows(vae, tmp_path):
    np.save(tmp_path / "z.npy", np.zeros((10_001, 8), np.float32))
    for refused in (
        lambda: sample_run(vae, 10**7, tmp_path / "x.png"),
        lambda: walk_run(vae, tmp_path / "x.gif", n=10**9),
        lambda: decode_run(vae, tmp_path / "z.npy", tmp_path / "x.png"),
    ):
        with pytest.raises(ValueError, match=r"n must be at most 10,000 for a picture or a walk, got 1"):
            refused()
    assert decode_run(vae, tmp_path / "z.npy", tmp_path / "x.npy") == 10_001


def test_temperature_zero_gives_the_middle_again_and_again(vae, tmp_path):
    sample_run(vae, 3, tmp_path / "z.npy", temperature=0.0)
    x = np.load(tmp_path / "z.npy")
    np.testing.assert_allclose(x[0], x[1], atol=1e-6)


@pytest.mark.parametrize("temperature", [-1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["vae", "nice", "univae"])
def test_temperatures_out_of_range(runs, tmp_path, name, temperature):
    file = tmp_path / ("x.txt" if name == "univae" else "x.npy")
    with pytest.raises(ValueError, match=r"temperature must be .* and finite, got"):
        sample_run(open_run(runs / name, device="cpu"), 2, file, temperature=temperature)
    assert not file.exists()


def test_network_calls_are_those_of_one_sample(vae, tmp_path):
    class Refined(GenerativeModel):
        event_shape = (1, 8, 8)

        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 8)

        def draw(self, noise, *, condition, rounds=5):
            x = noise.normal(self.event_shape)
            for _ in range(rounds):
                x = self.net(x)
            return x

    other = replace(vae, model=Refined())
    assert sample_run(other, 300, tmp_path / "x.npy").network_calls == 5  # in two batches
    assert sample_run(other, 2, tmp_path / "x.npy", rounds=2).network_calls == 2
    assert sample_run(vae, 2, tmp_path / "x.npy").network_calls == 1
    with pytest.raises(NotSupported, match=r"Refined does not sample with temperature\. It takes: rounds"):
        sample_run(other, 2, tmp_path / "x.npy", temperature=0.5)


def test_a_diffusion_is_sampled_with_its_settings(runs, tmp_path):
    run = open_run(runs / "diffusion")
    for solver, calls in (("ddim", 6), ("heun", 12), ("dpmpp_2m", 6)):
        sampled = sample_run(run, 3, tmp_path / f"{solver}.npy", steps=6, solver=solver, condition="dogs", scale=2.0)
        assert sampled.network_calls == calls
    x = {}
    for name, options in {
        "a": {"eta": 0.0}, "b": {"eta": 1.0}, "cats": {"condition": "cats"}, "dogs": {"condition": "dogs"},
    }.items():  # fmt: skip
        sample_run(run, 3, tmp_path / "x.npy", steps=6, **options)
        x[name] = np.load(tmp_path / "x.npy")
        assert x[name].shape == (3, 1, 8, 8)
        assert np.abs(x[name]).max() <= 1
    assert (x["a"] != x["b"]).any()
    assert (x["cats"] != x["dogs"]).any()


def test_settings_of_sampling_that_do_not_go_together(vae, runs, tmp_path):
    run = open_run(runs / "diffusion")
    file = tmp_path / "x.npy"
    with pytest.raises(ValueError, match="the class must be one of cats, dogs, got 'cows'"):
        sample_run(run, 3, file, condition="cows")
    with pytest.raises(NotSupported, match=r"does not sample with temperature\. It takes: steps, solver, eta, scale"):
        sample_run(run, 3, file, temperature=0.5)
    with pytest.raises(ValueError, match=r"solver must be one of ddim, ddpm, .*, dpmpp_2m, got 'magic'"):
        sample_run(run, 3, file, solver="magic")
    with pytest.raises(NotSupported, match="eta goes with the solver ddim"):
        sample_run(run, 3, file, solver="heun", eta=1.0)
    with pytest.raises(NotSupported, match="vae is a model without classes"):
        sample_run(vae, 3, file, condition="cats")
    with pytest.raises(NotSupported, match="does not sample with steps, scale"):
        sample_run(vae, 3, file, steps=3, scale=2.0)
    without = replace(run, medium=replace(run.medium, classes=(), class_shares=()))
    with pytest.raises(NotSupported, match="the images of this model have no classes"):
        sample_run(without, 3, file, condition="cats")
    assert not file.exists()


def test_a_diffusion_encodes_and_scores(runs, tmp_path):
    run = open_run(runs / "diffusion")
    n, residual = encode_run(run, runs / "pets" / "dogs", tmp_path / "z.npy")
    assert (n, np.load(tmp_path / "z.npy").shape) == (20, (20, 1, 8, 8))
    assert residual < 1e-4
    assert decode_run(run, tmp_path / "z.npy", tmp_path / "x.npy") == 20
    walk_run(run, tmp_path / "w.png", n=4)
    seen = []
    score = score_run(run, runs / "pets" / "dogs", progress=lambda done, total: seen.append((done, total)))
    assert (score.n, score.unit, score.kind, seen) == (20, "nats", "bound", [(20, 20)])
    assert score.bits_per_dim == pytest.approx(-score.mean / 64 / math.log(2))
    assert score.bits_per_dim > 7.5  # random pixels of 256 levels cost 8 bits, and nothing has been learnt
    assert score.stderr > 0


def test_a_picture_in_memory_is_that_of_the_file(vae, tmp_path):
    sample_run(vae, 5, tmp_path / "x.png", seed=1)
    assert vae.medium.draw(vae.model.sample(5, generator=1)) == (tmp_path / "x.png").read_bytes()


def test_sheets_and_texts(vae, runs, tmp_path):
    sample_run(vae, 9, tmp_path / "x.png")
    assert frames_of(tmp_path / "x.png")[1] == 1
    univae = open_run(runs / "univae")
    for options in ({}, {"temperature": 2.0}):
        sample_run(univae, 5, tmp_path / "x.txt", **options)
        assert (tmp_path / "x.txt").read_text(encoding="utf-8").count("\n") == 5
    with pytest.raises(ValueError, match="n must be a whole number >= 1, got 0"):
        sample_run(vae, 0, tmp_path / "x.png")


def test_a_file_that_cannot_be_written_is_refused_before_any_work(vae, runs, tmp_path):
    def work(*_arguments, **_options):
        raise AssertionError("work was done before the name of the file was checked")

    (tmp_path / "file").touch()
    (tmp_path / "x.png").mkdir()
    calls = {
        "sample": lambda run, out: sample_run(run, 2, out),
        "walk": walk_run,
        "encode": lambda run, out: encode_run(run, tmp_path / "nothing", out),
        "decode": lambda run, out: decode_run(run, tmp_path / "nothing.npy", out),
    }
    univae = open_run(runs / "univae", device="cpu")
    for run, name, expected in (
        (vae, "sample", r"ends in \.png or \.npy is expected, got 'x\.jpg'"),
        (vae, "decode", r"ends in \.png or \.npy is expected, got 'x\.jpg'"),
        (vae, "walk", r"ends in \.png, \.gif or \.webp is expected, got 'x\.jpg'"),
        (univae, "sample", r"ends in \.txt is expected, got 'x\.jpg'"),
        (univae, "decode", r"ends in \.txt is expected, got 'x\.jpg'"),
        (univae, "walk", r"ends in \.txt is expected, got 'x\.jpg'"),
        (vae, "encode", r"ends in \.npy is expected, got 'x\.jpg'"),
    ):
        run.model.sample = work
        with pytest.raises(ValueError, match=expected):
            calls[name](run, "x.jpg")
    for name in ("sample", "walk", "decode"):
        with pytest.raises(DataError, match="not a regular file"):
            calls[name](vae, tmp_path / "x.png")
        with pytest.raises(NotADirectoryError):
            calls[name](vae, tmp_path / "file" / "y.png")


@pytest.mark.parametrize("ending", ["NPY", "PNG"])
def test_endings_in_capital_letters(vae, tmp_path, ending):
    sample_run(vae, 2, tmp_path / f"x.{ending}")
    decode_run(vae, _latents(vae, tmp_path), tmp_path / f"y.{ending}")
    walk_run(vae, tmp_path / "walk.PNG")
    assert frames_of(tmp_path / "walk.PNG")[1] == 1


def _latents(run, folder):
    np.save(folder / "z.npy", np.zeros((2, 8), np.float32))
    return folder / "z.npy"


def test_an_ign_is_applied_as_often_as_asked_and_scores_by_its_energy(runs, tmp_path):
    run = open_run(runs / "ign", device="cpu")
    x = {}
    for steps in (None, 1, 3):
        assert sample_run(run, 3, tmp_path / "x.npy", steps=steps).network_calls == (steps or 1)
        x[steps] = torch.from_numpy(np.load(tmp_path / "x.npy"))
    with torch.no_grad():
        assert torch.allclose(x[None], x[1])
        assert torch.allclose(run.model.project(x[1], steps=2), x[3], atol=1e-6)
        energy = run.model.energy(run.medium.read(runs / "pictures")).double()
    score = score_run(run, runs / "pictures")
    assert (score.n, score.unit, score.kind, score.bits_per_dim) == (60, "", "energy", None)
    assert score.mean == pytest.approx(float(energy.mean()), rel=1e-5)
    no_latents = "IGN does not support encode; it supports: sample, energy, loss"
    with pytest.raises(NotSupported, match=no_latents):
        encode_run(run, runs / "pictures", tmp_path / "z.npy")
    with pytest.raises(NotSupported, match=no_latents):
        walk_run(run, tmp_path / "w.png")
    np.save(tmp_path / "z.npy", np.zeros((2, 8), np.float32))
    with pytest.raises(NotSupported, match="IGN does not support decode"):
        decode_run(run, tmp_path / "z.npy", tmp_path / "y.png")


# ---- latents


def test_encode_and_decode_are_those_of_the_model(vae, runs, tmp_path):
    x = vae.medium.read(runs / "pictures")
    n, residual = encode_run(vae, runs / "pictures", tmp_path / "z.npy")
    with torch.no_grad():
        z = vae.model.encode(x).mean
        again = vae.model.decode(z)
    assert n == len(x) == 60
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), z.numpy(), atol=1e-6)
    assert residual == pytest.approx(float((again - x).square().mean().sqrt()), rel=1e-5)
    assert decode_run(vae, tmp_path / "z.npy", tmp_path / "x.npy") == 60
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), again.numpy(), atol=1e-6)


def test_a_flow_gives_back_every_level(runs, tmp_path):
    n, residual = encode_run(open_run(runs / "nice"), runs / "pictures", tmp_path / "z.npy")
    assert n == 60
    assert residual < 1e-6  # a level is 2 / 255


def test_the_latents_of_a_vqvae_are_codes(runs, tmp_path):
    vqvae = open_run(runs / "vqvae")
    encode_run(vqvae, runs / "pictures", tmp_path / "z.npy")
    codes = np.load(tmp_path / "z.npy")
    assert codes.dtype.kind == "i"
    assert decode_run(vqvae, tmp_path / "z.npy", tmp_path / "x.npy") == 60
    with pytest.raises(NotSupported, match="the latents of VQVAE are codes, between which there is nothing"):
        walk_run(vqvae, tmp_path / "walk.png")


def test_latents_that_do_not_fit(vae, tmp_path):
    np.save(tmp_path / "z.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(DataError, match=r"z\.npy: z must have shape \(B, 8\), got \(2, 3\)"):
        decode_run(vae, tmp_path / "z.npy", tmp_path / "x.png")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"it is not a \.npy file"):
        decode_run(vae, tmp_path / "bad.npy", tmp_path / "x.png")
    one = np.ones((2, 8), np.float32)
    for bad in (one[:0], one[0, 0], one * np.nan, one * np.inf, one * 1j, one > 0, one.astype(str)):
        np.save(tmp_path / "bad.npy", bad)
        with pytest.raises(DataError, match=r"bad\.npy: expected latents, finite numbers of shape \(n, \.\.\.\), got"):
            decode_run(vae, tmp_path / "bad.npy", tmp_path / "x.npy")


def test_a_walk_begins_and_ends_at_what_was_given(vae, runs, tmp_path):
    first, last = (str(runs / "pictures" / f"{i:02}.png") for i in (0, 1))
    assert walk_run(vae, tmp_path / "row.png", start=first, end=last, n=6) == 6
    walk_run(vae, tmp_path / "walk.gif", start=first, n=6)
    assert 6 < frames_of(tmp_path / "walk.gif")[1] <= 10  # there, and back without both ends; equal ones are merged
    (width, height), _ = frames_of(tmp_path / "row.png")
    assert width > 5 * height
    with pytest.raises(DataError, match="is neither the name of a set nor a folder"):
        walk_run(vae, tmp_path / "row.png", start="no such thing")


def test_a_walk_between_sentences(runs, tmp_path):
    univae = open_run(runs / "univae")
    walk_run(univae, tmp_path / "walk.txt", start="猫在家吃", end="狗在河睡", n=5)
    written = (tmp_path / "walk.txt").read_text(encoding="utf-8").splitlines()
    rows = univae.medium.to_rows(["猫在家吃", "狗在河睡"])
    ends = univae.medium.vocabulary.decode(univae.model.reconstruct(rows))
    assert (len(written), written[0], written[-1]) == (5, *ends)
    with pytest.raises(DataError, match="the sentence has 9 characters, the model takes 4 at most"):
        walk_run(univae, tmp_path / "walk.txt", start="一二三四五六七八九")


# ---- likelihood


def test_the_score_is_the_mean_of_the_bound(vae, runs):
    x = vae.medium.read(runs / "pictures")
    score = score_run(vae, runs / "pictures")
    with torch.no_grad():
        values = vae.model.log_prob_bound(x, k=100, generator=0).double()
    assert (score.n, score.unit, score.kind) == (60, "nats", "bound")
    assert score.mean == pytest.approx(float(values.mean()), abs=1e-4)
    assert score.stderr == pytest.approx(float(values.std() / math.sqrt(60)), rel=1e-4)


@pytest.mark.parametrize("name", ["vae", "nice", "univae"])
def test_items_of_different_batches_have_different_noise(runs, tmp_path, name):
    """One item 512 times over: item 256 is not scored with the noise of item 0."""
    run = open_run(runs / name, device="cpu")
    source = runs / "lines.txt" if name == "univae" else runs / "pictures"
    x = run.medium.read(source)[:1].expand(512, *[-1] * (run.medium.read(source).ndim - 1))
    values = use.apply(use.find_measure(run)[1], x, run.model)
    assert (values[:256] != values[256:]).double().mean() > 0.9
    again = use.apply(use.find_measure(run)[1], x, run.model)
    assert torch.equal(values, again)


def test_one_image_has_no_standard_error(vae, runs):
    assert score_run(vae, runs / "pictures" / "00.png").stderr is None


def test_a_vqvae_has_no_likelihood(runs):
    with pytest.raises(NotSupported, match="VQVAE has no likelihood; it supports: sample, encode, decode, loss"):
        score_run(open_run(runs / "vqvae"), runs / "pictures")


def test_the_kind_of_statement(vae, runs):
    class Exact(GenerativeModel):
        def log_prob(self, x, **_):
            return x.flatten(1).sum(1)

    class Energy(GenerativeModel):
        def energy(self, x):
            return -x.flatten(1).sum(1)

    sums = float(vae.medium.read(runs / "pictures").flatten(1).sum(1).mean())
    for model, kind, sign in ((Exact(), "exact", 1), (Energy(), "energy", -1)):
        score = score_run(replace(vae, model=model), runs / "pictures")
        assert (score.kind, score.mean) == (kind, pytest.approx(sign * sums, rel=1e-5))
        assert score.unit == ("nats" if kind == "exact" else "")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "cache"))


def test_too_few_images_to_evaluate(vae, tmp_path, cache):
    with pytest.raises(ValueError, match="n must be a whole number >= 6, got 5"):
        evaluate_run(vae, 5)
    write_images(tmp_path / "few", 20)
    train_model(ModelConfig("vae", tmp_path / "few", tmp_path / "run", **SMALL))
    with pytest.raises(DataError, match=r"few: holds 2 images for test, expected at least 6\. Train on more images"):
        evaluate_run(open_run(tmp_path / "run"))
    assert not (tmp_path / "cache").exists()  # no classifier was trained for it


@pytest.mark.slow
def test_evaluation_agrees_with_its_parts(runs, cache):
    nice = open_run(runs / "nice")
    with pytest.warns(UserWarning, match="6 rows do not determine a covariance") as caught:
        quality = evaluate_run(nice, seed=3)
    assert len({(one.filename, one.lineno) for one in caught}) == 1  # Python shows each place once
    assert (quality.model, quality.n, quality.bits_per_dim_kind) == ("nice", 6, "bound")
    assert quality.parameters == sum(one.numel() for one in nice.model.parameters())
    assert quality.reference.keys() == {"test", "noisy_test", "gaussian", "uniform"}
    test = nice.medium.load(runs / "pictures", None)[1].test
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bound = nice.model.log_prob_bound(test[order], draws=8, generator=0)
    assert quality.bits_per_dim == pytest.approx(-float(bound.double().mean()) / (64 * math.log(2)), rel=1e-6)
    with pytest.warns(UserWarning, match="6 rows"):
        assert evaluate_run(open_run(runs / "vqvae")).bits_per_dim is None


def test_evaluation_of_sentences_counts_tokens(runs):
    univae = open_run(runs / "univae")
    quality = evaluate_run(univae)
    rows = univae.medium.load(runs / "lines.txt", None)[1].test
    again = univae.model.reconstruct(rows)
    pairs = [(a, b) for one, other in zip(rows.tolist(), again.tolist(), strict=True)
             for a, b in zip(one[1:], other[1:], strict=True) if a != 0]  # fmt: skip
    assert quality.n == len(rows) == 3
    assert quality.tokens_right == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert 0 <= quality.sentences_right <= quality.tokens_right
    assert quality.nats > quality.kl > 0


def test_an_unknown_character_is_never_right_and_padding_is_not_counted(runs):
    """Of three characters and an end one is right, of an end none; x is unknown."""
    texts = open_run(runs / "univae", device="cpu").medium
    items, again = texts.to_rows(["猫猫x", ""]), texts.to_rows(["猫狗x猫", "猫"])
    assert texts.compare(items, again)[0].sum() == 5
    assert texts.measure_difference(items, again) == pytest.approx(4 / 5)
    assert texts.measure_difference(items[:, :3], items[:, :3]) == 0


def test_the_residual_of_sentences_is_what_evaluation_counts(runs, tmp_path):
    univae = open_run(runs / "univae", device="cpu")
    rows = univae.medium.load(runs / "lines.txt", None)[1].test
    univae.medium.write(rows, tmp_path / "test.txt")
    _, residual = encode_run(univae, tmp_path / "test.txt", tmp_path / "z.npy")
    assert residual == pytest.approx(1 - evaluate_run(univae).tokens_right)


def test_characters_that_the_model_does_not_know_are_named(runs, tmp_path, caplog):
    univae = open_run(runs / "univae", device="cpu")
    (tmp_path / "x.txt").write_text("猫xy\nabcd\nefgh\nijkl\n", encoding="utf-8")
    score_run(univae, tmp_path / "x.txt")
    walk_run(univae, tmp_path / "walk.txt", start="猫在z", end="狗")
    assert [one.message.partition(": ")[2] for one in caplog.records] == [
        "x, y, a, b, c, d, e, f, g, h and 4 more",
        "z",
    ]


@pytest.mark.parametrize("kind", [np.float16, np.float64, ">f4"])
@pytest.mark.parametrize("name", ["vae", "nice", "univae", "diffusion"])
def test_latents_may_have_another_precision(runs, tmp_path, name, kind):
    run = open_run(runs / name, device="cpu")
    file = tmp_path / ("x.txt" if name == "univae" else "x.npy")
    encode_run(run, runs / ("lines.txt" if name == "univae" else "pictures"), tmp_path / "z.npy")
    np.save(tmp_path / "other.npy", np.load(tmp_path / "z.npy").astype(kind))
    assert decode_run(run, tmp_path / "other.npy", file) == decode_run(run, tmp_path / "z.npy", file)


# ---- what is read


def test_images_of_files_and_arrays(vae, tmp_path):
    pixels = write_images(tmp_path / "in", 3)
    expected = pixels[:, None] / 127.5 - 1
    np.testing.assert_allclose(vae.medium.read(tmp_path / "in").numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(vae.medium.read(tmp_path / "in" / "02.png").numpy(), expected[2:], atol=1e-6)
    np.save(tmp_path / "x.npy", expected.astype(np.float32))
    np.testing.assert_allclose(vae.medium.read(tmp_path / "x.npy").numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 8), (8, 8, 3)])
def test_images_of_another_shape(vae, tmp_path, shape):
    write_images(tmp_path / "in", 2, shape=shape)
    with pytest.raises(DataError, match=r"images of shape . x . x 8 .*, the model takes 1 x 8 x 8"):
        score_run(vae, tmp_path / "in")


def test_values_outside_their_range(vae, tmp_path):
    for bad, kind in ((255.0, "f4"), (-1.01, "f4"), (math.nan, "f4"), (0, "u1"), (0, "?"), (0, "c8"), (0, "i8")):
        np.save(tmp_path / "x.npy", np.full((2, 1, 8, 8), bad, kind))
        with pytest.raises(DataError, match=r"expected floats in \[-1, 1\]\. Scale them: a byte u"):
            score_run(vae, tmp_path / "x.npy")


def test_grey_images_suit_a_model_of_colours(vae, tmp_path):
    write_images(tmp_path / "in", 2)
    colours = replace(vae.medium, event_shape=(3, 8, 8))
    x = colours.read(tmp_path / "in")
    grey = vae.medium.read(tmp_path / "in")
    assert torch.equal(x, grey.expand(2, 3, 8, 8))
    np.save(tmp_path / "grey.npy", grey.numpy())
    assert torch.equal(colours.read(tmp_path / "grey.npy"), x)
    (tmp_path / "set").mkdir()
    for part in ("train", "test"):
        write_images(tmp_path / "set" / part, 2)
    torch.testing.assert_close(colours.read(tmp_path / "set"), x)


def test_a_name_of_a_set_is_no_folder(vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "digits", 2)
    assert len(vae.medium.read("digits")) == 540
    assert len(vae.medium.read("./digits")) == 2
    write_images(tmp_path / "cats", 2)
    with pytest.raises(DataError, match="'' is neither"):
        vae.medium.read("")


def test_an_image_file_that_is_not_there(vae, tmp_path):
    with pytest.raises(DataError, match=r"three\.png: there is no such file"):
        walk_run(vae, tmp_path / "x.gif", start=str(tmp_path / "three.png"))


def test_a_sub_folder_named_test_is_a_label_without_one_named_train(vae, tmp_path):
    (tmp_path / "in").mkdir()
    write_images(tmp_path / "in" / "test", 12)
    everything = vae.medium.read(tmp_path / "in")
    assert torch.equal(everything, vae.medium.read(tmp_path / "in" / "test"))
    write_images(tmp_path / "in" / "train", 4, seed=1)
    torch.testing.assert_close(everything, vae.medium.read(tmp_path / "in"))  # the part for test alone


def test_images_are_resized_as_those_of_the_training_were(vae, tmp_path):
    write_images(tmp_path / "in", 2, shape=(20, 10))
    assert replace(vae.medium, image_size=8).read(tmp_path / "in").shape == (2, 1, 8, 8)


def test_a_text_file_without_a_sentence(runs, tmp_path):
    (tmp_path / "x.txt").write_text("\n \n")
    with pytest.raises(DataError, match="holds no sentence"):
        score_run(open_run(runs / "univae"), tmp_path / "x.txt")
    (tmp_path / "x.txt").write_text("猫在家吃\n\n猫猫猫猫猫猫\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 3: the sentence has 6 characters"):
        score_run(open_run(runs / "univae"), tmp_path / "x.txt")


# ---- runs that cannot be opened


@pytest.fixture
def copy(runs, tmp_path):
    return shutil.copytree(runs / "vae", tmp_path / "copy")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not the folder of a run: it has no settings\.json"):
        open_run(tmp_path)


def test_a_run_that_has_not_ended(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="its training has not ended") as caught:
        open_run(copy)
    assert "continues" in caught.value.remedy


def test_damaged_settings(copy):
    path = copy / "settings.json"
    whole = json.loads(path.read_text())
    for name, value in (("model", "gpt"), ("facts", {}), ("sizes", {"latent_dim": "8"}), ("source", None)):
        damaged = {key: one for key, one in whole.items() if key != name} | ({} if value is None else {name: value})
        path.write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError, match=r"settings\.json cannot be used"):
            open_run(copy)
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        open_run(copy)


@pytest.mark.parametrize(
    ("name", "part", "changes", "message"),
    [
        ("vae", "facts", {"event_shape": [1, 10**9, 10**9]}, "heights and widths up to 10,000, got"),
        ("vae", "facts", {"event_shape": [2, 8, 8]}, "1 or 3 channels"),
        ("vae", "facts", {"event_shape": [1, 8.0, 8]}, "heights and widths up to"),
        ("vae", "facts", {"event_shape": []}, "ValueError"),
        ("vae", "facts", {"levels": 10**9}, "levels must be at most 256"),
        ("vae", "facts", {"levels": 2.5}, "levels must be a whole number"),
        ("vae", "facts", {"image_size": 10**9}, "cannot have been resized to 1000000000"),
        ("vae", "sizes", {"latent_dim": 10**9}, "sizes must be from 0 to 10,000, got latent_dim="),
        ("vae", "sizes", {"hidden": [10**9]}, "sizes must be from 0 to 10,000, got hidden="),
        ("diffusion", "facts", {"classes": ["cats"]}, "1 classes must have as many shares, got 2"),
        ("univae", "facts", {"max_length": 10**9}, "max_length must be at most 64"),
        ("univae", "facts", {"max_length": 2}, "max_length must be a whole number >= 3"),
    ],
)
def test_sizes_that_would_fill_the_memory(runs, tmp_path, name, part, changes, message):
    copy = shutil.copytree(runs / name, tmp_path / "copy")
    record = json.loads((copy / "settings.json").read_text(encoding="utf-8"))
    (copy / "settings.json").write_text(json.dumps(record | {part: record[part] | changes}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"settings.json cannot be used .*{message}"):
        open_run(copy, device="cpu")


def test_weights_of_another_model_and_damaged_ones(copy, runs):
    shutil.copy(runs / "vqvae" / "model.safetensors", copy)
    with pytest.raises(CheckpointError, match="holds a VQVAE, expected a VAE"):
        open_run(copy)
    shutil.copy(runs / "vae" / "model.safetensors", copy)
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        open_run(copy)
    assert "Run the command of the training again" in caught.value.remedy


def test_data_that_are_gone(copy, cache):
    path = copy / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source": "/no/such/folder"}))
    with pytest.raises(DataError, match="/no/such/folder"):
        evaluate_run(open_run(copy))


@pytest.mark.parametrize("name", ["vae", "univae"])
def test_data_that_have_changed_are_not_judged_by(runs, tmp_path, name):
    out, data = tmp_path / name, tmp_path / "data"
    shutil.copytree(runs / name, out)
    if name == "vae":
        write_images(data, 61)  # those of the training, and one more
    else:
        data.write_text((runs / "lines.txt").read_text(encoding="utf-8") + "猫在家跳\n", encoding="utf-8")
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    (out / "settings.json").write_text(json.dumps(settings | {"source": str(data)}), encoding="utf-8")
    with pytest.raises(DataError, match="the data have changed since the training"):
        evaluate_run(open_run(out, device="cpu"), 6)
