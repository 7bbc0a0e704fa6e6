import math

import pytest
import torch
from torch.testing import assert_close

from kexue.nn import GlobalPointer, apply_rotary, decode_spans


def brute(layer, hidden, mask, rotary, upper_only, efficient):
    """One cell at a time, from the layer's weights."""
    batch, length, _ = hidden.shape
    scores = torch.full((batch, layer.num_types, length, length), -math.inf, dtype=hidden.dtype)
    d = layer.head_dim
    for b in range(batch):
        for a in range(layer.num_types):
            at = 0 if efficient else 2 * d * a
            q = hidden[b] @ layer.qk.weight[at : at + d].T + layer.qk.bias[at : at + d]
            k = hidden[b] @ layer.qk.weight[at + d : at + 2 * d].T + layer.qk.bias[at + d : at + 2 * d]
            for i in range(length):
                for j in range(length):
                    if (upper_only and j < i) or not (mask[b, i] and mask[b, j]):
                        continue
                    left, right = q[i], k[j]
                    if rotary:
                        left, _ = apply_rotary(q[None, None, [i]], q[None, None, [i]], torch.tensor([i]))
                        _, right = apply_rotary(k[None, None, [j]], k[None, None, [j]], torch.tensor([j]))
                    score = (left.flatten() @ right.flatten()) / math.sqrt(d)
                    if efficient:
                        types, w = layer.num_types, layer.ends
                        score = score + w.weight[a] @ torch.cat((q[i], k[i])) + w.bias[a]
                        score = score + w.weight[types + a] @ torch.cat((q[j], k[j])) + w.bias[types + a]
                    scores[b, a, i, j] = score
    return scores


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize(("rotary", "upper_only"), [(True, True), (False, True), (True, False)])
def test_scores_are_their_formula(efficient, rotary, upper_only):
    torch.manual_seed(0)
    layer = GlobalPointer(6, 3, head_dim=4, rotary=rotary, upper_only=upper_only, efficient=efficient).double()
    hidden, mask = torch.randn(2, 5, 6, dtype=torch.float64), torch.arange(5) < torch.tensor([[5], [3]])
    scores = layer(hidden, mask)
    assert_close(scores, brute(layer, hidden, mask, rotary, upper_only, efficient), atol=1e-6, rtol=1e-6)
    everything = torch.ones_like(mask)
    assert_close(layer(hidden), brute(layer, hidden, everything, rotary, upper_only, efficient), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("efficient", [False, True])
def test_gradients_are_finite_and_right(efficient):
    torch.manual_seed(0)
    layer = GlobalPointer(4, 2, head_dim=2, efficient=efficient).double()
    hidden, mask = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([[True, True, False]])
    assert torch.autograd.gradcheck(lambda h: layer(h, mask)[:, :, :2, :2].triu().exp(), hidden)
    assert torch.autograd.gradcheck(lambda h: layer(h, mask)[:, :, 0, 1], hidden)


def test_a_type_of_the_efficient_form_costs_little():
    def size(types, efficient):
        return sum(p.numel() for p in GlobalPointer(768, types, efficient=efficient).parameters())

    assert size(11, True) - size(10, True) == 4 * 64 + 2
    assert size(11, False) - size(10, False) == 2 * 64 * 769


def test_half_precision_gives_full_scores_and_all_compiles():
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = GlobalPointer(8, 2, head_dim=4, efficient=True)
    hidden, mask = torch.randn(2, 4, 8), torch.arange(4) < torch.tensor([[4], [2]])
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(run(hidden, mask), layer(hidden, mask))
    with torch.autocast("cpu", torch.bfloat16):
        scores = layer(hidden, mask)
    assert scores.dtype == torch.float32
    exact = layer(hidden, mask)
    finite = exact.isfinite()
    assert scores.isfinite().eq(finite).all()
    assert_close(scores[finite], exact[finite], atol=2e-2, rtol=2e-2)  # the maps have 8 bits, the products 24
    half = layer.bfloat16()(hidden.bfloat16(), mask)
    assert half.dtype == torch.float32


def test_spans_are_the_cells_above_the_threshold():
    scores = torch.full((2, 2, 4, 4), -torch.inf)
    scores[0, 1, 0, 2], scores[0, 0, 3, 3], scores[0, 0, 1, 2], scores[1, 0, 0, 0] = 3.0, 0.5, 0.1, 0.0
    assert decode_spans(scores) == [[(0, 1, 2), (0, 3, 3), (1, 0, 2)], []]
    assert decode_spans(scores, threshold=0.3) == [[(0, 3, 3), (1, 0, 2)], []]
    assert decode_spans(scores, threshold=-1.0)[1] == [(0, 0, 0)]


def test_bad_input_is_named():
    layer = GlobalPointer(4, 2, head_dim=2)
    with pytest.raises(ValueError, match=r"\(batch, length, 4\), got \(1, 3, 5\)"):
        layer(torch.zeros(1, 3, 5))
    with pytest.raises(ValueError, match=r"bool \(1, 3\)"):
        layer(torch.zeros(1, 3, 4), torch.ones(1, 3))
    with pytest.raises(ValueError, match="even"):
        GlobalPointer(4, 2, head_dim=3)
    with pytest.raises(ValueError, match="at least 1"):
        GlobalPointer(4, 0)
    with pytest.raises(ValueError, match="length, length"):
        decode_spans(torch.zeros(1, 2, 3))


@pytest.mark.parametrize("efficient", [False, True])
def test_padding_that_is_no_number_spoils_no_gradient(efficient):
    """A query without keys leaves NaN in the padding of some encoders."""
    layer = GlobalPointer(8, 2, head_dim=4, efficient=efficient).double()
    hidden = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    hidden[1, 3:] = torch.nan
    hidden.requires_grad_()
    scores = layer(hidden, mask)
    torch.testing.assert_close(scores[1, :, :3, :3], layer(hidden[1:, :3])[0])
    scores.masked_fill(scores == -torch.inf, 0.0).sum().backward()
    assert all(p.grad.isfinite().all() for p in (hidden, *layer.parameters()))
