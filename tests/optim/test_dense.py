"""What Adafactor and AdaX owe to PyTorch: the whole contract of an optimizer, in one process and in two."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kexue.optim import Adafactor, AdaX, optimizer_memory

WAYS = {
    "adafactor": lambda params, **options: Adafactor(params, lr=0.02, **options),
    "adafactor-momentum": lambda params, **options: Adafactor(params, lr=0.02, beta1=0.9, weight_decay=0.1, **options),
    "adafactor-relative": lambda params, **options: Adafactor(params, lr=None, **options),
    "adax": lambda params, **options: AdaX(params, lr=0.01, **options),
    "adax-decay": lambda params, **options: AdaX(params, lr=0.01, weight_decay=0.1, eps_mode="outside", **options),
}
SHAPES = [(130, 150), (129, 128, 2), (20, 30), (7,), ()]
each_way = pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
each_foreach = pytest.mark.parametrize("foreach", [False, True])


def parameters(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def descend(params, optimizer, steps, start=0):
    """Steps whose gradients depend on the parameter and on the number of the step, and on nothing else."""
    for step in range(start, start + steps):
        for p in params:
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            p.grad = p.detach() + noise.to(p.dtype)
        optimizer.step()


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# saved and loaded


@each_way
@each_foreach
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_resumed_at_any_step_goes_on_bitwise(make, foreach, dtype):
    params = parameters(dtype)
    optimizer = make(params, foreach=foreach)
    saved = []
    for step in range(20):
        saved.append(copy.deepcopy(([p.detach() for p in params], optimizer.state_dict())))
        descend(params, optimizer, 1, start=step)
    for step, (values, state) in enumerate(saved):
        fresh = [nn.Parameter(value) for value in values]
        resumed = make(fresh, foreach=foreach)
        resumed.load_state_dict(state)
        descend(fresh, resumed, 20 - step, start=step)
        assert_same(params, fresh)


@each_way
def test_one_state_starts_two_runs(make):
    """torch's own loading would share the tensors, and each run would move the other's moments."""
    params = parameters()
    optimizer = make(params)
    descend(params, optimizer, 2)
    state = optimizer.state_dict()
    twins = [[nn.Parameter(p.detach().clone()) for p in params] for _ in range(2)]
    for twin in twins:
        resumed = make(twin)
        resumed.load_state_dict(state)
        descend(twin, resumed, 3, start=2)
    descend(params, optimizer, 3, start=2)
    assert_same(twins[0], params)
    assert_same(twins[1], params)


def test_a_fresh_process_goes_on_bitwise(tmp_path):
    expected = {}
    for name, make in WAYS.items():
        params = parameters()
        optimizer = make(params)
        for step in range(10):
            torch.save(([p.detach() for p in params], optimizer.state_dict()), tmp_path / f"{name}-{step}.pt")
            descend(params, optimizer, 1, start=step)
        expected[name] = [p.detach() for p in params]
    code = f"""
import importlib.util, torch
spec = importlib.util.spec_from_file_location("dense", {str(Path(__file__))!r})
dense = importlib.util.module_from_spec(spec); spec.loader.exec_module(dense)
for name, make in dense.WAYS.items():
    for step in range(10):
        values, state = torch.load(f"{{name}}-{{step}}.pt", weights_only=True)
        params = [torch.nn.Parameter(value) for value in values]
        optimizer = make(params)
        optimizer.load_state_dict(state)
        dense.descend(params, optimizer, 10 - step, start=step)
        torch.save([p.detach() for p in params], f"{{name}}-{{step}}-end.pt")
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    for name, values in expected.items():
        for step in range(10):
            assert_same(values, torch.load(tmp_path / f"{name}-{step}-end.pt", weights_only=True))


