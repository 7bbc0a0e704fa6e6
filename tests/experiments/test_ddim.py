import pytest

from kexue.experiments import Report, run_experiment


@pytest.mark.slow
def test_ddim_shrinks_a_gaussian_as_it_must_and_finds_images_again(tmp_path):
    report = run_experiment("ddim", budget="smoke", out=tmp_path)
    figures, claims = report.figures, {claim.text: claim.verdict for claim in report.claims}
    angles = figures["variance_of_angles_10"]
    assert angles.value == pytest.approx(angles.expected, abs=1e-12)
    assert figures["variance_eta0_10"].value == pytest.approx(2.958, abs=2e-3)  # of the recurrence of steps by hand
    assert figures["variance_eta1_10"].value == pytest.approx(2.389, abs=2e-3)
    assert next(iter(claims.values())) == "reproduced"
    assert figures["error_fixed_point"].value < 1e-6 < figures["error_naive"].value
    assert figures["length_linear"].value < 0.8 < figures["length_circular"].value
    assert figures["fd_reference_test"].value < figures["fd_free_ddim_50"].value
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
