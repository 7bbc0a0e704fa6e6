"""Every kind of number, every size of number: the right value, or a refusal that names what was received."""

import math
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

from kexue.algebra import (
    _aberth,
    closed,
    discriminant,
    elementary_symmetric,
    express_symmetric,
    nature,
    parse_polynomial,
    power_sums,
    solve,
    solve_cubic,
    solve_quadratic,
    solve_quartic,
    symmetric_coordinates,
)
from kexue.algebra.enclosure import _weierstrass, enclose
from kexue.cli import main
from kexue.errors import DataError

C = [2, -3, -11, 6]  # 2 (x - 3)(x + 2)(x - 1/2), exact in every kind of number below
ROOTS = [-2, 0.5, 3]
DTYPES = ["f2", "f4", "f8", "g", "F", "D", "G", "i1", "i2", "i4", "i8", "O", ">f4", ">i2"]
KINDS = {
    **{f"array {dtype}": np.array(C, dtype) for dtype in DTYPES},
    **{f"list of {dtype}": list(np.array(C, dtype)) for dtype in DTYPES},
    "tuple": tuple(C),
    "fractions": [Fraction(c) for c in C],
    "decimals": [Decimal(c) for c in C],
    "object array of decimals": np.array([Decimal(c) for c in C]),
    "mixed": [Decimal(2), np.float32(-3), Fraction(-11), 6 + 0j],
    "0-d arrays": [np.array(c) for c in C],
    "flipped": np.array(C[::-1], np.float32)[::-1],
    "strided": np.array([[c, 0] for c in C], np.float32)[:, 0],
    "read-only": np.broadcast_to(np.array(C, np.float16), (2, 4))[0],
    "tensor": torch.tensor(C, dtype=torch.float32),
    "half tensor": torch.tensor(C, dtype=torch.bfloat16),
    "tensor that needs a gradient": torch.tensor(C, dtype=torch.float64, requires_grad=True),
    "tensors": list(torch.tensor(C)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_number_is_solved(kind):
    c = KINDS[kind]
    assert solve(c).values.tolist() == pytest.approx(ROOTS, rel=1e-15)
    assert solve(c, exact=True).values.tolist() == ROOTS
    assert solve(c, digits=30, steps=True)[0].value == -2
    assert solve(iter(c), exact=False).values.tolist() == pytest.approx(ROOTS, rel=1e-15)
    d = discriminant(c.detach() if isinstance(c, torch.Tensor) else c)
    assert float(d) == discriminant(C) == 15625
    assert nature(c) == "3 simple real roots"
    assert [float(v.real) for v in power_sums(c, 3)] == pytest.approx([sum(r**k for r in ROOTS) for k in (1, 2, 3)])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "tensor" not in kind])
def test_every_kind_of_number_in_batches_and_symmetric_functions(kind):
    c = KINDS[kind]
    roots = solve_cubic(c)
    assert roots.dtype == np.complex128
    assert roots.tolist() == pytest.approx(ROOTS, rel=1e-15)
    e = [complex(v) for v in elementary_symmetric(c)]
    assert e == [complex(v) for v in elementary_symmetric(C)]
    assert np.allclose(symmetric_coordinates(c), symmetric_coordinates(np.array(C, float)), rtol=1e-15)


def test_a_generator_is_read_once_by_every_function():
    for function in (discriminant, nature, lambda c: power_sums(c, 2), elementary_symmetric):
        assert function(c for c in C) == function(C)
    assert np.array_equal(symmetric_coordinates(c for c in C), symmetric_coordinates(C))


FUNCTIONS = {
    "solve": solve,
    "solve exactly": lambda c: solve(c, exact=True),
    "solve digits": lambda c: solve(c, digits=20),
    "discriminant": discriminant,
    "discriminant of a batch": lambda c: discriminant(np.array([c])),
    "nature": nature,
    "power_sums": lambda c: power_sums(c, 2),
    "solve_quadratic": solve_quadratic,
    "elementary_symmetric": elementary_symmetric,
    "symmetric_coordinates": symmetric_coordinates,
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "bad",
    [math.inf, -math.inf, math.nan, np.float32("nan"), np.longdouble("inf"), complex(0, math.nan), complex(math.inf, 1),
     Decimal("nan"), Decimal("-Infinity"), np.complex64(complex(math.nan, 0))],
)  # fmt: skip
def test_what_is_not_finite_is_refused(function, bad):
    if function in ("solve exactly", "solve digits") and isinstance(bad, complex | np.complex64):
        return
    with pytest.raises(ValueError, match=r"must be finite, (got|row 0 is) .*(inf|nan|Inf|NaN)"):
        FUNCTIONS[function]([1, bad, 2])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("bad", ["2", None, np.datetime64("2020-01-01"), [1]])
