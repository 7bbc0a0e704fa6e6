"""Perturbed argmax against adaptive quadrature, closed forms, softmax and counted draws."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from kexue.nn import PerturbMax, log_perturb_max, perturb_max, perturb_max_cross_entropy

LAWS = {
    "gumbel": stats.gumbel_r,
    "normal": stats.norm,
    "logistic": stats.logistic,
    "exponential": stats.expon,
    "cauchy": stats.cauchy,
    "uniform": stats.uniform,
}
SMOOTH = ["gumbel", "normal", "logistic"]
TOLERANCE = dict.fromkeys(SMOOTH, 1e-9) | {"exponential": 2e-3, "cauchy": 1e-3, "uniform": 1e-3}  # as documented
GUMBEL = SimpleNamespace(log_cdf=lambda x: -torch.exp(-x), icdf=lambda t: -torch.log(-torch.log(t)))


def by_quadrature(scores, law):
    """The integral, cut where one of the factors has its kink."""
    found = []
    for i, score in enumerate(scores):
        others = np.delete(scores, i)
        kinks = sorted({0.0, 1.0, *np.clip(law.cdf(others - score), 0, 1), *np.clip(law.cdf(1 + others - score), 0, 1)})

        def integrand(t, score=score, others=others):
            return np.prod(law.cdf(score - others + law.ppf(t)))

        found.append(
            sum(integrate.quad(integrand, a, b, epsabs=1e-13, limit=200)[0] for a, b in itertools.pairwise(kinks))
        )
    return np.array(found)


@pytest.mark.parametrize("noise", LAWS)
def test_against_adaptive_quadrature(noise):
    for scores in ([1.0, 0.0, -1.0], [0.3, 0.1, -0.2, 0.25], [2.0, 1.5, -3.0, 0.0, 1.9]):
        expected = by_quadrature(np.array(scores), LAWS[noise])
        ours = perturb_max(torch.tensor(scores, dtype=torch.float64), noise)
        assert np.allclose(ours, expected, atol=TOLERANCE[noise], rtol=0)


@pytest.mark.parametrize(
    ("noise", "closed_form"),
    [
        ("gumbel", torch.sigmoid),
        ("normal", lambda gap: torch.special.ndtr(gap / math.sqrt(2))),
        ("exponential", lambda gap: torch.where(gap < 0, gap.exp() / 2, 1 - (-gap).exp() / 2)),
        ("cauchy", lambda gap: 0.5 + torch.atan(gap / 2) / math.pi),
        ("uniform", lambda gap: 1 - (1 - gap.clamp(0, 1)) ** 2 / 2 - (1 - (1 - (-gap).clamp(0, 1)) ** 2) / 2),
    ],
)
def test_two_classes_have_closed_forms(noise, closed_form):
    gap = torch.linspace(-0.9, 0.9, 19, dtype=torch.float64)
    ours = perturb_max(torch.stack([gap, torch.zeros_like(gap)], -1), noise)[:, 0]
    assert torch.allclose(ours, closed_form(gap), atol=TOLERANCE[noise], rtol=0)


def test_gumbel_is_softmax_and_so_is_the_quadrature_of_gumbel_noise():
    scores = 2 * torch.randn(7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(log_perturb_max(scores, temperature=0.5), torch.log_softmax(2 * scores, -1))
    assert torch.allclose(perturb_max(scores, GUMBEL), torch.softmax(scores, -1), atol=1e-7)


def test_small_probabilities_keep_their_relative_accuracy():
    gap = torch.tensor([2.0, 6.0, 9.0], dtype=torch.float64)
    ours = log_perturb_max(torch.stack([-gap, torch.zeros_like(gap)], -1), "normal")[:, 0]
    assert torch.allclose(ours, torch.special.log_ndtr(-gap / math.sqrt(2)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("noise", LAWS)
def test_what_every_law_keeps(noise):
    scores = torch.tensor([[0.2, -0.4, 0.3, 0.2]], dtype=torch.float64)
    p = perturb_max(scores, noise)
    assert torch.allclose(p.sum(-1), torch.ones(1, dtype=torch.float64))
    assert torch.equal(p[0].argsort(stable=True), scores[0].argsort(stable=True))
    assert torch.allclose(perturb_max(scores + 7, noise), p, atol=1e-12)
    assert torch.allclose(perturb_max(scores.flip(-1), noise), p.flip(-1))
    assert torch.allclose(perturb_max(scores * 3, noise, temperature=3.0), p)
    assert perturb_max(scores, noise, temperature=1e-4)[0, 2].item() == pytest.approx(1, abs=1e-3)
    assert torch.allclose(perturb_max(scores.T, noise, dim=0), p.T)
    assert perturb_max(torch.zeros(1, 5), noise).tolist() == [pytest.approx([0.2] * 5)]
    assert perturb_max(torch.tensor([3.0]), noise).item() == 1


@pytest.mark.parametrize("noise", ["normal", "logistic", "cauchy", GUMBEL], ids=["normal", "logistic", "cauchy", "own"])
def test_the_jacobian_is_symmetric_with_zero_row_sums(noise):
    scores = torch.tensor([0.7, -0.3, 0.1, 1.2], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: perturb_max(x, noise, nodes=128), scores)
    assert torch.allclose(jacobian, jacobian.T, atol=1e-5)
    assert torch.allclose(jacobian.sum(-1), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert (jacobian.diagonal() > 0).all()


@pytest.mark.parametrize("noise", ["gumbel", "normal", "logistic", "exponential", "cauchy"])
def test_gradients(noise):
    scores = torch.tensor([[0.3, -0.2, 0.61], [1.0, 0.1, -0.73]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: log_perturb_max(x, noise, nodes=9), scores)
    labels = torch.tensor([2, 1])
    assert torch.autograd.gradcheck(lambda x: perturb_max_cross_entropy(x, labels, noise, nodes=9), scores)
    assert torch.autograd.gradgradcheck(lambda x: perturb_max_cross_entropy(x, labels, noise, nodes=9), scores)


def test_chunks_change_neither_value_nor_gradient():
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, parts = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    a, b = log_perturb_max(whole, "normal", nodes=10), log_perturb_max(parts, "normal", nodes=10, chunk=3)
    a[:, 0].sum().backward()
    b[:, 0].sum().backward()
    assert torch.allclose(a, b)
    assert torch.allclose(whole.grad, parts.grad)


@pytest.mark.parametrize("noise", LAWS)
def test_masked_classes_take_no_part(noise):
    scores = torch.tensor([[0.5, 9.0, 0.1], [0.5, 0.2, 0.1]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    p = perturb_max(scores, noise, mask=mask)
    assert torch.allclose(p[0, [0, 2]], perturb_max(torch.tensor([0.5, 0.1], dtype=torch.float64), noise))
    assert p[0, 1] == 0
    assert (p[1] == 0).all()
    dropped = perturb_max(torch.tensor([0.5, -math.inf, 0.1], dtype=torch.float64), noise)
    assert torch.equal(dropped, p[0])
    (p * torch.arange(3)).sum().backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[0, 1] == 0


@pytest.mark.parametrize("noise", LAWS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_scores(noise, dtype):
    scores = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    loss = perturb_max_cross_entropy(scores, torch.tensor([1, 0]), noise)
    assert loss.dtype == torch.float32
    loss.backward()
    assert scores.grad.isfinite().all()
    bounded = noise in {"uniform", "exponential"}
    assert loss.isinf() == bounded
    if not bounded:
        ceiling = 1e-6 if dtype == torch.float16 else 0  # Cauchy's gradient of 4e-9 rounds to zero there
        assert max(scores.grad[0, 1], scores.grad[1, 0]) < ceiling  # raise the label
    assert perturb_max(scores, noise).dtype == dtype


def test_the_gradient_of_far_normal_tails():
    # d log Phi(x) / dx = -x - 1/x ... for x -> -inf: the ratio of the gradients of the two classes is -1.
    scores = torch.tensor([-1e4, 0.0], requires_grad=True)
    log_perturb_max(scores, "normal")[0].backward()
    reference = torch.tensor([-1e4, 0.0], dtype=torch.float64, requires_grad=True)
    log_perturb_max(reference, "normal")[0].backward()
    assert torch.allclose(scores.grad.double(), reference.grad, rtol=1e-3)


def test_cross_entropy_with_gumbel_is_torchs():
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(4, 5, 6, generator=generator)
    labels = torch.randint(6, (4, 5), generator=generator)
    labels[0, :3] = -100
    for reduction in ("none", "mean", "sum"):
        theirs = torch.nn.functional.cross_entropy(scores.movedim(-1, 1), labels, reduction=reduction)
        assert torch.allclose(perturb_max_cross_entropy(scores, labels, reduction=reduction), theirs)


@pytest.mark.parametrize("noise", ["gumbel", "normal"])
def test_all_ignored_is_zero_with_a_graph(noise):
    scores = torch.tensor([[1.0, float("nan")], [2.0, -math.inf]], requires_grad=True)
    loss = perturb_max_cross_entropy(scores, torch.tensor([-100, -100]), noise)
    assert loss == 0
    loss.backward()
    assert (scores.grad == 0).all()


@pytest.mark.parametrize("noise", LAWS)
def test_draws_follow_the_probabilities(noise):
    scores = torch.tensor([[0.4, 0.0, -0.5], [0.0, 0.1, 0.2]])
    law = PerturbMax(scores, noise)
    draws = law.sample((200_000,), generator=3)
    assert draws.shape == (200_000, 2)
    shares = torch.nn.functional.one_hot(draws, 3).double().mean(0)
    assert (shares - law.probs).abs().max() < 0.005  # standard error 0.0011
    assert torch.equal(law.sample((5,), generator=7), law.sample((5,), generator=torch.Generator().manual_seed(7)))


def test_distribution_agrees_with_categorical():
    scores = torch.randn(2, 4, generator=torch.Generator().manual_seed(4))
    ours, theirs = PerturbMax(scores), torch.distributions.Categorical(logits=scores)
    values = torch.tensor([[0, 3], [2, 1], [1, 1]])
    assert torch.allclose(ours.log_prob(values), theirs.log_prob(values))
    assert torch.allclose(ours.entropy(), theirs.entropy())
    assert ours.batch_shape == theirs.batch_shape == ours.sample().shape
    assert ours.expand((3, 2)).log_prob(values).shape == (3, 2)
    assert ours.support.check(values).all()
    assert PerturbMax(torch.tensor([5.0, 0.0]), "uniform").entropy() == 0


def test_relaxed_samples():
    scores = torch.tensor([0.5, 0.0, -0.5], requires_grad=True)
    law = PerturbMax(scores, "normal")
    hard = law.sample((50,), generator=5)
    soft = law.rsample((50,), temperature=0.1, generator=5)
    rounded = law.rsample((50,), temperature=0.1, hard=True, generator=5)
    assert torch.equal(soft.argmax(-1), hard)
    assert torch.allclose(rounded, torch.nn.functional.one_hot(hard, 3).float())
    weights = torch.arange(3.0)
    [a] = torch.autograd.grad((rounded * weights).sum(), scores, retain_graph=True)
    [b] = torch.autograd.grad((soft * weights).sum(), scores)
    assert torch.allclose(a, b)
    assert a[0] < 0 < a[2]


@pytest.mark.parametrize("noise", ["gumbel", "normal", "exponential"])
def test_compiles_as_one_graph(noise):
    def loss(scores, labels):
        return perturb_max_cross_entropy(scores, labels, noise, nodes=8)

    scores, labels = torch.randn(3, 4, generator=torch.Generator().manual_seed(6)), torch.tensor([0, -100, 3])
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(scores, labels), loss(scores, labels))


def test_autocast_changes_nothing():
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = perturb_max(scores, "normal")
    assert torch.equal(inside, perturb_max(scores, "normal"))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: perturb_max(s, "laplace"), ValueError, "'laplace'"),
        (lambda s: perturb_max(s, 3), TypeError, "log_cdf"),
        (lambda s: perturb_max(s.long()), TypeError, "int64"),
        (lambda s: perturb_max(s, temperature=0.0), ValueError, "temperature must be > 0, got 0.0"),
        (lambda s: perturb_max(s, nodes=1), ValueError, "nodes=1"),
        (lambda s: perturb_max(s, chunk=0), ValueError, "chunk=0"),
        (lambda s: perturb_max(s, mask=torch.ones(2, 3)), TypeError, "bool"),
        (lambda s: perturb_max_cross_entropy(s, torch.tensor([0, 3])), ValueError, r"\[0, 3\).*got 3"),
        (lambda s: perturb_max_cross_entropy(s, torch.tensor([0])), ValueError, "shape"),
        (lambda s: perturb_max_cross_entropy(s, torch.tensor([0, 1]), reduction="avg"), ValueError, "'avg'"),
        (lambda s: PerturbMax(s).rsample(temperature=-1.0), ValueError, "got -1.0"),
        (lambda s: PerturbMax(s).sample(generator="seed"), TypeError, "str"),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3))


@pytest.mark.parametrize(("noise", "tolerance"), [("normal", 1e-9), ("logistic", 1e-9), ("cauchy", 2e-3)])
def test_without_normalisation_the_quadrature_is_near_the_probabilities(noise, tolerance):
    """For two classes against the law of the difference of two noises, and for more by their sum."""
    gap = torch.linspace(-6, 6, 25, dtype=torch.float64)
    p = perturb_max(torch.stack([gap, torch.zeros_like(gap)], -1), noise, normalize=False)[:, 0]
    grow = gap.expm1()
    exact = {
        "normal": torch.special.ndtr(gap / 2**0.5),
        "logistic": torch.where(gap == 0, 0.5, (gap.exp() * (grow - gap)) / torch.where(gap == 0, 1.0, grow**2)),
        "cauchy": 0.5 + (gap / 2).atan() / torch.pi,
    }[noise]
    torch.testing.assert_close(p, exact, rtol=0, atol=tolerance)
    scores = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw = perturb_max(scores, noise, normalize=False)
    torch.testing.assert_close(raw.sum(-1), torch.ones(40, dtype=torch.float64), rtol=0, atol=5 * tolerance)
    torch.testing.assert_close(raw / raw.sum(-1, keepdim=True), perturb_max(scores, noise))
    if noise == "cauchy":
        assert (raw.sum(-1) != 1).any()


def test_samples_on_the_meta_device_have_their_shape():
    law = PerturbMax(torch.zeros(2, 3, device="meta"), "normal")
    assert law.sample((4,)).shape == (4, 2)
    assert law.rsample((4,)).shape == (4, 2, 3)
