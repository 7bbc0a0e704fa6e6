import warnings

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, RMSprop, SparseAdam

from kexue.optim import Adafactor, AdaX, DecoupledWeightDecay, GradientAccumulation, LayerAdaptation, Lazy, unwrap

ROWS, WIDTH = 7, 3


class Unknown(Adam):
    """A stranger: rows cannot be updated by themselves."""


def table():
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(ROWS, WIDTH, dtype=torch.float64))


def gradient(visits, step):
    g = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    rows = torch.tensor(visits)
    g[rows] = torch.randn(len(visits), WIDTH, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return g


VISITS = [[0, 1], [1, 5], [5], [0, 2, 6], [1], [3, 3], [0]]


def masked(p, inner):
    """The definition: everything runs, then untouched rows get back what they were."""

    def step(g):
        old, active = p.detach().clone(), (g != 0).any(1, keepdim=True)
        p.grad = g
        inner.step()
        with torch.no_grad():
            p.copy_(torch.where(active, p, old))

    return step


def strict(p, inner):
    def step(g):
        active = (g != 0).any(1, keepdim=True)
        old = p.detach().clone()
        kept = {n: v.clone() for n, v in inner.state[p].items() if torch.is_tensor(v) and v.shape == p.shape}
        p.grad = g
        inner.step()
        with torch.no_grad():
            p.copy_(torch.where(active, p, old))
            for name, value in kept.items():
                inner.state[p][name].copy_(torch.where(active, inner.state[p][name], value))

    return step


MAKERS = {
    "adam": lambda p: Adam(p, lr=0.1),
    "adam foreach": lambda p: Adam(p, lr=0.1, foreach=True, amsgrad=True),
    "adamw fused": lambda p: AdamW(p, lr=0.1, fused=True),
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "nadam": lambda p: NAdam(p, lr=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "adagrad": lambda p: Adagrad(p, lr=0.1, initial_accumulator_value=0.1),
    "adax": lambda p: AdaX(p, lr=0.1),
    "adafactor": lambda p: Adafactor(p, lr=0.1, min_dim_size_to_factor=100),
    "unknown": lambda p: Unknown(p, lr=0.1),
    "layers": lambda p: LayerAdaptation(Adam(p, lr=0.1)),
    "decay": lambda p: DecoupledWeightDecay(Adam(p, lr=0.1), 0.3),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(("mode", "definition"), [("masked", masked), ("strict", strict)])
@pytest.mark.parametrize("sparse", [False, True])
def test_it_is_the_definition(make, mode, definition, sparse):
    p, q = table(), table()
    optimizer = Lazy(make([p]), [p], mode=mode)
    inner = make([q])
    step = definition(q, unwrap(inner) if inner is unwrap(inner) else inner)
    for number, visits in enumerate(VISITS):
        g = gradient(visits, number)
        p.grad = g.to_sparse(1) if sparse else g
        optimizer.step()
        assert p.grad.is_sparse == sparse
        step(g.clone())
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    for name, value in unwrap(inner).state[q].items():
        torch.testing.assert_close(unwrap(optimizer).state[p][name], value, rtol=1e-12, atol=1e-12)


def test_strict_is_sparse_adam():  # but for eps, which SparseAdam adds before the bias correction
    p, q = table(), table()
    ours, theirs = Lazy(Adam([p], lr=0.1, eps=1e-30), [p], mode="strict"), SparseAdam([q], lr=0.1, eps=1e-30)
    for number, visits in enumerate(VISITS):
        p.grad, q.grad = (gradient(visits, number).to_sparse(1) for _ in range(2))
        ours.step()
        theirs.step()
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_the_two_modes_differ_at_the_next_visit():
    ends = {}
    for mode in ("masked", "strict"):
        p = nn.Parameter(torch.ones(2, 1, dtype=torch.float64))
        optimizer = Lazy(Adam([p], lr=0.1), [p], mode=mode)
        for rows in ([1.0, 1.0], [0.0, 1.0], [1.0, 1.0]):
            p.grad = torch.tensor(rows, dtype=torch.float64)[:, None]
            optimizer.step()
            if rows[0] == 0:
                assert p[0].item() == pytest.approx(0.9, abs=1e-8)
        ends[mode] = p[0].item()
    # first step 0.1; at the third m, v are those of gradients 1, 0, 1 (masked) or 1, 1 with the counter at 3 (strict)
    m, v = 0.1 * (0.81 + 1), 1e-3 * (0.999**2 + 1)
    corrected = (m / (1 - 0.9**3)) / (v / (1 - 0.999**3)) ** 0.5
    assert ends["masked"] == pytest.approx(0.9 - 0.1 * corrected, abs=1e-8)
    m, v = 0.1 * (0.9 + 1), 1e-3 * (0.999 + 1)
    corrected = (m / (1 - 0.9**3)) / (v / (1 - 0.999**3)) ** 0.5
    assert ends["strict"] == pytest.approx(0.9 - 0.1 * corrected, abs=1e-8)
    assert abs(ends["masked"] - ends["strict"]) > 1e-3


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, ROWS - 1), max_size=4), min_size=1, max_size=8),
    st.sampled_from(["masked", "strict"]),
)
def test_rows_never_visited_never_move(visits, mode):
    p = table()
    optimizer = Lazy(Adam([p], lr=0.1), p, mode=mode)
    for number, rows in enumerate(visits):
        p.grad = gradient(rows, number) if rows else torch.zeros_like(p)
        optimizer.step()
    seen = {row for rows in visits for row in rows}
    for row in range(ROWS):
        assert torch.equal(p[row], table()[row]) == (row not in seen)


