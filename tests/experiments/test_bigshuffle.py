import pytest

from kexue.experiments import run_experiment


@pytest.mark.slow
def test_the_claims_of_bigshuffle(tmp_path):
    pytest.importorskip("pyarrow")
    report = run_experiment("bigshuffle", budget="smoke", out=tmp_path)
    verdicts = [claim.verdict for claim in report.claims if "the time of shuf" not in claim.text]
    assert verdicts == ["reproduced"] * 5
    assert (tmp_path / "figure.png").exists()