def test_what_is_no_number_is_refused(function, bad):
    with pytest.raises((TypeError, ValueError) if bad == [1] else TypeError, match=r"number|inhomogeneous"):
        FUNCTIONS[function]([1, bad, 2])


@pytest.mark.parametrize("whole", [3, None, np.array(3.0), b"12", {1: 2, 3: 4}, {1, 2}, np.ones((2, 3))])
def test_coefficients_are_one_sequence(whole):
    for function in (solve, nature, lambda c: power_sums(c, 2)):
        with pytest.raises(TypeError, match=r"coefficients must be (a|one) sequence of numbers, got"):
            function(whole)


def test_parsing_takes_text_only():
    for bad in (5, b"x^2", None, [1, 2]):
        with pytest.raises(TypeError, match="expected text such as"):
            parse_polynomial(bad)


def test_long_denominators_are_refused_as_long_numerators_are():
    assert len(str(parse_polynomial("x/(7^200 7^200)")[0].denominator)) == 339
    for text in ("x(7^200)^200", "x/(7^200)^200", "x(2/7^200)^150"):
        with pytest.raises(DataError, match="too long"):
            parse_polynomial(text)


# Sizes


def oracle(c, digits=40):
    with mpmath.workdps(digits + 900):
        numbers = [mpmath.mpf(v.numerator) / v.denominator for v in map(Fraction, c)]
        return mpmath.polyroots(numbers, maxsteps=3000, extraprec=4000)


