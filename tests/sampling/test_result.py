"""Diagnostics against ArviZ and closed forms."""

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kexue.sampling import (
    MCMCResult,
    Proposed,
    diagnose,
    effective_sample_size,
    gibbs,
    integrated_autocorrelation_time,
    metropolis_hastings,
    split_rhat,
)


def autoregressive(generator, chains, draws, phi):
    x = generator.normal(size=(chains, draws))
    x[:, 0] /= math.sqrt(1 - phi**2)
    for t in range(1, draws):
        x[:, t] += phi * x[:, t - 1]
    return x


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 5), st.integers(4, 300), st.floats(-0.95, 0.99), st.booleans(), st.integers(0, 2**32 - 1))
def test_numbers_are_those_of_arviz(chains, draws, phi, rounded, seed):
    peer = pytest.importorskip("arviz_stats.base").array_stats
    x = autoregressive(np.random.default_rng(seed), chains, draws, phi)
    x = np.round(x) if rounded else x
    if np.ptp(x) == 0:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # divisions by zero in the peer, where halves never move
        for kind, arguments in (("bulk", {}), ("mean", {}), ("tail", {"prob": (0.05, 0.95)})):
            expected = float(peer.ess(x, chain_axis=0, draw_axis=1, method=kind, **arguments))
            assert effective_sample_size(x, kind) == pytest.approx(expected, rel=1e-6)
            if kind == "mean":
                assert integrated_autocorrelation_time(x) == pytest.approx(x.size / expected, rel=1e-6)
        expected = float(peer.rhat(x, chain_axis=0, draw_axis=1, method="rank"))
    # the peer gives up where the folded values are all equal, though the values are not, and where no half moves
    if not math.isnan(expected) and expected < 1e6:
        assert split_rhat(x) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.5])
def test_the_autocorrelation_time_of_an_autoregression_is_its_closed_form(phi):
    x = autoregressive(np.random.default_rng(0), 4, 20_000, phi)  # 7 % at one sigma for the slowest
    assert integrated_autocorrelation_time(x) == pytest.approx((1 + phi) / (1 - phi), rel=0.2)
    assert effective_sample_size(x, "mean") == pytest.approx(80_000 * (1 - phi) / (1 + phi), rel=0.2)


def test_rhat_sees_other_places_and_other_widths_and_no_trouble_where_there_is_none():
    x = np.random.default_rng(0).normal(size=(4, 1000))
    assert split_rhat(x) < 1.01
    assert split_rhat(x + np.array([[0], [0], [0], [1]])) > 1.1
    assert split_rhat(x * np.array([[1], [1], [1], [4]])) > 1.1
    assert split_rhat(x + np.linspace(0, 2, 1000)) > 1.1  # a trend: halves differ
    assert split_rhat(np.exp(5 * x)) == pytest.approx(split_rhat(x), abs=0.02)  # of ranks
    assert math.isnan(split_rhat(np.ones((2, 8))))
    assert split_rhat(np.repeat([[0.0], [1.0], [2.0]], 8, axis=1)) == math.inf
    assert split_rhat(x[0]) == split_rhat(x[:1])


def test_a_judgement_counts_moves_and_states(toys):
    result = metropolis_hastings(toys.score, toys.Edits(), "", steps=4000, burn_in=500, thin=5, chains=4, generator=0)
    report = diagnose(result)
    assert report.acceptance == pytest.approx(result.accepted.mean())
    for tag in ("insert", "delete", "replace"):
        passed = [p for tags, row in zip(result.moves, result.accepted, strict=True)
                  for t, p in zip(tags, row, strict=True) if t == tag]  # fmt: skip
        assert report.acceptance_by_move[tag] == pytest.approx(np.mean(passed))
    assert report.distinct == pytest.approx(15 / 2800)
    assert report.flags == ()
    assert report.ess_bulk == effective_sample_size(result.log_rho)
    lengths = diagnose(result.measure(len))
    assert (lengths.acceptance, lengths.acceptance_by_move, lengths.distinct) == (None, None, None)
    assert lengths.rhat == split_rhat(result.measure(len))
    words = result.summary()
    assert "4 chains of 700 states" in words
    assert f"insert {report.acceptance_by_move['insert']:.3f}" in words
    assert "doubt" not in words


def test_doubts_are_flagged(toys):
    peaked = lambda x: 30.0 * (x in ("aaa", "bbb")) + toys.score(x)  # noqa: E731
    draw = lambda g: ["aaa", "bbb"][g.integers(2)]  # noqa: E731
    stuck = metropolis_hastings(peaked, toys.Edits(), draw, steps=300, chains=6, generator=0)
    flags = " ".join(diagnose(stuck).flags)
    assert "R-hat" in flags
    assert "effective sample size" in flags
    assert "doubt: R-hat" in stuck.summary()
    only_one = metropolis_hastings(lambda x: 0.0 if x == "a" else -50.0, toys.Edits(operations="id"), "a",
                                   steps=400, chains=4, generator=0)  # fmt: skip
    assert any("acceptance 0.0000 < 0.01" in flag for flag in diagnose(only_one).flags)
    flat = metropolis_hastings(lambda x: 0.0, toys.Ring(), 0, steps=400, generator=0)
    assert any("all values are equal" in flag for flag in diagnose(flat).flags)


