from kexue.experiments import run_experiment


def test_the_claims_of_lipschitz(tmp_path):
    report = run_experiment("lipschitz", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims[:3]] == ["reproduced"] * 3  # the others need the budget "small"
    assert len(report.claims) in (6, 12)  # without and with the digits
    assert (tmp_path / "figure.png").exists()
