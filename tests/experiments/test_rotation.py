from kexue.experiments import run_experiment


def test_every_claim_of_rotation_holds(tmp_path):
    report = run_experiment("rotation", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims] == ["reproduced"] * 5
    assert (
        report.figures["normalised_form_error_float32"].value
        < 1e-5
        < report.figures["article_form_error_float32"].value
    )
    assert (tmp_path / "figure.png").exists()
