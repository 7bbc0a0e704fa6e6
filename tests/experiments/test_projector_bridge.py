import pytest

from kexue.experiments import run_experiment


@pytest.mark.slow
def test_the_claims_of_the_bridge(tmp_path):
    report = run_experiment("projector-bridge", budget="smoke", out=tmp_path)
    verdicts = [claim.verdict for claim in report.claims]
    # The second and fourth are timings, not for a shared machine to decide.
    assert [verdicts[number] for number in (0, 2, 4)] == ["reproduced"] * 3
    assert report.figures["heard_of_three"].expected == 1 - 0.3**3
    assert report.figures["actions_outside_the_list"].value == 0
    assert report.figures["payloads_that_are_commands"].value > 50
    assert (tmp_path / "figure.png").exists()
