"""Small runs for the tests of trained models."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_runs import SMALL, write_classes, write_images, write_lines

from kexue.generative import ModelConfig, train_model


@pytest.fixture
def pictures(tmp_path):
    """A folder of 30 random grey images of 8 x 8."""
    write_images(tmp_path / "pictures", 30)
    return tmp_path / "pictures"


@pytest.fixture
def lines(tmp_path):
    """A text file of 36 sentences."""
    return write_lines(tmp_path / "lines.txt")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders of runs of a few steps, by name: images of 8 x 8 with 256 levels, or sentences."""
    folder = tmp_path_factory.mktemp("trained")
    write_images(folder / "pictures", 60)
    write_lines(folder / "lines.txt")
    for name in ("vae", "vqvae", "nice", "univae", "ign"):
        data = folder / ("lines.txt" if name == "univae" else "pictures")
        train_model(ModelConfig(name, data, folder / name, **SMALL))
    write_classes(folder / "pets")
    train_model(ModelConfig("diffusion", folder / "pets", folder / "diffusion", **SMALL))
    return folder
