import math

import pytest

from kexue.experiments import Report, run_experiment


@pytest.mark.slow
def test_flows_are_exact_and_the_uniform_model_costs_what_it_must(tmp_path):
    report = run_experiment("realnvp-glow", budget="smoke", out=tmp_path)
    figures = report.figures
    assert report.claims[0].verdict == "reproduced"
    assert figures["bits_uniform"].value == math.log2(17)
    assert 2 < figures["bits_gaussian"].value < figures["bits_diagonal"].value < math.log2(17)
    assert figures["bits_affine"].value < 4.5  # after 25 steps
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
