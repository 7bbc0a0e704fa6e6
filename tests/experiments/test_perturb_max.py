from kexue.experiments import run_experiment


def test_the_claims_of_perturb_max(tmp_path):
    report = run_experiment("perturb-max", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims[:4]] == ["reproduced"] * 4
    assert report.figures["our_error_64_nodes"].value < report.figures["midpoint_error_64_nodes"].value
    assert (tmp_path / "figure.png").exists()
