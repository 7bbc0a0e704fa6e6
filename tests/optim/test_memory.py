import pytest
import torch
from torch import nn

from kexue.errors import NotSupported
from kexue.optim import EMA, Adafactor, AdaX, GradientAccumulation, Lookahead, extend, optimizer_memory

TORCH = {
    "SGD": {"lr": 0.1},
    "SGD momentum": {"lr": 0.1, "momentum": 0.9},
    "Adam": {},
    "Adam amsgrad": {"amsgrad": True},
    "Adam fused": {"fused": True},
    "AdamW foreach": {"foreach": True},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "RMSprop centered": {"centered": True, "momentum": 0.9},
    "Adagrad": {},
    "Adadelta": {},
    "ASGD": {},
    "Rprop": {},
    "Adafactor": {},
}


def actual(optimizer):
    state = optimizer.state_dict()["state"]
    return sum(t.numel() * t.element_size() for values in state.values() for t in values.values() if torch.is_tensor(t))


def step(optimizer):
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_torch_s_own_optimizers_are_foreseen(name, default):
    kept = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        params = [nn.Parameter(torch.ones(6, 5)), nn.Parameter(torch.ones(5))]
        optimizer = getattr(torch.optim, name.split()[0])(params, **TORCH[name])
        foreseen = optimizer_memory(optimizer)
        step(optimizer)
    finally:
        torch.set_default_dtype(kept)
    assert foreseen.total_bytes == actual(optimizer)
    assert foreseen.by_wrapper == {name.split()[0]: foreseen.total_bytes}


def test_memory_of_a_stack_by_layer_and_by_name():
    model = nn.Sequential(nn.Linear(200, 300), nn.LayerNorm(300)).bfloat16()
    inner = AdaX(model.named_parameters())
    optimizer = extend(inner, ("gradient_accumulation", {"steps": 4}), "lookahead", "ema")
    report = optimizer_memory(optimizer)
    n = sum(p.numel() for p in model.parameters())
    assert report.by_wrapper == {
        "AdaX": 8 * n + 16,  # two float32 moments, and a counter for each of four parameters
        "gradient_accumulation": 4 * n + 16,
        "lookahead": 4 * n,  # float32 for half precision too
        "ema": 4 * n,
    }
    assert set(report.by_param) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    step(extend(optimizer))
    assert actual(optimizer) == report.total_bytes - 8 * n - 16 - 4 * n - 4 * n  # the window is not full yet
    for _ in range(3):
        step(optimizer)
    assert actual(optimizer) == report.total_bytes


def test_adafactor_is_sublinear_and_frozen_parameters_cost_nothing():
    matrix = nn.Parameter(torch.zeros(1024, 1024))
    frozen = nn.Parameter(torch.zeros(1024, 1024), requires_grad=False)
    assert optimizer_memory(Adafactor([matrix, frozen])).total_bytes == 8 * 1024 + 4
    assert optimizer_memory(torch.optim.Adam([matrix, frozen])).total_bytes == 8 * 1024**2 + 4
    assert optimizer_memory(EMA(torch.optim.SGD([matrix, frozen]))).by_wrapper == {"SGD": 0, "ema": 4 * 1024**2}


def test_nothing_is_allocated_or_changed():
    p = nn.Parameter(torch.zeros(1, device="meta").expand(10**6, 10**6))
    assert optimizer_memory(torch.optim.Adam([p])).total_bytes == 8 * 10**12 + 4
    q = nn.Parameter(torch.ones(3))
    optimizer = GradientAccumulation(Lookahead(torch.optim.Adam([q])), 3)
    optimizer_memory(optimizer)
    assert q.grad is None
    assert not optimizer.state
    assert optimizer.is_boundary is False


def test_an_optimizer_that_cannot_be_tried_is_named():
    class Reader(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            if self.param_groups[0]["params"][0].grad is not None:
                raise RuntimeError("never")

    with pytest.raises(NotSupported, match="Reader cannot step"):
        optimizer_memory(Reader([nn.Parameter(torch.ones(2))], lr=0.1))
