"""Moves keep the law of their target: matrices of all strings of at most three letters, and long chains."""

import math
from collections import Counter

import numpy as np
import pytest

from kexue.sampling import ProductTarget, metropolis_hastings, transition_matrix
from kexue.sampling.text import (
    BlockMove,
    DeleteMove,
    InsertMove,
    Keywords,
    Length,
    LMTarget,
    MixtureProposal,
    NGramLM,
    ReplaceMove,
    SwapMove,
)
from kexue.sampling.text.trie import UNKNOWN

MIXES = {
    "insert, delete": lambda lm, k: [InsertMove(lm, top=k), DeleteMove()],
    "insert, delete, replace": lambda lm, k: [InsertMove(lm, top=k), DeleteMove(), ReplaceMove(lm, top=k)],
    "all moves": lambda lm, k: [
        InsertMove(lm, top=k),
        DeleteMove(),
        ReplaceMove(lm, top=k),
        SwapMove(),
        BlockMove(lm, top=k),
    ],
}
PROTECTED = [(), ("a",), ("ab",), ("a", "b")]


def mix(name, lm, words=(), top=1):
    """A mixture with different weights; of two letters, one is a candidate, or both (`top` None)."""
    moves = MIXES[name](lm, top)
    return MixtureProposal(moves, [3, 2.5, 2, 1, 1][: len(moves)], protected=words)


@pytest.mark.parametrize("words", PROTECTED)
@pytest.mark.parametrize("name", MIXES)
def test_matrices_are_in_detailed_balance_with_the_enumerated_law(ab, toys, name, words):
    toy = toys.Toy(ab, *words)
    matrix = transition_matrix(toy.target, mix(name, ab, toy.words), toy.states)
    flow = toy.law[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-12)
    np.testing.assert_allclose(toy.law @ matrix, toy.law, atol=1e-12)
    reached = (np.linalg.matrix_power(matrix, len(toy.states)) > 0).all()
    assert reached == (name == "all moves" or len(words) < 2)  # without SwapMove, two words keep their order


@pytest.mark.slow
@pytest.mark.parametrize("words", PROTECTED)
@pytest.mark.parametrize("name", MIXES)
def test_long_chains_agree_with_the_enumerated_law(ab, toys, name, words):
    toy = toys.Toy(ab, *words)
    if name != "all moves" and len(words) == 2:
        pytest.skip("two words keep their order")
    result = metropolis_hastings(
        toy.target, mix(name, ab, toy.words, None), toy.states[0], steps=10_000, chains=10, generator=0
    )
    counts = Counter(state for chain in result.states for state in chain)
    shares = np.array([counts[state] for state in toy.states]) / 100_000
    assert 0.5 * np.abs(shares - toy.law).sum() < 0.02


@pytest.mark.parametrize("words", [(), ("ab",)])
def test_probabilities_of_edits_are_those_of_drawing_them(ab, toys, words):
    """What `enumerate` states agrees with how often `propose` draws it, and sums to 1 where every move has an edit."""
    toy = toys.Toy(ab, *words)
    proposal = mix("all moves", ab, toy.words)
    state, generator = ab.encode("abba"), np.random.default_rng(0)
    stated = Counter()
    for one in proposal.enumerate(state):
        stated[one.tag, one.state] += math.exp(one.log_forward)
    assert sum(stated.values()) == pytest.approx(1)
    drawn = Counter((one.tag, one.state) for one in (proposal.propose(state, generator) for _ in range(20_000)))
    assert drawn.keys() <= stated.keys()
    for key, share in stated.items():
        assert drawn[key] / 20_000 == pytest.approx(share, abs=5 * math.sqrt(share / 20_000))


def test_edits_back_have_the_probability_of_the_move_that_makes_them(ab, toys):
    """log_reverse of an edit is the log_forward of a matching edit that leads back, for each tag."""
    proposal = mix("all moves", ab, [ab.encode("ab")])
    undo = {"insert": "delete", "delete": "insert"}
    for state in toys.list_strings(ab.writable, 2, 4):
        for one in proposal.enumerate(state):
            if one.log_reverse > -math.inf:
                back = [p.log_forward for p in proposal.enumerate(one.state)
                        if p.state == state and p.tag == undo.get(one.tag, one.tag)]  # fmt: skip
                assert any(value == pytest.approx(one.log_reverse, abs=1e-12) for value in back)


