import math
from itertools import chain

import numpy as np
import pytest

from kexue.errors import InfeasibleError
from kexue.sampling import Proposed, metropolis_1953, metropolis_hastings, transition_matrix

MIXES = {
    "all": {},
    "insert and delete": {"operations": "id", "shares": (0.3, 0.7, 0.0)},
    "protected letters": {"protected": "b"},
}


@pytest.mark.parametrize("mix", MIXES)
def test_chains_have_the_law_that_enumeration_has(toys, mix):
    states = toys.strings()
    proposal = toys.Edits(**MIXES[mix])
    start = ""
    if MIXES[mix].get("protected"):  # a protected letter stays: strings of the same protected ones are the world
        start, states = "b", [x for x in toys.strings() if x.count("b") == 1]
        proposal = toys.Edits("a", protected="b")
    result = metropolis_hastings(toys.score, proposal, start, steps=12_500, chains=8, generator=1)
    samples = list(chain(*result.states))
    assert len(samples) == 100_000
    assert toys.variation(samples, states, toys.law(toys.score, states)) < 0.02
    np.testing.assert_array_equal(result.log_rho, result.measure(toys.score))


def test_both_algorithms_sample_the_ring_and_the_old_one_accepts_a_sixth(toys):
    for sampler, acceptance in ((metropolis_hastings, 0.60), (metropolis_1953, 0.105)):
        result = sampler(toys.log_ring, toys.Ring(), 0, steps=12_500, chains=8, generator=0)
        assert toys.variation(list(chain(*result.states)), range(4), toys.ring) < 0.02
        assert result.accepted.mean() == pytest.approx(acceptance, abs=0.01)  # 100,000 moves: 0.0015 at one sigma


def test_a_chain_is_the_same_in_any_company(toys):
    def run(**kw):
        return metropolis_hastings(toys.score, toys.Edits(), "", generator=7, **kw)

    many, one = run(steps=200, chains=5), run(steps=200)
    assert many.states[0] == one.states[0]
    assert many.states[1] != one.states[0]
    assert run(steps=60, chains=5).states[3] == many.states[3][:60]
    again = np.random.default_rng(7)
    assert metropolis_hastings(toys.score, toys.Edits(), "", steps=200, generator=again).states == one.states
    assert metropolis_hastings(toys.score, toys.Edits(), "", steps=200, generator=again).states != one.states
    assert metropolis_hastings(toys.score, toys.Edits(), "", steps=200, generator=8).states != one.states


def test_burn_in_and_thinning_only_choose_among_the_states(toys):
    def run(**kw):
        return metropolis_hastings(toys.score, toys.Edits(), "", steps=50, chains=2, generator=3, **kw)

    whole, part = run(), run(burn_in=11, thin=4)
    assert [len(each) for each in part.states] == [9, 9]  # states after steps 15, 19, ..., 47
    assert part.states == [each[14::4] for each in whole.states]
    np.testing.assert_array_equal(part.log_rho, whole.log_rho[:, 14::4])
    np.testing.assert_array_equal(part.accepted, whole.accepted[:, 11:])
    assert part.moves == [each[11:] for each in whole.moves]


def test_a_rejected_move_repeats_the_state_and_an_accepted_one_is_the_proposal(toys):
    result = metropolis_hastings(toys.log_ring, toys.Ring(), 2, steps=500, generator=0)
    path = [2, *result.states[0]]
    for before, after, passed, tag in zip(path, path[1:], result.accepted[0], result.moves[0], strict=False):
        assert after == ((before + int(tag)) % 4 if passed else before)
    assert 0 < result.accepted.mean() < 1


def test_each_chain_may_have_a_start_of_its_own(toys):
    draw = lambda g: int(g.integers(4))  # noqa: E731
    result = metropolis_hastings(lambda x: 0.0, toys.Ring(), draw, steps=1, chains=30, generator=0)
    assert len({chain[0] for chain in result.states}) == 4


class Changing:
    """The score of the toys, which follows chains and is told changes alone."""

    def __init__(self, log_rho):
        self.function, self.seen = log_rho, []

    def log_rho(self, states):
        return [self.function(state) for state in states]

    def follow(self, states):
        return Following(self, list(states))


class Following:
    def __init__(self, target, states):
        self.target, self.states = target, states

    def score(self, proposals):
        self.proposals = proposals
        return self.target.log_rho([proposed.state for proposed in proposals])

    def move(self, accepted):
        pairs = zip(self.states, self.proposals, accepted, strict=True)
        self.states = [proposed.state if passed else state for state, proposed, passed in pairs]
        self.target.seen.append(self.states)


def test_a_follower_learns_where_the_chains_are(toys):
    target = Changing(toys.score)
    followed = metropolis_hastings(target, toys.Edits(), "", steps=100, chains=3, generator=0)
    plain = metropolis_hastings(toys.score, toys.Edits(), "", steps=100, chains=3, generator=0)
    assert followed.states == plain.states
    assert [list(row) for row in zip(*target.seen, strict=True)] == followed.states


