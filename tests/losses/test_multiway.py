import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import cross_entropy, one_hot

from kexue.losses import NMWayLoss, nmway_loss, zlpr_loss

FORMS = ["pairwise", "centered"]
LABELS = torch.tensor([[0, 2, 2, -100, 1], [3, 3, 3, 3, 3]])


def random_scores(*shape, seed=0):
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scores():
    return random_scores(2, 5, 4)


@pytest.fixture
def soft():
    return random_scores(2, 5, 4, seed=1).softmax(-1)


def by_hand(s, t, form):
    """The formula as it stands: loops over classes, tasks and rivals."""
    n, m = s.shape
    total = torch.zeros((), dtype=s.dtype)
    for j in range(m):
        inside = torch.ones((), dtype=s.dtype)
        for i in range(n):
            if form == "pairwise":
                gaps = sum((s[i, k] - s[i, j]).exp() for k in range(m) if k != j)
            else:
                gaps = (s[i].mean() - s[i, j]).exp()
            inside = inside + t[i, j] * gaps
        total = total + inside.log()
    return total


@pytest.mark.parametrize("form", FORMS)
def test_both_kinds_of_labels_give_the_formula(form, scores, soft):
    hard = one_hot(LABELS.clamp(min=0), 4) * (LABELS != -100).unsqueeze(-1)
    for labels, t in ((LABELS, hard), (hard.double(), hard), (soft, soft)):
        expected = torch.stack([by_hand(s, row, form) for s, row in zip(scores, t, strict=True)])
        assert torch.allclose(nmway_loss(scores, labels, form=form, reduction="none"), expected, atol=1e-12)
        assert torch.allclose(nmway_loss(scores, labels, form=form), expected.mean(), atol=1e-12)
        assert torch.allclose(nmway_loss(scores, labels, form=form, reduction="sum"), expected.sum(), atol=1e-12)


def test_one_task_and_distinct_classes_are_cross_entropy(scores):
    one = nmway_loss(scores[0, :1], torch.tensor([2]))
    assert torch.allclose(one, cross_entropy(scores[0, :1], torch.tensor([2])), atol=1e-12)
    order = torch.tensor([3, 0, 2, 1])
    several = nmway_loss(scores[0, :4], order)
    assert torch.allclose(several, cross_entropy(scores[0, :4], order, reduction="sum"), atol=1e-12)
    repeated = torch.tensor([3, 3, 2, 1])  # tasks of one class share a logarithm
    assert nmway_loss(scores[0, :4], repeated) < cross_entropy(scores[0, :4], repeated, reduction="sum")


def test_two_classes_are_the_multi_label_loss(soft):
    s = random_scores(5, 2)
    labels = torch.tensor([0, 1, 1, 0, 1])
    d = s[:, 0] - s[:, 1]
    assert torch.allclose(nmway_loss(s, labels), zlpr_loss(d, labels == 0), atol=1e-12)
    assert torch.allclose(nmway_loss(s, labels, form="centered"), zlpr_loss(d / 2, labels == 0), atol=1e-12)


def test_the_article_s_optimum_of_the_centered_form(soft):
    s = soft.log().requires_grad_()  # softmax(s) is the label
    nmway_loss(s, soft, form="centered").backward()
    assert s.grad.abs().max() < 1e-12
    s = soft.log().requires_grad_()
    nmway_loss(s, soft, form="pairwise").backward()
    assert s.grad.abs().max() > 1e-3


