import pytest

from kexue.experiments import Report, run_experiment


@pytest.mark.slow
def test_ign_is_a_gan_of_one_network(tmp_path):
    report = run_experiment("ign", budget="smoke", out=tmp_path)
    value = {name: figure.value for name, figure in report.figures.items()}
    assert report.claims[0].verdict == "reproduced"
    assert 0 < value["gradient_gap"] < 1e-12
    assert value["weights_gan"] == pytest.approx(value["weights_ign"], rel=0.05)
    assert value["work_ign"] > 2 * value["work_gan"]  # four passes of both parts of a GAN
    assert value["noisy_error"] == pytest.approx(0.25, rel=0.02)
    assert value["noisy_projected_ign"] < value["noisy_error"]
    assert value["fd_reference_test"] < value["fd_ign"]
    assert 0 <= value["entropy_ign"] < 2.303
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
