"""What is claimed of optimizers that take over work of the wrappers, against steps made without them."""

import pytest
import torch
from torch import nn

from kexue.optim import Adafactor, AdaX
from kexue.optim._fusion import _ELEMENTWISE, _LINEAR, fusible, is_elementwise, is_linear

KINDS = sorted(_LINEAR | {Adafactor, AdaX}, key=lambda kind: kind.__name__)


def train(kind, start, gradients, lr=0.01):
    p = nn.Parameter(start.clone())
    optimizer = kind([p], lr=lr)
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()
    return p.detach(), optimizer


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(6, 4, dtype=torch.float64), torch.randn(5, 6, 4, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_one_step_is_proportional_to_lr(kind, data):
    start, gradients = data
    (one, optimizer), (three, _) = (train(kind, start, gradients[:1], lr) for lr in (0.01, 0.03))
    assert is_linear(optimizer)
    torch.testing.assert_close(three - start, 3 * (one - start), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_rows_alone_are_rows_of_the_whole_where_a_step_is_elementwise(kind, data):
    start, gradients = data
    whole, optimizer = train(kind, start, gradients)
    rows, _ = train(kind, start[2:4], gradients[:, 2:4])
    assert torch.equal(rows, whole[2:4]) == is_elementwise(optimizer) == (kind is not Adafactor)


def test_a_derived_class_and_a_step_without_lr_are_unknown():
    p = nn.Parameter(torch.ones(2))

    class Derived(AdaX):
        pass

    assert not is_elementwise(Derived([p]))
    assert not is_linear(Derived([p]))
    assert not is_linear(Adafactor([p], lr=None))


def test_an_optimizer_can_be_declared():
    class Sign(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

    optimizer = Sign([nn.Parameter(torch.ones(2))], 0.1)
    assert not is_linear(optimizer)
    try:
        assert fusible(elementwise=True)(Sign) is Sign
        assert is_linear(optimizer)
        assert is_elementwise(optimizer)
    finally:
        _LINEAR.discard(Sign)
        _ELEMENTWISE.discard(Sign)
