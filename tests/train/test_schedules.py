"""The optimizer and the learning rate of the commands."""

import pytest
import torch
from torch import nn

from kexue.train.schedules import build_optimizer, warm_then_fall


def test_the_learning_rate_rises_and_falls():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = warm_then_fall(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert max(rates) == 2.0
    assert rates[5:] == pytest.approx([2.0 * (100 - step) / 95 for step in range(5, 100)])


def test_only_matrices_and_filters_decay():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    optimizer = build_optimizer(model, 0.1, weight_decay=0.5)
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    expected = {"0.weight": 0.5, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 0.5, "3.bias": 0}
    assert {name: decays[id(one)] for name, one in model.named_parameters()} == expected


def test_a_model_of_vectors_alone():
    assert len(build_optimizer(nn.BatchNorm1d(3), 0.1).param_groups) == 1
