import math

import numpy as np
import pytest

from kexue.experiments import run_experiment
from kexue.experiments._hub_latents import find_truncation


def test_hubness_holds_at_small_size(tmp_path):
    report = run_experiment("hubness", budget="smoke", out=tmp_path)
    verdicts = {claim.text.split(":")[0].split(".")[0]: claim.verdict for claim in report.claims}
    assert report.figures["skewness_gaussian_1"].value < 0.5 < report.figures["skewness_gaussian_30"].value
    assert list(verdicts.values())[:3] == ["reproduced"] * 3
    assert (tmp_path / "figure.png").exists()


def test_the_truncation_of_a_mean_square():
    z = np.random.default_rng(0).normal(size=1_000_000)
    for t in (0.3, 1.0, 2.5):
        kept = z[np.abs(z) <= t]
        error = np.square(kept).std() / math.sqrt(len(kept))
        assert find_truncation(np.square(kept).mean()) == pytest.approx(t, rel=5 * error / np.square(kept).mean())
