"""The sampler of tokens beside a brute force: the sets that it keeps, and how often it draws what."""

import pytest
import torch
from scipy import stats

from kexue.text.roformer_sim.token_sampler import TokenSampler


def brute_force(scores, top_p, top_k, temperature):
    """Probability of every token, from the definition: sorted in Python, token by token."""
    rows = []
    for row in scores.double().tolist():
        order = sorted(range(len(row)), key=lambda i: -row[i])[:top_k]
        weights = torch.tensor([row[i] / temperature for i in order], dtype=torch.float64).softmax(0).tolist()
        kept, mass = {}, 0.0
        for i, weight in zip(order, weights, strict=True):
            if mass >= top_p:
                break
            kept[i] = weight
            mass += weight
        rows.append([kept.get(i, 0.0) / mass for i in range(len(row))])
    return torch.tensor(rows, dtype=torch.float64)


def whole(sampler, scores):
    """Probability of every token, as the sampler keeps it."""
    probabilities, tokens = sampler.keep(scores)
    spread = torch.zeros_like(scores).scatter(-1, tokens, probabilities)
    return spread / spread.sum(-1, keepdim=True)


@pytest.mark.parametrize("top_k", [None, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_tokens_kept_are_those_of_the_definition(top_p, top_k, temperature):
    torch.manual_seed(0)
    scores = 2 * torch.randn(20, 300, dtype=torch.float64)
    scores[:, 7] = -torch.inf
    ours = whole(TokenSampler(top_p, top_k, temperature), scores)
    torch.testing.assert_close(ours, brute_force(scores, top_p, top_k, temperature))


def test_the_token_that_crosses_the_mass_is_included():
    scores = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    assert whole(TokenSampler(0.5), scores).tolist() == [[1.0, 0.0, 0.0]]
    assert (whole(TokenSampler(0.6), scores) > 0).sum() == 2
    assert (whole(TokenSampler(0.8), scores) > 0).sum() == 3


@pytest.mark.parametrize(
    "sampler", [TokenSampler(), TokenSampler(1.0), TokenSampler(0.9, 6), TokenSampler(1.0, None, 2.0)]
)
def test_tokens_are_drawn_as_often_as_their_probability_says(sampler):
    torch.manual_seed(1)
    scores = torch.randn(1, 12, dtype=torch.float64)
    expected = brute_force(scores, sampler.top_p, sampler.top_k, sampler.temperature)[0]
    n = 20_000
    drawn = sampler.draw(scores.expand(n, -1), torch.rand(n, dtype=torch.float64)).bincount(minlength=12)
    assert drawn[expected == 0].sum() == 0
    few = expected > 0
    assert stats.chisquare(drawn[few].numpy(), n * expected[few].numpy()).pvalue > 0.01


def test_numbers_at_both_ends_draw_tokens_that_are_allowed():
    scores = torch.full((2, 5), -torch.inf)
    scores[:, 1:4] = 0.0
    assert TokenSampler(1.0).draw(scores, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 3]


def test_temperature_0_takes_the_likeliest_and_nearly_0_neither_overflows():
    scores = 1e30 * torch.tensor([[1.0, 3.0, 2.0]])
    for temperature in (0, 1e-30):
        assert TokenSampler(temperature=temperature).draw(scores, torch.tensor([0.99])).item() == 1


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 1.0}])
def test_temperatures_beyond_float32_are_those_at_its_ends(options):
    scores = torch.tensor([[1.0, 3.0, -torch.inf, 2.0]]).expand(400, 4)
    uniform = torch.linspace(0, 0.999, 400, dtype=torch.float64)
    for cold in (1e-46, 1e-310):
        assert (TokenSampler(temperature=cold, **options).draw(scores, uniform) == 1).all()
    for hot in (1e39, 1e300):
        counts = TokenSampler(**{"top_p": 1.0, **options}, temperature=hot).draw(scores, uniform).bincount(minlength=4)
        assert counts[2] == 0
        assert counts[[0, 1, 3]].min() > 130


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "got 1.5"),
        ({"top_p": float("nan")}, "got nan"),
        ({"top_k": 0}, "top_k must be a whole number >= 1, got 0"),
        ({"top_k": 2.5}, "got 2.5"),
        ({"temperature": -1}, "temperature must be 0 or more"),
        ({"temperature": float("inf")}, "got inf"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        TokenSampler(**wrong)
