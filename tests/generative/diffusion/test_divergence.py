"""Divergences: traces of known Jacobians, laws of the probes, densities of linear flows."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kexue.generative import MLPDenoiser, Noise
from kexue.generative.diffusion.divergence import (
    choose_probes,
    draw_probes,
    odeint_with_divergence,
    value_and_divergence,
)


def net(d: int) -> Any:
    torch.manual_seed(0)
    made = MLPDenoiser(d, hidden=32, blocks=1).double()
    return lambda x: made(x, 0.3, return_dict=False)[0]


def test_exact_divergence_is_the_trace_of_the_jacobian() -> None:
    velocity = net(5)
    x = torch.randn(4, 5, dtype=torch.float64)
    value, trace = value_and_divergence(velocity, x)
    torch.testing.assert_close(value, velocity(x).detach())
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(velocity, x[i : i + 1])[0, :, 0]
        torch.testing.assert_close(trace[i, 0], jacobian.trace())
    assert not trace.requires_grad
    assert not value.requires_grad


def test_probes_estimate_it_with_their_variance() -> None:
    matrix = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    symmetric = (matrix + matrix.T) / 2
    off_diagonal = symmetric - torch.diag(symmetric.diagonal())
    x = torch.zeros(500, 6, dtype=torch.float64)
    for kind, variance in (
        ("gaussian", 2 * symmetric.square().sum()),
        ("rademacher", 2 * off_diagonal.square().sum()),
    ):
        probes = draw_probes(Noise(torch.Generator().manual_seed(1), 500), (6,), 40, kind=kind, dtype=x.dtype)  # type: ignore[arg-type]
        _, estimates = value_and_divergence(lambda x: x @ matrix.T, x, probes)
        assert estimates.shape == (500, 40)
        assert float(estimates.mean()) == pytest.approx(
            float(matrix.trace()), abs=4 * math.sqrt(float(variance) / 20_000)
        )
        assert float(estimates.var()) == pytest.approx(float(variance), rel=0.1)


def test_signs_are_exact_for_a_diagonal_jacobian() -> None:
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    probes = draw_probes(Noise(0, 3), (1, 2, 2), 2, dtype=x.dtype)
    torch.testing.assert_close(
        value_and_divergence(torch.sin, x, probes)[1], value_and_divergence(torch.sin, x)[1].expand(3, 2)
    )


def test_probes_of_an_item_are_the_same_in_any_batch() -> None:
    whole = draw_probes(Noise(0, 5), (3,), 2)
    assert torch.equal(whole[:, :2], draw_probes(Noise(0, 2), (3,), 2))
    assert set(whole.flatten().tolist()) == {-1.0, 1.0}


def test_a_constant_velocity_has_no_divergence() -> None:
    value, trace = value_and_divergence(torch.ones_like, torch.zeros(2, 3))
    assert torch.equal(value, torch.ones(2, 3))
    assert torch.equal(trace, torch.zeros(2, 1))


@pytest.mark.parametrize("probes", [None, 64])
def test_density_of_a_linear_flow(probes: int | None) -> None:
    """dx/dt = A x carries N(0, I) at time 1 to N(0, e^{-A} e^{-A}^T) at time 0."""
    matrix = torch.tensor([[0.3, -1.0], [0.8, -0.2]], dtype=torch.float64)
    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors = None if probes is None else draw_probes(Noise(0, 20), (2,), probes, dtype=x.dtype)
    pushed = odeint_with_divergence(lambda t, x: x @ matrix.T, x, [0.0, 1.0], probes=vectors)
    base = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2).double())
    log_prob = base.log_prob(pushed.x) + pushed.integral.mean(1)
    factor = torch.linalg.matrix_exp(-matrix)
    truth = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), factor @ factor.T)
    assert (log_prob - truth.log_prob(x)).abs().max() < (1e-3 if probes is None else 0.25)


def test_inference_mode_is_no_obstacle() -> None:
    with torch.inference_mode():
        x = torch.ones(1, 2)
        pushed = odeint_with_divergence(lambda t, x: -x, x, [0.0, 1.0])
    torch.testing.assert_close(pushed.integral, torch.tensor([[-2.0]]))


def test_the_integral_does_not_choose_the_steps() -> None:
    def turn(t: Tensor, x: Tensor) -> Tensor:
        return torch.stack([-x[:, 1], x[:, 0]], 1)

    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    from kexue.generative.diffusion import odeint

    alone = odeint(turn, x, [0.0, 6.0]).n_evals
    assert abs(odeint_with_divergence(turn, x, [0.0, 6.0]).n_evals - alone) <= 0.1 * alone


def test_the_trace_is_exact_up_to_a_hundred_values() -> None:
    for count, exact in ((100, True), (101, False)):
        assert (choose_probes(torch.zeros(2, count), None, 0) is None) == exact
    probes = choose_probes(torch.zeros(2, 3, dtype=torch.float64), "hutchinson", 0, 5)
    assert probes is not None
    assert torch.equal(probes, draw_probes(Noise(0, 2), (3,), 5, dtype=torch.float64))
    assert choose_probes(torch.zeros(2, 1000), "exact", 0) is None


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="trace must be"):
        choose_probes(torch.zeros(2, 3), "quick", 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="probes must be a whole number >= 1"):
        draw_probes(Noise(0, 2), (3,), 0)
    with pytest.raises(ValueError, match="kind must be"):
        draw_probes(Noise(0, 2), (3,), kind="normal")  # type: ignore[arg-type]