def test_factor_without_protected_words_is_that_of_the_article(ab):
    """8194: inserting w changes rho(y) / (rho(x) g(w)), places cancel; with a word they do not."""
    moves = [InsertMove(ab, top=None), DeleteMove()]
    state = ab.encode("ab")
    for one in MixtureProposal(moves).enumerate(state):
        if one.tag == "insert":
            place, _, (token,) = one.change
            g = ab.law(state[:place], state[place:], None).probability(token)
            assert one.log_reverse - one.log_forward == pytest.approx(-math.log(g))
    one = next(iter(MixtureProposal(moves, protected=[state]).enumerate(state)))
    g = ab.law((), state, None).probability(one.change.inserted[0])
    # two gaps around the word before, one token to delete after
    assert one.log_reverse - one.log_forward == pytest.approx(math.log(2) - math.log(g))


def test_reference_candidates_keep_the_law_approximately_only(ab, toys):
    toy = toys.Toy(ab)
    shares = {}
    for policy in ("exact", "reference"):
        insert, replace = (kind(ab, top=1, candidate_policy=policy) for kind in (InsertMove, ReplaceMove))
        matrix = transition_matrix(toy.target, MixtureProposal([insert, DeleteMove(), replace]), toy.states)
        flow = toy.law[:, None] * matrix
        shares[policy] = np.abs(flow - flow.T).max()
    assert shares["exact"] < 1e-12
    assert shares["reference"] > 1e-3


def test_blocks_reach_what_single_edits_do_not(toys):
    """Strings of three letters with exactly one 'c': only with blocks does the 'c' move."""
    lm = NGramLM(2).fit(["abc", "cab", "bca", "aac"])
    c = lm.encode("c")[0]
    states = [text for text in toys.list_strings(lm.writable, 3, 3) if text.count(c) == 1]
    target = ProductTarget(LMTarget(lm), lambda text: 0.0 if text.count(c) == 1 else -math.inf, Length(3, 3))
    single = transition_matrix(target, MixtureProposal([ReplaceMove(lm)]), states)
    block = transition_matrix(target, MixtureProposal([ReplaceMove(lm), BlockMove(lm)]), states)
    assert (np.linalg.matrix_power(single, 12)[0] > 0).sum() == 4
    assert (np.linalg.matrix_power(block, 12) > 0).all()


def test_words_stay_whole(ab):
    proposal = mix("all moves", ab, [ab.encode("ab")])
    keywords, state, generator = Keywords([ab.encode("ab")]), ab.encode("bab"), np.random.default_rng(1)
    for _ in range(2000):
        one = proposal.propose(state, generator)
        if one.log_reverse > -math.inf and len(one.state) < 6:
            state = one.state
            assert keywords.log_rho([state]) == [0.0]


def test_a_token_that_is_never_written_does_not_come_back(ab):
    """A start may hold the unknown token; no move writes it, so none may be counted on to undo its replacement."""
    state = (*ab.encode("a"), UNKNOWN)
    moves = list(MixtureProposal([ReplaceMove(ab, top=1)]).enumerate(state))
    assert {one.log_reverse > -math.inf for one in moves if UNKNOWN in one.state} == {True}
    assert {one.log_reverse for one in moves if UNKNOWN not in one.state} == {-math.inf}


def test_moves_without_an_edit_propose_to_stay(ab):
    one = MixtureProposal([InsertMove(ab), DeleteMove()], [1e-9, 1]).propose((), np.random.default_rng(0))
    assert (one.state, one.log_reverse, one.tag) == ((), -math.inf, "delete")
    assert list(MixtureProposal([SwapMove()]).enumerate(ab.encode("a"))) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda lm: MixtureProposal([]), "moves and their weights"),
        (lambda lm: MixtureProposal([SwapMove()], [0.0]), "each > 0"),
        (lambda lm: MixtureProposal([SwapMove()], [math.nan]), "each > 0"),
        (lambda lm: MixtureProposal([SwapMove()], [1, 2]), "moves and their weights"),
        (lambda lm: MixtureProposal([InsertMove(lm)]), "one InsertMove and one DeleteMove"),
        (lambda lm: MixtureProposal([SwapMove()], protected=[()]), "without tokens"),
        (lambda lm: ReplaceMove(lm, candidate_policy="other"), "candidate_policy"),
        (lambda lm: ReplaceMove(lm, top=0), "top"),
        (lambda lm: BlockMove(lm, 0), "size"),
    ],
)
def test_bad_arguments_are_refused(ab, make, message):
    with pytest.raises(ValueError, match=message):
        make(ab)
    for protected in ("ab", ["ab"]):
        with pytest.raises(TypeError, match=r"lm\.encode"):
            MixtureProposal([SwapMove()], protected=protected)
