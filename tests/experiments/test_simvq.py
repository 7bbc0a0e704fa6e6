import pytest

from kexue.experiments import Report, run_experiment


@pytest.mark.slow
def test_simvq_holds_where_training_plays_no_part(tmp_path, monkeypatch):
    report = run_experiment("simvq", budget="smoke", out=tmp_path)
    figures = report.figures
    assert [report.claims[i].verdict for i in (0, 1, 2)] == ["reproduced"] * 3
    assert figures["clusters_usage_linear"].value > figures["clusters_usage_plain"].value
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