def test_chains_that_agree_on_log_rho_alone_are_flagged_by_their_states():
    class Near:
        def propose(self, x, generator):
            return Proposed(x + generator.normal(), 0.0, 0.0)

    two = lambda x: -((abs(x) - 9) ** 2) / 2  # noqa: E731
    starts = iter([-9.0, 9.0, 9.0, -9.0])
    result = metropolis_hastings(two, Near(), lambda g: next(starts), steps=4000, chains=4, generator=0)
    assert len(set(np.sign(result.measure(float)).mean(1).tolist())) == 2  # each stays on its side
    assert not diagnose(result).flags
    other = diagnose(result.measure(float))
    worst = diagnose(result, float, lambda x: 1.0)  # one that never changes is left out
    assert (worst.rhat, worst.ess_bulk, worst.iat) == (other.rhat, other.ess_bulk, other.iat)
    assert "R-hat" in " ".join(worst.flags)
    assert "log rho and others, the worst: R-hat" in result.summary(float)
    assert diagnose(result, abs).ess_bulk == min(diagnose(result).ess_bulk, diagnose(result.measure(abs)).ess_bulk)
    with pytest.raises(TypeError, match="MCMCResult"):
        diagnose(result.log_rho, float)


def test_one_chain_and_one_that_never_moves_are_flagged():
    x = np.random.default_rng(0).normal(size=(40, 500))
    assert not diagnose(x).flags
    assert "one chain" in " ".join(diagnose(x[0]).flags)
    x[7] = np.median(np.abs(x))  # where R-hat hardly sees it
    moved = np.arange(40)[:, None].repeat(500, 1) != 7
    stuck = MCMCResult(x.tolist(), x, moved, [[""] * 500] * 40)
    assert diagnose(stuck).acceptance == 39 / 40
    assert any(flag.startswith("acceptance 0.0000 < 0.01") for flag in diagnose(stuck).flags)


def test_halves_that_never_move_and_differ_have_no_rhat_at_all():
    assert split_rhat(np.repeat([[0.1], [0.2], [0.3]], 500, axis=1)) == math.inf  # not a large number by rounding
    assert math.isnan(split_rhat(np.full((3, 500), 0.1)))


def test_arviz_gets_the_numbers(toys):
    arviz = pytest.importorskip("arviz")
    ring = metropolis_hastings(toys.log_ring, toys.Ring(), 0, steps=400, chains=4, generator=0)
    data = ring.to_arviz()
    np.testing.assert_array_equal(data.posterior["x"].values, ring.measure(float))
    np.testing.assert_array_equal(data.sample_stats["accepted"].values, ring.accepted)
    assert float(arviz.rhat(data)["log_rho"]) == pytest.approx(diagnose(ring).rhat, abs=1e-6)
    words = metropolis_hastings(toys.score, toys.Edits(), "", steps=400, thin=2, chains=2, generator=0).to_arviz()
    assert set(words.posterior.data_vars) == {"log_rho"}
    assert set(words.sample_stats.data_vars) == {"lp"}


def test_arrays_and_lists_are_states_too():
    for states in ([np.zeros(2), np.ones(2)], [[0], [1]]):
        look = lambda state, i, g, states=states: states[g.integers(2)]  # noqa: E731
        result = gibbs(look, states[0], steps=50, target=lambda x: 0.0, generator=0)
        assert diagnose(result).distinct == 2 / 50


def test_bad_input(toys):
    with pytest.raises(ValueError, match=r"4 draws, got shape \(2, 3\)"):
        split_rhat(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="NaN"):
        effective_sample_size(np.full((2, 9), np.nan))
    with pytest.raises(ValueError, match="'middle'"):
        effective_sample_size(np.zeros((2, 9)), "middle")
    with pytest.raises(ValueError, match="2-dimensional"):
        integrated_autocorrelation_time(np.zeros((2, 9, 1)))
    unknown = gibbs(lambda x, i, g: x, "ab", steps=9, generator=0)
    with pytest.raises(ValueError, match="not known"):
        diagnose(unknown)
    forbidden = gibbs(lambda x, i, g: x, "ab", steps=9, target=lambda x: -math.inf, generator=0)
    with pytest.raises(ValueError, match="not finite"):
        diagnose(forbidden)


def test_a_judgement_as_json_has_null_for_what_is_not_known():
    still = diagnose(np.zeros((2, 8)))
    assert math.isnan(still.rhat)
    record = json.loads(json.dumps(still.record(), allow_nan=False))
    assert (record["rhat"], record["acceptance"], record["flags"]) == (None, None, list(still.flags))
    assert (record["ess_bulk"], record["ess_tail"], record["iat"]) == (None, None, None)
