from kexue.experiments import Report, run_experiment


def test_adax_holds_where_training_plays_no_part(tmp_path):
    report = run_experiment("adax", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims[:3]] == ["reproduced"] * 3
    assert abs(report.figures["raw_overflow_float32"].value / 887_273 - 1) < 1e-3  # 1 + 1e-4 rounds in float32
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
