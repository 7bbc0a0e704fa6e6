import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from kexue.optim import DecoupledWeightDecay, LayerAdaptation, PiecewiseLinear


def parameters():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(*s, dtype=torch.float64)) for s in [(6, 5), (5,), (400, 500)]]


def gradients(params, step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]


def lamb(params, grads_of, steps, *, lr, decay, clip=None, betas=(0.9, 0.999), eps=1e-8):
    """LAMB as its paper writes it, with bias correction and phi the identity."""
    params = [p.detach().clone() for p in params]
    m, v = ([torch.zeros_like(p) for p in params] for _ in range(2))
    for t in range(1, steps + 1):
        for i, g in enumerate(grads_of(params, t)):
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g
            v[i] = betas[1] * v[i] + (1 - betas[1]) * g**2
            r = (m[i] / (1 - betas[0] ** t)) / ((v[i] / (1 - betas[1] ** t)).sqrt() + eps) + decay * params[i]
            ratio = params[i].norm() / r.norm() if params[i].norm() > 0 and r.norm() > 0 else torch.tensor(1.0)
            ratio = ratio.clamp(*clip) if clip else ratio
            params[i] = params[i] - lr * ratio * r
    return params


def train(params, optimizer, steps):
    for t in range(1, steps + 1):
        for p, g in zip(params, gradients(params, t), strict=True):
            p.grad = g
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("clip", [None, (0.5, 1.5)])
@pytest.mark.parametrize("kind", [{}, {"foreach": True}, {"fused": True}])
def test_around_decayed_adam_it_is_lamb(clip, kind):
    params = parameters()
    expected = lamb(params, gradients, 9, lr=0.01, decay=0.1, clip=clip)
    ours = train(params, LayerAdaptation(DecoupledWeightDecay(Adam(params, lr=0.01, **kind), 0.1), clip=clip), 9)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)  # p_new - p_old loses digits


def test_it_is_the_peer_s_lamb_but_for_its_bias_correction():
    """pytorch_optimizer divides lr by 1 - beta1^t after the ratio, which the ratio has made superfluous."""
    peer = pytest.importorskip("pytorch_optimizer").Lamb
    ours, theirs = parameters()[:2], parameters()[:2]  # shorter than 10, where the peer clips
    a = LayerAdaptation(Adam(ours, lr=0.01, eps=1e-30))
    b = peer(theirs, lr=0.01, eps=1e-30, weight_decay=0.0)
    for t in range(1, 10):
        b.param_groups[0]["lr"] = 0.01 * (1 - 0.9**t)
        for params, optimizer in ((ours, a), (theirs, b)):
            for p, g in zip(params, gradients(params, t), strict=True):
                p.grad = g
            optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("clip", [None, (0.5, 1.5)])
def test_many_tensors_without_waiting_are_one_after_the_other(clip):
    """What runs on a GPU, run here."""
    optimizer = LayerAdaptation(SGD(parameters(), lr=0.1), clip=clip)
    olds, news = parameters(), parameters()
    with torch.no_grad():
        for p, g in zip(news[1:], gradients(news, 1)[1:], strict=True):
            p.add_(0.01 * g)  # the first one does not move
        alone = [p.detach().clone() for p in news]
        optimizer._adapt_many(news, olds, 0.1)
        for p, old in zip(alone, olds, strict=True):
            optimizer._adapt(p, old, 0.1)
    for a, b in zip(news, alone, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-12, atol=1e-13)


def test_the_length_of_a_step_is_lr_times_that_of_the_layer():
    params = parameters()
    old = [p.detach().clone() for p in params]
    train(params, LayerAdaptation(SGD(params, lr=0.01)), 1)
    for p, before, g in zip(params, old, gradients(params, 1), strict=True):
        step = p.detach() - before
        assert float(step.norm()) == pytest.approx(0.01 * float(before.norm()), rel=1e-12)
        assert torch.allclose(step / step.norm(), -g / g.norm())


@pytest.mark.parametrize(("value", "gradient"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_ratio_is_one_when_a_length_is_zero(value, gradient):
    p = nn.Parameter(torch.full((4,), value, dtype=torch.float64))
    p.grad = torch.full_like(p, gradient)
    LayerAdaptation(SGD([p], lr=0.1)).step()
    assert torch.equal(p.detach(), torch.full((4,), value - 0.1 * gradient, dtype=torch.float64))


def test_excluded_parameters_and_rates_of_groups():
    a, b = parameters()[:2]
    old = [a.detach().clone(), b.detach().clone()]
    optimizer = LayerAdaptation(
        SGD([{"params": [a], "lr": 0.2}, {"params": [b]}], lr=0.1), exclude=lambda name, p: p.dim() < 2
    )
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    optimizer.step()
    assert float((a.detach() - old[0]).norm()) == pytest.approx(0.2 * float(old[0].norm()))
    assert torch.allclose(b.detach(), old[1] - 0.1)


def test_a_schedule_outside_scales_the_step_and_one_inside_does_not():
    lengths = []
    for inside in (False, True):
        p = parameters()[0]
        old = p.detach().clone()
        optimizer = SGD([p], lr=0.1)
        schedule = {0: 0.25}
        if inside:
            optimizer = LayerAdaptation(PiecewiseLinear(optimizer, schedule))
        else:
            optimizer = PiecewiseLinear(LayerAdaptation(optimizer), schedule)
        p.grad = torch.ones_like(p)
        optimizer.step()
        lengths.append(float((p.detach() - old).norm() / old.norm()))
    assert lengths == pytest.approx([0.025, 0.1])


def test_half_precision_is_measured_in_float32():
    p = nn.Parameter(torch.full((70_000,), 300.0).half())  # the square of 300 is no float16
    p.grad = torch.full_like(p, 10.0)  # 300 - 1 is exact; a smaller step would be lost before the wrapper sees it
    LayerAdaptation(SGD([p], lr=0.1)).step()
    assert torch.equal(p.detach().float(), torch.full((70_000,), 270.0))


def test_bounds_out_of_order_are_refused():
    with pytest.raises(ValueError, match="low <= high"):
        LayerAdaptation(SGD(parameters(), lr=0.1), clip=(2.0, 1.0))
