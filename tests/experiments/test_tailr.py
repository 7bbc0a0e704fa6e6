from kexue.experiments import run_experiment


def test_tailr_lets_go_of_the_far_mode(tmp_path):
    report = run_experiment("tailr", budget="smoke", out=tmp_path)
    assert report.claims[0].verdict == "reproduced"
    assert abs(report.figures["mixture_mean_gamma_0.001"].value) < abs(report.figures["mixture_mean_gamma_0"].value)
    assert (tmp_path / "figure.png").exists()
