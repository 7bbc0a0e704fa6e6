from kexue.experiments import run_experiment


def test_the_claims_of_retry(tmp_path):
    report = run_experiment("retry", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims] == ["reproduced"] * 3
    assert report.figures["saved_by_three_tries"].expected == 1 - 0.3**3
    assert (tmp_path / "figure.png").exists()
