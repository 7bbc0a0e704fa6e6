"""The experiments on whitening at their smallest, without data: the numbers computed for the articles, and the laws."""

import json

import pytest

from kexue.experiments import run_experiment


@pytest.fixture
def without_data(monkeypatch):
    monkeypatch.delenv("KEXUE_DATA", raising=False)


def test_whitening_without_data(without_data, tmp_path):
    report = run_experiment("whitening", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims] == ["reproduced"] * 3
    # Spearman of 20,000 random digit pairs has a standard error of 0.6 x100, of 2,000 made-up pairs 1.1 (raw) and 0.2.
    for name, tolerance in {
        "made_up_raw": 4,
        "made_up_whitened": 1,
        "digits_raw": 2,
        "digits_whitened": 2,
        "digits_k32": 2,
        "digits_k16": 2,
        "digits_k8": 2,
    }.items():
        figure = report.figures[name]
        assert figure.value == pytest.approx(figure.expected, abs=tolerance), name
        assert figure.low < figure.value < figure.high
    assert any("stsb_en" in note and "tencent" in note for note in report.notes)
    assert [entry["name"] for entry in report.data] == ["made up", "digits"]
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "reproduced"
    assert (tmp_path / "figure.png").exists()


def test_whitening_hyperparameters_without_data(without_data, tmp_path):
    report = run_experiment("whitening-hyperparameters", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims] == ["reproduced"] * 3
    value = {name: figure.value for name, figure in report.figures.items()}
    assert value["cosine_change_at_full_dimension"] < 1e-12  # a rotation, in float64
    assert value["eigenvalue_error_without_second_pass"] < 1e-12
    for name in ("raw", "beta0_gamma0_k16", "beta1_gamma0_k16", "beta1_gamma1_k61", "beta1_gamma1_k16"):
        assert value[f"digits_{name}"] == pytest.approx(report.figures[f"digits_{name}"].expected, abs=0.02), name
    assert (value["made_up_best_beta"], value["made_up_best_gamma"]) == (1.0, 1.0)  # isotropy was what was hidden
    assert value["digits_best_gamma"] == 0.0  # the loud directions are what tells digits apart
    assert value["made_up_tuned_held_out"] > value["made_up_raw_same_folds"] + 0.2
    assert (tmp_path / "figure.png").exists()


@pytest.mark.data
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("slug", ["whitening", "whitening-hyperparameters"])
def test_with_data(slug, data_folder):
    report = run_experiment(slug, budget="smoke", data=data_folder)
    names = {entry["name"] for entry in report.data}
    assert {"stsb_en", "atec", "bq", "lcqmc", "pawsx_zh", "stsb_zh"} <= names
    assert len(report.claims) >= 5
    assert not any("data are missing" in note for note in report.notes)
