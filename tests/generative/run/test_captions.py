"""Captions: each image learns from its own, runs remember the encoder, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import SMALL, write_classes, write_images

from kexue.errors import CheckpointError, DataError, NotSupported
from kexue.generative import Captions, ModelConfig, load_images, open_run, sample_run, score_run, train_model
from kexue.generative.run.images import Images, split_images

WORDS = {"dark": [1.0, 0.0], "bright": [0.0, 1.0], "light": [0.0, 1.0]}


def encode(texts):
    return torch.tensor([WORDS[text] for text in texts])


def captions_of(texts):
    return Captions(texts, {"model": "words", "dim": 2}, encode)


@pytest.fixture
def shades(tmp_path):
    """40 dark and 20 bright images in one folder, and their captions."""
    write_classes(tmp_path / "pets", plain=True)
    folder = tmp_path / "shades"
    folder.mkdir()
    texts = {}
    for i, path in enumerate(sorted((tmp_path / "pets").rglob("*.png"))):
        path.rename(folder / f"{i:02}.png")
        texts[f"{i:02}.png"] = "dark" if path.parent.name == "cats" else ("bright", "light")[i % 2]
    return folder, captions_of(texts)


def test_the_vectors_are_those_of_the_images(shades):
    folder, captions = shades
    kind, parts = Images.load(folder, None, captions)
    assert (kind.encoder, kind.classes) == ({"model": "words", "dim": 2}, ())
    for x, vectors in ((parts.train, parts.train_classes), (parts.validation, parts.validation_classes)):
        bright = x.flatten(1).mean(1) > 0
        assert 0 < bright.sum() < len(x)
        assert torch.equal(vectors, torch.stack([~bright, bright], 1).float())


def test_files_of_two_parts_are_named_with_their_folder(tmp_path):
    asked = []

    def listen(texts):
        asked.extend(texts)
        return torch.arange(2.0 * len(texts)).reshape(-1, 2)

    (tmp_path / "set").mkdir()
    pixels = {part: write_images(tmp_path / "set" / part, 9, seed=i) for i, part in enumerate(("train", "test"))}
    texts = {f"{part}/{i:02}.png": f"{part} {i}" for part in ("train", "test") for i in range(9)}
    captions = Captions(texts, {"dim": 2}, listen)
    parts = Images.load(tmp_path / "set", None, captions)[1]
    assert asked == [f"train {i}" for i in range(9)]  # those of the test part are not learnt
    for x, vector in zip(parts.train, parts.train_classes, strict=True):
        i = int(vector[0]) // 2
        np.testing.assert_allclose(x[0].numpy(), pixels["train"][i] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("name", ["diffusion", "flow-matching"])
def test_images_follow_the_caption(shades, tmp_path, name):
    folder, captions = shades
    config = ModelConfig(
        name, folder, tmp_path / "run", captions=captions, steps=200, batch_size=32, ema=0.9, device="cpu"
    )
    train_model(config)
    run = open_run(tmp_path / "run", device="cpu")
    means = {}
    for word in ("dark", "bright"):
        for scale in (None, 2.0):
            vector = encode([word])[0]
            sample_run(run, 20, tmp_path / "x.npy", steps=10, condition=vector, scale=scale)
            means[word, scale] = np.load(tmp_path / "x.npy").mean((1, 2, 3))
    assert means["dark", None].max() < -0.3 < 0.3 < means["bright", None].min()
    assert means["dark", 2.0].max() < -0.3 < 0.3 < means["bright", 2.0].min()
    assert sample_run(run, 3, tmp_path / "x.npy", steps=2).n == 3  # of anything
    assert score_run(run, folder).kind == "bound"


def test_a_run_continues_with_its_captions_and_no_others(shades, tmp_path):
    folder, captions = shades
    config = ModelConfig("diffusion", folder, tmp_path / "whole", captions=captions, **SMALL)
    train_model(config)
    parts = replace(config, out=tmp_path / "parts")
    train_model(replace(parts, limit=2))
    for other in (None, captions_of(captions.texts | {"00.png": "bright"}), replace(captions, encoder={"dim": 2})):
        with pytest.raises(CheckpointError, match="captions was"):
            train_model(replace(parts, captions=other))
    train_model(parts)
    first, second = (open_run(tmp_path / name, device="cpu") for name in ("whole", "parts"))
    for one, two in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert first.data == split_images(load_images(folder)).hash()  # what evaluation compares


def test_captions_that_do_not_fit(shades, tmp_path):
    folder, captions = shades
    texts = captions.texts
    less = {name: text for name, text in texts.items() if name > "04.png"}
    write_classes(tmp_path / "labelled")
    for data, given, message in (
        (folder, less, r"5 images without a caption: 00\.png, 01\.png, 02\.png, \.\.\.\."),
        (folder, {**texts, "a.png": "dark"}, r"1 caption of no image: a\.png\. Give each image one caption"),
        (tmp_path / "labelled", texts, "the images have sub-folders, which are labels"),
        ("digits", texts, "the images have no files of their own"),
    ):
        with pytest.raises(DataError, match=message):
            train_model(ModelConfig("diffusion", data, tmp_path / "run", captions=captions_of(given), **SMALL))
    with pytest.raises(NotSupported, match="vae does not learn captions; diffusion and flow-matching do"):
        train_model(ModelConfig("vae", folder, tmp_path / "run", captions=captions, **SMALL))
    assert not (tmp_path / "run").exists()


def test_conditions_that_do_not_fit(shades, runs, tmp_path):
    folder, captions = shades
    train_model(ModelConfig("diffusion", folder, tmp_path / "run", captions=captions, **SMALL))
    run, file = open_run(tmp_path / "run", device="cpu"), tmp_path / "x.npy"
    with pytest.raises(NotSupported, match="guidance by captions needs one: give a text"):
        sample_run(run, 2, file, scale=2.0)
    with pytest.raises(NotSupported, match="the images of this model have no classes"):
        sample_run(run, 2, file, condition="dark")
    with pytest.raises(ValueError, match=r"must be \(2, 2\), got \(2, 3\)"):
        sample_run(run, 2, file, condition=torch.zeros(3))
    with pytest.raises(ValueError, match="the network was built without them"):
        sample_run(open_run(runs / "diffusion", device="cpu"), 2, file, condition=torch.zeros(3))
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    for encoder in ({}, {"dim": 10**9}, {"dim": "2"}, []):
        settings["facts"]["encoder"] = encoder
        (tmp_path / "run" / "settings.json").write_text(json.dumps(settings))
        with pytest.raises(CheckpointError, match=r"settings\.json cannot be used"):
            open_run(tmp_path / "run")
