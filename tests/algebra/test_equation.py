import math
import subprocess
import sys
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import sympy
from hypothesis import given, settings, strategies as st

import kexue.algebra
from kexue import _optional
from kexue.algebra import discriminant, nature, solve
from kexue.algebra.enclosure import factor
from kexue.algebra.rational import count_real, square_free
from kexue.errors import MissingDependencyError


def expand(roots):
    """Coefficients of the monic polynomial with these roots, whole."""
    p = [1]
    for r in roots:
        p = [a - r * b for a, b in zip([*p, 0], [0, *p], strict=True)]
    return p


def test_a_triple_root_is_exact():
    roots = solve([1, -9, 27, -27])
    (root,) = roots
    assert (root.value, root.exact, root.multiplicity, root.backward_error) == (3, 3, 3, 0)
    assert math.isinf(root.condition)
    assert roots.values.tolist() == [3, 3, 3]
    assert roots.values.dtype == np.complex128
    assert (roots.degree, roots.discriminant, roots.nature) == (3, 0, "1 triple real root")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=7), st.integers(1, 5))
def test_whole_roots_come_back_with_their_multiplicities(chosen, leading):
    roots = solve([leading * c for c in expand(chosen)])
    assert {int(r.exact): r.multiplicity for r in roots} == {r: chosen.count(r) for r in chosen}
    assert roots.values.real.tolist() == sorted(chosen)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=7).filter(lambda c: c[0]))
def test_exact_results_against_sympy(c):
    x = sympy.Symbol("x")
    poly = sympy.Poly(c, x)
    if len(c) > 2:
        assert discriminant(c) == Fraction(int(sympy.discriminant(poly)))
    ours = {tuple(g) for part, _ in square_free([Fraction(v) for v in c]) for g in factor(part)}
    theirs = set()
    for g, _ in poly.factor_list()[1]:
        coefficients = [int(v) for v in g.all_coeffs()]
        theirs.add(tuple(v * (1 if coefficients[0] > 0 else -1) for v in coefficients))
    assert ours == theirs
    square_free_part = [Fraction(int(v)) for v in poly.sqf_part().all_coeffs()]
    assert count_real(square_free_part) == poly.count_roots()
    assert sum(r.multiplicity for r in solve(c)) == len(c) - 1


@pytest.mark.parametrize(
    "text",
    ["x^2-x-1", "x^2+2x+5", "x^3-2", "x^3-3x+1", "2x^3+x+7", "x^3+6x-20", "x^4-10x^2+1", "x^4+x+1", "x^6-2",
     "x^4-5x^3+3x^2+2x-8", "x^4+4x+2", "x^6-2x^3-1", "x^6+x^5+3x^4+x^3+3x^2+x+1", "x^8+x^4+3", "x^5=1",
     "(x^2-2)^2(x+1)", "x^4-2x^3+2x^2+x+4", "x^4-4x-1", "x^6+x^5-x^4-2x^3-x^2+x+1"],
)  # fmt: skip
def test_expressions_are_the_roots(text):
    roots = solve(text)
    expressions = roots.exact()
    assert len(expressions) == len(roots)
    p = [sympy.Rational(str(c)) for c in roots.coefficients]
    for root, expression in zip(roots, expressions, strict=True):
        value = expression.evalf(40)
        assert abs(complex(value) - root.value) <= 1e-15 * abs(root.value)
        assert abs(sympy.N(sympy.Poly(p, sympy.Symbol("x")).eval(value), 30)) < 1e-25
        if root.value.imag == 0 and root.multiplicity == 1:
            assert abs(sympy.im(value)) < 1e-30
        if isinstance(root.exact, str):
            assert abs(complex(sympy.sympify(root.exact)) - root.value) <= 1e-15 * abs(root.value)


def test_casus_irreducibilis_stays_real():
    roots = solve("x^3 - 3x + 1")
    assert all(r.value.imag == 0 for r in roots)
    assert [r.value.real for r in roots] == pytest.approx([2 * math.cos(a * math.pi / 9) for a in (8, 4, 2)], rel=1e-15)
    assert not any(e.has(sympy.I) for e in roots.exact())
    assert roots.nature == "3 simple real roots"


@pytest.mark.parametrize(
    ("coefficients", "said"),
    [
        ([1, -6, 11, -6], "3 simple real roots"),
        ([1, -4, 5, -2], "1 simple real root and 1 double real root"),
        ([1, 0, 0, -1], "1 simple real root and 1 simple pair of complex roots"),
        ([1, 0, 2, 0, 1], "1 double pair of complex roots"),
        ([1, 0, 5, 0, 4], "2 simple pairs of complex roots"),
        ([1.0, -4.0, 5.0, -2.0], "1 simple real root and 1 double real root"),
        ([1, 0, -2j], "2 simple roots of complex coefficients"),
        ([7], "no root"),
    ],
)
def test_nature(coefficients, said):
    assert nature(coefficients) == said


