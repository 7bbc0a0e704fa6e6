import dataclasses
import gzip
import struct

import numpy as np
import pytest

from kexue import generative
from kexue.experiments._fashion import measure_fashion


def write_clothes(data):
    """600 pictures of noise in ten classes, as files of the data folder."""
    folder = data / "images" / "fashion_mnist"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, values in (("images-idx3", rng.integers(0, 256, (600, 8, 8))), ("labels-idx1", np.arange(600) % 10)):
        head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
        (folder / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


@pytest.mark.slow
def test_models_of_a_folder_of_clothes(tmp_path):
    write_clothes(tmp_path)
    figures, data = measure_fashion({"vae": 2, "vqvae": 2}, 0, tmp_path)
    assert sorted(figures) == ["fashion_test_fd", "fashion_vae_bits", "fashion_vae_fd", "fashion_vqvae_fd"]
    assert figures["fashion_vae_fd"].value > figures["fashion_test_fd"].value
    assert 7 < figures["fashion_vae_bits"].value < 14  # uniform pixels cost 8
    assert data == [{"name": "fashion_mnist", "split": "test", "n": figures["fashion_vae_fd"].n}]


def test_a_training_that_was_interrupted_is_not_measured(tmp_path, monkeypatch):
    write_clothes(tmp_path)
    train = generative.train_model
    monkeypatch.setattr(generative, "train_model", lambda config: dataclasses.replace(train(config), interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        measure_fashion({"vae": 1}, 0, tmp_path)


def test_without_the_data_or_models_nothing_is_measured(tmp_path):
    assert measure_fashion({"vae": 2}, 0, tmp_path) == ({}, [])
    assert measure_fashion({"vae": 2}, 0, None) == ({}, [])
    assert measure_fashion({}, 0, tmp_path) == ({}, [])
