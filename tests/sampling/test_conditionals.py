import math
from itertools import chain

import numpy as np
import pytest

from kexue.sampling import FiniteConditional, gibbs


def of_three(toys):
    return [x for x in toys.strings() if len(x) == 3]


def score_three(x):
    return 0.8 * x.count("a") + 1.2 * ("ab" in x) - 0.7 * (x[0] == x[2])


@pytest.mark.parametrize("scan", ["random", "systematic"])
def test_gibbs_has_the_law_that_enumeration_has(toys, scan):
    states = of_three(toys)
    conditional = FiniteConditional(score_three, "ab")
    result = gibbs(conditional, "aaa", steps=12_500, chains=8, scan=scan, target=score_three, generator=0)
    assert toys.variation(list(chain(*result.states)), states, toys.law(score_three, states)) < 0.02
    np.testing.assert_array_equal(result.log_rho, result.measure(score_three))
    assert result.accepted.all()


def test_conditionals_are_those_of_the_joint_law(toys):
    conditional, generator = FiniteConditional(score_three, "ab"), np.random.default_rng(0)
    draws = [conditional("aba", 1, generator) for _ in range(20_000)]
    p = toys.law(score_three, ["aaa", "aba"])
    assert toys.variation(draws, ["aaa", "aba"], p) < 0.01
    tuples = FiniteConditional(lambda x: -float(sum(x)), [0, 1])
    assert {tuples((1, 1), 0, generator) for _ in range(50)} == {(0, 1), (1, 1)}


def test_scans_visit_coordinates_as_they_say():
    seen = []

    def look(state, i, generator):
        seen.append(i)
        return state

    gibbs(look, "abc", steps=7, scan="systematic", generator=0)
    assert seen == [0, 1, 2, 0, 1, 2, 0]
    seen.clear()
    gibbs(look, "abc", steps=3000, generator=0)
    assert np.bincount(seen) == pytest.approx([1000] * 3, abs=110)


def test_a_chain_is_the_same_in_any_company():
    conditional = FiniteConditional(score_three, "ab")
    many = gibbs(conditional, "aaa", steps=60, burn_in=12, thin=5, chains=3, generator=5)
    one = gibbs(conditional, "aaa", steps=60, generator=5)
    assert many.states[0] == one.states[0][16::5]
    assert np.isnan(one.log_rho).all()


def test_bad_input():
    conditional = FiniteConditional(lambda x: -math.inf, "ab")
    with pytest.raises(ValueError, match="no value of coordinate 0 is allowed in state 'a'"):
        gibbs(conditional, "a", steps=5, generator=0)
    with pytest.raises(ValueError, match="at least one coordinate, got ''"):
        gibbs(conditional, "", steps=5, generator=0)
    with pytest.raises(ValueError, match="'sideways'"):
        gibbs(conditional, "a", steps=5, scan="sideways", generator=0)
    with pytest.raises(ValueError, match="steps"):
        gibbs(conditional, "a", steps=0, generator=0)
    with pytest.raises(ValueError, match="nan for state"):
        gibbs(FiniteConditional(lambda x: math.nan, "ab"), "a", steps=5, generator=0)
    with pytest.raises(ValueError, match="values"):
        FiniteConditional(score_three, "")
    with pytest.raises(ValueError, match="different"):
        FiniteConditional(score_three, "aab")
