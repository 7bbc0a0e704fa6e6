from kexue.experiments import run_experiment


def test_flatnce_runs_at_small_size(tmp_path):
    report = run_experiment("flatnce", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims[:2]] == ["reproduced"] * 2
    assert len(report.claims) == 7
    # precision and epsilon change nothing to speak of, even over a few steps; the weights of anchors do
    figures = report.figures
    for batch in (3, 8, 64):
        base = figures[f"map_cross_entropy_{batch}"].value
        for way in ("float64", "exact", "epsilon"):
            assert abs(figures[f"map_{way}_{batch}"].value - base) < 1e-3
    assert figures["map_flat_64"].value != figures["map_exact_64"].value
    assert (tmp_path / "figure.png").exists()
