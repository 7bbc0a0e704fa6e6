import pytest
import torch

from kexue._tensors import (
    as_floats,
    as_generator,
    at_least_float32,
    check_reduction,
    fill_masked,
    masked_logsumexp,
    reduce,
)


def test_reductions_count_only_what_is_kept():
    values = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    kept = torch.tensor([True, False, True])
    assert reduce(values, kept, "none").tolist() == [1.0, 0.0, 6.0]
    assert reduce(values, kept, "sum").item() == 7.0
    assert reduce(values, kept, "mean").item() == 3.5
    assert reduce(values, None, "mean").item() == 3.0


def test_nothing_kept_is_an_exact_zero_with_a_graph():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = reduce(values, torch.zeros(2, dtype=torch.bool), "mean")
    loss.backward()
    assert loss.item() == 0.0
    assert values.grad.tolist() == [0.0, 0.0]
    assert reduce(torch.ones(0), None, "mean").item() == 0.0


def test_wrong_reduction_and_dtype_are_named():
    with pytest.raises(ValueError, match="'average'"):
        check_reduction("average")
    with pytest.raises(TypeError, match="floats"):
        as_floats(torch.zeros(3, dtype=torch.int64))
    assert as_floats(torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.float32
    assert as_floats(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64
    assert at_least_float32(torch.zeros(3, dtype=torch.complex64)).dtype == torch.complex64


def test_masked_logsumexp_is_logsumexp_of_the_kept_and_safe_without_any():
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    keep = torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 5])
    value = masked_logsumexp(x, keep)
    expected = torch.stack([x[0].exp().sum().log(), x[1, [0, 2]].exp().sum().log()])
    assert torch.allclose(value[:2], expected, atol=1e-12)
    assert value[2].item() == -torch.inf
    value.exp().sum().backward()
    assert torch.allclose(x.grad, x.detach().exp() * keep, atol=1e-12)


def test_a_row_with_nothing_kept_has_a_finite_softmax_and_gradient():
    x = torch.tensor([[1.0, 2.0, -torch.inf], [1.0, torch.inf, torch.nan]], requires_grad=True)
    keep = torch.tensor([[True, True, False], [False, False, False]])
    filled = fill_masked(x, keep)
    assert filled.tolist() == [[1.0, 2.0, -torch.inf], [0.0, 0.0, 0.0]]
    filled.softmax(-1)[:, 0].sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[1].any()


def test_a_generator_comes_from_a_generator_a_seed_or_the_system():
    given = torch.Generator()
    assert as_generator(given) is given
    assert as_generator(7).initial_seed() == 7
    assert as_generator(None).initial_seed() != as_generator(None).initial_seed()
    for wrong in (True, 1.5, "7"):
        with pytest.raises(TypeError, match=type(wrong).__name__):
            as_generator(wrong)
    for seed in (-(2**63), 2**64 - 1):
        as_generator(seed)
    for seed in (-(2**63) - 1, 2**64):
        with pytest.raises(ValueError, match=rf"a seed must be in \[-2\^63, 2\^64\), got {seed}"):
            as_generator(seed)
    with pytest.raises(ValueError, match="generator is on cpu"):
        as_generator(given, "meta")
