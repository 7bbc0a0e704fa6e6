import pytest

from kexue.experiments import Report, run_experiment


def test_lookahead_lazy_holds_where_training_plays_no_part(tmp_path):
    report = run_experiment("lookahead-lazy", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims[:3]] == ["reproduced"] * 3
    for name in ("noisy_loss_sgd", "noisy_loss_lookahead_slow", "noisy_loss_sgd_half_rate"):
        figure = report.figures[name]
        assert figure.value == pytest.approx(figure.expected, rel=0.2)  # the formula; 2,500 correlated steps
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
