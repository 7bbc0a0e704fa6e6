import pytest

from kexue.experiments import Report, run_experiment


@pytest.mark.slow
def test_guidance_has_its_closed_forms_and_follows_its_scale(tmp_path):
    report = run_experiment("guidance", budget="smoke", out=tmp_path)
    value = {name: figure.value for name, figure in report.figures.items()}
    assert [claim.verdict for claim in report.claims[:2]] == ["reproduced", "reproduced"]
    assert value["gaussian_variance_2"] == pytest.approx(0.5, abs=5e-3)
    assert value["gaussian_mean_2"] == pytest.approx(1.614, abs=0.01)  # integrated by hand; the sharpened has 4/3
    assert value["sharpened_mean_2"] == pytest.approx(4 / 3)
    assert value["shift_score"] == pytest.approx(0.5669, abs=1e-4)
    assert value["shift_mean"] == pytest.approx(0.2143, abs=1e-4)
    assert value["accuracy_noisy"] > 0.5  # the classifiers learn within these few steps, the network does not
    assert value["agreement_0"] < 0.25
    assert all(0 <= value[f"recall_{scale}"] <= 1 for scale in ("0", "1", "1.5", "2", "3", "5", "8"))
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