@each_way
def test_moments_stay_float32_through_a_checkpoint_of_half_precision(make):
    params = parameters(torch.bfloat16)
    optimizer = make(params)
    descend(params, optimizer, 3)
    again = make(parameters(torch.bfloat16))
    seen = []
    again.register_load_state_dict_pre_hook(lambda _, read: seen.append(read))
    again.load_state_dict(optimizer.state_dict())
    assert len(seen) == 1
    for state in (*optimizer.state.values(), *again.state.values()):
        assert {value.dtype for value in state.values()} == {torch.float32}
    again.load_state_dict(optimizer.state_dict())
    assert len(seen) == 2  # and no hook of ours is left behind
    assert_same(
        [value for state in optimizer.state.values() for value in state.values()],
        [value for state in again.state.values() for value in state.values()],
    )


@each_way
def test_the_state_is_keyed_by_number_and_survives_copying(make):
    params = parameters()
    optimizer = make(params)
    descend(params, optimizer, 2)
    assert sorted(optimizer.state_dict()["state"]) == list(range(len(params)))
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        twins = twin.param_groups[0]["params"]
        descend(twins, twin, 3, start=2)
        mine = copy.deepcopy(optimizer)
        descend(mine.param_groups[0]["params"], mine, 3, start=2)
        assert_same(twins, mine.param_groups[0]["params"])


# with PyTorch's other parts


@pytest.mark.parametrize("make", [Adafactor, AdaX])
def test_a_scheduler_moves_the_rate(make):
    params, by_hand = parameters(), parameters()
    optimizer, other = make(params, lr=0.02), make(by_hand)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
    for step in range(4):
        descend(params, optimizer, 1, start=step)
        scheduler.step()
        other.param_groups[0]["lr"] = 0.02 * (1 / (1 + step))
        descend(by_hand, other, 1, start=step)
    assert_same(params, by_hand)


def test_a_scheduler_without_a_rate_is_refused():
    params = parameters()
    optimizer = Adafactor(params, lr=None)
    torch.optim.lr_scheduler.StepLR(optimizer, 10)  # gives no sign for ten steps
    with pytest.raises(ValueError, match="scheduler"):
        descend(params, optimizer, 1)


@pytest.mark.parametrize("make", [Adafactor, AdaX])
def test_a_rate_in_a_tensor_is_the_number(make):
    params, others = parameters(), parameters()
    descend(params, make(params, lr=0.25), 3)
    descend(others, make(others, lr=torch.tensor([0.25])), 3)
    assert_same(params, others)


@each_way
def test_a_step_that_the_scaler_skips_changes_nothing(make):
    params = parameters()
    optimizer = make(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for p in params:
        p.grad = torch.full_like(p, torch.inf)
    before = [p.detach().clone() for p in params]
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    scaler.update()
    assert_same(before, params)
    assert not optimizer.state

    others = parameters()
    plain = make(others)
    for p, q in zip(params, others, strict=True):
        q.grad = torch.randn_like(q)
        p.grad = q.grad * scaler.get_scale()
    scaler.step(optimizer)
    plain.step()
    assert_same(params, others)


@each_way
def test_closure_and_hooks_run_once_a_step(make):
    p = nn.Parameter(torch.ones(3))
    optimizer = make([p])
    calls = []

    def closure():
        calls.append("closure")
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    assert optimizer.step(closure).item() == 3
    assert calls == ["before", "closure", "after"]
    assert (p < 1).all()


@each_way
@each_foreach
def test_groups_are_as_if_alone(make, foreach):
    params, others = parameters(), parameters()
    optimizer = make(params[:2], foreach=foreach)
    optimizer.add_param_group({"params": params[2:], "lr": 0.5, "maximize": True})
    descend(params, optimizer, 3)
    descend(others[:2], make(others[:2], foreach=foreach), 3)
    alone = make(others[2:], foreach=foreach, maximize=True)
    alone.param_groups[0]["lr"] = 0.5
    descend(others[2:], alone, 3)
    assert_same(params, others)


@each_way
@each_foreach
def test_what_has_no_gradient_or_no_number_stays(make, foreach):
    still, empty, moved = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(0, 5)), nn.Parameter(torch.ones(2))
    optimizer = make([still, empty, moved], foreach=foreach)
    moved.grad, empty.grad = torch.ones(2), torch.ones(0, 5)
    optimizer.step()
    assert torch.equal(still, torch.ones(2))
    assert list(optimizer.state) == [moved]
    still.grad = torch.ones(2)  # joins later, with a count of its own
    optimizer.step()
    assert optimizer.state[still]["step"] == 1
    assert optimizer.state[moved]["step"] == 2


