"""Noise of single items: independent streams, the same in every batch."""

import numpy as np
import pytest
import torch

from kexue.generative import Noise, sample_generators


def test_items_have_the_same_generator_wherever_a_batch_begins() -> None:
    seeds = [one.initial_seed() for one in sample_generators(7, 6)]
    assert [one.initial_seed() for one in sample_generators(7, 2, start=3)] == seeds[3:5]
    assert len(set(seeds) | {one.initial_seed() for one in sample_generators(8, 6)}) == 12


def test_numbers_of_items_are_independent() -> None:
    z = Noise(0, 4000).normal((2,), torch.float64)
    assert abs(float(torch.corrcoef(z.T)[0, 1])) < 0.06
    assert abs(float((z[1:] * z[:-1]).mean())) < 0.05
    assert abs(float(z.mean())) < 0.05
    assert abs(float(z.std()) - 1) < 0.05
    u = Noise(0, 4000).uniform(())
    assert u.shape == (4000,)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 0.02


def test_a_part_continues_the_streams_of_the_whole() -> None:
    whole, split = Noise(1, 4), Noise(1, 4)
    first, second = whole.normal((3,)), whole.uniform((2,))
    parts = [split[:2], split[2:]]
    assert torch.equal(torch.cat([part.normal((3,)) for part in parts]), first)
    assert torch.equal(torch.cat([part.uniform((2,)) for part in parts]), second)


def test_a_generator_is_one_stream_for_all() -> None:
    noise = Noise(torch.Generator().manual_seed(5), 3)
    expected = torch.randn(3, 2, generator=torch.Generator().manual_seed(5))
    assert torch.equal(noise.normal((2,)), expected)


def test_a_list_has_the_stream_of_each_item() -> None:
    assert torch.equal(Noise(sample_generators(2, 3), 3).normal((4,)), Noise(2, 3).normal((4,)))
    with pytest.raises(ValueError, match="each of 4 items, got 3"):
        Noise(sample_generators(2, 3), 4)


@pytest.mark.parametrize("bad", [{"seed": -1, "n": 1}, {"seed": 0, "n": -1}, {"seed": 0, "n": 1, "start": -2}])
def test_negative_numbers_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a whole number >= 0, got -"):
        sample_generators(**bad)


def test_numbers_of_numpy_are_seeds_too() -> None:
    assert torch.equal(Noise(np.int64(5), 2).normal((3,)), Noise(5, 2).normal((3,)))


def test_the_global_generator_is_not_read() -> None:
    before = torch.get_rng_state()
    Noise(None, 2).normal((3,))
    Noise(0, 2).normal((3,))
    assert torch.equal(torch.get_rng_state(), before)