SIZES = {
    "tiny root": [10**400, -1],
    "huge root": [1, -(10**400)],
    "roots at both ends": [1, -(10**250), 10**100],
    "huge square root": [1, 0, -(10**700)],
    "square root of a tiny number": [10**700, 0, -3],
    "fifth root": [1, 0, 0, 0, 0, -(10**400)],
    "far pair": [Fraction(1, 10**900), 1, 10**900],
    "spread": [1, 10**200, 1, Fraction(1, 10**200), -1],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_sizes_beyond_floats_are_answered_or_refused(name):
    c = SIZES[name]
    truth = oracle(c)
    inside = all(1e-323 < abs(part) < 1.7e308 for z in truth for part in (z.real, z.imag) if part)
    if inside:
        for root in solve(c):
            assert min(abs(root.value - z) / abs(z) for z in truth) < 1e-15
    else:
        with pytest.raises(DataError, match=r"beyond the range of floats. Ask for digits"):
            solve(c)
    roots = solve(c, digits=30)
    assert sum(r.multiplicity for r in roots) == len(c) - 1
    with mpmath.workdps(40):
        for root in roots:
            assert min(abs(root.value - z) / abs(z) for z in truth) < mpmath.mpf(10) ** -29
            assert root.backward_error < 1e-15
            assert root.condition > 0.99 / (len(c) - 1)


@pytest.mark.parametrize("c", [[1, 1, Fraction(1, 10**500)], [1, 10**700, 1, 1], [1, 0, 1, 0, 0, -(10**4000)]])
@pytest.mark.parametrize("options", [{}, {"digits": 20}])
def test_sizes_too_far_apart_are_refused(c, options):
    with pytest.raises(DataError, match="such different sizes"):
        solve(c, **options)


@pytest.mark.parametrize(
    "c",
    [[10**400, 1.5, -2.0], [10**400, 1j], [Decimal("1e500"), 0, -1], [1.0, Fraction(1, 10**400)],
     np.array([1, 0, np.longdouble("1e4000")]), [5e-324, 1.0, 5e-324]],
)  # fmt: skip
def test_floats_that_cannot_hold_the_numbers_say_so(c):
    for function in (solve, nature):
        with pytest.raises(DataError, match=r"beyond the range of floats.*exact=True"):
            function(c)
    assert isinstance(discriminant(c) if not any(isinstance(v, complex) for v in c) else 0.0, float | int)


@pytest.mark.parametrize(
    "text",
    ["10^400 x - 1", "x - 1e400", "x^2 - 10^700", "x^3 + 10^1000", "1e-900 x^2 + x + 1e900", "x^4 - 10^1000 x + 1e-700",
     "10^2000 x^2 + x + 10^2200", "x^5 + 10^900", "10^400"],
)  # fmt: skip
@pytest.mark.parametrize("options", [[], ["--json"], ["--steps"], ["--digits", "20", "--steps"]])
def test_the_command_line_never_ends_in_a_traceback(text, options, capsys):
    assert main(["solve", text, *options]) in (0, 1)
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    assert "Exceeds the limit" not in said.err + said.out


def test_batches_refuse_what_floats_cannot_hold():
    for function in (solve_quadratic, discriminant):
        with pytest.raises(ValueError, match=r"64-bit floats|finite"):
            function(np.array([[10**400, 0, -1]], object))
        with pytest.raises(ValueError, match="finite"):
            function(np.array([[np.longdouble("1e4000"), 0, -1]]))


def test_batches_of_half_precision_are_computed_in_double():
    c = np.array([[300, 300, 300, 300], [1, -6, 11, -6]], np.float16)  # 300^4 is beyond half precision
    d = discriminant(c)
    assert d.dtype == np.float32
    assert d.tolist() == pytest.approx([float(discriminant(row.tolist())) for row in c], rel=1e-7)
    assert discriminant(torch.tensor(c.tolist(), dtype=torch.bfloat16)).tolist() == pytest.approx(d.tolist(), rel=2e-2)
    near = np.array([[1, -2.0002, 1.0002]], np.float32)
    assert discriminant(near)[0] == pytest.approx(float(discriminant(near[0].tolist())), rel=1e-6)
    assert elementary_symmetric(np.array([200, 300, 400], np.float16)).tolist() == [900, 260_000, 24_000_000]
    assert discriminant(np.array([[2**40, 0, -1]])).tolist() == [2.0**42]


# Laws of the closed forms


@pytest.mark.parametrize("n", [2, 3, 4])
def test_complex_numbers_without_imaginary_part_are_real(n):
    solver = {2: solve_quadratic, 3: solve_cubic, 4: solve_quartic}[n]
    c = np.random.default_rng(n).normal(size=(50, n + 1))
    real = solver(c)
    assert np.array_equal(solver(c.astype(complex)), real)  # to the last bit
    mixed = c.astype(complex)
    mixed[1] += 1j
    assert np.array_equal(np.delete(solver(mixed), 1, 0), np.delete(real, 1, 0))  # whatever the rows beside
    assert np.array_equal(solver(mixed)[1], solver(mixed[1]))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_few_rows_need_iterations(n, monkeypatch):
    rows = []
    monkeypatch.setattr(closed, "aberth", lambda c, z: rows.append(len(c)) or _aberth.aberth(c, z))
    solver = {2: solve_quadratic, 3: solve_cubic, 4: solve_quartic}[n]
    solver(np.random.default_rng(0).normal(size=(4000, n + 1)))
    assert sum(rows) <= {2: 0, 3: 0.02, 4: 0.03}[n] * 4000


def test_points_that_meet_part_again():
    # x^2 - 2 and both points at 1: Weierstrass' correction divides by their difference
    one = 1 << 100
    roots = sorted(_weierstrass([1, 0, -2], [(one, 0), (one, 0)], 100))
    exact = math.isqrt(2 << 200)
    assert [abs(x - s * exact) <= 4 and abs(y) <= 4 for (x, y), s in zip(roots, (-1, 1), strict=True)] == [True, True]
    (a, _), (b, _) = enclose([Fraction(1), Fraction(0), Fraction(-2)], 200, 2)[0]
    assert abs(a + b) <= 4


def test_symmetric_functions_refuse_in_words():
    for text in ("x/0 + y/0", "1e999*x*y", "(" * 300 + "x" + ")" * 300, "x^y", "x\0y", ""):
        with pytest.raises(ValueError, match=r"\w"):
            express_symmetric(text, ["x", "y"])
    with pytest.raises(ValueError, match="must not be 0"):
        power_sums([], 2)


def test_the_limit_on_long_numbers_does_not_stop_the_command_line():
    code = "from kexue.cli import main; raise SystemExit(main(['solve', 'x^20 = 10^250 + 7', '--json', '-q']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("exact", [None, True])
@pytest.mark.parametrize(
    "coefficients",
    [
        [1e-320, 1, 1e-320],  # a root at -1e320
        [1e-320, 1, 2, 3, 1e-320],
        [1e-308, 5e-324, 1e308, 1e154, 1e200, -1, 1e154],
        [1e-154, 1e154, 5e-324, 1e-308, 1e-308, 1e-320, 1],
        [1, -3 * 10**308, 45 * 10**615],  # 1.5e308 (1 + i) and its conjugate: each part fits, their modulus does not
    ],
    ids=str,
)
def test_numbers_of_any_size_end_in_roots_or_in_words(coefficients, exact):
    try:
        values = solve(coefficients, exact=exact).values
    except DataError as error:
        values, said = np.zeros(0), str(error)
        if not ("range of floats" in said or "Substitute x = c y" in said):
            raise
    assert np.isfinite(values).all()


def test_roots_whose_modulus_overflows_are_there_for_digits():
    with mpmath.workdps(30):
        truth = 15 * mpmath.mpf(10) ** 307
        for root, sign in zip(solve([1, -3 * 10**308, 45 * 10**615], digits=20), (-1, 1), strict=True):
            assert abs(root.value - mpmath.mpc(truth, sign * truth)) < mpmath.mpf(10) ** -19 * truth
