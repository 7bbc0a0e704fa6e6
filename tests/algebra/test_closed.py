import itertools
import warnings

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kexue.algebra import (
    discriminant,
    elementary_symmetric,
    solve_cubic,
    solve_quadratic,
    solve_quartic,
    symmetric_coordinates,
)
from kexue.algebra._aberth import aberth

SOLVERS = {2: solve_quadratic, 3: solve_cubic, 4: solve_quartic}
DEGREES = pytest.mark.parametrize("n", [2, 3, 4])


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def oracle(c):
    """Roots with 60 digits, as complex numbers."""
    with mpmath.workdps(60):
        return np.array(
            [complex(z) for z in mpmath.polyroots([mpmath.mpmathify(v) for v in c], maxsteps=2000, extraprec=600)]
        )


def backward_errors(c, roots):
    """|f(r)| / sum |a_k| |r|^k, in arithmetic with 60 digits."""
    with mpmath.workdps(60):
        for z in roots:
            z = mpmath.mpc(z.real, z.imag)  # noqa: PLW2901
            terms = [mpmath.mpmathify(complex(a)) * z ** (len(c) - 1 - k) for k, a in enumerate(c)]
            yield float(abs(mpmath.fsum(terms)) / mpmath.fsum(abs(t) for t in terms))


def distance(roots, truth):
    """Largest relative error under the best matching."""
    size = np.where(truth == 0, 1, abs(truth))
    return min((abs(np.array(order) - truth) / size).max() for order in itertools.permutations(roots))


def near_degenerate(generator, count, n):
    """Coefficients whose first two roots almost meet, at distances from 1e-14 to 1e-2."""
    roots = generator.normal(size=(count, n))
    roots[:, 1] = roots[:, 0] * (1 + 10 ** generator.uniform(-14, -2, count))
    return np.array([np.poly(row) for row in roots])


@DEGREES
@pytest.mark.parametrize("kind", ["real", "complex", "near"])
def test_backward_errors_and_roots_against_60_digits(n, kind):
    generator = np.random.default_rng(n)
    c = near_degenerate(generator, 40, n) if kind == "near" else generator.normal(size=(40, n + 1))
    if kind == "complex":
        c = c + 1j * generator.normal(size=c.shape)
    for row, roots in zip(c, SOLVERS[n](c), strict=True):
        assert max(backward_errors(row, roots)) <= 4e-16 * n
        truth = oracle(row)
        # condition at most 8 without, and next to none with compensated residuals: a few units in the last place
        assert distance(roots, truth) < 2e-15
        if kind != "complex":
            assert np.array_equal(np.sort_complex(roots), np.sort_complex(roots.conj()))


HARD = {
    "a double root a billionth from the third": [1.0, -3.000000001, 3.000000002, -1.000000001],
    "a tenth, three times, as floats": [1.0, -0.3, 0.03, -0.001],
    "tiny pair": [1.0, 1.0, 1e-20, 1e-40],
    "huge coefficients": [1e160, -6e160, 11e160, -6e160],
    "huge roots": [1.0, 0.0, -3e200, 2e300],
    "roots far apart": [1.0, -1e8, 1e8, -1.0],
    "casus irreducibilis": [1.0, 0.0, -3.0, 1.0],
    "nearly casus": [1.0, 0.0, -3.0, 2.0000000000000004],
    "three scales": [1.0, 1e300, 1.0, 1e-300],
    "biquadratic": [1.0, 0.0, -1e4, 0.0, 1e-4],
    "nearly biquadratic": [1.0, 0.0, -5.0, 1e-13, 4.0],
    "nearly a square": [1.0, -6.0, 13.0, -12.0, 4.0000000000001],
    "four nearly equal": [1.0, -4.0, 6.0, -4.0, 1.0000001],
    "pure fourth power": [1.0, 0.0, 0.0, 0.0, -1e-200],
    "mixed scales": [1e-150, 1.0, -1e100, 1.0, 1e-100],
    "imaginary pairs": [1.0, 0.0, 5.0, 0.0, 4.0],
    "cancelling quadratic": [1.0, -1e9, 1.0],
    "double to the last bit": [1.0, -2.0000000000000004, 1.0000000000000002],
}