def test_where_the_centered_form_fails():
    s, label = torch.tensor([[10.0, 5.0, -5.0]]), torch.tensor([1])
    assert nmway_loss(s, label).item() == pytest.approx(5.0067, abs=1e-4)
    assert nmway_loss(s, label, form="centered").item() == pytest.approx(0.1730, abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_invariances(form, scores, soft):
    for labels in (LABELS, soft):
        loss = nmway_loss(scores, labels, form=form)
        shifted = nmway_loss(scores + random_scores(2, 5, 1, seed=3), labels, form=form)
        assert torch.allclose(loss, shifted, atol=1e-12)
        order = torch.tensor([4, 0, 3, 1, 2])
        assert torch.allclose(loss, nmway_loss(scores[:, order], labels[:, order], form=form), atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_right_to_second_order(form, scores, soft):
    for labels in (LABELS, soft):
        s = scores.clone().requires_grad_()
        assert gradcheck(lambda x, t=labels: nmway_loss(x, t, form=form), s)
        assert gradgradcheck(lambda x, t=labels: nmway_loss(x, t, form=form), s)


@pytest.mark.parametrize("form", FORMS)
def test_dropped_tasks_are_as_if_absent(form, scores, soft):
    kept = torch.tensor([0, 1, 2, 4])
    short = nmway_loss(scores[0, kept], LABELS[0, kept], form=form)
    assert torch.allclose(nmway_loss(scores, LABELS, form=form, reduction="none")[0], short, atol=1e-12)
    dropped = soft.clone()
    dropped[0, 3] = 0
    short = nmway_loss(scores[0, kept], soft[0, kept], form=form)
    assert torch.allclose(nmway_loss(scores, dropped, form=form, reduction="none")[0], short, atol=1e-12)
    half = LABELS.clone()
    half[0] = -100
    alone = nmway_loss(scores[1], half[1], form=form)
    assert torch.allclose(nmway_loss(scores, half, form=form), alone, atol=1e-12)
    assert torch.allclose(nmway_loss(scores, half.masked_fill(half < 0, 7), form=form, ignore_index=7), alone)
    s = scores.clone().requires_grad_()
    nothing = nmway_loss(s, torch.full((2, 5), -100), form=form)
    nothing.backward()
    assert nothing.item() == 0
    assert s.grad.abs().max() == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extremes_stay_finite(form, dtype, soft):
    for labels in (LABELS, soft.to(dtype)):
        s = torch.full((2, 5, 4), 1e4, dtype=dtype)
        s[..., ::2] *= -1
        s.requires_grad_()
        loss = nmway_loss(s, labels, form=form)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert s.grad.isfinite().all()


def test_classes_masked_by_minus_infinity(scores):
    masked = scores.clone()
    masked[..., 0] = -torch.inf
    labels = torch.tensor([[1, 2, 3, 1, 1], [3, 3, 3, 3, 3]])
    masked.requires_grad_()
    loss = nmway_loss(masked, labels)
    loss.backward()
    assert torch.allclose(loss, nmway_loss(scores[..., 1:], labels - 1), atol=1e-12)
    assert masked.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_compiled_without_a_break(form, scores, soft):
    compiled = torch.compile(nmway_loss, fullgraph=True, backend="aot_eager")
    for labels in (LABELS, soft):
        a, b = scores.clone().requires_grad_(), scores.clone().requires_grad_()
        nmway_loss(a, labels, form=form).backward()
        compiled(b, labels, form=form).backward()
        assert torch.allclose(a.grad, b.grad, atol=1e-12)


def test_the_module_is_the_function(scores):
    loss = NMWayLoss(form="centered", ignore_index=3, reduction="none")
    assert torch.equal(
        loss(scores, LABELS.abs() % 4),
        nmway_loss(scores, LABELS.abs() % 4, form="centered", ignore_index=3, reduction="none"),
    )
    assert "centered" in repr(loss)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s, t: nmway_loss(s[0, 0], t[0]), ValueError, r"\(4,\)"),
        (lambda s, t: nmway_loss(s[..., :1], t), ValueError, "m >= 2"),
        (lambda s, t: nmway_loss(s, t[:, :4]), ValueError, r"\(2, 5\), got \(2, 4\)"),
        (lambda s, t: nmway_loss(s, t + 1), ValueError, "got -99 at"),
        (lambda s, t: nmway_loss(s, t.bool()), TypeError, "bool"),
        (lambda s, t: nmway_loss(s.long(), t), TypeError, "integer class numbers|floats"),
        (lambda s, t: nmway_loss(s, s), ValueError, "sum to 1"),
        (lambda s, t: nmway_loss(s, s * torch.nan), ValueError, "sum to 1"),
        (
            lambda s, t: nmway_loss(s[0, :1, :2], torch.tensor([[-0.5, 1.5]])),
            ValueError,
            r">= 0 and sum to 1.* got \[-0.5, 1.5\]",
        ),
        (lambda s, t: nmway_loss(s, s[:1]), ValueError, r"\(1, 5, 4\)"),
        (lambda s, t: nmway_loss(s, t, form="both"), ValueError, "'both'"),
        (lambda s, t: NMWayLoss(reduction="max"), ValueError, "'max'"),
    ],
)
def test_mistakes_are_named(call, error, words, scores):
    with pytest.raises(error, match=words):
        call(scores, LABELS)
