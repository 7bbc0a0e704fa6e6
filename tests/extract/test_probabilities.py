"""Products of sigmoids in log space, against arithmetic of 60 digits."""

import mpmath
import pytest
import torch
from hypothesis import given, strategies as st

from kexue.extract.probabilities import joint_event, joint_probability

LOGITS = st.lists(st.floats(-300, 300), min_size=1, max_size=4)


def exact(logits):
    """log p and log(1 - p) of a product of sigmoids; the complement without subtraction of nearly equal numbers."""
    with mpmath.workdps(400):
        p = mpmath.fprod(1 / (1 + mpmath.exp(-mpmath.mpf(x))) for x in logits)
        return float(mpmath.log(p)), float(mpmath.log(1 - p))


@given(LOGITS)
def test_both_logarithms_at_any_logit(logits):
    event = joint_event([torch.tensor(x, dtype=torch.float64) for x in logits])
    assert (event.log_yes.item(), event.log_no.item()) == pytest.approx(exact(logits), rel=1e-12)


@given(LOGITS, st.booleans())
def test_float32_is_exact_up_to_rounding_and_so_is_its_gradient(logits, label):
    def compute(dtype):
        parts = torch.tensor(single.tolist(), dtype=dtype, requires_grad=True)
        value = joint_event(list(parts)).cross_entropy(torch.tensor(label))
        value.backward()
        return value.item(), parts.grad.tolist()

    single = torch.tensor(logits, dtype=torch.float32)
    value, gradient = compute(torch.float32)
    wanted, steepness = compute(torch.float64)
    assert wanted == pytest.approx(-exact(single.tolist())[0 if label else 1], rel=1e-12, abs=1e-15)
    assert value == pytest.approx(wanted, rel=1e-5, abs=2e-7)  # a sum of numbers near 0 and 1 rounds at 1e-7
    assert gradient == pytest.approx(steepness, rel=1e-3, abs=1e-7)


def test_gradients_are_those_of_finite_differences_and_finite_at_the_extremes():
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([True, False, True, False, False])
    assert torch.autograd.gradcheck(lambda x: joint_event(list(x)).cross_entropy(labels), logits)
    huge = torch.tensor([[1e4, -1e4, 1e4]] * 4, requires_grad=True)
    joint_event(list(huge)).cross_entropy(torch.tensor([False, True, True])).sum().backward()
    assert huge.grad.isfinite().all()


def test_probability_is_the_exponential():
    parts = [torch.randn(3, 1), torch.randn(1, 4)]
    assert torch.allclose(joint_probability(parts), joint_event(parts).log_yes.exp(), atol=1e-7)
