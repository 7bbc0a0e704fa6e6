import pytest

from kexue.experiments import Report, run_experiment


@pytest.mark.slow
def test_vae_measures_what_the_divergence_does(tmp_path):
    report = run_experiment("vae", budget="smoke", out=tmp_path)
    value = {name: figure.value for name, figure in report.figures.items()}
    assert value["kl_beta_0"] > value["kl_beta_1"] > value["kl_beta_10"] > 0
    assert value["fd_beta_0"] > value["fd_beta_1"]
    assert value["elbo_beta_1"] > max(value["elbo_beta_0"], value["elbo_beta_10"])
    assert all(value[f"iwae_beta_{beta}"] > value[f"elbo_beta_{beta}"] for beta in ("0", "0.3", "1", "3", "10"))
    assert value["fd_train_test"] < value["fd_reconstructions_beta_1"]
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
