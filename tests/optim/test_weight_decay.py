import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from kexue.optim import Adafactor, AdaX, DecoupledWeightDecay, GradientAccumulation, Lookahead


class Unknown(Adam):
    """Adam as a stranger: derived classes may do anything, so nothing is known of them."""


def parameters(seed=0):
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(6, 5, dtype=torch.float64)), nn.Parameter(torch.randn(5, dtype=torch.float64))]


def train(params, optimizer, steps=12):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
    return [p.detach() for p in params]


def close(a, b, tolerance=1e-13):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def test_one_step_takes_the_old_parameter():
    p = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    p.grad = torch.tensor([3.0], dtype=torch.float64)
    DecoupledWeightDecay(SGD([p], lr=0.1, momentum=0.9), 0.5).step()
    assert p.item() == pytest.approx(2 - 0.1 * 3 - 0.1 * 0.5 * 2, abs=1e-15)


@pytest.mark.parametrize("fused", [None, True])
def test_around_adam_it_is_adamw(fused):
    ours, theirs = parameters(), parameters()
    a = train(ours, DecoupledWeightDecay(Adam(ours, lr=0.02, fused=fused), 0.3))
    b = train(theirs, AdamW(theirs, lr=0.02, weight_decay=0.3, fused=fused))
    close(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: RMSprop(p, lr=0.01, momentum=0.5),
        lambda p: Adam(p, lr=torch.tensor(0.02, dtype=torch.float64)),
        lambda p: AdaX(p, lr=0.02),
        lambda p: Adafactor(p, lr=0.02, min_dim_size_to_factor=0),
        lambda p: Unknown(p, lr=0.02),
        lambda p: Lookahead(Adam(p, lr=0.02), 3),
    ],
)
def test_it_is_the_formula_whatever_is_inside(make):
    ours, alone = parameters(), parameters()
    wrapped, inner = DecoupledWeightDecay(make(ours), 0.3), make(alone)
    lr = float(wrapped.param_groups[0]["lr"])
    generator = torch.Generator().manual_seed(1)
    for _ in range(7):
        old = [p.detach().clone() for p in alone]
        for p, q in zip(ours, alone, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            q.grad = p.grad.clone()
        wrapped.step()
        inner.step()
        with torch.no_grad():
            for q, before in zip(alone, old, strict=True):
                q.sub_(lr * 0.3 * before)
        close(ours, alone)


def test_a_second_decay_is_refused_or_added():
    with pytest.raises(ValueError, match=r"weight_decay=0.01.*allow_double"):
        DecoupledWeightDecay(AdamW(parameters()))
    optimizer = DecoupledWeightDecay(Adam(parameters()))
    with pytest.raises(ValueError, match="decays already"):
        optimizer.add_param_group({"params": parameters(1), "weight_decay": 0.1})
    assert len(optimizer.param_groups) == 1
    for make in (lambda p: AdamW(p, lr=0.02, weight_decay=0.1), lambda p: Adam(p, lr=0.02, weight_decay=0.1)):
        ours, reference = parameters(), parameters()
        a = train(ours, DecoupledWeightDecay(make(ours), 0.3, allow_double=True), 1)
        b = train(reference, make(reference), 1)
        close(a, [y - 0.02 * 0.3 * x for x, y in zip(parameters(), b, strict=True)])


def test_what_is_excluded_keeps_the_inner_step():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)).double()

    def gap(exclude, named):
        source = list(model.named_parameters()) if named else list(model.parameters())
        optimizer = DecoupledWeightDecay(Adam(source, lr=0.1), 0.5, exclude=exclude)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        for p in model.parameters():
            p.grad = torch.zeros_like(p)  # Adam alone does not move
        optimizer.step()
        moved = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}
        return moved

    every = {"0.weight", "0.bias", "1.weight", "1.bias"}
    with torch.no_grad():
        model[1].bias.fill_(1.0)
    assert gap(None, False) == every
    assert gap(["bias", "1."], True) == {"0.weight"}
    assert gap("bias", True) == {"0.weight", "1.weight"}
    assert gap(model[0].weight, False) == every - {"0.weight"}
    assert gap(lambda name, p: p.dim() < 2, False) == {"0.weight"}
    assert gap(lambda name, p: name == "0.bias", True) == every - {"0.bias"}
    with pytest.raises(ValueError, match="named_parameters"):
        gap("bias", False)


def test_it_does_not_decay_between_updates_of_an_accumulation():
    for order in (0, 1):
        p = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = SGD([p], lr=0.1)
        for layer in [lambda o: GradientAccumulation(o, 3), lambda o: DecoupledWeightDecay(o, 0.5)][:: 1 - 2 * order]:
            optimizer = layer(optimizer)
        for _ in range(6):
            p.grad = torch.zeros_like(p)
            optimizer.step()
        assert p.item() == pytest.approx(0.95**2, abs=1e-15)


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_a_bad_rate_is_refused(rate):
    with pytest.raises(ValueError, match="rate must be >= 0"):
        DecoupledWeightDecay(Adam(parameters()), rate)


def test_an_inner_optimizer_without_a_rate_is_refused():
    params = parameters()
    with pytest.raises(ValueError, match="needs a learning rate"):
        train(params, DecoupledWeightDecay(Adafactor(params, lr=None)), 1)