@each_way
def test_many_a_call_or_one_at_a_time(make):
    params, others = parameters(torch.float64), parameters(torch.float64)
    descend(params, make(params, foreach=False), 5)
    descend(others, make(others, foreach=True), 5)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)  # sums in another order


@each_way
@each_foreach
def test_half_precision_is_the_float32_step_rounded(make, foreach):
    params = parameters(torch.bfloat16)
    wide = [nn.Parameter(p.detach().float()) for p in params]
    optimizer, other = make(params, foreach=foreach), make(wide, foreach=foreach)
    for p, q in zip(params, wide, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.float()
    optimizer.step()
    other.step()
    assert_same(params, [q.to(torch.bfloat16) for q in wide])


@each_way
@each_foreach
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_is_predicted_to_the_byte(make, foreach, dtype):
    params = parameters(dtype)
    optimizer = make(params, foreach=foreach)
    predicted = optimizer_memory(optimizer)
    assert not optimizer.state
    descend(params, optimizer, 1)
    held = [sum(value.nbytes for value in optimizer.state[p].values()) for p in params]
    assert list(predicted.by_param.values()) == held
    assert predicted.total_bytes == sum(held) == optimizer_memory(optimizer).total_bytes


@each_foreach
@each_way
def test_gradients_are_left_as_they_were(make, foreach):
    params = parameters()
    optimizer = make(params, foreach=foreach, maximize=True)
    grads = [torch.randn_like(p) for p in params]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    optimizer.step()
    assert_same(grads, [p.grad for p in params])


@each_way
def test_climbing_is_descending_the_negative(make):
    params, others = parameters(), parameters()
    up, down = make(params, maximize=True), make(others)
    for step in range(3):
        for p, q in zip(params, others, strict=True):
            q.grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(step))
            p.grad = -q.grad
        up.step()
        down.step()
    assert_same(params, others)


# mistakes


@pytest.mark.parametrize("make", [Adafactor, AdaX])
def test_sparse_and_complex_are_refused(make):
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="dense"):
        make(table.parameters()).step()
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match="complex64"):
        make([p]).step()


@pytest.mark.parametrize(
    ("make", "options", "name"),
    [
        (Adafactor, {"lr": -1.0}, "lr"),
        (Adafactor, {"lr": torch.ones(2)}, "lr"),
        (Adafactor, {"beta1": 1.0}, "beta1"),
        (Adafactor, {"beta2": 1.0}, "beta2"),
        (Adafactor, {"decay_power": 0.0}, "decay_power"),
        (Adafactor, {"eps": (1e-30, -1.0)}, "eps"),
        (Adafactor, {"clip_threshold": 0.0}, "clip_threshold"),
        (Adafactor, {"relative_step_scale": 0.0}, "relative_step_scale"),
        (Adafactor, {"factor_dims": "first"}, "factor_dims"),
        (Adafactor, {"warmup_init": True}, "warmup_init"),
        (Adafactor, {"weight_decay": -0.1}, "weight_decay"),
        (AdaX, {"lr": float("nan")}, "lr"),
        (AdaX, {"lr": None}, "lr"),
        (AdaX, {"betas": (1.0, 1e-4)}, "betas"),
        (AdaX, {"betas": (0.9, 0.0)}, "betas"),
        (AdaX, {"eps": -1e-8}, "eps"),
        (AdaX, {"eps_mode": "beside"}, "eps_mode"),
    ],
)
def test_numbers_out_of_range_are_named(make, options, name):
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=name):
        make([p], **options)
    optimizer = make([p])
    with pytest.raises(ValueError, match=name):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **options})
    assert len(optimizer.param_groups) == 1


# several processes


@pytest.mark.slow
def test_shards_step_as_the_whole_and_resume_from_a_distributed_checkpoint(two_ranks):
    gaps = two_ranks("_shards.py")
    assert len(gaps) == 9
    assert max(gaps.values()) < 1e-12  # float64; sums over two shards round otherwise than over one
