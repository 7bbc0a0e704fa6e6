from kexue.experiments import run_experiment


def test_nmway_is_cross_entropy_where_it_must_be(tmp_path):
    report = run_experiment("nmway", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims[:3]] == ["reproduced"] * 3
    assert report.figures["wrong_answer_pairwise"].value > 5
    assert (tmp_path / "figure.png").exists()