def test_other_parameters_are_not_lazy():
    p, other = table(), table()
    optimizer = Lazy(SGD([p, other], lr=0.1, momentum=0.9), [p])
    for g in (torch.ones_like(p), torch.zeros_like(p)):
        p.grad, other.grad = g.clone(), g.clone()
        optimizer.step()
    assert torch.allclose(p.detach(), table().detach() - 0.1)
    assert torch.allclose(other.detach(), table().detach() - 0.19)


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: Unknown(p, lr=0.1)])
@pytest.mark.parametrize("mode", ["masked", "strict"])
def test_marked_rows_move_and_no_others(make, mode):
    p = table()
    optimizer = Lazy(make([p]), [p], mode=mode)
    optimizer.mark(p, torch.tensor([[1, 1], [4, 1]]))
    optimizer.mark(p, torch.tensor([2], dtype=torch.int32))
    p.grad = torch.ones_like(p)
    optimizer.step()
    moved = (p != table()).any(1)
    assert moved.nonzero()[:, 0].tolist() == [1, 2, 4]
    momentum = next(v for v in unwrap(optimizer).state[p].values() if v.shape == p.shape)
    assert momentum.any(1).tolist() == (moved.tolist() if mode == "strict" else [True] * ROWS)
    optimizer.mark(p, torch.tensor([4]))  # its gradient is 0, and its momentum goes on
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert (p != before).any(1).nonzero()[:, 0].tolist() == [4]
    before = p.detach().clone()
    optimizer.step()  # marks are used up
    assert torch.equal(p.detach(), before)


@pytest.mark.parametrize(
    ("ids", "error"), [([7], ValueError), ([-1], ValueError), ([0.5], TypeError), ([True], TypeError)]
)
def test_bad_marks_are_refused(ids, error):
    p = table()
    optimizer = Lazy(Adam([p, other := table()]), [p])
    with pytest.raises(error, match="ids must be"):
        optimizer.mark(p, torch.tensor(ids))
    with pytest.raises(ValueError, match="none of those"):
        optimizer.mark(other, torch.tensor([0]))


@pytest.mark.parametrize("order", [0, 1])
def test_rows_of_any_micro_batch_are_active(order):
    p = table()
    layers = [lambda o: GradientAccumulation(o, 2), lambda o: Lazy(o, [p], mode="strict")]
    optimizer = SGD([p], lr=0.1, momentum=0.9)
    for layer in layers[:: 1 - 2 * order]:
        optimizer = layer(optimizer)
    for rows in ([0], [3]):
        p.grad = gradient(rows, 0)
        optimizer.step()
    assert (p != table()).any(1).nonzero()[:, 0].tolist() == [0, 3]


@pytest.mark.parametrize("mode", ["masked", "strict"])
def test_an_error_in_the_inner_step_leaves_nothing_behind(mode):
    p = table()
    inner = Adam([p], lr=0.1)
    optimizer = Lazy(inner, [p], mode=mode)
    p.grad = gradient([1], 0)
    optimizer.step()
    held = p.detach().clone()

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = inner.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    handle.remove()
    assert torch.equal(p.detach(), held)
    assert set(optimizer.state_dict()["state"]) == {0}
    optimizer.step()
    assert not torch.equal(p.detach(), held)


def test_vectors_and_numbers():
    vector, number = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(()))
    for mode in ("masked", "strict"):
        optimizer = Lazy(SGD([vector, number], lr=0.1, momentum=0.9), [vector, number], mode=mode)
        for first in (1.0, 0.0):
            vector.grad = torch.tensor([first, 0.0, 1.0, 0.0])
            number.grad = torch.tensor(first)
            optimizer.step()
    assert vector[[1, 3]].tolist() == [1.0, 1.0]
    assert vector[0].item() == number.item() == pytest.approx(0.8)


def test_where_every_row_is_active_it_warns_once():
    p = table()
    optimizer = Lazy(Adam([p]), [p])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(30):
            p.grad = torch.ones_like(p)
            optimizer.step()
    assert len(caught) == 1
    assert "mark()" in str(caught[0].message)


def test_bad_arguments_are_refused():
    p = table()
    with pytest.raises(ValueError, match="none of the inner"):
        Lazy(Adam([p]), [table()])
    with pytest.raises(ValueError, match="mode must be"):
        Lazy(Adam([p]), [p], mode="row")
    optimizer = Lazy(SGD([p], lr=1.0), [p])
    p.grad = torch.ones_like(p).to_sparse(2)
    with pytest.raises(TypeError, match="sparse in rows"):
        optimizer.step()
