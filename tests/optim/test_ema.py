import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kexue.optim import EMA


def walk(optimizer, p, values):
    for value in values:
        p.grad = (p.detach() - value).clone()  # with lr 1, p becomes value
        optimizer.step()


def test_closed_form_without_and_with_warm_up():
    for warmup in (False, True):
        p = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        optimizer = EMA(SGD([p], lr=1.0), 0.5, warmup=warmup)
        walk(optimizer, p, [2.0, 4.0, 8.0])
        s = 1.0
        for t, value in enumerate([2.0, 4.0, 8.0], 1):
            d = min(0.5, (1 + t) / (10 + t)) if warmup else 0.5
            s = d * s + (1 - d) * value
        assert optimizer.shadow_state_dict()[0].item() == pytest.approx(s, abs=1e-14)
        assert p.item() == 8.0


def test_it_is_torch_s_averaged_model():
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    optimizer = EMA(SGD(model.parameters(), lr=0.1), 0.9, warmup=False)
    peer = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    peer.update_parameters(model)  # its first call copies
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(4, 5, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        peer.update_parameters(model)
    with optimizer.averaged_weights():
        for a, b in zip(model.parameters(), peer.module.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_the_average_by_name_goes_into_a_model():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = EMA(SGD(model.named_parameters(), lr=0.5), 0.5, warmup=False)
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    shadow = optimizer.shadow_state_dict()
    assert set(shadow) == {"weight", "bias"}
    assert torch.allclose(shadow["weight"], (before + model.weight.detach()) / 2)
    other = nn.Linear(2, 2)
    other.load_state_dict(shadow)
    assert torch.equal(other.bias, model.bias)
    by_index = EMA(SGD(model.parameters(), lr=0.5)).shadow_state_dict()
    assert torch.equal(by_index[0], model.weight)


def test_half_precision_averages_in_float32_and_comes_back_exactly():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = EMA(SGD([p], lr=1.0), 0.999, warmup=False)
    walk(optimizer, p, [2.0] * 100)
    shadow = optimizer.shadow_state_dict()[0]
    assert shadow.dtype == torch.float32
    assert shadow[0].item() == pytest.approx(2 - 0.999**100, abs=1e-5)  # in bfloat16 it would have stayed at 1
    kept = shadow.clone()
    with optimizer.averaged_weights():
        assert p[0].item() == shadow.bfloat16()[0].item()
    assert p[0].item() == 2.0
    assert torch.equal(optimizer.shadow_state_dict()[0], kept)


def test_training_is_not_changed():
    for steps in (1, 5):
        p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
        walk(EMA(SGD([p], lr=0.3, momentum=0.9)), p, range(steps))
        walk(SGD([q], lr=0.3, momentum=0.9), q, range(steps))
        assert torch.equal(p, q)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_bad_decay_is_refused(decay):
    with pytest.raises(ValueError, match="decay must be"):
        EMA(SGD([nn.Parameter(torch.ones(1))], lr=1.0), decay)
