from kexue.experiments import run_experiment


def test_am_softmax_runs_at_small_size(tmp_path):
    report = run_experiment("am-softmax", budget="smoke", out=tmp_path)
    assert report.claims[0].verdict == "reproduced"
    assert len(report.claims) == 4
    assert report.figures["map_digits_0"].value > 0.5
    assert 0 < report.figures["measured_margin"].value <= 10 / 9
    assert (tmp_path / "figure.png").exists()
