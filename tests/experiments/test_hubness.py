from kexue.experiments import run_experiment


def test_hubness_holds_at_small_size(tmp_path):
    report = run_experiment("hubness", budget="smoke", out=tmp_path)
    verdicts = {claim.text.split(":")[0].split(".")[0]: claim.verdict for claim in report.claims}
    assert report.figures["skewness_gaussian_1"].value < 0.5 < report.figures["skewness_gaussian_30"].value
    assert list(verdicts.values())[:3] == ["reproduced"] * 3
    assert (tmp_path / "figure.png").exists()
