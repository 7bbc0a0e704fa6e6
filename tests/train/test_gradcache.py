"""In chunks or whole: the same gradient, and the memory of a chunk."""

import weakref

import pytest
import torch
from torch import nn

from kexue.losses import FlatNCELoss, InfoNCELoss, pair_contrastive_loss
from kexue.train import GradCache, LossOutput


def tower(seed=0, dropout=0.0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4)).to(dtype)


def rows(n, seed=1, dtype=torch.float64):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradients(*modules):
    return [p.grad.clone() for module in modules for p in module.parameters()]


def clear(*modules):
    for module in modules:
        module.zero_grad(set_to_none=True)


@pytest.mark.parametrize("loss", [InfoNCELoss(0.1), FlatNCELoss(0.2, symmetric=False)])
@pytest.mark.parametrize("chunk_size", [1, 3, 10, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_two_views_through_one_encoder(loss, chunk_size, dtype):
    encoder, a, b = tower(dtype=dtype), rows(10, 1, dtype), rows(10, 2, dtype)
    whole = loss(encoder(a), encoder(b))
    whole.backward()
    expected = gradients(encoder)
    clear(encoder)
    cached = GradCache(encoder, loss, chunk_size=chunk_size).step([a, b]).loss
    # Sums in another order: rounding of the dtype, times the 100 of 1 / temperature squared.
    torch.testing.assert_close(cached, whole, rtol=1e-5, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(gradients(encoder), expected, rtol=1e-5, atol=1e-12 if dtype == torch.float64 else 1e-5)


def test_two_towers_dicts_and_a_loss_with_weights():
    left, right, scale = tower(1), tower(2), nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
    a, b = {"x": rows(7, 1), "mask": torch.ones(7)}, {"x": rows(7, 2), "mask": torch.zeros(7)}

    def loss(u, v):
        value = pair_contrastive_loss(torch.stack([u, v], 1).flatten(0, 1) * scale)
        value = value + (scale * u * v).mean()
        return LossOutput(value, {"cosine": (u * v).mean()})

    encoders = [lambda c: left(c["x"]), lambda c: right(c["x"]) + c["mask"][:, None]]
    out = loss(encoders[0](a), encoders[1](b))
    out.loss.backward()
    expected = [*gradients(left, right), scale.grad.clone()]
    clear(left, right)
    scale.grad = None
    cached = GradCache(encoders, loss, chunk_size=3).step((a, b))
    torch.testing.assert_close([*gradients(left, right), scale.grad], expected)
    torch.testing.assert_close(cached.parts["cosine"], out.parts["cosine"].detach())


def test_dropout_and_a_generator_draw_the_same_twice():
    """The oracle keeps the graph of every chunk, encoded from the same state of the generators."""
    encoder, x, loss = tower(dropout=0.5), rows(10), lambda z: pair_contrastive_loss(z, scale=5.0)
    own = torch.Generator()

    def encode(chunk):
        return encoder(chunk + torch.randn(chunk.shape, generator=own, dtype=chunk.dtype))

    torch.manual_seed(7)
    own.manual_seed(8)
    loss(torch.cat([encode(chunk) for chunk in x.split(4)])).backward()
    expected, after = gradients(encoder), (torch.get_rng_state(), own.get_state())
    clear(encoder)
    torch.manual_seed(7)
    own.manual_seed(8)
    GradCache(encode, loss, chunk_size=4).step(x, generator=own)
    torch.testing.assert_close(gradients(encoder), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(after[0], torch.get_rng_state())
    assert torch.equal(after[1], own.get_state())


def test_the_loss_can_be_handed_to_backward_and_adds_nothing():
    encoder = tower()
    out = GradCache(encoder, pair_contrastive_loss, chunk_size=4).step(rows(8))
    before = gradients(encoder)
    out.loss.backward()
    assert all(map(torch.equal, gradients(encoder), before))
    GradCache(encoder, pair_contrastive_loss, chunk_size=3).step(rows(8))  # adds to what is there
    torch.testing.assert_close(gradients(encoder), [2 * g for g in before])


def test_texts_are_cut_like_rows():
    encoder = tower()
    seen = []

    def encode(texts):
        seen.append(list(texts))
        return encoder(torch.tensor([[float(len(t))] * 6 for t in texts], dtype=torch.float64))

    GradCache(encode, pair_contrastive_loss, chunk_size=2).step(["a", "bb", "ccc", "dddd"])
    assert seen == [["a", "bb"], ["ccc", "dddd"]] * 2


def peak_of_saved(run):
    """Most bytes kept for backward at one time."""
    alive, peak = 0, 0

    class Kept:
        def __init__(self, tensor):
            nonlocal alive, peak
            self.tensor = tensor
            alive += tensor.nbytes
            peak = max(peak, alive)
            weakref.finalize(self, release, tensor.nbytes)

    def release(size):
        nonlocal alive
        alive -= size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        run()
    return peak


def test_memory_is_that_of_a_chunk():
    torch.manual_seed(0)
    # Deep and narrow: the (n, d) embeddings and the loss are small beside the activations.
    encoder = nn.Sequential(*(layer for _ in range(30) for layer in (nn.Linear(16, 16), nn.Tanh())))
    x = torch.randn(64, 16)
    cache = GradCache(encoder, lambda z: z.square().mean(), chunk_size=4)
    whole = peak_of_saved(lambda: encoder(x).square().mean().backward())
    chunk = peak_of_saved(lambda: encoder(x[:4]).square().mean().backward())
    cached = peak_of_saved(lambda: cache.step(x))
    assert cached <= chunk + 2 * x.nbytes
    assert cached < whole / 3  # weights are kept either way; activations fall to 1/16


def test_mistakes():
    encoder = tower()
    with pytest.raises(ValueError, match="chunk_size must be a whole number >= 1, got 0"):
        GradCache(encoder, pair_contrastive_loss, chunk_size=0)
    with pytest.raises(ValueError, match="no rows"):
        GradCache(encoder, pair_contrastive_loss, chunk_size=2).step(rows(0))
    with pytest.raises(ValueError, match="2 encoders for 1 towers"):
        GradCache([encoder, encoder], pair_contrastive_loss, chunk_size=2).step(rows(4))
    with pytest.raises(ValueError, match="returned 1 rows for an input of 2 rows"):
        GradCache(lambda x: encoder(x)[:1], pair_contrastive_loss, chunk_size=2).step(rows(4))
    with pytest.raises(ValueError, match="differ in rows"):
        GradCache(encoder, pair_contrastive_loss, chunk_size=2).step({"a": rows(4), "b": rows(5)})


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("chunk_size", [3, 10])
def test_inputs_that_need_a_gradient_get_it(as_dict, chunk_size):
    encoder, x = tower().requires_grad_(False), rows(10).requires_grad_()
    encoder(x).square().mean().backward()
    expected, x.grad = x.grad, None
    encode = (lambda batch: encoder(batch["x"])) if as_dict else encoder
    cache = GradCache(encode, lambda z: z.square().mean(), chunk_size=chunk_size)
    cache.step({"x": x} if as_dict else x)
    torch.testing.assert_close(x.grad, expected)
    made = 2 * x
    with pytest.raises(ValueError, match="inputs carry a graph"):
        cache.step({"x": made} if as_dict else made)
    with torch.no_grad():
        cache.step({"x": made} if as_dict else made)


# towers


class Words(nn.Module):
    """Takes a dict, a list of samples or a tensor."""

    def __init__(self, trained=True):
        super().__init__()
        self.line = nn.Linear(4, 3).requires_grad_(trained)

    def forward(self, x):
        if isinstance(x, dict):
            assert x.get("mask") is None
            assert x.get("mode", "mean") == "mean"
            x = x["x"]
        return self.line(x if isinstance(x, torch.Tensor) else torch.stack(x))


X, Y = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
FORMS = {
    "tensor": lambda x: x,
    "dict": lambda x: {"x": x},
    "dict with more": lambda x: {"x": x, "mask": None, "mode": "mean", "scale": 2, "zero": torch.tensor(1.0)},
    "list": list,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 6, 7, 100])
def test_towers_of_every_make_have_the_gradient_of_the_whole(form, frozen, chunk_size):
    torch.manual_seed(0)
    towers = [Words(trained=index not in frozen) for index in range(2)]
    scale = nn.Parameter(torch.tensor(1.5))

    def loss(a, b):
        return LossOutput(InfoNCELoss(0.3, symmetric=False)(a * scale, b), {"n": len(a), "norm": a.norm()})

    output = loss(*(tower(x) for tower, x in zip(towers, (X, Y), strict=True)))
    output.loss.backward()
    trained = [scale, *(p for tower in towers for p in tower.parameters())]
    wanted = [p.grad for p in trained]
    for p in trained:
        p.grad = None
    found = GradCache(towers, loss, chunk_size=chunk_size).step((form(X), form(Y)))
    torch.testing.assert_close(found.loss, output.loss.detach(), check_device=False)
    assert found.parts["n"] == 7
    for p, grad in zip(trained, wanted, strict=True):
        assert (p.grad is None) == (grad is None)
        if grad is not None:
            torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 2, 7])
def test_one_encoder_for_several_towers(chunk_size):
    tower, loss = Words(), InfoNCELoss(0.3)
    loss(tower(X), tower(Y)).backward()
    wanted = tower.line.weight.grad.clone()
    tower.zero_grad()
    GradCache(tower, loss, chunk_size=chunk_size).step((X, Y))
    torch.testing.assert_close(tower.line.weight.grad, wanted, rtol=1e-4, atol=1e-6)


def test_a_tower_that_the_loss_does_not_use_gets_no_gradient_and_no_second_pass():
    passes = []
    towers = [Words(), Words()]
    towers[1].register_forward_hook(lambda *_: passes.append(1))
    GradCache(towers, lambda a, b: a.square().mean(), chunk_size=7).step((X, Y))
    assert towers[0].line.weight.grad is not None
    assert towers[1].line.weight.grad is None
    assert passes == [1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_there_is_the_loss_alone(mode):
    tower, loss = Words(), InfoNCELoss(0.3)
    cache = GradCache(tower, loss, chunk_size=3)
    with mode():
        found = cache.step((X, Y)).loss
    assert tower.line.weight.grad is None
    torch.testing.assert_close(found.clone(), loss(tower(X), tower(Y)).detach())
    cache.step((X, Y))  # and the next one trains
    assert tower.line.weight.grad is not None


def test_an_encoder_that_returns_no_tensor_is_refused():
    with pytest.raises(TypeError, match="encode must return a tensor, got dict"):
        GradCache(lambda x: {"z": x}, lambda z: z.mean(), chunk_size=2).step(X)
