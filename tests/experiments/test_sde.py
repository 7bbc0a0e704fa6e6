import pytest

from kexue.experiments import Report, run_experiment


@pytest.mark.slow
def test_steps_reach_the_closed_form_and_the_exact_score_the_data(tmp_path):
    report = run_experiment("sde", budget="smoke", out=tmp_path)
    value = {name: figure.value for name, figure in report.figures.items()}
    assert report.claims[0].verdict == "reproduced"
    assert value["variance_50"] > value["variance_100"] > value["variance_1000"] > 4
    assert value["swd_exact_100"] < 0.2 < value["swd_100"]  # after 20 steps of training
    assert value["score_error_likelihood"] < 0.05
    assert value["constant_likelihood"] < value["constant_simple"] - 0.05
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
