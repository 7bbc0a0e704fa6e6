import math

import pytest
import torch
from torch.nn import functional

from kexue.losses import (
    CoSENTLoss,
    MultiTaskPairLoss,
    PairClassificationLoss,
    cosent_loss,
    cosine_hinge_loss,
    cosine_mse_loss,
    seq2seq_loss,
    similarity_distillation_loss,
)

METHODS = ["sorted", "pairwise"]


def pairs(n=40, levels=4, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n, generator=g, dtype=dtype) - 1, torch.randint(levels, (n,), generator=g)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_cosent_is_its_formula(method, levels):
    cosines, labels = pairs(levels=levels)
    c, y = cosines.tolist(), labels.tolist()
    total = math.fsum(math.exp(20 * (c[i] - c[j])) for i in range(40) for j in range(40) if y[i] < y[j])
    assert cosent_loss(cosines, labels, method=method).item() == pytest.approx(math.log1p(total), abs=1e-12)
    assert cosent_loss(cosines, labels / 7 - 3, method=method).item() == pytest.approx(math.log1p(total), abs=1e-12)


def test_cosent_prefers_the_right_order():
    for method in METHODS:
        right = cosent_loss(torch.tensor([0.9, 0.1]), torch.tensor([1, 0]), method=method)
        wrong = cosent_loss(torch.tensor([0.1, 0.9]), torch.tensor([1, 0]), method=method)
        assert right < 1e-6
        assert wrong == pytest.approx(16, abs=1e-4)


def test_both_ways_have_one_gradient():
    cosines, labels = pairs(500, 6)

    def gradient(c, method):
        c = c.clone().requires_grad_()
        return torch.autograd.grad(cosent_loss(c, labels, method=method), c)[0].double()

    expected = gradient(cosines, "pairwise")
    torch.testing.assert_close(gradient(cosines, "sorted"), expected, rtol=0, atol=1e-12)
    rounded = cosines.float().double()
    gap = gradient(rounded.float(), "sorted") - gradient(rounded, "pairwise")
    assert gap.abs().max() < 5e-7  # entries up to 3.4 round by 1e-7; the matrix in float32 is off by 8e-6


