import math

import numpy as np
import pytest

from kexue.errors import InfeasibleError
from kexue.sampling import Proposed, anneal
from kexue.sampling.annealing import temperatures


def test_schedules_are_their_closed_forms():
    t = np.arange(50)
    np.testing.assert_allclose(temperatures("geometric", 50, 2.0, 0.9), [2 * 0.9**i for i in range(50)], rtol=1e-12)
    np.testing.assert_allclose(temperatures("linear", 50, 2.0, 0.1)[:20], 2 - 0.1 * t[:20], rtol=1e-12)
    assert (temperatures("linear", 50, 2.0, 0.1)[21:] == 0).all()
    np.testing.assert_allclose(
        temperatures("logarithmic", 50, 2.0, None), [2 * math.log(2) / math.log(i + 2) for i in range(50)], rtol=1e-12
    )
    np.testing.assert_allclose(temperatures(lambda i: 1 / (1 + i), 50, 1.0, None), 1 / (1 + t), rtol=1e-12)
    assert temperatures("geometric", 50, 2.0, None)[[0, -1]] == pytest.approx([2.0, 0.002])
    assert temperatures("linear", 50, 2.0, None)[[0, -1]] == pytest.approx([2.0, 0.0])
    assert temperatures("linear", 1, 2.0, None) == pytest.approx([2.0])


def test_the_best_state_ever_is_kept(toys):
    result = anneal(toys.score, toys.Edits(), "bbb", steps=400, tau0=5.0, schedule=lambda t: 5.0, chains=4, generator=0)
    assert result.trace.shape == (4, 401)
    np.testing.assert_array_equal(result.trace[:, 0], toys.score("bbb"))
    np.testing.assert_array_equal(result.best_value, result.trace.max(1))
    assert [toys.score(x) for x in result.best] == result.best_value.tolist()
    assert (result.trace[:, -1] < result.best_value).any()  # a hot chain leaves the best again
    still = anneal(lambda x: 0.0 if x == "" else -1.0, toys.Edits(), "", steps=30, tau0=9.0, generator=0)
    assert still.best == [""]


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
def test_at_a_constant_temperature_it_samples(toys, tau):
    result = anneal(toys.log_ring, toys.Ring(), 0, steps=12_500, schedule=lambda t: tau, chains=8, generator=0)
    p = toys.ring ** (1 / tau)
    values = np.log(toys.ring)
    shares = [(np.abs(result.trace[:, 1:] - value) < 1e-12).mean() for value in values]
    assert 0.5 * np.abs(shares - p / p.sum()).sum() < 0.02


def test_the_factor_of_hastings_corrects_unequal_numbers_of_neighbours(toys):
    result = anneal(lambda x: 0.0 if len(x) < 4 else -math.inf, toys.Edits(operations="id", shares=(0.9, 0.1, 0)), "",
                    steps=20_000, schedule=lambda t: 1.0, chains=4, generator=0)  # fmt: skip
    assert (result.trace == 0).all()

    class Lengths(toys.Edits):  # the law of a constant objective is uniform: half of the 15 states have three letters
        seen: list = []  # noqa: RUF012

        def propose(self, state, generator):
            self.seen.append(len(state))
            return super().propose(state, generator)

    lengths = Lengths(operations="id", shares=(0.9, 0.1, 0))
    anneal(lambda x: 0.0 if len(x) < 4 else -math.inf, lengths, "", steps=60_000, schedule=lambda t: 1.0, generator=0)
    assert np.bincount(lengths.seen) / 60_000 == pytest.approx([1 / 15, 2 / 15, 4 / 15, 8 / 15], abs=0.02)


def test_without_temperature_it_climbs(toys):
    result = anneal(toys.score, toys.Edits(), "b", steps=200, tau0=0.0, chains=3, generator=0)
    assert (np.diff(result.trace) >= 0).all()
    assert (result.temperature == 0).all()


def test_an_irreversible_move_is_never_made():
    class OneWay:
        def propose(self, state, generator):
            return Proposed(state + 1, 0.0, -math.inf)

    for tau0 in (0.0, 1e-320, 1.0):
        assert anneal(float, OneWay(), 0, steps=5, tau0=tau0, generator=0).best == [0]


def test_probabilities_that_are_no_numbers_are_refused():
    class Broken:
        def propose(self, state, generator):
            return Proposed(state + 1, 0.0, math.nan)

    for tau0 in (0.0, 1.0):
        with pytest.raises(ValueError, match="no acceptance probability"):
            anneal(float, Broken(), 0, steps=5, tau0=tau0, generator=0)


def test_bad_input(toys):
    def run(**kw):
        return anneal(toys.score, toys.Edits(), "", **{"steps": 10, "generator": 0} | kw)

    for wrong, words in (
        ({"steps": 0}, "steps"),
        ({"tau0": -1.0}, "tau0"),
        ({"tau0": math.nan}, "tau0"),
        ({"schedule": "quadratic"}, "quadratic"),
        ({"schedule": lambda t: -1.0}, "-1.0"),
        ({"rate": 1.5}, "1.5"),
        ({"rate": 0.0}, "0.0"),
        ({"rate": -0.1, "schedule": "linear"}, "-0.1"),
        ({"rate": 0.5, "schedule": "logarithmic"}, "logarithmic"),
        ({"chains": 0}, "chains"),
    ):
        with pytest.raises(ValueError, match=words):
            run(**wrong)
    with pytest.raises(InfeasibleError):
        anneal(toys.score, toys.Edits(), "aaaa", steps=5)
    with pytest.raises(ValueError, match="nan for state"):
        anneal(lambda x: math.nan, toys.Edits(), "", steps=5)