def test_discriminants():
    assert discriminant([1, -3, 2]) == 1
    assert discriminant([Fraction(1, 2), 0, Fraction(-1, 2)]) == 1
    assert discriminant([1, 2, 3, 4, 5]) == 10800
    assert discriminant([1.0, -0.2, 0.01]) == pytest.approx(0, abs=1e-16)
    assert discriminant([1, 0, 1j]) == pytest.approx(-4j)
    assert discriminant([0, 1, -3, 2]) == 1
    batch = np.random.default_rng(0).normal(size=(4, 5))
    assert np.allclose(discriminant(batch), [discriminant(row) for row in batch])
    roots = [1.0, 2.0, 4.0, 8.0]
    gaps = np.prod([(a - b) ** 2 for i, a in enumerate(roots) for b in roots[:i]])
    assert discriminant(np.poly(roots)[None])[0] == pytest.approx(gaps)


def test_floats_stay_floats():
    roots = solve([1.0, -6.0, 11.0, -6.0])
    assert [r.exact for r in roots] == [None] * 3
    assert isinstance(roots.discriminant, float)
    with pytest.raises(ValueError, match="exact=True"):
        roots.exact()
    assert solve([1.0, -6.0, 11.0, -6.0], exact=True)[0].exact == 1
    assert solve([1, -6, 11, -6], exact=False)[0].exact is None


def test_near_double_roots_are_told_apart_and_their_condition_is_told():
    text = "(x - 1)(x - 1.000000001)"
    roots = solve(text)
    assert [str(r.exact) for r in roots] == ["1", "1000000001/1000000000"]
    assert roots[0].condition == pytest.approx(4e9, rel=1e-6)  # sum |a| / |f'(1)| = 4 / 1e-9
    assert solve("x^2 - 0.2x + 0.01")[0].multiplicity == 2
    close = solve([10**40, -2 * 10**20 * 10**20, 10**40 - 1])  # roots 1 +- 1e-20, equal as floats
    assert len(close) == 2
    assert close[0].exact < close[1].exact


def test_rounding_is_right_to_the_last_bit():
    for text in ("x^2-2", "x^3-5x+1", "x^5-x-1", "x^7-3x^2+1"):
        p = [int(c) for c in solve(text).coefficients]
        with mpmath.workdps(60):
            truth = {complex(z) for z in mpmath.polyroots(p, maxsteps=500, extraprec=300)}
        assert {complex(r.value) for r in solve(text)} <= {complex(z) for z in truth} | {
            complex(z.real, 0) for z in truth if abs(z.imag) < 1e-40
        }


def test_digits():
    with mpmath.workdps(60):
        roots = solve("x^2 - 2", digits=50)
        assert abs(roots[1].value - mpmath.sqrt(2)) < mpmath.mpf(10) ** -49
        pair = solve([1, 1, 1], digits=40)[1].value
        assert abs(pair - mpmath.mpc(-1, mpmath.sqrt(3)) / 2) < mpmath.mpf(10) ** -39
        floats = solve([1.0, 0.0, -0.1], digits=30)  # the float next to a tenth, exactly
        assert abs(floats[1].value - mpmath.sqrt(mpmath.mpf(0.1))) < mpmath.mpf(10) ** -29
        assert floats[1].exact is None


def test_sizes_beyond_floats():
    roots = solve([10**400, 0, -(10**400)])
    assert roots.values.tolist() == [-1, 1]
    assert solve([1, -(10**300)])[0].exact == 10**300
    values = solve([1e160, -6e160, 11e160, -6e160]).values
    assert values.tolist() == pytest.approx([1, 2, 3])


def test_above_degree_four():
    quintic = solve("x^5 - x - 1", steps=True)
    assert not quintic.formula_exists
    assert "Abel-Ruffini" in quintic.explanation
    assert "not decided" in quintic.explanation
    assert quintic.steps[0].says == quintic.explanation
    for text, word in {
        "x^7 = 5": "x^7 = 5",
        "x^6 + x^3 + 2": "degree 2 in x^3",
        "2x^6 + x^5 + x^4 + 5x^3 + x^2 + x + 2": "palindromic",
        "x^6 + x^5 + x^4 + x^3 + x^2 + x + 1": "7-th roots of unity",
        "(x^3 - 2)(x^2 - x + 5)": "factors of degree 4",
    }.items():
        roots = solve(text)
        assert roots.formula_exists, text
        assert word in roots.explanation
    assert not solve("(x^5 - x - 1)(x - 1)").formula_exists
    floats = solve([1.0, 0, 0, 0, -1.0, -1.0])
    assert not floats.formula_exists
    assert np.allclose(floats.values, quintic.values, rtol=1e-15)