@pytest.mark.parametrize("method", METHODS)
def test_cosent_gradients_and_extremes(method):
    cosines, labels = pairs(8, 3)
    assert torch.autograd.gradcheck(lambda c: cosent_loss(c, labels, method=method), cosines.requires_grad_())
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        c = torch.tensor([1.0, -1.0, 0.5, 1.0], dtype=dtype, requires_grad=True)
        loss = cosent_loss(c, torch.tensor([0, 1, 1, 0]), scale=1e4, method=method)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(2e4 + math.log(2), rel=1e-6)
        wanted = torch.tensor([5e3, -1e4, 0.0, 5e3], dtype=dtype)
        torch.testing.assert_close(c.grad, wanted, rtol=5e-4, atol=0)  # one step of float32 at 2e4 is 2e-3
    for y in (torch.ones(4), torch.zeros(4, dtype=torch.bool)):
        c = torch.rand(4).requires_grad_()
        nothing = cosent_loss(c, y, method=method)
        nothing.backward()
        assert nothing.item() == 0
        assert (c.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_labels_of_any_kind(dtype):
    cosines, labels = pairs(levels=2)
    torch.testing.assert_close(cosent_loss(cosines, labels.to(dtype)), cosent_loss(cosines, labels, method="pairwise"))


def embeddings(n=6, d=5, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, generator=g, dtype=torch.float64).unbind()


def test_cosent_module():
    u, v = embeddings()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    expected = cosent_loss(functional.cosine_similarity(u, v, dim=1), labels, scale=7.0, method="pairwise")
    torch.testing.assert_close(CoSENTLoss(7.0)(u, 3 * v, labels), expected)
    compiled = torch.compile(CoSENTLoss(7.0), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(u, v, labels), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(CoSENTLoss(7.0)(u.float(), v.float(), labels), expected.float())
    assert "sorted" in repr(CoSENTLoss())


def test_regression_on_cosines():
    c, y = torch.tensor([0.95, 0.3, 0.05, -0.5]), torch.tensor([1, 1, 0, 0])
    mse = cosine_mse_loss(c, y, negative=-1.0, reduction="none")
    torch.testing.assert_close(mse, torch.tensor([0.05**2, 0.7**2, 1.05**2, 0.5**2]))
    torch.testing.assert_close(cosine_mse_loss(c, y), torch.tensor((0.05**2 + 0.7**2 + 0.05**2 + 0.5**2) / 4))
    hinge = cosine_hinge_loss(c, y, reduction="none")
    torch.testing.assert_close(hinge, torch.tensor([0.0, 0.6, 0.0, 0.0]))
    flipped = cosine_hinge_loss(c, 1 - y, reduction="none")
    torch.testing.assert_close(flipped, torch.tensor([0.85, 0.2, 0.85, 1.4]))
    assert cosine_mse_loss(c.half(), y).dtype == torch.float32
    x = pairs(5)[0].requires_grad_()
    for loss in (cosine_mse_loss, cosine_hinge_loss):
        assert torch.autograd.gradcheck(lambda c, loss=loss: loss(c, torch.tensor([0, 1, 1, 0, 1])), x)
        compiled = torch.compile(loss, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(c, y), loss(c, y))


def test_classification_of_pairs():
    u, v = embeddings()
    labels = torch.tensor([0, 1, 2, -100, 1, 0])
    loss = PairClassificationLoss(5, 3, features=("abs_diff", "u"), bias=True).double()
    w = loss.linear.weight
    assert w.shape == (3, 10)
    scores = (u - v).abs() @ w[:, :5].T + u @ w[:, 5:].T + loss.linear.bias
    torch.testing.assert_close(loss(u, v, labels), functional.cross_entropy(scores, labels))
    loss(u, v, labels).backward()
    assert w.grad.abs().sum() > 0
    assert PairClassificationLoss(5, 3).linear.bias is None
    loss.zero_grad()
    nothing = loss(u, v, torch.full((6,), -100))
    nothing.backward()
    assert nothing.item() == 0
    assert (w.grad == 0).all()
    half = PairClassificationLoss(5, 3)(u.half(), v.half(), labels)
    assert half.dtype == torch.float32


def test_tasks_share_a_head_but_not_their_scores():
    u, v = embeddings()
    loss = MultiTaskPairLoss(5, reduction="none").double()
    labels, task = torch.tensor([0, 1, 2, 0, 1, -100]), torch.tensor([0, 0, 1, 1, 1, 0])
    scores = loss.head.scores(u, v)
    binary = functional.cross_entropy(scores[:2, :2], labels[:2], reduction="none")
    nli = functional.cross_entropy(scores[2:5, 2:], labels[2:5], reduction="none")
    expected = torch.cat([binary, nli, torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(loss(u, v, labels, task), expected)
    torch.testing.assert_close(loss(u[2:5], v[2:5], labels[2:5], "nli"), nli)
    loss(u, v, labels, task).sum().backward()
    assert loss.head.linear.weight.grad.isfinite().all()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(u, v, labels, task), expected)
    assert set(loss.state_dict()) == {"head.linear.weight"}


def test_distillation_by_hand():
    s, t = embeddings(4)
    t = torch.cat([t, t], dim=1)[:, :7].requires_grad_()
    s.requires_grad_()
    total = 0.0
    for i in range(4):
        for j in range(4):
            a = functional.cosine_similarity(s[i], s[j], dim=0)
            total += (a - functional.cosine_similarity(t[i], t[j], dim=0)).item() ** 2
    loss = similarity_distillation_loss(s, t)
    assert loss.item() == pytest.approx(100 * total / 16)
    loss.backward()
    assert t.grad is None
    assert s.grad.abs().sum() > 0
    turn, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert similarity_distillation_loss(2 * s @ turn, s).item() == pytest.approx(0, abs=1e-20)
    assert torch.autograd.gradcheck(lambda x: similarity_distillation_loss(x, t.detach()), s)


def test_generation_reads_the_second_segment():
    scores = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = torch.tensor([[3, 5, 7, 8], [1, 2, 4, 0]])
    segments = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])
    log_p = scores.log_softmax(dim=2)
    expected = -(log_p[0, 1, 7] + log_p[0, 2, 8] + log_p[1, 0, 2]) / 3
    torch.testing.assert_close(seq2seq_loss(scores, tokens, segments), expected)
    assert seq2seq_loss(scores.requires_grad_(), tokens, torch.zeros_like(segments)).item() == 0
    compiled = torch.compile(seq2seq_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(scores, tokens, segments), expected)


C, Y = torch.tensor([0.1, 0.2]), torch.tensor([0, 1])
U = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cosent_loss(C, Y[:1]), ValueError, r"\(2,\) and \(1,\)"),
        (lambda: cosent_loss(C, Y, scale=0.0), ValueError, "scale"),
        (lambda: cosent_loss(C, Y, method="fast"), ValueError, "fast"),
        (lambda: cosent_loss(C, torch.tensor([0.0, math.nan])), ValueError, "finite"),
        (lambda: cosent_loss(Y, Y), TypeError, "integer class numbers|floats"),
        (lambda: CoSENTLoss()(U, U[:1], Y), ValueError, r"\(1, 3\)"),
        (lambda: CoSENTLoss(method="fast"), ValueError, "fast"),
        (lambda: cosine_mse_loss(C, 2 * Y), ValueError, "got 0 to 2"),
        (lambda: cosine_mse_loss(C, Y, negative=-2.0), ValueError, "-2.0"),
        (lambda: cosine_hinge_loss(C, Y, lower=0.95), ValueError, "lower=0.95"),
        (lambda: PairClassificationLoss(3, 2, features=("u", "w")), ValueError, "'w'"),
        (lambda: PairClassificationLoss(3, 1), ValueError, "num_labels"),
        (lambda: PairClassificationLoss(3, 2)(U, U, Y + 1), ValueError, r"\[0, 2\).*, got 2 in row 1"),
        (lambda: PairClassificationLoss(3, 2)(U, U, Y.float()), TypeError, "float32"),
        (lambda: MultiTaskPairLoss(3)(U, U, Y + 1, "binary"), ValueError, r"\[0, 2\).*, got 2 in row 1"),
        (lambda: MultiTaskPairLoss(3)(U, U, Y, "sts"), ValueError, "'sts'"),
        (lambda: MultiTaskPairLoss(3)(U, U, Y, Y + 1), ValueError, "task must lie"),
        (lambda: MultiTaskPairLoss(3, tasks={}), ValueError, "at least one task"),
        (lambda: similarity_distillation_loss(U, U[:1]), ValueError, r"\(1, 3\)"),
        (lambda: similarity_distillation_loss(U, U, weight=-1.0), ValueError, "weight"),
        (lambda: seq2seq_loss(U[None], Y[None], Y), ValueError, r"\(B, T\)"),
        (lambda: seq2seq_loss(U[None, :1], Y[None, :1], Y[None, :1]), ValueError, "at least 2"),
        (lambda: seq2seq_loss(U[None], 5 * Y[None], Y[None]), ValueError, r"\[0, 3\)"),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
