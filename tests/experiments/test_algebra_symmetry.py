from kexue.experiments import run_experiment


def test_the_claims_of_algebra_symmetry(tmp_path):
    report = run_experiment("algebra-symmetry", budget="smoke", out=tmp_path)
    verdicts = [
        claim.verdict for claim in report.claims if "a loop over" not in claim.text
    ]  # no timing on a busy machine
    assert verdicts == ["reproduced"] * 5
    assert report.figures["values_of_resolvent_5_roots"].value == 6
    assert (tmp_path / "figure.png").exists()