@pytest.mark.parametrize(
    "text", ["x^2-5x+6", "x^3-6x^2+11x-6", "x^3+x+1", "(x-1)^3", "x^3-3x+2", "x^4+x+1", "x^4-5x^2+4", "x^6-2"]
)
def test_steps_lead_to_the_roots(text):
    roots = solve(text, steps=True)
    assert solve(text).steps == ()
    last = roots.steps[-1]
    assert last.says == "The roots:"
    assert len(last.formulas) == len(roots)
    assert all(step.text and step.latex for step in roots.steps)
    for step in roots.steps:
        for character in "{}":
            assert step.latex.count("{") == step.latex.count("}"), character


def test_the_numbers_in_the_steps():
    text = "\n".join(step.text for step in solve("x^3 - 6x^2 + 11x - 6", steps=True).steps)
    for line in ("y1 = e1/3 = 2", "P = y2 y3 = y1^2 - e2/3 = 1/3", "S = y2^3 + y3^3 = e3 - y1^3 + 3 y1 P = 0", "-1/27"):
        assert line in text
    quadratic = "\n".join(step.text for step in solve("x^2 - 5x + 6", steps=True).steps)
    assert "y1 = 5/2" in quadratic
    assert "y2 = 1/2" in quadratic
    quartic = "\n".join(step.text for step in solve("x^4 - 2x^3 + 5x - 1", steps=True).steps)
    assert "p = -3/2, q = 4, r = 21/16" in quartic
    assert "z^3 - (3/4) z^2 - (3/16) z - 1/4 = 0" in quartic


@pytest.mark.parametrize(
    ("coefficients", "options", "error", "said"),
    [
        ([0, 0, 0], {}, ValueError, "every number is a root"),
        ([0.0, 0.0], {}, ValueError, "every number is a root"),
        ("0", {}, ValueError, "every number is a root"),
        ([1.0, math.inf], {}, ValueError, "finite"),
        (["1", "2"], {}, TypeError, "numbers"),
        ([1, None], {}, TypeError, "None"),
        ([1, 2j], {"exact": True}, ValueError, "real coefficients"),
        ([1, 2], {"digits": 0}, ValueError, "1 or more"),
    ],
)
def test_mistakes(coefficients, options, error, said):
    with pytest.raises(error, match=said):
        solve(coefficients, **options)


def test_leading_zeros_and_constants():
    roots = solve([0, 0, 1, -3, 2])
    assert (roots.degree, roots.values.tolist()) == (2, [1, 2])
    assert solve([0.0, 1.0, -1.0]).values.tolist() == [1]
    assert len(solve([5])) == 0
    assert solve([1, 0, 0]).values.tolist() == [0, 0]
    assert solve([1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0]).degree == 6
    assert solve(np.array([1, -3, 2]))[1].exact == 2


def test_complex_coefficients():
    roots = solve([1, -1j, 2])
    assert roots.values.tolist() == [2j, -1j] or roots.values.tolist() == [-1j, 2j]
    assert all(r.backward_error < 1e-16 for r in roots)


def test_a_missing_package_names_its_extra(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(_optional.importlib, "import_module", absent)
    for call in (lambda: solve([1, 0, -2], digits=20), lambda: solve([1, 0, -2]).exact()):
        with pytest.raises(MissingDependencyError, match=r"kexue\[algebra\]"):
            call()


def test_every_public_name_is_there_and_importing_is_light():
    for name in kexue.algebra.__all__:
        assert getattr(kexue.algebra, name) is not None
    code = "import sys, kexue.algebra; print([m for m in ('numpy', 'torch', 'sympy', 'mpmath') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code = "import sys, kexue.algebra as a; a.solve('x^4+x+1', steps=True); a.solve_cubic([1., 2, 3, 4]); "
    code += "print([m for m in ('torch', 'sympy', 'mpmath', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_high_degrees_stay_within_a_few_seconds():
    roots = solve("x^60 + x + 1")
    assert len(roots) == 60
    assert max(r.backward_error for r in roots) < 4e-16 * 60
    assert solve("(x^2 - 2)^20")[0].multiplicity == 20
