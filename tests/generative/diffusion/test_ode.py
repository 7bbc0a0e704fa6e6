"""Solvers of ODEs: closed forms, observed orders, scipy, independence of items, tuples, bad input."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from kexue.generative.diffusion import odeint


def pendulum(t: Tensor, x: Tensor) -> Tensor:
    """A forced pendulum with friction, without a closed form."""
    angle, speed = x[:, 0], x[:, 1]
    return torch.stack([speed, -angle.sin() - 0.1 * speed + torch.cos(3 * t)], 1)


def exact(x: Tensor, t0: float, t1: float) -> Tensor:
    """The solution of dx/dt = cos(t) x."""
    return x * math.exp(math.sin(t1) - math.sin(t0))


def oscillation(t: Tensor, x: Tensor) -> Tensor:
    return t.cos()[:, None] * x


@pytest.mark.parametrize(
    ("method", "order", "calls"), [("euler", 1, 1), ("midpoint", 2, 2), ("heun", 2, 2), ("rk4", 4, 4)]
)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 2.0), (2.0, 0.0)])
def test_fixed_steps_have_their_order(method: Any, order: int, calls: int, t0: float, t1: float) -> None:
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        result = odeint(oscillation, x, torch.linspace(t0, t1, steps + 1, dtype=torch.float64), method=method)
        assert (result.n_evals, result.n_rejected) == (steps * calls, 0)
        errors.append(float((result.x - exact(x, t0, t1)).abs().max()))
    observed = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all(np.abs(observed - order) < 0.15), observed


def test_one_step_of_each_method_by_hand() -> None:
    x = torch.tensor([[2.0]], dtype=torch.float64)
    h = 0.5
    by_hand = {
        "euler": 1 + h,
        "midpoint": 1 + h + h**2 / 2,
        "heun": 1 + h + h**2 / 2,
        "rk4": 1 + h + h**2 / 2 + h**3 / 6 + h**4 / 24,
    }
    for method, factor in by_hand.items():
        result = odeint(lambda t, x: x, x, [0.0, h], method=method)  # type: ignore[arg-type]
        assert float(result.x) == pytest.approx(2 * factor, abs=1e-14)
    # dx/dt = t: midpoint and Heun are exact, each at its own nodes; Euler takes the start
    for method, value in (("euler", 2.0), ("midpoint", 2.0 + h**2 / 2), ("heun", 2.0 + h**2 / 2)):
        result = odeint(lambda t, x: t[:, None].expand_as(x), x, [0.0, h], method=method)  # type: ignore[arg-type]
        assert float(result.x) == pytest.approx(value, abs=1e-14)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 10.0), (10.0, 0.0)])
@pytest.mark.parametrize("tolerance", [1e-6, 1e-8])
def test_rk45_agrees_with_scipy(t0: float, t1: float, tolerance: float) -> None:
    x = torch.tensor([[0.3, 0.0], [2.5, -1.0], [-1.0, 4.0]], dtype=torch.float64)
    for row in x:
        result = odeint(pendulum, row[None], [t0, t1], rtol=tolerance, atol=tolerance)
        start, span = row.numpy(), (t0, t1)
        theirs = solve_ivp(_scipy_pendulum, span, start, rtol=tolerance, atol=tolerance, method="RK45")
        truth = solve_ivp(_scipy_pendulum, span, start, rtol=1e-12, atol=1e-12, method="DOP853").y[:, -1]
        assert np.abs(result.x[0].numpy() - truth).max() < 4 * np.abs(theirs.y[:, -1] - truth).max()
        assert abs(result.n_evals / theirs.nfev - 1) < 0.25  # the same method, another control of its steps


def _scipy_pendulum(t: float, x: np.ndarray) -> np.ndarray:
    return np.array([x[1], -math.sin(x[0]) - 0.1 * x[1] + math.cos(3 * t)])


def test_smaller_tolerances_give_smaller_errors_and_more_calls() -> None:
    x = torch.tensor([[1.0]], dtype=torch.float64)
    results = [odeint(oscillation, x, [0.0, 5.0], rtol=tol, atol=tol) for tol in (1e-3, 1e-5, 1e-7, 1e-9)]
    errors = [float((r.x - exact(x, 0, 5)).abs()) for r in results]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8
    assert [r.n_evals for r in results] == sorted(r.n_evals for r in results)


def decay(rates: Tensor) -> Any:
    return lambda t, x: -rates.to(x)[: len(x), None] * x


def test_an_item_does_not_depend_on_the_others() -> None:
    rates = torch.tensor([0.1, 1.0, 30.0, 300.0])
    x = torch.ones(4, 3)
    whole = odeint(decay(rates), x, [0.0, 1.0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.x, (-rates).exp()[:, None].expand(4, 3), rtol=0, atol=1e-3)
    for i in range(4):
        alone = odeint(decay(rates[i:]), x[i : i + 1], [0.0, 1.0], rtol=1e-4, atol=1e-4)
        assert torch.equal(alone.x[0], whole.x[i])
        assert alone.n_evals <= whole.n_evals
    shared = odeint(decay(rates[:3]), x[:3], [0.0, 1.0], rtol=1e-4, atol=1e-4, error_norm="batch")
    alone = odeint(decay(rates), x[:1], [0.0, 1.0], rtol=1e-4, atol=1e-4, error_norm="batch")
    assert not torch.equal(shared.x[0], alone.x[0])


def test_a_batch_norm_of_one_item_is_the_norm_of_the_item() -> None:
    x = torch.tensor([[0.3, 0.0]])
    assert torch.equal(odeint(pendulum, x, [0.0, 5.0]).x, odeint(pendulum, x, [0.0, 5.0], error_norm="batch").x)


def test_steps_are_repeated_where_the_solution_turns_sharply() -> None:
    def kick(t: Tensor, x: Tensor) -> Tensor:
        return (1e3 * torch.exp(-((t - 5) ** 2) * 1e4))[:, None] - x

    x = torch.tensor([[1.0]], dtype=torch.float64)
    result = odeint(kick, x, [0.0, 5.5], rtol=1e-8, atol=1e-8)
    truth = solve_ivp(
        lambda t, x: 1e3 * np.exp(-((t - 5) ** 2) * 1e4) - x, (0, 5.5), [1.0], rtol=1e-11, atol=1e-11, max_step=1e-2
    )
    assert float(result.x) == pytest.approx(truth.y[0, -1], abs=1e-5)
    assert result.n_rejected > 0


def test_tuples_are_solved_together() -> None:
    def rhs(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, _ = state
        return -x, x.flatten(1).sum(1)

    x = torch.arange(12.0).reshape(2, 2, 3)
    for method in ("rk45", "rk4"):
        end, total = odeint(rhs, (x, torch.zeros(2)), torch.linspace(0, 1, 20), method=method).x  # type: ignore[arg-type]
        assert (end.shape, total.shape) == (x.shape, (2,))
        torch.testing.assert_close(end, x * math.exp(-1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(total, x.flatten(1).sum(1) * (1 - math.exp(-1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["rk45", "heun"])
def test_gradients_reach_the_start_and_the_parameters(method: Any) -> None:
    x = torch.tensor([[1.5]], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    grid = torch.linspace(0, 1, 100, dtype=torch.float64)
    odeint(lambda t, x: rate * x, x, grid, method=method, rtol=1e-9, atol=1e-9).x.sum().backward()
    assert x.grad is not None
    assert rate.grad is not None
    assert float(x.grad) == pytest.approx(math.exp(-0.7), rel=1e-4)
    assert float(rate.grad) == pytest.approx(1.5 * math.exp(-0.7), rel=1e-4)


def test_dtypes_and_times() -> None:
    seen = set()

    def rhs(t: Tensor, x: Tensor) -> Tensor:
        seen.add((t.dtype, tuple(t.shape), x.dtype))
        return -x.double()  # another precision does not change that of the state

    assert odeint(rhs, torch.ones(3, 2), [0.0, 1.0]).x.dtype == torch.float32
    assert odeint(rhs, torch.ones(3, 2, dtype=torch.bfloat16), [0.0, 1.0]).x.dtype == torch.float32
    assert seen == {(torch.float32, (3,), torch.float32)}
    assert odeint(rhs, torch.ones(3, 2, dtype=torch.float64), [0.0, 1.0]).x.dtype == torch.float64


def test_a_batch_of_nothing_stays_so() -> None:
    for method in ("rk45", "euler"):
        assert odeint(lambda t, x: x, torch.zeros(2, 0), [0.0, 1.0], method=method).x.shape == (2, 0)  # type: ignore[arg-type]
        result = odeint(lambda t, x: x, torch.zeros(0, 3), [0.0, 1.0], method=method)  # type: ignore[arg-type]
        assert (result.x.shape, result.n_evals) == ((0, 3), 0)


@pytest.mark.parametrize("grid", [[0.0], [], [0.0, 0.0], [0.0, 1.0, 0.5], [0.0, math.inf], [math.nan, 1.0]])
def test_bad_grids_are_refused(grid: list[float]) -> None:
    with pytest.raises(ValueError, match="grid must be 2 finite times or more"):
        odeint(lambda t, x: x, torch.ones(1, 1), grid)


@pytest.mark.parametrize("method", ["rk45", "euler", "rk4"])
def test_nan_is_named_with_its_time_and_item(method: Any) -> None:
    def rhs(t: Tensor, x: Tensor) -> Tensor:
        broken = (t[:, None] > 0.5) & (x < 0)
        return torch.where(broken, math.nan, 0.1 * x)

    with pytest.raises(FloatingPointError, match=r"NaN or infinity for item 1 at t = 0\.[5-9]"):
        odeint(rhs, torch.tensor([[1.0], [-1.0]]), torch.linspace(0, 1, 11), method=method)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "rk5"}, "method must be 'rk45', 'euler', 'midpoint', 'heun', 'rk4', got 'rk5'"),
        ({"rtol": -1.0}, "rtol and atol"),
        ({"rtol": 0.0, "atol": 0.0}, "not both 0"),
        ({"error_norm": "item"}, "error_norm must be"),
        ({"max_steps": 0}, "max_steps must be a whole number >= 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        odeint(lambda t, x: x, torch.ones(1, 1), [0.0, 1.0], **options)


def test_bad_states_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rhs must return the shape of the state, \(2, 3\), got \(2,\)"):
        odeint(lambda t, x: x.sum(1), torch.ones(2, 3), [0.0, 1.0])
    with pytest.raises(TypeError, match="floats"):
        odeint(lambda t, x: x, torch.ones(2, 3, dtype=torch.long), [0.0, 1.0])
    with pytest.raises(ValueError, match="one length"):
        odeint(lambda t, x: x, (torch.ones(2, 3), torch.ones(3)), [0.0, 1.0])
    with pytest.raises(ArithmeticError, match=r"5 steps were not enough: item 0 is at t = "):
        odeint(pendulum, torch.ones(1, 2), [0.0, 100.0], max_steps=5)
