import pytest

from kexue.experiments import Figure, Report, run_experiment
from kexue.experiments.ign import _decide


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


# ---- claims ---------------------------------------------------------------------------------------------------------

IGN = {
    "fd": 280.0, "entropy": 0.6, "recall": 0.2, "idempotence": 0.12, "relapse": 2.0, "noisy_projected": 0.09,
    "erased_projected": 0.2,
}  # fmt: skip
RUNS = {  # numbers with which every claim holds
    "ign": IGN,
    "tight": IGN | {"entropy": 0.1, "idempotence": 0.02},
    "clamp_distance": IGN,
    "clamp_rec": IGN,
    "autoencoder": IGN | {"noisy_projected": 0.1},
    "gan": {"fd": 5.0, "entropy": 2.2, "recall": 0.9, "relapse": 1.5},
}
FIGURES = {"noisy_error": 0.25, "erased_error": 0.48, "fd_reference_gaussian": 4.9, "gradient_gap": 1e-15}


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, {}),
        ({"figures": {"gradient_gap": 1e-3}}, {0: "not reproduced"}),
        ({"ign": {"erased_projected": 0.3}}, {1: "partly"}),
        ({"autoencoder": {"noisy_projected": 0.08}}, {2: "not reproduced"}),
        ({"ign": {"idempotence": 0.3}}, {3: "not reproduced"}),
        ({"ign": {"idempotence": 1e-4}}, {3: "not reproduced", 5: "not reproduced"}),
        ({"ign": {"entropy": 2.0}}, {4: "partly"}),
        ({"ign": {"fd": 3.0}}, {4: "partly", 7: "not reproduced"}),
        ({"tight": {"entropy": 1.8}}, {5: "not reproduced"}),
        ({"clamp_rec": {"entropy": 2.0}}, {6: "partly"}),
        ({"gan": {"fd": 300.0}}, {7: "not reproduced"}),
        ({"gan": {"recall": 0.1}}, {7: "not reproduced"}),
        ({"gan": {"relapse": 2.5}}, {8: "not reproduced"}),
    ],
)
def test_a_claim_fails_with_one_seed_that_is_against_it(changes, verdicts):
    runs = {name: [one, one | changes.get(name, {}), one] for name, one in RUNS.items()}
    figures = {name: Figure(value) for name, value in (FIGURES | changes.get("figures", {})).items()}
    claims = _decide(runs, figures)
    assert {i: claim.verdict for i, claim in enumerate(claims) if claim.verdict != "reproduced"} == verdicts
