import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from kexue.optim import EMA, GradientAccumulation, Lookahead, PiecewiseLinear, unwrap


def build(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def batch(step, size=32):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    return x, x[:, :2] ** 2


def loss_of(model, x, y, reduction="mean"):
    return nn.functional.mse_loss(model(x), y, reduction=reduction)


def step(optimizer, loss, **options):
    loss.backward()
    optimizer.step(**options)
    optimizer.zero_grad()


def close(model, other, tolerance=1e-12):
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_four_by_eight_is_thirty_two():
    small, large = build(), build()
    ours, theirs = GradientAccumulation(Adam(small.parameters(), lr=0.01), 4), Adam(large.parameters(), lr=0.01)
    for number in range(50):
        x, y = batch(number)
        step(theirs, loss_of(large, x, y))
        for part in range(4):
            assert ours.is_boundary == (part == 3)
            rows = slice(8 * part, 8 * part + 8)
            step(ours, loss_of(small, x[rows], y[rows]))
        close(small, large, 1e-9)  # 50 steps of Adam enlarge what rounding begins


@pytest.mark.parametrize("average", [True, False])
def test_weights_make_uneven_parts_the_mean_over_all(average):
    small, large = build(), build()
    ours = GradientAccumulation(SGD(small.parameters(), lr=0.01), 3, average=average)
    theirs = SGD(large.parameters(), lr=0.01)
    for number in range(5):
        x, y = batch(number)
        loss = loss_of(large, x, y, "mean" if average else "sum")
        step(theirs, loss)
        for rows in (slice(0, 1), slice(1, 9), slice(9, 32)):  # 1, 8 and 23 samples
            weight = rows.stop - rows.start if average else 2.0 * (rows.stop - rows.start)
            step(ours, loss_of(small, x[rows], y[rows]), weight=weight)
    close(small, large)


def test_a_mean_of_means_is_another_step():
    small, large = build(), build()
    ours, theirs = GradientAccumulation(SGD(small.parameters(), lr=0.1), 2), SGD(large.parameters(), lr=0.1)
    x, y = batch(0)
    step(theirs, loss_of(large, x, y))
    step(ours, loss_of(small, x[:1], y[:1]))
    step(ours, loss_of(small, x[1:], y[1:]))
    assert not torch.allclose(small[0].weight, large[0].weight, atol=1e-4)


def test_a_micro_batch_of_weight_zero_counts_and_adds_nothing():
    p = nn.Parameter(torch.zeros(1))
    optimizer = GradientAccumulation(SGD([p], lr=1.0), 3)
    for weight, gradient in [(0, float("nan")), (1, 2.0), (3, 6.0)]:
        p.grad = torch.tensor([gradient])
        optimizer.step(weight=weight)
    assert p.item() == -5.0  # (2 + 3 * 6) / 4
    for _ in range(3):
        p.grad = torch.tensor([1.0])
        optimizer.step(weight=0)
    assert p.item() == -5.0


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_bad_weights_are_refused(weight):
    p = nn.Parameter(torch.zeros(1))
    optimizer = GradientAccumulation(SGD([p], lr=1.0), 3)
    p.grad = torch.ones(1)
    with pytest.raises(ValueError, match="weight must be finite"):
        optimizer.step(weight=weight)
    with pytest.raises(TypeError, match="GradientAccumulation"):
        EMA(SGD([p], lr=1.0)).step(weight=1.0)


@pytest.mark.parametrize("average", [True, False])
def test_a_parameter_silent_in_some_parts_counts_as_zero_there(average):
    a, b, c = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    optimizer = GradientAccumulation(SGD([a, b, c], lr=1.0), 4, average=average)
    for number in range(4):
        a.grad = torch.tensor([4.0]) if number in (1, 2) else None
        b.grad = torch.tensor([4.0]) if number == 0 else None
        optimizer.step()
    assert [p.item() for p in (a, b, c)] == ([-2.0, -1.0, 0.0] if average else [-8.0, -4.0, 0.0])
    assert c not in unwrap(optimizer).state


def test_flush_divides_by_the_number_of_calls_and_resets():
    p = nn.Parameter(torch.zeros(1))
    optimizer = Lookahead(GradientAccumulation(SGD([p], lr=1.0), 4), k=2, alpha=0.5)
    optimizer.flush()
    assert p.item() == 0.0
    for gradient in (2.0, 4.0):
        p.grad = torch.tensor([gradient])
        optimizer.step()
    optimizer.flush()
    assert p.item() == -3.0
    optimizer.flush()
    assert p.item() == -3.0
    for number in range(4):
        assert optimizer.is_boundary == (number == 3)
        p.grad = torch.tensor([1.0])
        optimizer.step()
    assert p.item() == -2.0  # 0.5 * (-3 - 1): the flushed update counted for Lookahead
    Lookahead(SGD([p], lr=1.0)).flush()  # nothing to flush


@pytest.mark.parametrize("call", ["flush", "allocate_state"])
def test_a_refused_call_leaves_the_next_step_as_it_is(call):
    p = nn.Parameter(torch.zeros(1))
    optimizer = EMA(GradientAccumulation(SGD([p], lr=1.0), 2))
    optimizer.allocate_state()
    with optimizer.averaged_weights(), pytest.raises(RuntimeError, match="leave the `with` first"):
        getattr(optimizer, call)()
    for gradient in (2.0, 4.0):
        p.grad = torch.tensor([gradient])
        optimizer.step()
    assert p.item() == -3.0


def test_the_scaler_never_sees_a_partial_sum():
    p = nn.Parameter(torch.ones(1))
    optimizer = GradientAccumulation(SGD([p], lr=0.1), 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (3.0, 5.0):
        scaler.scale(factor * p.sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert p.item() == pytest.approx(0.6)


def test_a_micro_batch_that_overflows_is_left_out():
    p = nn.Parameter(torch.ones(1))
    optimizer = GradientAccumulation(SGD([p], lr=0.1), 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (3.0, float("inf"), 5.0):
        scaler.scale(factor * p.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert p.item() == pytest.approx(0.6)


def test_half_precision_is_summed_in_float32():
    p = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = GradientAccumulation(SGD([p], lr=1.0), 1000, average=False)
    for _ in range(1000):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert p.item() == -1000.0  # bfloat16 would stop at 256
    assert optimizer.state_dict()["state"][0]["kexue.gradient_accumulation.gradient"].dtype == torch.float32


def test_clipping_the_mean_in_a_hook_of_the_inner_optimizer():
    p = nn.Parameter(torch.zeros(1))
    optimizer = GradientAccumulation(SGD([p], lr=1.0), 2)

    def clip(*_):
        nn.utils.clip_grad_norm_([p], 1.0)

    optimizer.inner.register_step_pre_hook(clip)
    for gradient in (30.0, -20.0):
        p.grad = torch.tensor([gradient])
        optimizer.step()
    assert p.item() == pytest.approx(-1.0, abs=1e-5)


def test_what_is_around_counts_updates_only():
    p = nn.Parameter(torch.zeros(1))
    inner = GradientAccumulation(SGD([p], lr=1.0), 2)
    optimizer = EMA(PiecewiseLinear(inner, {0: 1.0, 2: 0.0}), decay=0.5, warmup=False)
    scheduler = StepLR(optimizer, 100)
    for _ in range(4):
        p.grad = torch.ones(1)
        boundary = optimizer.is_boundary
        optimizer.step()
        if boundary:
            scheduler.step()
    assert p.item() == -1.5
    group = optimizer.state_dict()["param_groups"][0]
    assert (group["kexue.ema.step"], group["kexue.piecewise_linear.step"], scheduler.last_epoch) == (2, 2, 2)
    assert optimizer.shadow_state_dict()[0].item() == -1.0  # 0 -> -0.5 -> -1


def test_gradients_that_are_views_are_not_taken():
    bucket = torch.zeros(8)
    p = nn.Parameter(torch.zeros(4))
    optimizer = GradientAccumulation(SGD([p], lr=1.0), 2)
    for value in (1.0, 3.0):
        bucket.fill_(value)
        p.grad = bucket[:4]
        optimizer.step()
    assert torch.equal(p.detach(), torch.full((4,), -2.0))
    assert torch.equal(bucket, torch.full((8,), 3.0))


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_bad_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="steps must be"):
        GradientAccumulation(SGD([nn.Parameter(torch.ones(1))], lr=1.0), steps)


def test_integers_and_sparse_gradients_are_refused():
    p = nn.Parameter(torch.ones(3, 2))
    with pytest.raises(ValueError, match="floating"):
        GradientAccumulation(SGD([p], lr=1.0), 2, accum_dtype=torch.int32)
    optimizer = GradientAccumulation(SGD([p], lr=1.0), 2)
    p.grad = torch.ones(3, 2).to_sparse(1)
    with pytest.raises(TypeError, match="dense"):
        optimizer.step()


def test_one_step_a_window_is_the_inner_optimizer():
    model, other = build(), build()
    ours, theirs = GradientAccumulation(Adam(model.parameters()), 1), Adam(other.parameters())
    for number in range(5):
        for m, o in ((model, ours), (other, theirs)):
            assert getattr(o, "is_boundary", True)
            step(o, loss_of(m, *batch(number)))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    copy.deepcopy(ours)
