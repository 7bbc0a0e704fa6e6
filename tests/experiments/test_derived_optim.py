from kexue.experiments import Report, run_experiment


def test_derived_optim_is_reproduced(tmp_path):
    report = run_experiment("derived-optim", budget="smoke", out=tmp_path)
    assert report.verdict == "reproduced"
    assert report.figures["gap_lamb"].value < 1e-12
    assert report.figures["gap_mean_of_means"].value > 0.01
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
