import math

import pytest
import torch

from kexue import generative
from kexue.experiments import Report, run_experiment
from kexue.experiments._digit_diffusion import Digits
from kexue.experiments._digit_energies import diverges, draw_strange
from kexue.experiments._ring_energies import SETTINGS


@pytest.mark.slow
def test_energies_of_the_ring_and_of_digits(tmp_path):
    report = run_experiment("energy-gan", budget="smoke", out=tmp_path)
    value = {name: figure.value for name, figure in report.figures.items()}
    assert report.claims[0].verdict == "reproduced"
    assert value["variance_plain_1.5"] == pytest.approx(1 / (1 - 1.5 / 4), rel=0.1)
    assert value["variance_tested_1.5"] == pytest.approx(1, rel=0.1)
    assert value["acceptance_0.5"] > value["acceptance_1.5"]
    assert value["temperature_released"] == pytest.approx(1.25e-6)
    assert value["ring_far_data"] == pytest.approx(0.0111, abs=1e-4)
    for name in SETTINGS:
        assert 0 < value[f"ring_tv_{name}"] < 1
        assert value[f"ring_excess_{name}"] > 0
    assert value["fd_reference_test"] < value["fd"] < value["fd_warm"]
    assert value["auc_uniform"] > 0.9  # after 20 steps
    assert (value["diverged_sum"], report.figures["diverged_sum"].n) == (0, 2)
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict


def test_a_training_that_diverges_is_counted_and_one_that_does_not_is_not():
    digits = Digits.load()
    assert diverges(digits, 3, 0, limit=1e-6)
    assert not diverges(digits, 3, 0)


def test_images_that_are_no_digits():
    digits = Digits.load()
    strange = draw_strange(digits, torch.Generator().manual_seed(0))
    test, train = digits.images.test, digits.images.train
    assert torch.equal(strange["mirrored"].flip(3), test)
    assert float(strange["uniform"].mean()) == pytest.approx(0, abs=3 / math.sqrt(3 * test.numel()))
    assert torch.allclose(strange["gaussian"].mean(0), train.mean(0), atol=0.15)
    distance = {name: generative.sliced_wasserstein(x, test) for name, x in strange.items()}
    assert distance["gaussian"] < 0.15 < distance["uniform"]
    assert {name: x.shape for name, x in strange.items()} == dict.fromkeys(strange, test.shape)