def test_bad_scores_and_starts_are_named(toys):
    def run(target=toys.score, proposal=None, x0="", **kw):
        return metropolis_hastings(target, proposal or toys.Edits(), x0, **{"steps": 50, "generator": 0} | kw)

    with pytest.raises(InfeasibleError, match="'aaaa'"):
        run(x0="aaaa")
    with pytest.raises(ValueError, match="nan for state 'b'"):
        run(lambda x: math.nan if x == "b" else 0.0)
    with pytest.raises(ValueError, match="inf for state ''"):
        run(lambda x: math.inf)
    with pytest.raises(TypeError, match="log_rho"):
        run(3.0)
    for wrong in ({"steps": 0}, {"thin": 0}, {"chains": 0}, {"burn_in": -1}, {"burn_in": 50}, {"steps": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            run(**wrong)
    with pytest.raises(ValueError, match="normalised"):
        metropolis_1953(lambda i: 1.0, toys.Ring(), 0, steps=5, generator=0)

    class Broken:
        def propose(self, state, generator):
            return Proposed(state, math.nan, 0.0)

    with pytest.raises(ValueError, match="no acceptance probability"):
        run(proposal=Broken())
    with pytest.raises(ValueError, match=r"\(1,\) numbers"):
        run(type("Short", (), {"log_rho": lambda self, states: []})())


@pytest.mark.parametrize("mix", ["all", "insert and delete"])
def test_the_matrix_is_in_detailed_balance(toys, mix):
    states = toys.strings()
    p, T = toys.law(toys.score, states), transition_matrix(toys.score, toys.Edits(**MIXES[mix]), states)
    flow = p[:, None] * T
    np.testing.assert_allclose(flow, flow.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(p @ T, p, rtol=0, atol=1e-12)
    np.testing.assert_allclose(T.sum(1), 1, rtol=0, atol=1e-12)
    assert (np.linalg.matrix_power(T, 20) > 0).all()


def test_the_matrix_is_that_of_the_ring_by_hand(toys):
    p = toys.ring
    hand = np.zeros((4, 4))
    for i in range(4):
        for j in ((i + 1) % 4, (i - 1) % 4):
            hand[i, j] = 0.5 * min(1, p[j] / p[i])
        hand[i, i] = 1 - hand[i].sum()
    np.testing.assert_allclose(transition_matrix(toys.log_ring, toys.Ring(), range(4)), hand, rtol=0, atol=1e-15)
    assert p @ (1 - np.diag(hand)) == pytest.approx(0.6)
    old = sum(p[i] * 0.5 * 0.5 * p[j] for i in range(4) for j in ((i + 1) % 4, (i - 1) % 4))
    assert old == pytest.approx(0.105)


def test_positions_must_be_counted_where_letters_are_protected(toys):
    states = [x for x in toys.strings() if x.count("b") == 1]
    p = toys.law(toys.score, states)
    right, wrong = (
        transition_matrix(toys.score, toys.Edits("a", protected="b", positions=positions), states)
        for positions in (True, False)
    )
    np.testing.assert_allclose(p @ right, p, rtol=0, atol=1e-12)
    assert abs(p @ wrong - p).max() > 0.01


def test_single_edits_cannot_leave_four_of_twelve_states(toys):
    states = [x for x in toys.strings("abc") if len(x) == 3 and x.count("c") == 1]
    one_c = lambda x: 0.0 if len(x) == 3 and x.count("c") == 1 else -math.inf  # noqa: E731
    T = transition_matrix(one_c, toys.Edits("abc"), states)
    reach = np.linalg.matrix_power(T, len(states)) > 0
    assert len(states) == 12
    assert (reach.sum(1) == 4).all()


def test_a_matrix_needs_a_closed_world(toys):
    states = toys.strings()
    with pytest.raises(ValueError, match="'aaa', which is not one"):
        transition_matrix(toys.score, toys.Edits(), [x for x in states if x != "aaa"])
    with pytest.raises(InfeasibleError, match="'aaaa'"):
        transition_matrix(toys.score, toys.Edits(), [*states, "aaaa"])
    with pytest.raises(ValueError, match="different"):
        transition_matrix(toys.score, toys.Edits(), [*states, "a"])
    with pytest.raises(ValueError, match="at least one"):
        transition_matrix(toys.score, toys.Edits(), [])
    with pytest.raises(ValueError, match="sum <= 1"):
        transition_matrix(toys.score, toys.Edits(shares=(0.9, 0.9, 0.9)), states)

    class Broken:
        def enumerate(self, state):
            return [Proposed(state, 0.0, math.nan)]

    with pytest.raises(ValueError, match="no acceptance probability"):
        transition_matrix(toys.score, Broken(), states)

    class Never(toys.Edits):
        def enumerate(self, state):
            return [*super().enumerate(state), Proposed("elsewhere", -math.inf, 0.0)]

    np.testing.assert_array_equal(
        transition_matrix(toys.score, Never(), states), transition_matrix(toys.score, toys.Edits(), states)
    )
