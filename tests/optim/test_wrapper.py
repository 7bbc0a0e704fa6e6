"""What all wrappers share: checkpoints of stacks, one snapshot for all, composition."""

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from kexue.errors import CheckpointError, NotSupported
from kexue.optim import (
    EMA,
    DecoupledWeightDecay,
    GradientAccumulation,
    LayerAdaptation,
    Lookahead,
    PiecewiseLinear,
    extend,
    unwrap,
)
from kexue.optim._update import Update

sys.path.insert(0, str(Path(__file__).parent))
import _cases

sys.path.pop(0)


def parameters():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(4, 3, dtype=torch.float64)), nn.Parameter(torch.randn(3, dtype=torch.float64))]


def train(params, optimizer, steps, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()


# checkpoints


@pytest.mark.slow
def test_a_new_process_goes_on_bitwise_from_every_step(tmp_path):
    saved, ends = {}, {}
    for case in _cases.CASES:
        model, optimizer = _cases.build(case)
        saved[case], ends[case] = [], []
        for step in range(_cases.STEPS + 1):
            saved[case].append(copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()}))
            ends[case].append(_cases.end(model, optimizer))
            _cases.train(model, optimizer, step, step + 1)
    torch.save(saved, tmp_path / "saved.pt")
    subprocess.run(
        [sys.executable, _cases.__file__, str(tmp_path)], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    resumed = torch.load(tmp_path / "resumed.pt", weights_only=True)
    assert len(resumed) == len(_cases.CASES) * _cases.STEPS
    for (case, step), numbers in resumed.items():
        expected = ends[case][_cases.until(case, step)]
        assert len(numbers) == len(expected), (case, step)
        assert all(torch.equal(a, b) for a, b in zip(numbers, expected, strict=True)), (case, step)


def test_another_stack_is_refused_and_nothing_changes():
    params = parameters()
    optimizer = EMA(Lookahead(Adam(params)))
    train(params, optimizer, 3)
    held = copy.deepcopy(optimizer.state_dict())
    for other in (Lookahead(Adam(parameters())), Lookahead(EMA(Adam(parameters())))):
        with pytest.raises(CheckpointError, match="lookahead ema") as caught:
            optimizer.load_state_dict(other.state_dict())
        assert ".inner" in caught.value.remedy
    now = optimizer.state_dict()
    assert now["param_groups"] == held["param_groups"]
    assert all(torch.equal(now["state"][i][n], held["state"][i][n]) for i in held["state"] for n in held["state"][i])


def test_a_bare_state_is_taken_with_one_warning_and_wrappers_start_from_scratch():
    params = parameters()
    bare = Adam(params, lr=0.01)
    train(params, bare, 4)
    optimizer = EMA(Lookahead(Adam(params, lr=0.5)))
    train(params, optimizer, 3)
    with pytest.warns(UserWarning, match="no wrappers: lookahead ema starts from the beginning") as caught:
        optimizer.load_state_dict(bare.state_dict())
    assert len(caught) == 1
    group = optimizer.param_groups[0]
    assert (group["lr"], group["kexue.lookahead.step"], group["kexue.ema.step"]) == (0.01, 0, 0)
    assert optimizer.state[params[0]].keys() == bare.state[params[0]].keys()
    assert unwrap(optimizer).state[params[0]]["step"] == 4


def test_a_bare_optimizer_takes_the_state_of_a_stack():
    params, others = parameters(), parameters()
    optimizer = EMA(Adam(params, lr=0.01))
    train(params, optimizer, 3)
    bare = Adam(others)
    bare.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    train(params, optimizer, 3, start=3)
    train(others, bare, 3, start=3)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_state_shows_the_wrapper_s_tensors_and_goes_through_to_the_inner_one():
    params = parameters()
    optimizer = EMA(Adam(params))
    assert not optimizer.state
    assert DecoupledWeightDecay(optimizer).state.keys() == optimizer.inner.state.keys()
    train(params, optimizer, 1)
    assert set(optimizer.state[params[0]]) == {"step", "exp_avg", "exp_avg_sq", "kexue.ema.shadow"}
    assert optimizer.state[params[0]]["exp_avg"] is optimizer.inner.state[params[0]]["exp_avg"]
    assert optimizer.defaults is optimizer.inner.defaults
    optimizer.param_groups = optimizer.param_groups[:]
    assert optimizer.param_groups is optimizer.inner.param_groups


# one pass


def test_a_stack_takes_one_snapshot(monkeypatch):
    params = parameters()
    taken = []
    original = Update.run

    def run(self, base):
        original(self, base)
        taken.append(len(self.old))

    monkeypatch.setattr(Update, "run", run)
    inner = SGD(params, lr=0.1)
    stack = LayerAdaptation(PiecewiseLinear(DecoupledWeightDecay(Lookahead(inner, 2), 0.1), {0: 0.5}))
    train(params, stack, 3)
    assert taken == [2, 2, 2]
    taken.clear()
    cheap = EMA(PiecewiseLinear(DecoupledWeightDecay(Adam(params), 0.1), {0: 0.5}))
    train(params, cheap, 3)
    assert taken == [0, 0, 0]


def test_a_stack_is_its_layers_one_after_the_other():
    """Against the definitions carried out by hand, with everything that cannot be folded into the inner step."""
    params, copies = parameters(), parameters()
    stack = PiecewiseLinear(
        LayerAdaptation(DecoupledWeightDecay(Lookahead(SGD(params, lr=0.1), 2, 0.5), 0.2)), {4: 1.0}
    )
    inner = Lookahead(SGD(copies, lr=0.1), 2, 0.5)
    for t in range(6):
        old = [q.detach().clone() for q in copies]
        train(params, stack, 1, start=t)
        train(copies, inner, 1, start=t)
        with torch.no_grad():
            for q, before in zip(copies, old, strict=True):
                delta = q - before - 0.1 * 0.2 * before
                q.copy_(before + min(t / 4, 1) * before.norm() / (delta / 0.1).norm() * delta)
        for p, q in zip(params, copies, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("hook", [False, True])
def test_foreach_in_blocks_is_foreach_and_a_hook_sees_one_step(monkeypatch, hook):
    monkeypatch.setattr("kexue.optim._fusion._BLOCK", 10)
    ours, theirs = parameters(), parameters()
    inner = AdamW(ours, lr=0.1, foreach=True)
    seen = []
    if hook:
        inner.register_step_post_hook(lambda o, *_: seen.append(len(o.param_groups[0]["params"])))
    train(ours, EMA(inner), 4)
    train(theirs, AdamW(theirs, lr=0.1, foreach=True), 4)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    assert seen == [2] * 4 * hook


def test_hooks_of_inner_wrappers_see_finished_updates():
    params = parameters()
    decayed = DecoupledWeightDecay(Lookahead(SGD(params, lr=0.1)), 0.5)
    seen = []
    decayed.register_step_post_hook(lambda *_: seen.append(params[0].detach().clone()))
    train(params, LayerAdaptation(decayed), 1)
    alone = parameters()
    train(alone, DecoupledWeightDecay(SGD(alone, lr=0.1), 0.5), 1)
    torch.testing.assert_close(seen[0], alone[0].detach())


# composition


def test_extend_builds_from_names_pairs_and_functions():
    params = parameters()
    stack = extend(
        Adam(params), "weight_decay", ("piecewise_linear", {"schedule": {10: 1.0}}), lambda o: Lookahead(o, 7), EMA
    )
    names = []
    while stack is not unwrap(stack):
        names.append(type(stack).__name__)
        stack = stack.inner
    assert names == ["EMA", "Lookahead", "PiecewiseLinear", "DecoupledWeightDecay"]
    bare = Adam(params)
    assert extend(bare) is unwrap(bare) is bare
    every = extend(
        Adam(params), *[(n, o | ({"params": params} if n == "lazy" else {})) for n, o in _cases.WRAPPERS.items()]
    )
    train(params, every, 4)
    assert "of Adam" in repr(every)


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [("momentum", ValueError, "unknown wrapper 'momentum'.*lookahead"), ("lazy", TypeError, "params"),
     (("ema", {"rate": 1}), TypeError, "rate")],
)  # fmt: skip
def test_extend_says_what_is_wrong(layer, error, message):
    with pytest.raises(error, match=message):
        extend(Adam(parameters()), layer)


def test_what_cannot_be_wrapped():
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer to wrap, got list"):
        EMA(parameters())
    with pytest.raises(NotSupported, match="LBFGS"):
        EMA(torch.optim.LBFGS(parameters()))


def test_a_failing_inner_step_leaves_the_groups_as_they_were():
    params = parameters()
    optimizer = PiecewiseLinear(Adam(params, lr=0.1), {0: 0.5})
    groups = optimizer.param_groups
    params[0].grad = torch.ones_like(params[0]).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert optimizer.param_groups is groups
    assert groups[0]["lr"] == 0.1
    assert groups[0]["kexue.piecewise_linear.step"] == 0


# several processes


@pytest.mark.slow
def test_ddp_and_shards_step_as_one_process_and_resume(two_ranks):
    gaps = two_ranks("_wrapper_shards.py")
    assert len(gaps) == 24
    assert max(gaps.values()) < 1e-6, gaps  # the goal; float64 gives about 1e-12


def test_loading_is_quiet():
    params = parameters()
    optimizer = GradientAccumulation(EMA(Adam(params)), 2)
    train(params, optimizer, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(optimizer.state_dict())
