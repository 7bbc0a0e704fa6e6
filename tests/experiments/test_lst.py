from kexue.experiments import run_experiment


def test_the_ladder_keeps_little_for_backward(tmp_path, monkeypatch):
    monkeypatch.delenv("KEXUE_DATA", raising=False)
    report = run_experiment("lst", budget="smoke", out=tmp_path)
    assert report.claims[0].verdict == "reproduced"
    assert report.figures["saved_ladder"].value < report.figures["saved_adapters"].value
    assert report.figures["saved_adapters"].value < report.figures["saved_full"].value
    assert any("headlines are left out" in note for note in report.notes)
    assert (tmp_path / "figure.png").exists()
