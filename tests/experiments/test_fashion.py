import gzip
import struct

import numpy as np
import pytest

from kexue.experiments._fashion import measure_fashion


@pytest.mark.slow
def test_models_of_a_folder_of_clothes(tmp_path):
    folder = tmp_path / "images" / "fashion_mnist"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, values in (("images-idx3", rng.integers(0, 256, (600, 8, 8))), ("labels-idx1", np.arange(600) % 10)):
        head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
        (folder / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))
    figures, data = measure_fashion({"vae": 2, "vqvae": 2}, 0, tmp_path)
    assert sorted(figures) == ["fashion_test_fd", "fashion_vae_bits", "fashion_vae_fd", "fashion_vqvae_fd"]
    assert figures["fashion_vae_fd"].value > figures["fashion_test_fd"].value
    assert 7 < figures["fashion_vae_bits"].value < 14  # uniform pixels cost 8
    assert data == [{"name": "fashion_mnist", "split": "test", "n": figures["fashion_vae_fd"].n}]


def test_without_the_data_or_models_nothing_is_measured(tmp_path):
    assert measure_fashion({"vae": 2}, 0, tmp_path) == ({}, [])
    assert measure_fashion({"vae": 2}, 0, None) == ({}, [])
    assert measure_fashion({}, 0, tmp_path) == ({}, [])
