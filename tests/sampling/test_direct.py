"""Rejection and importance sampling against enumeration."""

import math

import numpy as np
import pytest

from kexue.errors import InfeasibleError
from kexue.sampling import importance_sample, rejection_sample


def log_z_of(toys):
    return math.log(sum(math.exp(toys.score(x)) for x in toys.strings()))


def log_bound_of(toys):
    return max(toys.score(x) - toys.Fair().log_prob([x])[0] for x in toys.strings())


def test_rejection_has_the_law_and_the_rate_z_over_m(toys):
    states, log_bound = toys.strings(), log_bound_of(toys)
    rate = math.exp(log_z_of(toys) - log_bound)
    result = rejection_sample(toys.score, toys.Fair(), 20_000, log_bound=log_bound, generator=0)
    assert len(result.states) == 20_000
    assert toys.variation(result.states, states, toys.law(toys.score, states)) < 0.02
    assert result.acceptance == 20_000 / result.tries
    error = math.sqrt(rate * (1 - rate) / result.tries)
    assert abs(result.acceptance - rate) < 4 * error
    # a bound that is too large by a factor 2 halves the rate and leaves the law as it is
    loose = rejection_sample(toys.score, toys.Fair(), 20_000, log_bound=log_bound + math.log(2), generator=0)
    assert toys.variation(loose.states, states, toys.law(toys.score, states)) < 0.02
    assert abs(loose.acceptance - rate / 2) < 4 * error


def test_tries_count_up_to_the_last_state_that_was_needed(toys):
    one = rejection_sample(lambda x: 0.0, toys.Fair(), 5, log_bound=math.log(5 * 16), generator=1)
    assert one.tries >= 5
    rates = [
        rejection_sample(toys.score, toys.Fair(), 1, log_bound=log_bound_of(toys), generator=i).tries
        for i in range(900)
    ]
    rate = math.exp(log_z_of(toys) - log_bound_of(toys))
    assert np.mean(rates) == pytest.approx(1 / rate, abs=4 * math.sqrt(1 - rate) / rate / 30)  # a geometric law


def test_a_broken_bound_is_named_and_never_clipped(toys):
    worst = max(toys.strings(), key=lambda x: toys.score(x) - toys.Fair().log_prob([x])[0])
    needed = f"{log_bound_of(toys):.6g}"
    with pytest.raises(ValueError, match=rf"at least {needed}, .* of state '{worst}'"):
        rejection_sample(toys.score, toys.Fair(), 20_000, log_bound=log_bound_of(toys) - 0.1, generator=0)


def test_tries_may_run_out(toys):
    never = rejection_sample(lambda x: -math.inf, toys.Fair(), 3, log_bound=0.0, max_tries=100, generator=0)
    assert (never.states, never.acceptance, never.tries) == ([], 0.0, 100)
    some = rejection_sample(toys.score, toys.Fair(), 500, log_bound=log_bound_of(toys), max_tries=300, generator=0)
    assert 0 < len(some.states) < 300
    assert some.tries == 300


def test_weights_estimate_z_and_means(toys):
    states, n = toys.strings(), 50_000
    p = toys.law(toys.score, states)
    result = importance_sample(toys.score, toys.Fair(), n, generator=0)
    q = np.exp(toys.Fair().log_prob(states))
    ratio = p / q  # normalised weights w / Z
    spread = math.sqrt((q @ ratio**2 - 1) / n)  # of the estimate of Z, relative
    assert result.log_z == pytest.approx(log_z_of(toys), abs=4 * spread)
    assert result.ess / n == pytest.approx(1 / (q @ ratio**2), rel=0.03)
    assert result.max_weight_share == pytest.approx(ratio.max() / n, rel=0.03)
    mean = p @ [len(x) for x in states]
    assert result.expect(len) == pytest.approx(mean, abs=4 * 1.5 / math.sqrt(result.ess))
    both = result.expect(lambda x: [len(x), 1.0])
    np.testing.assert_allclose(both, [result.expect(len), 1.0], rtol=1e-12)
    shares = np.exp(result.log_weights) / np.exp(result.log_weights).sum()
    assert sum(s for x, s in zip(result.states, shares, strict=True) if x == "ab") == pytest.approx(
        p[states.index("ab")], abs=0.01
    )


def test_resampling_gives_the_law(toys):
    states = toys.strings()
    plain = importance_sample(toys.score, toys.Fair(), 100_000, generator=0)
    result = importance_sample(toys.score, toys.Fair(), 100_000, resample=True, generator=0)
    assert toys.variation(result.states, states, toys.law(toys.score, states)) < 0.02
    assert (result.log_z, result.ess) == (plain.log_z, plain.ess)
    np.testing.assert_array_equal(result.log_weights, plain.log_z)
    assert result.expect(len) == pytest.approx(np.mean([len(x) for x in result.states]), rel=1e-12)


def test_means_leave_out_what_has_no_weight(toys):
    allowed = lambda x: 0.0 if len(x) > 1 else -math.inf  # noqa: E731
    weighted = importance_sample(allowed, toys.Fair(), 200, generator=0)
    assert (weighted.log_weights == -math.inf).any()
    assert weighted.expect(allowed) == 0


def test_a_constant_factor_of_the_score_changes_z_alone(toys):
    one = importance_sample(toys.score, toys.Fair(), 1000, generator=0)
    other = importance_sample(lambda x: toys.score(x) - 900.0, toys.Fair(), 1000, generator=0)  # e^-900 is no float
    assert other.log_z == pytest.approx(one.log_z - 900.0, rel=1e-12)
    assert other.ess == pytest.approx(one.ess, rel=1e-9)
    assert other.expect(len) == pytest.approx(one.expect(len), rel=1e-9)


def test_bad_input(toys):
    with pytest.raises(InfeasibleError, match="All 10"):
        importance_sample(lambda x: -math.inf, toys.Fair(), 10, generator=0)
    for sample in (importance_sample, lambda *args, **kw: rejection_sample(*args, log_bound=0.0, **kw)):
        with pytest.raises(ValueError, match="n must"):
            sample(toys.score, toys.Fair(), 0, generator=0)
        with pytest.raises(ValueError, match="nan for state"):
            sample(lambda x: math.nan, toys.Fair(), 5, generator=0)

        class Denying(toys.Fair):
            def log_prob(self, states):
                return [-math.inf] * len(states)

        with pytest.raises(ValueError, match="log q = -inf"):
            sample(toys.score, Denying(), 5, generator=0)

        class Short(toys.Fair):
            def sample(self, n, *, generator):
                return super().sample(1, generator=generator)

        with pytest.raises(ValueError, match=r"must return 5 states, got 1"):
            sample(toys.score, Short(), 5, generator=0)
    with pytest.raises(ValueError, match="at least 100"):  # rho / q is larger than any number
        rejection_sample(lambda x: 1000.0, toys.Fair(), 5, log_bound=0.0, generator=0)
    for log_bound in (math.inf, math.nan):
        with pytest.raises(ValueError, match="log_bound"):
            rejection_sample(toys.score, toys.Fair(), 5, log_bound=log_bound)
    with pytest.raises(ValueError, match="max_tries"):
        rejection_sample(toys.score, toys.Fair(), 5, log_bound=9.0, max_tries=0)
