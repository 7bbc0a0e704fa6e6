import numpy as np
import pytest

from kexue.algebra import discriminant, solve_cubic, solve_quadratic, solve_quartic

torch = pytest.importorskip("torch")
SOLVERS = {2: solve_quadratic, 3: solve_cubic, 4: solve_quartic}


def coefficients(n, *, complex_=False):
    generator = torch.Generator().manual_seed(n)
    dtype = torch.complex128 if complex_ else torch.float64
    return torch.randn(5, n + 1, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("complex_", [False, True])
def test_gradients_against_finite_differences(n, complex_):
    c = coefficients(n, complex_=complex_)
    assert torch.autograd.gradcheck(SOLVERS[n], c)
    assert torch.autograd.gradgradcheck(SOLVERS[n], c)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_same_numbers_as_numpy(n):
    c = coefficients(n)
    roots = SOLVERS[n](c)
    assert roots.dtype == torch.complex128
    assert np.array_equal(roots.detach().numpy(), SOLVERS[n](c.detach().numpy()))
    assert SOLVERS[n](c.detach().float()).dtype == torch.complex128


def test_the_derivative_of_a_simple_root():
    c = torch.tensor([1.0, -6.0, 11.0, -6.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(solve_cubic(c)[2].real, c)  # r = 3, f'(3) = 2
    assert torch.allclose(gradient, -torch.tensor([27.0, 9.0, 3.0, 1.0], dtype=torch.float64) / 2)


def test_what_is_no_root_has_no_gradient():
    c = torch.tensor([0.0, 1.0, -3.0, 2.0], dtype=torch.float64, requires_grad=True)
    roots = solve_cubic(c)
    roots[:2].real.sum().backward()
    assert torch.isnan(roots[2].real)
    assert torch.isfinite(c.grad).all()


def test_the_discriminant_of_a_batch():
    for n in (2, 3, 4):
        c = coefficients(n)
        assert torch.autograd.gradcheck(discriminant, c)
        exact = [discriminant(row.tolist()) for row in c]
        assert np.allclose(discriminant(c).detach().numpy(), exact)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (3, 2, 4)])
def test_shapes_without_numbers_are_those_with_numbers(shape):
    coefficients = torch.ones(shape, dtype=torch.float64)
    assert solve_cubic(coefficients.to("meta")).shape == solve_cubic(coefficients).shape
