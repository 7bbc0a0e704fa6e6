"""What every optimizer and wrapper keeps of the contract of torch.optim.Optimizer. A new one joins by one line."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from kexue.optim import (
    EMA,
    Adafactor,
    AdaX,
    DecoupledWeightDecay,
    GradientAccumulation,
    LayerAdaptation,
    Lazy,
    Lookahead,
    PiecewiseLinear,
    optimizer_memory,
    unwrap,
)


def first(inner):
    return inner.param_groups[0]["params"][0]


MAKERS = {
    "Adafactor": lambda params: Adafactor(params, lr=0.05, beta1=0.5),
    "AdaX": lambda params: AdaX(params, lr=0.05),
    "DecoupledWeightDecay": lambda params: DecoupledWeightDecay(Adam(params, lr=0.05), 0.1),
    "DecoupledWeightDecay of ours": lambda params: DecoupledWeightDecay(Adafactor(params, lr=0.05), 0.1),
    "LayerAdaptation": lambda params: LayerAdaptation(Adam(params, lr=0.05)),
    "PiecewiseLinear": lambda params: PiecewiseLinear(Adam(params, lr=0.05), {0: 0.5, 5: 1.0}),
    "GradientAccumulation": lambda params: GradientAccumulation(Adam(params, lr=0.05), 2),
    "Lookahead": lambda params: Lookahead(Adam(params, lr=0.05), 3, momentum="pullback"),
    "Lazy masked": lambda params: Lazy(inner := Adam(params, lr=0.05), [first(inner)]),
    "Lazy strict": lambda params: Lazy(inner := Adam(params, lr=0.05), [first(inner)], mode="strict"),
    "Lazy strict of ours": lambda params: Lazy(inner := Adafactor(params, lr=0.05), [first(inner)], mode="strict"),
    "EMA": lambda params: EMA(SGD(params, lr=0.05, momentum=0.9)),
    "stack": lambda params: EMA(Lookahead(GradientAccumulation(LayerAdaptation(AdaX(params, lr=0.05)), 2))),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
WORDS = 12


def build(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(WORDS, 4), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).to(dtype)


def loss_of(model, step=0):
    ids = torch.randint(WORDS, (8,), generator=torch.Generator().manual_seed(step))
    return (model(ids)[:, 0] - ids / WORDS).square().mean()


def backward(model, step=0):
    loss = loss_of(model, step)
    loss.backward()
    return loss


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def contents(optimizer):
    """The state as something that can be compared."""
    packed = optimizer.state_dict()
    state = {(k, n): v.tolist() if torch.is_tensor(v) else v for k, s in packed["state"].items() for n, v in s.items()}
    return state, packed["param_groups"]


def quietly(optimizer, state):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(state)


@every
def test_it_is_an_optimizer_and_learns(make):
    model = build()
    optimizer = make(model.parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert type(unwrap(optimizer)) in {Adafactor, AdaX, Adam, SGD}
    before = backward(model).item()
    optimizer.zero_grad()
    for _ in range(40):
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
    assert backward(model).item() < 0.5 * before


@every
def test_a_closure_is_called_once_with_gradients(make):
    model = build()
    optimizer = make(model.parameters())
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        calls.append(backward(model))
        return calls[-1]

    with torch.no_grad():
        assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1
    twin = build()
    other = make(twin.parameters())
    backward(twin)
    other.step()
    assert same(weights(model), weights(twin))


@every
def test_schedulers_take_it_and_move_its_rate_also_after_loading(make):
    model = build()
    optimizer = make(model.parameters())
    scheduler = LambdaLR(optimizer, lambda t: 1 / (1 + t))
    OneCycleLR(make(build().parameters()), max_lr=0.1, total_steps=9, cycle_momentum=False)
    ReduceLROnPlateau(optimizer)
    train(model, optimizer, 1)
    scheduler.step()
    assert unwrap(optimizer).param_groups[0]["lr"] == pytest.approx(0.025)
    quietly(optimizer, optimizer.state_dict())
    scheduler.step()
    assert optimizer.param_groups is unwrap(optimizer).param_groups
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 / 3)


@every
def test_a_state_dict_is_plain_and_goes_through_a_file(make):
    model = build()
    optimizer = make(model.parameters())
    train(model, optimizer, 5)
    packed = optimizer.state_dict()
    assert set(packed) == {"state", "param_groups"}
    assert set(packed["state"]) <= set(range(5))
    assert packed["param_groups"][0]["params"] == [0, 1, 2, 3, 4]
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": packed}, file)
    train(model, optimizer, 7, start=5)

    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    again = build()
    again.load_state_dict(loaded["model"])
    twin = make(again.parameters())
    quietly(twin, loaded["optimizer"])
    train(again, twin, 7, start=5)
    assert same(weights(model), weights(again))
    assert contents(optimizer) == contents(twin)


@every
@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
def test_copies_go_on_alike_and_apart(make, way):
    model = build()
    optimizer = make(model.parameters())
    LambdaLR(optimizer, lambda t: 1.0)  # patches step
    optimizer.register_step_post_hook(lambda *_: None)
    train(model, optimizer, 4)
    again, twin = way((model, optimizer))
    frozen = weights(again)
    train(model, optimizer, 5, start=4)
    assert same(weights(again), frozen)
    train(again, twin, 5, start=4)
    assert same(weights(model), weights(again))


@every
def test_hooks_are_called(make):
    model = build()
    optimizer = make(model.parameters())
    seen = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(("pre", o)))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(("post", o)))
    optimizer.register_state_dict_pre_hook(lambda o: seen.append(("save", o)))
    optimizer.register_state_dict_post_hook(lambda o, packed: {**packed, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, packed: seen.append(("load", packed.pop("extra"))))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(("loaded", o)))
    train(model, optimizer, 1)
    quietly(optimizer, optimizer.state_dict())
    assert [what for what, _ in seen] == ["pre", "post", "save", "load", "loaded"]
    assert all(value is optimizer or what == "load" for what, value in seen)


@every
def test_a_step_skipped_by_the_scaler_changes_nothing(make):
    model = build(torch.float32)
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before, held = weights(model), contents(optimizer)
    scaler.scale(torch.ones(()))  # makes the scale
    for p in model.parameters():
        p.grad = torch.full_like(p, float("inf"))
    scaler.step(optimizer)
    scaler.update()
    assert same(weights(model), before)
    assert contents(optimizer) == held
    assert scaler.get_scale() == 512.0


@every
def test_a_scaler_gives_the_same_steps_as_none(make):
    model, twin = build(), build()
    optimizer, other = make(model.parameters()), make(twin.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # a power of two is exact
    train(model, optimizer, 4)
    for step in range(4):
        scaler.scale(loss_of(twin, step)).backward()
        scaler.step(other)
        scaler.update()
        other.zero_grad()
    assert same(weights(model), weights(twin))


@every
def test_a_group_added_later_is_trained_and_kept(make):
    model = build()
    optimizer = make([{"params": model[:2].parameters()}])
    train(model, optimizer, 3)
    optimizer.add_param_group({"params": model[3].parameters(), "lr": 0.01})
    before = weights(model[3])
    train(model, optimizer, 8, start=3)
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(model[3]), strict=True))
    twin = make([{"params": model[:2].parameters()}])
    twin.add_param_group({"params": model[3].parameters()})
    quietly(twin, optimizer.state_dict())
    assert contents(twin) == contents(optimizer)
    assert twin.param_groups[1]["lr"] == 0.01


@every
def test_parameters_without_gradient_stay(make):
    model = build()
    model[3].bias.requires_grad_(False)
    unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = make([*model.parameters(), unused])
    kept = model[3].bias.detach().clone()
    train(model, optimizer, 7)
    assert torch.equal(model[3].bias, kept)
    assert torch.equal(unused.detach(), torch.ones(3, dtype=torch.float64))
    assert unused.grad is None


@every
def test_zero_grad_clears_gradients_only(make):
    model, twin = build(), build()
    optimizer, other = make(model.parameters()), make(twin.parameters())
    backward(model)
    optimizer.step()
    held = contents(optimizer)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert contents(optimizer) == held
    backward(twin)
    other.step()
    backward(twin)
    other.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in twin.parameters())


@every
def test_half_precision_parameters_learn_and_resume(make):  # not float16, where torch's own Adam divides 0 by 0
    model = build(torch.bfloat16)
    optimizer = make(model.parameters())
    before = weights(model)
    train(model, optimizer, 5)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not same(before, weights(model))
    again = copy.deepcopy(model)
    twin = make(again.parameters())
    quietly(twin, copy.deepcopy(optimizer.state_dict()))  # torch does not copy what it loads
    train(model, optimizer, 5, start=5)
    train(again, twin, 5, start=5)
    assert same(weights(model), weights(again))


@every
def test_complex_parameters_are_refused(make):
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match="complex"):
        make([p]).step()


@every
def test_what_prepares_a_distributed_checkpoint_makes_state_and_moves_no_counter(make):
    model, twin = build(), build()
    optimizer, other = make(model.parameters()), make(twin.parameters())
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    rate, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], 0.0
    optimizer.step()
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    assert same(weights(model), before)
    train(twin, other, 4)
    counters = {k: v for k, v in other.state_dict()["param_groups"][0].items() if k.startswith("kexue.")}
    made = {k: set(v) for k, v in optimizer.state_dict()["state"].items()}
    assert made == {k: set(v) for k, v in other.state_dict()["state"].items()}
    fresh = make(build().parameters()).state_dict()["param_groups"][0]
    assert all(optimizer.state_dict()["param_groups"][0][key] == fresh[key] for key in counters)


@every
def test_memory_is_exact_before_the_first_step(make):
    model = build()
    optimizer = make(model.parameters())
    held = contents(optimizer)
    report = optimizer_memory(optimizer)
    assert contents(optimizer) == held
    train(model, optimizer, 6)
    state = optimizer.state_dict()["state"]
    actual = [sum(t.numel() * t.element_size() for t in state[i].values() if torch.is_tensor(t)) for i in range(5)]
    assert list(report.by_param.values()) == actual
    assert report.total_bytes == sum(actual) == sum(report.by_wrapper.values())
    assert optimizer_memory(optimizer) == report


@every
@pytest.mark.parametrize("foreach", [True, False])
def test_many_tensors_at_once_give_the_same(make, foreach):
    model, twin = build(), build()
    optimizer, other = make(model.parameters()), make(twin.parameters())
    for group in other.param_groups:
        group["foreach"] = foreach
    train(model, optimizer, 6)
    train(twin, other, 6)
    for a, b in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@every
def test_it_says_what_it_is(make):
    optimizer = make(build().parameters())
    assert repr(optimizer).startswith(type(optimizer).__name__)
    assert "lr" in repr(optimizer)
    assert AdamW([nn.Parameter(torch.ones(1))]).defaults.keys() >= {"lr"} <= optimizer.defaults.keys()
