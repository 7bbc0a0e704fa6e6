from kexue.experiments import run_experiment


def test_geodesics_follow_the_curves(tmp_path):
    report = run_experiment("geodesic", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims] == ["reproduced"] * 3
    assert report.figures["swiss_roll_spearman_straight"].value < report.figures["swiss_roll_spearman_geodesic"].value
    assert (tmp_path / "figure.png").exists()
