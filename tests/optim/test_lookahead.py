import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from kexue.optim import Adafactor, Lookahead


def quadratic(theta=1.0, **options):
    p = nn.Parameter(torch.tensor([theta], dtype=torch.float64))
    return p, Lookahead(SGD([p], lr=0.1), **options)


def descend(p, optimizer, steps):
    for _ in range(steps):
        p.grad = p.detach().clone()  # of p^2 / 2
        optimizer.step()


def test_one_cycle_in_closed_form():
    p, optimizer = quadratic()
    descend(p, optimizer, 4)
    assert p.item() == pytest.approx(0.9**4, abs=1e-15)
    descend(p, optimizer, 1)
    assert p.item() == pytest.approx(1 + 0.5 * (0.9**5 - 1), abs=1e-15)
    assert p.item() == pytest.approx(0.795245, abs=1e-6)
    descend(p, optimizer, 45)
    assert p.item() == pytest.approx(0.795245**10, rel=1e-6)


def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 1)).double()


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_limits():
    model, other = build(), build()
    train(model, Lookahead(Adam(model.parameters(), lr=0.01), alpha=1.0), 13)
    train(other, Adam(other.parameters(), lr=0.01), 13)
    assert same(model, other)  # alpha = 1: the inner optimizer
    p, optimizer = quadratic(k=1, alpha=0.5)
    descend(p, optimizer, 1)
    assert p.item() == pytest.approx(0.95, abs=1e-15)  # k = 1: half of every step


def momentum_sgd(params):
    return SGD(params, lr=0.05, momentum=0.9)


@pytest.mark.parametrize(
    ("inner", "momentum"),
    [(momentum_sgd, "keep"), (momentum_sgd, "reset"), (momentum_sgd, "pullback"), (lambda p: Adam(p, lr=0.05), "keep")],
)  # with Adam and the others the peer resets a momentum buffer that Adam does not read
def test_it_is_the_peer(momentum, inner):
    peer = pytest.importorskip("pytorch_optimizer").Lookahead
    model, other = build(), build()
    train(model, Lookahead(inner(model.parameters()), 4, 0.3, momentum=momentum), 23)
    theirs = {"keep": "none"}.get(momentum, momentum)
    train(other, peer(inner(other.parameters()), 4, 0.3, pullback_momentum=theirs), 23)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("momentum", ["reset", "pullback"])
def test_the_first_moment_of_adam_goes_back_too(momentum):
    model = build()
    inner = Adam(model.parameters(), lr=0.05)
    optimizer = Lookahead(inner, 3, 0.5, momentum=momentum)
    train(model, optimizer, 2)
    before = inner.state[model[0].weight]["exp_avg"].clone()
    train(model, optimizer, 1, start=2)
    after = inner.state[model[0].weight]["exp_avg"]
    if momentum == "reset":
        assert not after.any()
    else:
        expected = 0.5 * (0.9 * before + 0.1 * model[0].weight.grad)
        torch.testing.assert_close(after, expected)
    bare = Lookahead(Adafactor(build().parameters(), lr=0.01), momentum=momentum)  # no first moment: nothing to do
    train(build(), bare, 6)


def test_weights_loaded_after_construction_are_where_it_begins():
    p, optimizer = quadratic(k=1)
    with torch.no_grad():
        p.fill_(10.0)
    descend(p, optimizer, 1)
    assert p.item() == pytest.approx(9.5, abs=1e-14)


def test_weights_edited_by_hand_want_a_new_cycle():
    p, optimizer = quadratic(k=2)
    descend(p, optimizer, 1)
    with torch.no_grad():
        p.fill_(10.0)
    optimizer.reset_slow()
    descend(p, optimizer, 2)
    assert p.item() == pytest.approx(10 * (1 + 0.5 * (0.81 - 1)), abs=1e-14)


def test_slow_weights_are_shown_and_taken_away():
    p, optimizer = quadratic()
    with optimizer.slow_weights():
        assert p.item() == 1.0
    descend(p, optimizer, 7)
    fast = p.item()
    slow = optimizer.state_dict()["state"][0]["kexue.lookahead.slow"].item()
    assert slow == pytest.approx(0.795245, abs=1e-6) != fast
    with optimizer.slow_weights():
        assert p.item() == slow
        for forbidden in (optimizer.step, optimizer.state_dict, lambda: optimizer.load_state_dict({})):
            with pytest.raises(RuntimeError, match="leave the `with`"):
                forbidden()
        with pytest.raises(RuntimeError, match="other weights"), optimizer.slow_weights():
            pass
    assert p.item() == fast
    with pytest.raises(KeyError), optimizer.slow_weights():
        raise KeyError("the user's own")
    assert p.item() == fast
    descend(p, optimizer, 3)
    assert p.item() == pytest.approx(0.795245**2, rel=1e-5)


def test_a_parameter_that_joins_late_joins_the_cycle():
    p, optimizer = quadratic(k=4)
    descend(p, optimizer, 2)
    q = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer.add_param_group({"params": [q]})
    for _ in range(2):
        p.grad, q.grad = p.detach().clone(), q.detach().clone()
        optimizer.step()
    assert q.item() == pytest.approx(1 + 0.5 * (0.81 - 1), abs=1e-14)
    assert p.item() == pytest.approx(1 + 0.5 * (0.9**4 - 1), abs=1e-14)


def test_two_of_them_keep_apart():
    p = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Lookahead(Lookahead(SGD([p], lr=0.1), 2, 0.5), 4, 0.5)
    descend(p, optimizer, 4)
    inner = (1 + 0.5 * (0.81 - 1)) ** 2
    assert p.item() == pytest.approx(1 + 0.5 * (inner - 1), abs=1e-14)
    assert set(optimizer.state_dict()["state"][0]) == {"kexue.lookahead.slow", "kexue.lookahead2.slow"}


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 2.5}, {"alpha": 0.0}, {"alpha": 1.1}, {"momentum": "none"}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        quadratic(**options)
