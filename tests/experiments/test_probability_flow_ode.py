import pytest

from kexue.experiments import Report, run_experiment


@pytest.mark.slow
def test_solvers_have_their_orders_and_tolerances_their_errors(tmp_path):
    report = run_experiment("probability-flow-ode", budget="smoke", out=tmp_path)
    value = {name: figure.value for name, figure in report.figures.items()}
    for solver, order in (("euler", 1), ("heun", 2), ("midpoint", 2), ("ab", 2), ("dpmpp_2m", 2), ("rk4", 4)):
        assert abs(value[f"order_{solver}"] - order) < 0.25, solver
    assert value["ddim_gap"] < 1e-12
    assert value["decoded_1e-06"] < value["decoded_1e-05"] < value["decoded_0.0001"]
    assert value["error_dpmpp_2m_10"] < value["error_dpmpp_2m_4"]
    assert value["log_likelihood"] < value["truth"] - 1  # after 20 steps of training
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict
