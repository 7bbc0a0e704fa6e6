import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

import kexue.nn.attention as module
from kexue.nn import ToeplitzGate, attention_weights, position_probe, unilm_mask, urpe_attention

INF = math.inf


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def brute(q, k, v, gate, bias, mask):
    """The formula with Python floats, one query at a time."""
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    shape = (*q.shape[:-1], k.shape[-2])
    gate, bias, mask = gate.expand(shape), bias.expand(shape), mask.expand(shape)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:-1])).tolist():
        keys = [j for j in range(k.shape[-2]) if mask[b, h, i, j]]
        e = {
            j: math.exp(float(q[b, h, i] @ k[b, h, j]) / math.sqrt(q.shape[-1]) + float(bias[b, h, i, j])) for j in keys
        }
        for j in keys:
            out[b, h, i] += e[j] / sum(e.values()) * float(gate[b, h, i, j]) * v[b, h, j]
    return out


@pytest.fixture
def parts():
    q, k, v = draw(2, 3, 5, 4), draw(2, 3, 6, 4, seed=1), draw(2, 3, 6, 2, seed=2)
    gate, bias = draw(3, 5, 6, seed=3), draw(3, 5, 6, seed=4)  # factors of both signs
    mask = draw(2, 1, 5, 6, seed=5) > -0.5
    mask[1, :, 2] = False  # a query without keys
    return q, k, v, gate, bias, mask


@pytest.mark.parametrize("fused", [True, False, "auto"])
@pytest.mark.parametrize("block", [1 << 18, 60, 12])  # all at once; two heads at a time; two rows at a time
def test_urpe_attention_is_its_formula(parts, fused, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block // torch.get_num_threads())
    q, k, v, gate, bias, mask = parts
    result = urpe_attention(q, k, v, gate=gate, bias=bias, mask=mask, fused=fused)
    assert_close(result, brute(q, k, v, gate, bias, mask))
    assert (result[1, :, 2] == 0).all()
    everything, nothing = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=q.dtype)
    assert_close(urpe_attention(q, k, v, gate=gate, fused=fused), brute(q, k, v, gate, nothing, everything))
    assert_close(urpe_attention(q, k, v, gate=gate, mask=mask, fused=fused), brute(q, k, v, gate, nothing, mask))
    assert_close(urpe_attention(q, k, v, gate=gate, bias=bias, fused=fused), brute(q, k, v, gate, bias, everything))


@pytest.mark.parametrize("fused", [False, "auto"])
def test_without_a_gate_it_is_plain_attention(parts, fused):
    q, k, v, _, bias, mask = parts
    expected = brute(q, k, v, torch.ones(1), bias, mask)
    assert_close(urpe_attention(q, k, v, bias=bias, mask=mask, fused=fused), expected)
    assert_close(urpe_attention(q, k, v, gate=torch.ones(1, 5, 6), bias=bias, mask=mask, fused=fused), expected)


def test_gradients_are_right_with_a_query_without_keys(parts):
    q, k, v, gate, bias, mask = parts
    inputs = [x.clone().requires_grad_() for x in (q, k, v, gate, bias)]

    def run(q, k, v, gate, bias):
        return urpe_attention(q, k, v, gate=gate, bias=bias, mask=mask)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    with pytest.raises(ValueError, match="neither gradient nor dropout"):
        urpe_attention(inputs[0], k, v, gate=gate, fused=True)


def test_dropout_comes_after_the_gate(monkeypatch):
    seen = []
    monkeypatch.setattr(module.functional, "dropout", lambda x, p: seen.append((x, p)) or x)
    q, k, v, gate = draw(1, 1, 3, 4), draw(1, 1, 3, 4, seed=1), draw(1, 1, 3, 4, seed=2), draw(1, 3, 3, seed=3)
    urpe_attention(q, k, v, gate=gate, dropout_p=0.25)
    weights, p = seen[0]
    assert p == 0.25
    assert_close(weights, (q @ k.transpose(-1, -2) / 2).softmax(-1) * gate)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fused", [True, False])
def test_half_precision_is_weighted_in_full(dtype, fused):
    q, k, v = (100 * draw(1, 2, 9, 8, seed=s, dtype=torch.float32).to(dtype) for s in range(3))  # scores of +-1e4
    gate = ToeplitzGate(2, 9)
    with torch.no_grad():
        result = urpe_attention(q, k, v, gate=gate, fused=fused)
        expected = urpe_attention(q.float(), k.float(), v.float(), gate=gate, fused=False)
    assert result.dtype == dtype
    # Scores this far apart pick one key: what comes out is a row of v, whatever the rounding of the scores.
    assert_close(result.float(), expected, rtol=1e-2, atol=1e-1)


def test_the_gate_is_a_table_of_offsets():
    gate = ToeplitzGate(2, 4)
    assert (gate(torch.arange(9), torch.arange(9)) == 1).all()
    with torch.no_grad():
        gate.table.copy_(draw(2, 7))
    c = gate(torch.arange(3, 5), torch.arange(5))  # queries at 3 and 4
    assert c.shape == (2, 2, 5)
    for i, place in enumerate((3, 4)):
        for j in range(5):
            assert_close(c[:, i, j], gate.table[:, max(j - place, -3) + 3])  # offset -4 takes the factor of -3
    with pytest.raises(ValueError, match="offset 4 is beyond max_length - 1 = 3"):
        ToeplitzGate(2, 4, clip=False)(torch.arange(5), torch.arange(5))


def test_a_gate_given_as_a_module_puts_the_queries_last():
    gate = ToeplitzGate(1, 6)
    with torch.no_grad():
        gate.table.copy_(draw(1, 11))
    q, k, v = (draw(1, 1, 6, 4, seed=s, dtype=torch.float32) for s in range(3))
    assert_close(urpe_attention(q[:, :, 4:], k, v, gate=gate), urpe_attention(q, k, v, gate=gate)[:, :, 4:])


def test_buckets_share_factors():
    gate = ToeplitzGate(1, 128, buckets=64)
    assert gate.table.shape == (1, 64)
    with torch.no_grad():
        gate.table.copy_(torch.arange(64.0)[None])
    c = gate(torch.tensor([200]), torch.arange(400))[0, 0]
    assert (c[200], c[199], c[201]) == (0, 1, 33)
    assert c[0] == 31  # 200 back: the last bucket behind
    assert c[399] == 63


def test_weights_are_their_formulas():
    scores, keep = draw(2, 4, 5), draw(2, 4, 5, seed=1) > -0.7
    keep[1, 2] = False
    e = scores.exp() * keep
    n = keep.any(-2).sum(-1)[:, None, None]
    expected = {
        "softmax": e / e.sum(-1, keepdim=True),
        "l2": e / e.square().sum(-1, keepdim=True).sqrt(),
        "none": e,
        "relu2": scores.relu() ** 2 / n * keep,
    }
    for normalize, weights in expected.items():
        result = attention_weights(scores, normalize=normalize, mask=keep)
        assert_close(result, weights.nan_to_num(0.0))
        assert (result[1, 2] == 0).all()
        infinite = attention_weights(scores.masked_fill(~keep, -INF), normalize=normalize)
        assert_close(infinite, result)


@pytest.mark.parametrize("normalize", ["softmax", "l2", "none", "relu2"])
def test_weights_have_right_gradients_where_a_row_has_no_keys(normalize):
    scores, keep = draw(3, 4).requires_grad_(), draw(3, 4, seed=1) > -0.5
    keep[1] = False

    def run(scores):
        return attention_weights(scores, normalize=normalize, mask=keep)

    assert torch.autograd.gradcheck(run, scores)
    assert torch.autograd.gradgradcheck(run, scores)


@pytest.mark.parametrize("normalize", ["softmax", "l2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_bear_large_scores(normalize, dtype):
    scores = torch.tensor([[1e4, -1e4, 9e3]], dtype=dtype, requires_grad=True)
    weights = attention_weights(scores, normalize=normalize)
    assert weights.dtype == dtype
    assert_close(weights.detach(), torch.tensor([[1.0, 0.0, 0.0]], dtype=dtype))
    weights.sum().backward()
    assert scores.grad.isfinite().all()


def test_unilm_mask_reads_first_and_writes_second():
    segments = torch.tensor([[0, 0, 1, 1, 1]])
    keep = torch.tensor([[True, True, True, True, False]])
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert_close(unilm_mask(segments)[0].int(), torch.tensor(expected, dtype=torch.int32))
    assert_close(unilm_mask(segments, keep)[0], unilm_mask(segments)[0] & keep)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_attention_compiles_in_one_graph(parts, backend):
    q, k, v, gate, bias, mask = parts
    torch._dynamo.reset()
    run = torch.compile(urpe_attention, fullgraph=True, backend=backend)
    assert_close(run(q, k, v, gate=gate, bias=bias, mask=mask), brute(q, k, v, gate, bias, mask))
    weigh = torch.compile(attention_weights, fullgraph=True, backend=backend)
    assert_close(weigh(draw(3, 3), normalize="l2"), attention_weights(draw(3, 3), normalize="l2"))
    table = ToeplitzGate(2, 4, clip=False)
    places = torch.arange(4)
    assert_close(torch.compile(table, fullgraph=True, backend=backend)(places, places), table(places, places))


class Model(nn.Module):
    """One attention over embedded tokens, and a score for every place."""

    def __init__(self, gate, n):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(2, 32), nn.Linear(32, n)
        self.gate = ToeplitzGate(2, n) if gate else None
        self.bias = nn.Parameter(torch.randn(2, n, n))

    def forward(self, ids):
        x = self.embed(ids)
        heads = x.unflatten(-1, (2, -1)).transpose(1, 2)
        mixed = urpe_attention(heads, heads, heads, gate=self.gate, bias=self.bias)
        return self.out(functional.layer_norm(mixed.transpose(1, 2).flatten(2) + x, (32,)))


def test_the_probe_tells_the_gate_from_its_absence():
    n = 8
    blind, model = Model(False, n), Model(True, n)
    before = [p.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    result = position_probe(blind, n=n, steps=60, lr=1e-2, generator=0)
    assert result.accuracy <= 2 / n  # equal scores differ by rounding
    assert not result.passed
    assert result.steps == 60
    assert result.loss == pytest.approx(math.log(n), abs=1e-2)
    result = position_probe(model, n=n, steps=400, lr=1e-2, generator=0)
    assert result.passed
    assert result.accuracy == 1
    assert result.steps < 400
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(random, torch.get_rng_state())


def test_bad_input_is_named():
    q = draw(1, 1, 3, 4)
    with pytest.raises(TypeError, match=r"mask must be bool.*int64"):
        urpe_attention(q, q, q, mask=torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="do not fit"):
        urpe_attention(q, q, q[:, :, :2])
    with pytest.raises(ValueError, match="'yes'"):
        urpe_attention(q, q, q, fused="yes")
    with pytest.raises(ValueError, match="'max'"):
        attention_weights(q, normalize="max")
    with pytest.raises(ValueError, match=r"scores \(B, n, n\)"):
        position_probe(nn.Embedding(2, 3), n=4)
    with pytest.raises(ValueError, match="segment_ids"):
        unilm_mask(torch.zeros(3))
    with pytest.raises(ValueError, match="at least 1"):
        ToeplitzGate(0, 4)


@pytest.mark.parametrize(("normalize", "expected"), [("softmax", 0.5), ("l2", 0.5**0.5)])
@pytest.mark.parametrize("size", [1e3, 1e6, 1e30])
def test_equal_large_scores_weigh_the_same(normalize, expected, size):
    for scores in (torch.tensor([[size, size]]), torch.tensor([[-size, -size]])):
        weights = attention_weights(scores, normalize=normalize)
        assert_close(weights, torch.full((1, 2), expected), rtol=1e-6, atol=0)
    gap = torch.tensor([[1e6, 1e6 - 2.0, -torch.inf]])
    weights = attention_weights(gap, normalize=normalize)
    small = attention_weights(torch.tensor([[0.0, -2.0, -torch.inf]]), normalize=normalize)
    assert_close(weights, small, rtol=1e-6, atol=0)


@pytest.mark.parametrize("fused", [True, False, "auto"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate": ToeplitzGate(3, 4)}, "gate must broadcast"),
        ({"gate": torch.ones(5, 1, 1)}, "gate must broadcast"),
        ({"gate": torch.ones(2, 2, 2, 4, 4)}, "gate must broadcast"),
        ({"bias": torch.zeros(3, 4, 4)}, "bias must broadcast"),
        ({"bias": torch.zeros(4, 5)}, "bias must broadcast"),
        ({"mask": torch.ones(3, 1, 1, 4, dtype=torch.bool)}, "mask must broadcast"),
        ({"mask": torch.ones(4, 3, dtype=torch.bool)}, "mask must broadcast"),
        ({"mask": torch.ones(2, 1, 2, 4, 4, dtype=torch.bool)}, "mask must broadcast"),
    ],
)
def test_what_does_not_fit_the_heads_and_places_is_refused(options, words, fused):
    x = torch.ones(2, 2, 4, 8)
    with torch.no_grad(), pytest.raises(ValueError, match=words):
        urpe_attention(x, x, x, fused=fused, **options)
    if "mask" in options:
        with pytest.raises(ValueError, match=words):
            attention_weights(x @ x.transpose(-1, -2), mask=options["mask"])
        with pytest.raises(TypeError, match="int64"):
            urpe_attention(x, x, x, fused=fused, mask=torch.ones(4, 4, dtype=torch.int64))
    one_head = x[:, :1]
    with pytest.raises(ValueError, match="gate must broadcast"):  # and not a result of more heads than there are
        urpe_attention(one_head, one_head, one_head, gate=ToeplitzGate(4, 4), fused=fused is True and "auto")


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("masked_by", ["mask", "bias", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_query_without_keys_gives_zeros(gated, masked_by, dtype):
    q, k, v = (draw(2, 2, 4, 8, seed=i).to(dtype).requires_grad_() for i in range(3))
    keep = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    keep[0, 0, 1] = keep[1, 0, :, 0] = False
    bias = (
        torch.zeros(4, 4, dtype=dtype)
        if masked_by == "mask"
        else torch.zeros(keep.shape, dtype=dtype).masked_fill(~keep, -torch.inf)
    )
    mask = None if masked_by == "bias" else keep
    gate = ToeplitzGate(2, 4).to(dtype) if gated else None
    out = urpe_attention(q, k, v, gate=gate, bias=bias, mask=mask)
    assert (out[0, :, 1] == 0).all()
    others = out[1].detach()
    assert others.abs().min() > 0
    out.float().square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    with torch.no_grad():
        assert_close(urpe_attention(q, k, v, gate=gate, bias=bias, mask=mask), out.detach())
