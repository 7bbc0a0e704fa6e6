import math

import pytest

from kexue.experiments import Report, run_experiment


@pytest.mark.slow
def test_what_is_computed_exactly_does_not_depend_on_training(tmp_path):
    report = run_experiment("ode-construction", budget="smoke", out=tmp_path)
    figures, verdicts = report.figures, [claim.verdict for claim in report.claims]
    assert verdicts[1:3] == ["reproduced", "reproduced"]  # shares and bend of the four points
    assert verdicts[4:6] == ["reproduced", "reproduced"]  # integral of the density, steps of Euler
    assert [figures[f"share_{at}"].value for at in (0.5, 1.2, 1.7)] == [0.5, 0.25, 0.25]
    assert math.isclose(figures["euler_2"].value, 1.2, abs_tol=1e-12)
    assert figures["swd_normal"].value < 0.5  # after 60 steps; of a normal distribution it is 0.9
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
