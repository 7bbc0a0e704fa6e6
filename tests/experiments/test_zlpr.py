from kexue.experiments import run_experiment


def test_zlpr_needs_no_tuning_and_reads_soft_labels(tmp_path):
    report = run_experiment("zlpr", budget="smoke", out=tmp_path)
    assert len(report.claims) == 5
    assert report.figures["soft_readout_error_twice"].value < 1e-3
    assert report.figures["f1_early_zlpr"].value > report.figures["f1_early_bce"].value + 0.05
    assert (tmp_path / "figure.png").exists()
