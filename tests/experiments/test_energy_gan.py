import math

import pytest
import torch

from kexue import generative
from kexue.experiments import Figure, Report, run_experiment
from kexue.experiments._digit_diffusion import Digits
from kexue.experiments._digit_energies import Energies, diverges, draw_strange
from kexue.experiments._ring_energies import SETTINGS, Ring, ring_claims
from kexue.experiments.energy_gan import _EPSILONS, _decide_chains, _decide_digits, _decide_length, _decide_trials


@pytest.mark.slow
def test_energies_of_the_ring_and_of_digits(tmp_path):
    report = run_experiment("energy-gan", budget="smoke", out=tmp_path)
    value = {name: figure.value for name, figure in report.figures.items()}
    assert report.claims[0].verdict == "reproduced"
    assert value["variance_plain_1.5"] == pytest.approx(1 / (1 - 1.5 / 4), rel=0.1)
    assert value["variance_tested_1.5"] == pytest.approx(1, rel=0.1)
    assert value["acceptance_0.5"] > value["acceptance_1.5"]
    assert value["temperature_released"] == pytest.approx(1.25e-6)
    assert value["ring_far_data"] == pytest.approx(0.0111, abs=1e-4)
    for name in SETTINGS:
        assert 0 < value[f"ring_tv_{name}"] < 1
        assert value[f"ring_excess_{name}"] > 0
    assert value["fd_reference_test"] < value["fd"] < value["fd_warm"]
    assert value["auc_uniform"] > 0.9  # after 20 steps
    assert (value["diverged_sum"], report.figures["diverged_sum"].n) == (0, 2)
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict


def test_a_training_that_diverges_is_counted_and_one_that_does_not_is_not():
    digits = Digits.load()
    assert diverges(digits, 3, 0, limit=1e-6)
    assert not diverges(digits, 3, 0)


def test_images_that_are_no_digits():
    digits = Digits.load()
    strange = draw_strange(digits, torch.Generator().manual_seed(0))
    test, train = digits.images.test, digits.images.train
    assert torch.equal(strange["mirrored"].flip(3), test)
    assert float(strange["uniform"].mean()) == pytest.approx(0, abs=3 / math.sqrt(3 * test.numel()))
    assert torch.allclose(strange["gaussian"].mean(0), train.mean(0), atol=0.15)
    distance = {name: generative.sliced_wasserstein(x, test) for name, x in strange.items()}
    assert distance["gaussian"] < 0.15 < distance["uniform"]
    assert {name: x.shape for name, x in strange.items()} == dict.fromkeys(strange, test.shape)


# ---- claims ---------------------------------------------------------------------------------------------------------

FIGURES = {
    **{f"{kind}_{e:g}": 0.0 for kind in ("errors_plain", "errors_tested") for e in _EPSILONS},
    **{f"bias_{e:g}": 20.0 for e in _EPSILONS},
    **{f"variance_plain_{e:g}": 1.3 for e in _EPSILONS},
    **{"errors_wells": -1.0, "fd_reference_gaussian": 4.9},
}
COLD = {"fd": 1.9, "fd_long": 2.0, "fd_anew": 2.0, "auc_mirrored": 0.9, "auc_gaussian": 0.97, "auc_uniform": 1.0}
RING = Ring(None, tv=0.3, excess=0.4, modes=8, imbalance=0.02, offset=-0.1, far=0.04, far_later=0.03)
RINGS = {
    "sum": RING,
    "difference": RING._replace(offset=2.5),
    "none": RING._replace(offset=-4.0),
    "fresh": RING._replace(tv=0.4),
}
FATES = {"sum": False, "none": False, "difference": True, "difference_spectral": False}


def decide(figures=(), cold=(), warm=456.0, rings=(), fates=()):
    """Verdicts of all claims, where the second of three seeds is changed."""
    figures = {name: Figure(value) for name, value in (FIGURES | dict(figures)).items()}
    runs = [Energies(None, one) for one in (COLD, COLD | dict(cold), COLD)]
    hot = [Energies(None, {"fd": fd}) for fd in (456.0, warm, 456.0)]
    of_ring = {name: [one, one._replace(**dict(rings).get(name, {})), one] for name, one in RINGS.items()}
    trials = {name: [one, dict(fates).get(name, one), one] for name, one in FATES.items()}
    claims = (
        _decide_chains(figures),
        *ring_claims(of_ring),
        *_decide_digits(figures, runs, hot),
        _decide_length(of_ring, runs),
        _decide_trials(trials),
    )
    return [claim.verdict for claim in claims]


@pytest.mark.parametrize(
    ("changes", "at", "verdict"),
    [
        ({}, None, None),
        ({"figures": {"errors_plain_1": -4.0}}, 0, "partly"),
        ({"figures": {"bias_1": -20.0}}, 0, "partly"),
        ({"figures": {"errors_wells": -4.0}}, 0, "partly"),
        ({"rings": {"sum": {"tv": 0.46}, "fresh": {"tv": 0.5}}}, 1, "not reproduced"),
        ({"rings": {"sum": {"modes": 7}}}, 1, "not reproduced"),
        ({"rings": {"fresh": {"tv": 0.2}}}, 2, "not reproduced"),
        ({"rings": {"difference": {"offset": 0.0}}}, 3, "partly"),
        ({"rings": {"none": {"offset": 1.0}}}, 3, "partly"),
        ({"cold": {"fd": 5.0}}, 4, "not reproduced"),
        ({"warm": 18.0}, 5, "not reproduced"),
        ({"cold": {"auc_mirrored": 0.1}}, 6, "partly"),
        ({"rings": {"sum": {"far_later": 0.1}}}, 7, "partly"),
        ({"cold": {"fd_long": 4.0}}, 7, "partly"),
        ({"fates": {"sum": True}}, 8, "partly"),
        ({"fates": {"difference": False}}, 8, "partly"),
    ],
)
def test_a_claim_fails_with_one_seed_that_is_against_it(changes, at, verdict):
    verdicts = decide(**changes)
    assert [i for i, one in enumerate(verdicts) if one != "reproduced"] == ([] if at is None else [at])
    assert at is None or verdicts[at] == verdict


def test_no_claim_holds_with_a_seed_in_which_all_signs_are_flipped():
    rings = {
        "sum": {"tv": 0.9, "far_later": 0.9, "offset": -9.0}, "fresh": {"tv": 0.1}, "none": {"offset": 0.0},
    }  # fmt: skip
    figures = {f"bias_{e:g}": -20.0 for e in _EPSILONS} | {
        f"errors_{kind}_{e:g}": 9.0 for kind in ("plain", "tested") for e in _EPSILONS
    }
    cold = {"fd": 9.0, "fd_long": 99.0, "fd_anew": 99.0} | {
        f"auc_{kind}": 0.1 for kind in ("mirrored", "gaussian", "uniform")
    }
    fates = {name: not fate for name, fate in FATES.items()}
    assert "reproduced" not in decide(figures, cold, 1.0, rings, fates)
