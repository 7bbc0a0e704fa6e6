"""Time grids."""

import numpy as np
import pytest
import torch

from kexue.generative.diffusion import (
    VE,
    VP,
    DiscreteSchedule,
    FlowSchedule,
    FromAlphaSigma,
    make_grid,
    zero_terminal_snr,
)
from kexue.generative.diffusion.grid import Kind, check_grid

KINDS = list(Kind.__args__)
TABLE = DiscreteSchedule.linear(1000)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 999, 1000])
def test_discrete_grids_fall_from_noise_to_clean_data(kind, steps):
    for table in (TABLE, zero_terminal_snr(TABLE)):
        grid = make_grid(table, steps, kind=kind)
        assert grid.shape == (steps + 1,)
        assert grid.dtype == torch.int64
        assert bool((grid.diff() < 0).all())
        assert int(grid[-1]) == -1
        assert 0 <= int(grid[-2]) <= int(grid[0]) <= 999


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", [VP(), VE(), FlowSchedule()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_continuous_grids_fall_from_the_last_time_to_the_first(kind, schedule, steps):
    grid = make_grid(schedule, steps, kind=kind)
    assert grid.shape == (steps + 1,)
    assert bool((grid.diff() < 0).all())
    assert float(grid[0]) == schedule.t_max
    assert float(grid[-1]) == schedule.t_min


def test_rules_by_hand():
    assert make_grid(TABLE, 4, kind="leading").tolist() == [750, 500, 250, 0, -1]
    assert make_grid(TABLE, 4, kind="leading", offset=1).tolist() == [751, 501, 251, 1, -1]
    assert make_grid(TABLE, 4, kind="trailing").tolist() == [999, 749, 499, 249, -1]
    assert make_grid(TABLE, 4, kind="linspace").tolist() == [999, 666, 333, 0, -1]
    assert make_grid(DiscreteSchedule.linear(100), 3, kind="quadratic").tolist() == [81, 21, 1, -1]
    assert make_grid(VP(), 2).tolist() == [1.0, 0.5005, 0.001]


@pytest.mark.parametrize("kind", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [5, 10, 50])
def test_grids_equal_those_of_diffusers(kind, steps):
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DDIMScheduler(1000, timestep_spacing=kind)
    peer.set_timesteps(steps)
    assert make_grid(TABLE, steps, kind=kind)[:-1].tolist() == peer.timesteps.tolist()


def test_karras_is_even_in_the_root_of_the_noise():
    schedule = FromAlphaSigma(torch.ones_like, lambda t: t, t_min=0.002, t_max=80.0)
    grid = make_grid(schedule, 17, kind="karras").numpy()
    np.testing.assert_allclose(grid, np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 18) ** 7, rtol=1e-9)


def test_lambda_is_even_in_the_logarithm_of_signal_to_noise():
    v = VP().log_snr(make_grid(VP(), 9, kind="lambda"))
    torch.testing.assert_close(v.diff(), v.diff().mean().expand(9), rtol=1e-6, atol=1e-6)


def test_lists_of_ones_own():
    assert make_grid(TABLE, [900, 20, 0]).tolist() == [900, 20, 0, -1]
    assert make_grid(TABLE, torch.tensor([900, -1])).tolist() == [900, -1]
    assert make_grid(VP(), [1.0, 0.3, 0.0]).tolist() == [1.0, 0.3, 0.0]
    assert check_grid(TABLE, [500, 200]).tolist() == [500, 200]


@pytest.mark.parametrize(
    ("schedule", "times", "words"),
    [
        (TABLE, [5, 5, -1], "fall"),
        (TABLE, [5, 7], "fall"),
        (TABLE, [1000, 3], r"\[-1, 999\]"),
        (TABLE, [5, -2], r"\[-1, 999\]"),
        (TABLE, [5], "two times"),
        (VP(), [1.2, 0.1], r"\[0, 1\]"),
        (VP(), [1.0, float("nan"), 0.1], "fall"),
        (VP(), [[1.0, 0.0]], "two times"),
    ],
)
def test_wrong_lists_are_refused(schedule, times, words):
    with pytest.raises(ValueError, match=words):
        make_grid(schedule, times)


def test_wrong_settings_are_refused():
    for steps, options, words in (
        (0, {}, "steps"),
        (1001, {}, "1000"),
        (5, {"kind": "cubic"}, "kind"),
        (5, {"kind": "karras", "rho": 0.0}, "rho"),
        (5, {"kind": "leading", "offset": 900}, "times"),
    ):
        with pytest.raises(ValueError, match=words):
            make_grid(TABLE, steps, **options)
    with pytest.raises(TypeError, match="integers"):
        make_grid(TABLE, [5.5, 0.0])


def test_numbers_of_steps_in_every_form():
    assert make_grid(TABLE, np.int64(4)).tolist() == [750, 500, 250, 0, -1]
    assert make_grid(VP(), np.array([1.0, 0.5])).tolist() == [1.0, 0.5]
    for steps in (True, 5.0, "5", None):
        with pytest.raises(TypeError, match="list of times"):
            make_grid(TABLE, steps)
