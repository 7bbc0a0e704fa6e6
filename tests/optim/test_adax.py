import math

import numpy as np
import pytest
import torch
from torch import nn

from kexue.optim import AdaX
from kexue.optim.adax import _new_weight

each_mode = pytest.mark.parametrize("eps_mode", ["inside", "outside"])


def weight(steps, beta2=1e-4):
    return _new_weight(beta2, steps)


def gradients(steps, size=4, seed=0):
    return torch.randn(steps, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@each_mode
def test_the_published_recurrence(eps_mode):
    """v grows without bound as it is written; float64 bears that for 10,000 steps and far beyond."""
    lr, beta1, beta2, eps = 1e-2, 0.9, 1e-4, 1e-3
    p = nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer = AdaX([p], lr, (beta1, beta2), eps, eps_mode=eps_mode)
    x, m, v = np.ones(4), np.zeros(4), np.zeros(4)
    for t, g in enumerate(gradients(10_000), start=1):
        p.grad = g.clone()
        optimizer.step()
        m = beta1 * m + (1 - beta1) * g.numpy()
        v = (1 + beta2) * v + beta2 * g.numpy() ** 2
        unit = v / ((1 + beta2) ** t - 1)
        x = x - lr * m / (np.sqrt(unit + eps) if eps_mode == "inside" else np.sqrt(unit) + eps)
        if t in {1, 2, 10, 1000, 10_000}:
            np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-9)  # (1 + beta2)^t - 1 loses four digits at t = 1


def test_decay_beside_the_gradient_or_inside_it():
    start, g = torch.tensor([2.0, -3.0], dtype=torch.float64), torch.tensor([0.5, 0.25], dtype=torch.float64)
    for decoupled in (True, False):
        p = nn.Parameter(start.clone())
        p.grad = g.clone()
        AdaX([p], 0.1, weight_decay=0.2, decoupled=decoupled, eps=0.0).step()
        total = g if decoupled else g + 0.2 * start
        kept = start * (1 - 0.1 * 0.2) if decoupled else start
        torch.testing.assert_close(p.detach(), kept - 0.1 * 0.1 * total.sign())  # m = 0.1 g and v = g^2


def test_the_weight_of_a_gradient_depends_on_its_age_alone_to_the_end():
    """v is the mean of all g^2 with weights (1 + beta2)^-i for the i-th, which is a closed form of the recurrence."""
    beta2, steps = 1e-2, 500
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = AdaX([p], betas=(0.9, beta2))
    gs = gradients(steps)
    for g in gs:
        p.grad = g.clone()
        optimizer.step()
    weights = (1 + beta2) ** -torch.arange(1, steps + 1, dtype=torch.float64)
    expected = (weights[:, None] * gs.square()).sum(0) / weights.sum()
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], expected)


@pytest.mark.parametrize(
    ("steps", "kept"), [(1, 0.0), (2, 0.500025), (10, 0.900045), (100, 0.990049), (10_000, 0.99994180)]
)
def test_the_decay_runs_from_0_to_1(steps, kept):
    assert 1 - weight(steps) == pytest.approx(kept, abs=5e-7)


def test_the_weight_has_neither_overflow_nor_a_jump():
    for beta2 in (1e-6, 1e-4, 1e-2, 0.3):
        edge = int(700 / math.log1p(beta2))
        before, after = weight(edge, beta2), weight(edge + 1, beta2)
        assert after == pytest.approx(before / (1 + beta2), rel=1e-9)
    assert weight(7_100_000) < 1e-300  # where expm1 overflows
    assert weight(10**9) == 0
    tiny = 1e-9  # 1 - b_t ~ 1 / t: the plain mean
    assert weight(1000, tiny) == pytest.approx(1 / 1000, rel=1e-5)


def test_after_a_million_steps_it_is_finite_and_the_second_moment_stands_still():
    """The raw form leaves float32 at t = 887,273, where (1 + 1e-4)^t passes 3.4e38."""
    assert 887_272 < math.log(torch.finfo(torch.float32).max) / math.log1p(1e-4) < 887_274
    p = nn.Parameter(torch.ones(3))
    optimizer = AdaX([p])
    p.grad = torch.tensor([1.0, 0.1, 10.0])
    optimizer.step()
    optimizer.state[p]["step"].fill_(1_000_000 - 1)
    before = optimizer.state[p]["exp_avg_sq"].clone()
    for _ in range(3):
        p.grad = torch.full((3,), 100.0)
        optimizer.step()
    assert torch.isfinite(p).all()
    assert optimizer.state[p]["step"] == 1_000_002
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], before, rtol=1e-6, atol=0)


def test_no_bias_correction_of_the_first_moment():
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = AdaX([p], 1.0, eps=0.0)
    p.grad = torch.tensor([5.0], dtype=torch.float64)
    optimizer.step()
    assert p.item() == pytest.approx(-0.1)  # Adam would go -1


def test_a_beta2_meant_for_adam_is_warned_of():
    p = nn.Parameter(torch.zeros(1))
    with pytest.warns(UserWarning, match="0.999 looks like Adam's") as caught:
        AdaX([p], betas=(0.9, 0.999))
    assert caught[0].filename == __file__
