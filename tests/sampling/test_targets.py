import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kexue.sampling import FunctionTarget, ProductTarget, Proposed, metropolis_hastings
from kexue.sampling.targets import follow

logs = st.one_of(st.just(-math.inf), st.floats(-1e6, 1e6))


class Table:
    """log rho of whole numbers from a list; remembers what it was asked."""

    def __init__(self, values):
        self.values, self.asked = values, []

    def log_rho(self, states):
        self.asked += list(states)
        return [self.values[state] for state in states]


@given(
    st.lists(st.tuples(logs, logs, logs), min_size=1, max_size=6), st.lists(st.floats(0.01, 5), min_size=3, max_size=3)
)
def test_a_product_is_the_sum_of_logarithms(rows, powers):
    tables = [Table(column) for column in zip(*rows, strict=True)]
    product = ProductTarget(*tables, powers=powers)
    states = list(range(len(rows)))
    expected = [-math.inf if -math.inf in row else sum(p * v for p, v in zip(powers, row, strict=True)) for row in rows]
    np.testing.assert_allclose(product.log_rho(states), expected, rtol=1e-9, atol=1e-6)
    proposals = [Proposed(state, 0.0, 0.0) for state in states]
    np.testing.assert_array_equal(follow(product, states).score(proposals), product.log_rho(states))
    nested = ProductTarget(ProductTarget(tables[0], tables[1], powers=powers[:2]), tables[2], powers=[1, powers[2]])
    np.testing.assert_allclose(nested.log_rho(states), expected, rtol=1e-9, atol=1e-6)


def test_a_factor_is_asked_only_what_those_before_it_allow():
    first, second = Table([0.0, -math.inf, 0.0]), Table([1.0, math.nan, 2.0])
    product = ProductTarget(first, second)
    assert product.log_rho([0, 1, 2]).tolist() == [1.0, -math.inf, 2.0]
    assert follow(product, [0, 0, 0]).score([Proposed(i, 0.0, 0.0) for i in range(3)]) == [1.0, -math.inf, 2.0]
    assert second.asked == [0, 2, 0, 2]
    assert product.log_rho([]).tolist() == []


def test_a_power_of_zero_leaves_its_factor_out():
    assert ProductTarget(Table([-math.inf, 3.0]), Table([1.0, 2.0]), powers=[0, 2]).log_rho([0, 1]).tolist() == [
        2.0,
        4.0,
    ]


def test_a_product_tells_its_followers_of_moves():
    class Position:
        def __init__(self):
            self.moves = []

        def log_rho(self, states):
            return [-float(abs(state)) for state in states]

        def follow(self, states):
            return self

        def score(self, proposals):
            return self.log_rho([proposed.state for proposed in proposals])

        def move(self, accepted):
            self.moves.append(accepted)

    class Step:
        def propose(self, x, generator):
            return Proposed(x + int(generator.integers(2)) * 2 - 1, 0.0, 0.0)

    position = Position()
    product = ProductTarget(FunctionTarget(lambda x: 0.0), position, powers=[1.0, 0.5])
    result = metropolis_hastings(product, Step(), 0, steps=30, chains=2, generator=0)
    np.testing.assert_array_equal(np.array(position.moves).T, result.accepted)
    np.testing.assert_array_equal(result.log_rho, result.measure(lambda x: -0.5 * abs(x)))


def test_bad_input():
    with pytest.raises(ValueError, match="needs factors"):
        ProductTarget()
    with pytest.raises(ValueError, match="got 1 and 2"):
        ProductTarget(Table([0.0]), powers=[1, 2])
    for power in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="powers must"):
            ProductTarget(Table([0.0]), powers=[power])
    with pytest.raises(TypeError, match="log_rho"):
        ProductTarget(3.0)
