"""The replay buffer: first in, first out; shares of new starts; nothing that is no number; saved with the weights."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from kexue.generative import ReplayBuffer, sample_generators
from kexue.generative.diffusion import NormalPrior


def numbered(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)[:, None]


@given(st.integers(1, 7), st.lists(st.integers(0, 9), max_size=6))
def test_it_holds_the_last_events_in_turn(capacity, sizes):
    """Against a list: after any pushes, the buffer has its last `capacity` events."""
    buffer, pushed = ReplayBuffer(capacity, 1), []
    for size in sizes:
        batch = list(range(len(pushed), len(pushed) + size))
        buffer.push(torch.tensor(batch, dtype=torch.float32).reshape(-1, 1))
        pushed += batch
    assert len(buffer) == min(capacity, len(pushed))
    assert sorted(buffer.items[: len(buffer), 0].tolist()) == pushed[-capacity:]


def test_the_oldest_event_is_replaced_first():
    buffer = ReplayBuffer(3, 1)
    buffer.push(numbered(0, 1))
    buffer.push(numbered(2, 3))
    assert torch.equal(buffer.items, numbered(3, 1, 2))


def test_what_is_no_number_stays_out():
    buffer = ReplayBuffer(4, 2)
    buffer.push(torch.tensor([[math.nan, 0.0], [1.0, 1.0], [0.0, math.inf], [2.0, 2.0]]))
    assert torch.equal(buffer.items[:2], torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    assert len(buffer) == 2
    assert bool(buffer.items.isfinite().all())


def test_starts_are_new_as_often_as_asked_and_the_others_are_equally_likely():
    buffer = ReplayBuffer(10, 1, reinit=0.2)
    buffer.push(numbered(5, 6, 7))
    n = 30_000
    x = buffer.sample(n, generator=torch.Generator().manual_seed(0))[:, 0]
    for event in (5, 6, 7):
        assert float((x == event).double().mean()) == pytest.approx(0.8 / 3, abs=3 * math.sqrt(0.2 / n))
    new = x[x < 5]
    assert len(new) / n == pytest.approx(0.2, abs=3 * math.sqrt(0.16 / n))
    assert float(new.double().mean()) == pytest.approx(0, abs=3 / math.sqrt(3 * len(new)))
    assert float(new.min()) < -0.99
    assert float(new.max()) > 0.99


def test_new_starts_are_of_the_prior_and_alone_where_the_buffer_is_empty_or_not_used():
    for buffer in (
        ReplayBuffer(10, 2, reinit=0, init=NormalPrior(2)),
        ReplayBuffer(10, 2, reinit=1, init=NormalPrior(2)),
    ):
        if buffer.reinit == 1:
            buffer.push(torch.full((3, 2), 9.0))
        assert torch.equal(buffer.sample(5, generator=3), NormalPrior(2).sample(5, generator=3))


def test_a_start_does_not_depend_on_how_many_there_are():
    buffer = ReplayBuffer(10, 2, reinit=0.5)
    buffer.push(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    whole = buffer.sample(9, generator=3)
    assert torch.equal(buffer.sample(4, generator=3), whole[:4])
    assert torch.equal(buffer.sample(5, generator=sample_generators(3, 5, start=4)), whole[4:])
    assert buffer.sample(0).shape == (0, 2)


def test_the_contents_are_in_the_state_dict():
    buffer, other = ReplayBuffer(5, 2), ReplayBuffer(5, 2)
    buffer.push(torch.randn(7, 2, generator=torch.Generator().manual_seed(0)))
    other.load_state_dict(buffer.state_dict())
    assert torch.equal(other.sample(9, generator=0), buffer.sample(9, generator=0))
    buffer.push(torch.zeros(1, 2))
    other.push(torch.zeros(1, 2))
    assert torch.equal(other.items, buffer.items)


def test_events_get_the_dtype_of_the_buffer():
    buffer = ReplayBuffer(5, 2).double()
    buffer.push(torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True))
    x = buffer.sample(3, generator=0)
    assert x.dtype == torch.float64
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "capacity must be a whole number >= 1, got 0"),
        ({"event_shape": ()}, "event_shape must be a size >= 1"),
        ({"reinit": 1.5}, r"reinit is a probability in \[0, 1\], got 1.5"),
        ({"reinit": math.nan}, "reinit is a probability"),
        ({"init": NormalPrior(3)}, r"init must have events of shape \(2,\), got \(3,\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    options = {"capacity": 5, "event_shape": 2} | arguments
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(options.pop("capacity"), options.pop("event_shape"), **options)


def test_bad_calls_are_refused():
    buffer = ReplayBuffer(5, 2)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\), got \(3, 1\)"):
        buffer.push(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="n must be a whole number >= 0, got -1"):
        buffer.sample(-1)


def test_what_is_infinite_in_the_precision_of_the_buffer_stays_out():
    buffer = ReplayBuffer(3, 1)
    buffer.push(torch.tensor([[1.0], [1e300]], dtype=torch.float64))
    assert len(buffer) == 1
    assert float(buffer.items[0]) == 1
