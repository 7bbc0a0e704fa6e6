"""Penalties against full singular value decompositions, and the gradient penalty of known critics."""

import pytest
import torch
from _linear_maps import largest, network, number, randn, seeded
from torch import nn

from kexue.nn import clip_weights_, frobenius_penalty, gradient_penalty, spectral_penalty


def test_penalties_are_sums_of_squared_norms():
    net = network()
    weights = [layer.weight for layer in net[::2]]
    before = net.state_dict().keys()
    for _ in range(200):
        spectral = spectral_penalty(net, 0.5)
    assert torch.allclose(spectral, 0.5 * sum(largest(w) ** 2 for w in weights))
    [gradient] = torch.autograd.grad(spectral, weights[0])
    U, S, Vh = torch.linalg.svd(weights[0])
    assert torch.allclose(gradient, 0.5 * 2 * S[0] * torch.outer(U[:, 0], Vh[0]))
    frobenius = frobenius_penalty(net, 0.5)
    assert torch.allclose(frobenius, 0.5 * sum((w**2).sum() for w in weights))
    assert frobenius >= spectral
    assert net.state_dict().keys() == before
    last = spectral_penalty(net, 1.0, filter=lambda name, parameter: name == "4.weight", n_iter=5)
    assert torch.allclose(last, largest(weights[2]) ** 2)


def test_the_penalty_drives_the_norm_down():
    net = network()
    before = largest(net[0].weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        spectral_penalty(net, 0.1).backward()
        optimizer.step()
    assert largest(net[0].weight) < 0.9 * before


def test_gradient_penalty_of_a_linear_critic_is_known():
    w = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    real, fake = randn(7, 2), randn(7, 2, seed=1)
    penalty = gradient_penalty(lambda x: x @ w, real, fake, generator=0)
    assert number(penalty) == pytest.approx((5 - 1) ** 2)
    [gradient] = torch.autograd.grad(penalty, w)
    assert torch.allclose(gradient, 2 * (5 - 1) * w.detach() / 5)
    assert number(gradient_penalty(lambda x: x @ w / 10, real, fake)) == pytest.approx(0.25)
    assert number(gradient_penalty(lambda x: x @ w / 10, real, fake, one_sided=True)) == 0
    assert number(gradient_penalty(lambda x: x @ w, real, fake, center=0.0)) == pytest.approx(25)
    tokens = gradient_penalty(lambda x: (x @ w).sum(1), randn(7, 3, 2), randn(7, 3, 2), norm_dims=-1)
    assert number(tokens) == pytest.approx(16)  # each of the three rows has a norm of its own


def test_gradient_penalty_sits_between_the_samples_one_mix_each():
    seen = []

    def critic(x):
        seen.append(x.detach())
        return (x**2).sum((1, 2))

    real, fake = torch.ones(50, 3, 2), torch.zeros(50, 3, 2)
    gradient_penalty(critic, real, fake, generator=0)
    [points] = seen
    assert (points == points[:, :1, :1]).all()
    assert points[:, 0, 0].unique().numel() == 50
    assert 0 <= points.min() < 0.2
    assert 0.8 < points.max() <= 1


def test_gradient_penalty_at_zero_slope_and_of_a_deep_critic():
    w = torch.zeros(2, requires_grad=True)
    gradient_penalty(lambda x: x @ w, randn(3, 2, dtype=torch.float32), randn(3, 2, dtype=torch.float32)).backward()
    assert w.grad.isfinite().all()
    critic = seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)))
    real, fake = randn(3, 2), randn(3, 2, seed=1)
    names, values = zip(*critic.named_parameters(), strict=True)

    def penalty(*parameters):
        state = dict(zip(names, parameters, strict=True))
        return gradient_penalty(lambda x: torch.func.functional_call(critic, state, x), real, fake, generator=0)

    assert torch.autograd.gradcheck(penalty, [v.detach().requires_grad_() for v in values])


def test_clipping():
    net = network()
    assert clip_weights_(net, 0.1) is net
    assert max(p.abs().max() for p in net.parameters()) == 0.1


@pytest.mark.parametrize("norm_dims", [None, -1])
def test_a_penalty_of_no_samples_is_zero_with_a_graph(norm_dims):
    w = torch.ones(3, requires_grad=True)
    penalty = gradient_penalty(lambda x: x @ w, torch.ones(0, 3), torch.zeros(0, 3), norm_dims=norm_dims)
    penalty.backward()
    assert number(penalty) == 0
    assert not w.grad.any()
