from kexue.experiments import Report, run_experiment


def test_adafactor_holds_where_training_plays_no_part(tmp_path, monkeypatch):
    monkeypatch.delenv("KEXUE_DATA", raising=False)
    report = run_experiment("adafactor", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims[:4]] == ["reproduced"] * 4
    assert "poems" in report.notes[-1]
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
