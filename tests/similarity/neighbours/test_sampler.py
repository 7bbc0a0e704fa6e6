import numpy as np
import pytest

from kexue.errors import InfeasibleError
from kexue.similarity import HubSampler, k_occurrence


def test_hub_sampler_keeps_hubs():
    sampler = HubSampler(30, n=1000, k=5, threshold=15)
    drawn = sampler.sample(20, generator=0)
    assert drawn.latents.shape == (20, 30)
    assert 0 < drawn.acceptance < 0.3
    # Kept latents lie nearer to the centre than the prior's typical sqrt(30).
    assert np.linalg.norm(drawn.latents, axis=1).mean() < 0.95 * np.sqrt(30)
    np.testing.assert_array_equal(drawn.latents, sampler.sample(20, generator=0).latents)


def test_hub_sampler_keeps_exactly_those_over_the_threshold():
    points = np.random.default_rng(9).normal(size=(100, 8))
    counts = k_occurrence(points, 3)
    sampler = HubSampler(8, n=100, k=3, threshold=6, prior=lambda n, generator: points)
    expected = points[counts >= 6]
    np.testing.assert_array_equal(sampler.sample(len(expected), generator=0).latents, expected)
    strict = HubSampler(8, n=100, k=3, threshold=6, inclusive=False, prior=lambda n, generator: points)
    np.testing.assert_array_equal(strict.sample(int((counts > 6).sum()), generator=0).latents, points[counts > 6])


def test_an_unreachable_threshold_stops():
    with pytest.raises(InfeasibleError, match="largest seen"):
        HubSampler(2, n=50, k=2, threshold=49, max_rounds=2).sample(1, generator=0)


def test_a_prior_of_another_shape_is_named():
    with pytest.raises(ValueError, match="shape"):
        HubSampler(3, n=10, k=1, prior=lambda n, generator: generator.normal(size=(n, 2))).sample(1)
