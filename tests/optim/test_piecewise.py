import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.optim import SGD, Adam, Rprop
from torch.optim.lr_scheduler import LambdaLR

from kexue.optim import Adafactor, LayerAdaptation, Lookahead, PiecewiseLinear, PiecewiseLinearLR
from kexue.optim.piecewise import multiplier, read_schedule


def test_the_schedule_of_the_article():
    knots = read_schedule({2000: 0.1, 1000: 1})
    assert [multiplier(knots, t) for t in (0, 500, 1000, 1500, 2000, 10**9)] == pytest.approx(
        [0, 0.5, 1, 0.55, 0.1, 0.1]
    )
    assert {multiplier(read_schedule({0: 1}), t) for t in (0, 1, 77)} == {1.0}


@given(st.dictionaries(st.integers(0, 50), st.floats(0, 10), min_size=1), st.integers(0, 60))
def test_it_interpolates_as_numpy_does(schedule, t):
    np = pytest.importorskip("numpy")
    whole = {0: 0.0} | schedule
    expected = np.interp(t, sorted(whole), [whole[knot] for knot in sorted(whole)])
    assert multiplier(read_schedule(schedule), t) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [({}, "empty"), ({-1: 1.0}, ">= 0"), ({1.5: 1.0}, "whole"), ({True: 1.0}, "whole"), ({0: -1.0}, "multiplier"),
     ({0: float("nan")}, "multiplier")],
)  # fmt: skip
def test_bad_schedules_are_refused(schedule, message):
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=message):
        PiecewiseLinear(SGD([p], lr=0.1), schedule)
    with pytest.raises(ValueError, match=message):
        PiecewiseLinearLR(SGD([p], lr=0.1), schedule)


class Unknown(Adam):
    """Nothing is known of a derived class, so its steps are scaled after the fact."""


SCHEDULE = {4: 1.0, 9: 0.2}


def train(make, steps=14, schedule=None):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(200, 3, dtype=torch.float64))
    optimizer = make([p])
    scheduler = schedule(optimizer) if schedule else None
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return p.detach()


@pytest.mark.parametrize("inner", [lambda p: Adam(p, lr=0.1), lambda p: SGD(p, lr=0.1, momentum=0.9)])
def test_wrapper_scheduler_and_lambda_agree(inner):
    wrapped = train(lambda p: PiecewiseLinear(inner(p), SCHEDULE))
    ours = train(inner, schedule=lambda o: PiecewiseLinearLR(o, SCHEDULE))
    knots = read_schedule(SCHEDULE)
    theirs = train(inner, schedule=lambda o: LambdaLR(o, lambda t: multiplier(knots, t)))
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(wrapped, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "make",
    [lambda p: Unknown(p, lr=0.1), lambda p: Rprop(p, lr=0.1), lambda p: Lookahead(Adam(p, lr=0.1), 2),
     lambda p: Adafactor(p, lr=0.1), lambda p: LayerAdaptation(Adam(p, lr=0.1))],
)  # fmt: skip
def test_every_change_is_scaled(make):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(9, 3, dtype=torch.float64))
    q = nn.Parameter(p.detach().clone())
    wrapped, inner = PiecewiseLinear(make([p]), SCHEDULE), make([q])
    generator = torch.Generator().manual_seed(1)
    for t in range(12):
        old = q.detach().clone()
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        q.grad = p.grad.clone()
        wrapped.step()
        inner.step()
        with torch.no_grad():
            q.copy_(old + multiplier(read_schedule(SCHEDULE), t) * (q - old))
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_the_first_update_from_zero_moves_nothing_and_counts():
    p = nn.Parameter(torch.ones(3))
    optimizer = PiecewiseLinear(Adam([p], lr=0.1), {2: 1.0})
    for expected in (0.0, 0.05, 0.1):
        before = p.detach().clone()
        p.grad = torch.ones(3)
        optimizer.step()
        assert torch.allclose(before - p.detach(), torch.tensor(expected), atol=1e-6)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.state_dict()["param_groups"][0]["kexue.piecewise_linear.step"] == 3


def test_the_scheduler_resumes():
    def fresh():
        optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
        return optimizer, PiecewiseLinearLR(optimizer, SCHEDULE)

    optimizer, scheduler = fresh()
    for _ in range(6):
        optimizer.step()
        scheduler.step()
    other, resumed = fresh()
    resumed.load_state_dict(scheduler.state_dict())
    other.load_state_dict(optimizer.state_dict())
    for pair in ((optimizer, scheduler), (other, resumed)):
        pair[0].step()
        pair[1].step()
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == pytest.approx(2 * (1 - 0.8 * 3 / 5))