@pytest.mark.parametrize("name", HARD)
def test_hard_cases_no_worse_than_the_companion_matrix(name):
    c = HARD[name]
    roots = SOLVERS[len(c) - 1](c)
    truth = oracle(c)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            peer = distance(np.roots(c), truth)
        except np.linalg.LinAlgError:
            peer = np.inf
    ours = distance(roots, truth)
    assert not ours > max(peer, 4e-16)
    # the first is exactly double at 1: 32 digits leave sqrt(1e-31 / 1e-9) of it
    assert ours < (1e-9 if name == "a double root a billionth from the third" else 1e-14)
    assert max(backward_errors(c, roots)) <= 4e-16 * (len(c) - 1)


def test_exactly_multiple_roots_of_whole_numbers():
    assert solve_quartic(np.poly([3.0, 3, 3, 1])).tolist() == [1, 3, 3, 3]
    assert solve_quartic(np.poly([-0.5, -0.5, -0.5, -0.5]) * 48).tolist() == [-0.5] * 4
    assert aberth(np.poly([7.0, 7, 7, 7, 7, 2])[None]).real.tolist()[0].count(7.0) == 5


def test_no_formula_is_hurt_by_the_wrong_cube_root():
    # x = 1 +- ..., with y2^3 negative: a principal cube root would be complex
    assert solve_cubic([1.0, 3.0, 3.0, 9.0])[0] == pytest.approx(-3.0, abs=1e-15)
    assert solve_cubic([1.0, 0.0, 0.0, 8.0])[0] == -2


def test_multiple_roots_that_floats_hold_come_back_exactly():
    assert solve_cubic([1.0, -9.0, 27.0, -27.0]).tolist() == [3, 3, 3]
    assert solve_quartic([1.0, -4.0, 6.0, -4.0, 1.0]).tolist() == [1, 1, 1, 1]
    assert solve_quartic([1.0, 0.0, 2.0, 0.0, 1.0]).tolist() == [-1j, -1j, 1j, 1j]
    assert distance(solve_quartic(np.poly([1, 1, 2, 2])), np.array([1, 1, 2, 2])) < 1e-12


@DEGREES
def test_order_and_conjugates(n):
    c = np.random.default_rng(3).normal(size=(2000, n + 1))
    roots = SOLVERS[n](c)
    for row in roots:
        assert list(row) == sorted(row, key=lambda z: (z.imag != 0, z.real, z.imag))
        assert np.array_equal(np.sort_complex(row), np.sort_complex(row.conj()))  # to the last bit
    assert not np.signbit(roots.imag[roots.imag == 0]).any()


@DEGREES
def test_the_number_of_real_roots_is_what_the_discriminant_says(n):
    c = np.random.default_rng(4).normal(size=(2000, n + 1))
    pairs = (SOLVERS[n](c).imag > 0).sum(1)
    assert np.array_equal(pairs % 2 == 0, discriminant(c) > 0)


@DEGREES
def test_a_row_does_not_depend_on_its_neighbours(n):
    c = np.random.default_rng(5).normal(size=(300, n + 1))
    c[7] *= 1e100
    c[8, -1] = 0
    order = np.random.default_rng(6).permutation(300)
    together = SOLVERS[n](c)
    assert np.array_equal(SOLVERS[n](c[order]), together[order])
    assert all(np.array_equal(SOLVERS[n](row), roots) for row, roots in zip(c[:20], together, strict=False))
    assert np.array_equal(SOLVERS[n](c.reshape(3, 100, n + 1)), together.reshape(3, 100, n))


@DEGREES
def test_vieta(n):
    c = np.random.default_rng(7).normal(size=(500, n + 1))
    e = elementary_symmetric(SOLVERS[n](c))
    expected = c[:, 1:] / c[:, :1] * (-1.0) ** np.arange(1, n + 1)
    # products of roots as large as the largest coefficient: relative to that
    assert (abs(e - expected) <= 1e-13 * abs(expected).max(1, keepdims=True)).all()


@DEGREES
@pytest.mark.parametrize("power", [-300, -31, 64, 301])
def test_scaling_by_powers_of_two_is_exact(n, power):
    c = np.random.default_rng(8).normal(size=(200, n + 1))
    roots = SOLVERS[n](c)
    # a power of two in front changes no root; cube roots and the two ways of scaling may differ in the last place
    assert np.allclose(SOLVERS[n](np.ldexp(c, power)), roots, rtol=1e-15, atol=0)
    moved = SOLVERS[n](np.ldexp(c, power // 8 * np.arange(n + 1)))
    assert np.allclose(moved, roots * 2.0 ** (power // 8), rtol=1e-15, atol=0)


@DEGREES
def test_reversed_coefficients_give_inverse_roots(n):
    c = np.random.default_rng(9).normal(size=(200, n + 1))
    pairs = zip(SOLVERS[n](c[:, ::-1]), SOLVERS[n](c), strict=True)
    assert max(distance(1 / turned, roots) for turned, roots in pairs) < 1e-13


def test_leading_and_trailing_zeros():
    roots = solve_quartic([[0, 0, 1, 0, -4], [1, 0, 0, 0, 0], [0, 1, -3, 2, 0], [0, 0, 0, 0, 5], [0, 0, 0, 2, 1]])
    assert roots[0, :2].tolist() == [-2, 2]
    assert np.isnan(roots[0, 2:]).all()
    assert roots[1].tolist() == [0, 0, 0, 0]
    assert roots[2, :3].tolist() == [0, 1, 2]
    assert np.isnan(roots[3]).all()
    assert roots[4, 0] == -0.5


def test_empty_batches_and_kinds_of_numbers():
    assert solve_cubic(np.zeros((0, 4))).shape == (0, 3)
    assert solve_quadratic([1, -3, 2]).tolist() == [1, 2]  # integers
    assert solve_quadratic(np.array([1, -3, 2], np.float32)).dtype == np.complex128
    assert solve_quadratic([1, -3 + 0j, 2]).tolist() == [1, 2]  # complex without imaginary parts is real
    assert solve_quadratic([1, 0, -2j]).tolist() == pytest.approx([-1 - 1j, 1 + 1j], abs=1e-15)


@pytest.mark.parametrize(
    ("solver", "coefficients", "error", "said"),
    [
        (solve_cubic, [1, 2, 3], ValueError, r"expected \(\.\.\., 4\), got \(3,\)"),
        (solve_cubic, [[1, 2, 3, 4], [0, 0, 0, 0]], ValueError, "row 1 are 0"),
        (solve_cubic, [1, np.nan, 3, 4], ValueError, "finite"),
        (solve_quadratic, ["a", "b", "c"], TypeError, "numbers"),
        (solve_quadratic, 3.0, ValueError, r"got \(\)"),
    ],
)
def test_mistakes(solver, coefficients, error, said):
    with pytest.raises(error, match=said):
        solver(coefficients)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(2, 4).flatmap(
        lambda n: st.lists(
            st.one_of(st.integers(-9, 9).map(float), st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-200)),
            min_size=n + 1,
            max_size=n + 1,
        )
    )
)
def test_any_coefficients_have_small_backward_errors(c):
    if not any(c):
        return
    roots = SOLVERS[len(c) - 1](c)
    degree = len(c) - 1 - next(k for k, v in enumerate(c) if v)
    assert np.isfinite(roots).sum() == degree
    nonzero = [z for z in roots[:degree] if abs(z) > 1e-300]
    assert all(error <= 4e-16 * max(degree, 1) for error in backward_errors(c, nonzero))


def test_aberth_finds_high_degrees():
    wilkinson = np.poly(np.arange(1, 11))  # whole numbers that floats hold
    roots = np.sort(aberth(wilkinson[None])[0].real)
    assert np.allclose(roots, np.arange(1, 11), rtol=1e-15)


@DEGREES
def test_coordinates_solve_the_equation(n):
    c = np.random.default_rng(10).normal(size=(100, n + 1))
    roots = SOLVERS[n](c)
    y = symmetric_coordinates(roots)
    e = elementary_symmetric(roots)
    assert np.allclose(y[:, 0], e[:, 0] / n)
    if n == 2:
        assert np.allclose(y[:, 1] ** 2, y[:, 0] ** 2 - e[:, 1])
    elif n == 3:
        P = y[:, 0] ** 2 - e[:, 1] / 3
        assert np.allclose(y[:, 1] * y[:, 2], P)
        assert np.allclose(y[:, 1] ** 3 + y[:, 2] ** 3, e[:, 2] - y[:, 0] ** 3 + 3 * y[:, 0] * P)
    else:
        p = e[:, 1] - 6 * y[:, 0] ** 2
        q = 2 * y[:, 0] * (e[:, 1] - 4 * y[:, 0] ** 2) - e[:, 2]
        assert np.allclose((y[:, 1:] ** 2).sum(1), -p / 2)
        assert np.allclose(y[:, 1:].prod(1), -q / 8)
