from importlib.util import find_spec
from itertools import permutations

import numpy as np
import pytest

from kexue.errors import MissingDependencyError
from kexue.similarity import (
    emd,
    explain,
    product_upper_bound,
    relaxed_wmd,
    relaxed_wrd,
    wcd,
    word_movers_distance,
    word_rotators_distance,
    word_rotators_similarity,
)

# Sums of a few hundred products in float64, over costs of about 1.
TIGHT = 1e-12
needs_pot = pytest.mark.skipif(find_spec("ot") is None, reason="POT is not installed")
SOLVERS = ["highs", pytest.param("pot", marks=needs_pot)]


def simplex(generator, size, zeros=0):
    p = generator.random(size)
    p[:zeros] = 0
    return p / p.sum()


def problem(seed, m=7, n=5, zeros=0):
    generator = np.random.default_rng(seed)
    return simplex(generator, m, zeros), simplex(generator, n, zeros), generator.random((m, n))


def bag(seed, m=6, d=4):
    return np.random.default_rng(seed).normal(size=(m, d))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("m", "n", "zeros"), [(7, 5, 0), (5, 7, 2), (1, 6, 0), (6, 1, 0), (12, 12, 3), (2, 2, 1)])
def test_the_duals_prove_the_plan(solver, m, n, zeros):
    zeros = min(zeros, m - 1, n - 1)
    p, q, cost = problem(m * n, m, n, zeros)
    found = emd(p, q, cost, return_plan=True, solver=solver)
    np.testing.assert_allclose(found.plan.sum(axis=1), p, atol=TIGHT)
    np.testing.assert_allclose(found.plan.sum(axis=0), q, atol=TIGHT)
    assert (found.plan >= 0).all()
    assert found.distance == pytest.approx((found.plan * cost).sum(), abs=TIGHT)
    # Feasible for every pair, those without mass included, and of the same value: nothing is cheaper.
    assert (found.dual_p[:, None] + found.dual_q <= cost + TIGHT).all()
    assert p @ found.dual_p + q @ found.dual_q == pytest.approx(found.distance, abs=TIGHT)
    assert emd(p, q, cost, solver=solver) == pytest.approx(found.distance, abs=TIGHT)


@pytest.mark.parametrize("solver", ["auto", *SOLVERS])
def test_equals_the_best_assignment(solver):
    for seed in range(5):
        cost = np.random.default_rng(seed).random((5, 5))
        best = min(sum(cost[i, j] for i, j in enumerate(order)) for order in permutations(range(5))) / 5
        assert emd(np.full(5, 0.2), np.full(5, 0.2), cost, solver=solver) == pytest.approx(best, abs=TIGHT)


@pytest.mark.parametrize("solver", SOLVERS)
def test_on_a_line_it_is_the_area_between_the_distribution_functions(solver):
    scipy_stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(3)
    x, y, p, q = generator.normal(size=9), generator.normal(size=6), simplex(generator, 9), simplex(generator, 6)
    expected = scipy_stats.wasserstein_distance(x, y, p, q)
    assert emd(p, q, np.abs(x[:, None] - y), solver=solver) == pytest.approx(expected, abs=TIGHT)
    got = word_movers_distance(x[:, None], y[:, None], weights_x=p, weights_y=q, solver=solver)
    assert got == pytest.approx(expected, abs=TIGHT)


@needs_pot
def test_agrees_with_pot_on_many_shapes():
    import ot

    for seed in range(60):
        m, n = np.random.default_rng(seed).integers(1, 30, size=2)
        p, q, cost = problem(seed, m, n)
        expected = ot.emd2(p, q, cost)
        for solver in ("pot", "highs"):
            assert emd(p, q, cost, solver=solver) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_scales(solver):
    """Costs of any size (solvers stop at absolute tolerances), masses of any sum, tiny masses."""
    p, q, cost = problem(4)
    base = emd(p, q, cost, solver=solver)
    for factor in (1e-12, 1e12):
        assert emd(p, q, cost * factor, solver=solver) == pytest.approx(base * factor, rel=1e-9)
        assert emd(p * factor, q * factor, cost, solver=solver) == pytest.approx(base * factor, rel=1e-9)
    assert emd(p, q, cost - 2, solver=solver) == pytest.approx(base - 2, abs=TIGHT)
    p = np.array([1 - 3e-9, 2e-9, 1e-9])
    found = emd(p, q, np.random.default_rng(0).random((3, 5)), return_plan=True, solver=solver)
    np.testing.assert_allclose(found.plan.sum(axis=1), p, atol=1e-16)


def test_the_gradient_in_the_cost_is_the_plan_and_in_the_masses_the_duals():
    p, q, cost = problem(8)
    found = emd(p, q, cost, return_plan=True)
    step = 1e-6  # the optimum is piecewise linear in both: differences are exact up to rounding / step
    change = np.random.default_rng(0).normal(size=cost.shape)
    difference = (emd(p, q, cost + step * change) - emd(p, q, cost - step * change)) / (2 * step)
    assert difference == pytest.approx((found.plan * change).sum(), abs=1e-8)
    along = np.random.default_rng(1).normal(size=p.shape)
    along -= along.mean()
    difference = (emd(p + step * along, q, cost) - emd(p - step * along, q, cost)) / (2 * step)
    assert difference == pytest.approx(found.dual_p @ along, abs=1e-8)


def test_float32_masses_and_torch():
    torch = pytest.importorskip("torch")
    p, q, cost = problem(5, 40, 30)
    narrow = emd(p.astype(np.float32), q.astype(np.float32), cost.astype(np.float32))
    assert narrow == pytest.approx(emd(p, q, cost), abs=1e-6)  # the inputs' own rounding
    tensors = [torch.tensor(value, requires_grad=True) for value in (p, q, cost)]
    assert emd(*tensors) == emd(p, q, cost)
    x, y = bag(0), bag(1)
    assert word_rotators_distance(torch.tensor(x), torch.tensor(y)) == word_rotators_distance(x, y)


@pytest.mark.parametrize(
    ("p", "q", "cost", "message"),
    [
        ([0.5, 0.5], [0.9], [[1.0], [1.0]], "the same sum, got 1.0 and 0.9"),
        ([-0.5, 1.5], [1.0], [[1.0], [1.0]], r"p must hold finite masses >= 0, got -0.5 at position 0"),
        ([0.5, 0.5], [np.nan], [[1.0], [1.0]], r"q must hold finite masses >= 0, got nan at position 0"),
        ([0.0, 0.0], [0.0], [[1.0], [1.0]], "finite sum above 0"),
        ([], [1.0], np.empty((0, 1)), "finite sum above 0"),
        ([0.5, 0.5], [1.0], [[1.0, 1.0]], r"cost must be \(2, 1\)"),
        ([0.5, 0.5], [1.0], [[1.0], [np.inf]], "cost holds inf"),
        ([[0.5, 0.5]], [1.0], [[1.0], [1.0]], "vector of masses"),
    ],
)
def test_what_is_no_problem_is_refused(p, q, cost, message):
    with pytest.raises(ValueError, match=message):
        emd(p, q, cost)
    with pytest.raises(ValueError, match=message):
        product_upper_bound(p, q, cost)


def test_solver_names(monkeypatch):
    with pytest.raises(ValueError, match="solver must be one of"):
        emd([1.0], [1.0], [[1.0]], solver="simplex")
    from kexue.similarity.transport import solvers

    def absent(name, **_):
        raise MissingDependencyError("ot", "transport")

    p, q, cost = problem(2)
    expected = emd(p, q, cost, solver="highs")
    solvers._pot_solver.cache_clear()
    monkeypatch.setattr(solvers, "import_optional", absent)
    assert emd(p, q, cost) == expected  # "auto" falls back
    with pytest.raises(MissingDependencyError, match=r"kexue\[transport\]"):
        emd(p, q, cost, solver="pot")
    solvers._pot_solver.cache_clear()


@needs_pot
def test_pot_s_public_solver_serves_when_the_private_one_changed(monkeypatch):
    import ot.lp.emd_wrap

    from kexue.similarity.transport import solvers

    def changed(*arguments):
        raise TypeError("another signature")

    p, q, cost = problem(6, zeros=2)
    before = emd(p, q, cost, return_plan=True, solver="pot")
    with monkeypatch.context() as patch:
        patch.setattr(ot.lp.emd_wrap, "emd_c", changed)
        solvers._pot_solver.cache_clear()
        after = emd(p, q, cost, return_plan=True, solver="pot")
    solvers._pot_solver.cache_clear()
    np.testing.assert_allclose(after.plan, before.plan, atol=TIGHT)
    assert p @ after.dual_p + q @ after.dual_q == pytest.approx(before.distance, abs=TIGHT)


def turn(d, seed=9):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


@pytest.mark.parametrize("distance", [word_movers_distance, word_rotators_distance])
def test_what_both_distances_do_not_see(distance):
    x, y = bag(0), bag(1, m=4)
    base = distance(x, y)
    assert distance(y, x) == pytest.approx(base, abs=TIGHT)
    assert distance(x[::-1], y[[2, 0, 3, 1]]) == pytest.approx(base, abs=TIGHT)
    assert distance(np.concatenate([x, x]), y) == pytest.approx(base, abs=TIGHT)
    assert distance(x @ turn(4), y @ turn(4)) == pytest.approx(base, abs=TIGHT)
    assert distance(x, x[::-1]) == pytest.approx(0, abs=TIGHT)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e-100, 1e100, 1e160, 1e300])
@pytest.mark.parametrize("distance", [word_movers_distance, word_rotators_distance, wcd, relaxed_wmd, relaxed_wrd])
def test_distances_grow_with_the_vectors_at_every_scale(distance, size):
    x, y = bag(30), bag(31, m=4)
    grows = distance in (word_movers_distance, wcd, relaxed_wmd)
    assert distance(x * size, y * size) == pytest.approx(distance(x, y) * (size if grows else 1), rel=1e-12)
    if grows:
        assert distance(np.full((1, 4), 1e307), np.full((1, 4), -1e307)) == pytest.approx(4e307)


def test_distances_out_of_float64_are_named():
    for distance in (word_movers_distance, relaxed_wmd):
        with pytest.raises(ValueError, match="overflow float64"):
            distance(np.full((1, 4), 1.7e308), np.full((1, 4), -1.7e308))


def test_large_masses_are_no_infinity():
    p, q, cost = problem(32)
    for size in (1e-300, 1e200, 1e300):
        assert emd(p * size, q * size, cost) == pytest.approx(emd(p, q, cost) * size, rel=1e-12)
        assert product_upper_bound(p * size, q * size, cost) == pytest.approx(product_upper_bound(p, q, cost) * size)


@pytest.mark.parametrize("solver", ["auto", *SOLVERS])
def test_uneven_masses_against_even_ones_are_no_assignment(solver):
    # The same number of tokens on both sides, equal masses on one only: an assignment would move 1/3 each.
    p, q = np.array([0.6, 0.3, 0.1]), np.full(3, 1 / 3)
    cost = np.abs(np.subtract.outer([0.0, 1.0, 2.0], [0.0, 1.0, 2.0]))
    for one, other in ((p, q), (q, p)):
        # On a line: the area between the distribution functions, |0.6 - 1/3| + |0.9 - 2/3|.
        assert emd(one, other, cost, solver=solver) == pytest.approx(0.5, abs=1e-12)
        assert emd(one, other, cost, solver=solver, return_plan=True).distance == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("call", [word_movers_distance, word_rotators_distance, wcd, relaxed_wmd, relaxed_wrd])
def test_sequences_may_come_once(call):
    x, y = bag(33), bag(34)
    assert call(iter(x), map(list, y)) == call(x, y)
    plan = {"return_plan": True} if call in (word_movers_distance, word_rotators_distance) else {}
    if plan:
        np.testing.assert_array_equal(call(iter(x), iter(y), **plan).plan, call(x, y, **plan).plan)
    assert explain(iter(x), iter(y), iter("abcdef"), map(str, range(6))) == explain(
        x, y, list("abcdef"), list("012345")
    )


def test_what_only_one_of_them_sees():
    x, y = bag(0), bag(1, m=4)
    assert word_rotators_distance(1e-160 * x, 1e200 * y) == pytest.approx(word_rotators_distance(x, y), abs=TIGHT)
    shift = np.ones(4)
    assert word_movers_distance(x + shift, y + shift) == pytest.approx(word_movers_distance(x, y), abs=TIGHT)
    heavier = x * np.array([5.0, 1, 1, 1, 1, 1])[:, None]  # one word more important
    assert abs(word_rotators_distance(heavier, y) - word_rotators_distance(x, y)) > 1e-3


def test_wrd_is_half_the_squared_chord_transport():
    """sqrt(2 WRD) is the 2-Wasserstein distance of directions, hence obeys the triangle inequality."""
    worst = -np.inf
    for seed in range(20):
        a, b, c = (bag(3 * seed + i, m=3, d=2) for i in range(3))
        ab, bc, ac = (np.sqrt(2 * word_rotators_distance(u, v)) for u, v in ((a, b), (b, c), (a, c)))
        assert ac <= ab + bc + TIGHT
        worst = max(worst, ac**2 - ab**2 - bc**2)
    assert worst > 0.01  # WRD itself does break it
    right, middle, up = [[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 1.0]]
    assert word_rotators_distance(right, up) > 2 * word_rotators_distance(right, middle)


def test_closed_forms():
    assert word_rotators_distance([[3.0, 0.0]], [[-0.1, 0.0]]) == 2.0
    assert word_rotators_similarity([[1.0, 1.0]], [[1.0, 0.0]]) == pytest.approx(np.sqrt(0.5), abs=TIGHT)
    # Lengths 3 and 1 against one token: 3/4 of the mass turns by 90 degrees, the rest stays.
    assert word_rotators_distance([[3.0, 0.0], [0.0, 1.0]], [[0.0, 1.0]]) == pytest.approx(0.75, abs=TIGHT)
    assert word_movers_distance([[0.0, 0.0]], [[3.0, 4.0], [0.0, 1.0]]) == pytest.approx(3.0, abs=TIGHT)


def test_the_bag_form_is_the_sequence_form():
    words = bag(2, m=3)
    sequence = words[[0, 1, 1, 2, 2, 2]]
    other = bag(3, m=5)
    expected = word_movers_distance(sequence, other)
    assert word_movers_distance(words, other, weights_x=[1, 2, 3]) == pytest.approx(expected, abs=TIGHT)
    assert word_movers_distance(sequence, words, weights_y=[1, 2, 3]) == pytest.approx(0, abs=TIGHT)


def test_scale_rms_is_the_article_s_code():
    x, y = bag(0), bag(1)
    cost = np.sqrt(np.mean((x[:, None] - y[None, :]) ** 2, axis=2))
    expected = emd(np.full(6, 1 / 6), np.full(6, 1 / 6), cost)
    assert word_movers_distance(x, y, scale="rms") == pytest.approx(expected, abs=TIGHT)
    assert word_movers_distance(x, y) == pytest.approx(expected * 2, abs=TIGHT)  # sqrt(d), d = 4


def test_zero_vectors_carry_no_weight():
    x, y = bag(0), bag(1)
    padded = np.insert(x, 2, 0.0, axis=0)
    assert word_rotators_distance(padded, y) == pytest.approx(word_rotators_distance(x, y), abs=TIGHT)
    found = word_rotators_distance(padded, y, return_plan=True)
    assert found.plan.shape == (7, 6)
    assert (found.plan[2] == 0).all()
    assert np.isnan(found.dual_p[2])
    assert np.isfinite(np.delete(found.dual_p, 2)).all()


@pytest.mark.parametrize("distance", [word_movers_distance, word_rotators_distance])
def test_empty_sequences(distance):
    x, nothing = bag(0), np.empty((0, 4))
    for a, b in ((x, nothing), (nothing, x), (nothing, nothing), (x, [])):
        assert distance(a, b) == np.inf
        with pytest.raises(ValueError, match="Leave empty texts out"):
            distance(a, b, on_empty="raise")
    found = distance(x, nothing, return_plan=True)
    assert found.plan.shape == (6, 0)
    assert np.isnan(found.dual_p).all()
    assert word_rotators_similarity(x, nothing) == -np.inf


def test_all_zero_sequences_have_no_direction():
    x, zeros = bag(0), np.zeros((2, 4))
    assert word_rotators_distance(x, zeros) == word_rotators_distance(zeros, zeros) == np.inf
    with pytest.raises(ValueError, match="not zero"):
        word_rotators_distance(x, zeros, on_empty="raise")
    assert word_movers_distance(zeros, zeros) == 0.0


@pytest.mark.parametrize("distance", [word_movers_distance, word_rotators_distance])
def test_bad_vectors(distance):
    x = bag(0)
    with pytest.raises(ValueError, match=r"the same dimension, got shapes \(6, 4\) and \(6, 3\)"):
        distance(x, x[:, :3])
    with pytest.raises(ValueError, match="y holds nan"):
        distance(x, np.where(x > 2, x, np.nan))
    with pytest.raises(ValueError, match="2-dimensional"):
        distance(x, x[0])
    with pytest.raises(ValueError, match="on_empty must be one of"):
        distance(x, x, on_empty="nan")


def test_bad_weights():
    x = bag(0)
    for weights, message in (
        ([1.0, 2.0], "one weight per token: expected 6, got 2"),
        ([0.0] * 6, "finite sum above 0"),
        ([-1.0] * 6, "masses >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            word_movers_distance(x, x, weights_x=weights)
    with pytest.raises(ValueError, match="metric must be one of"):
        word_movers_distance(x, x, metric="cosine")
    with pytest.raises(ValueError, match="scale must be one of"):
        word_movers_distance(x, x, scale="mean")


@pytest.mark.parametrize(("kind", "distance"), [("wrd", word_rotators_distance), ("wmd", word_movers_distance)])
def test_an_explanation_adds_up(kind, distance):
    x, y = np.insert(bag(0, m=9), 4, 0.0, axis=0), bag(1, m=5)
    names_x, names_y = [f"a{i}" for i in range(10)], [f"b{i}" for i in range(5)]
    explanation = explain(x, y, names_x, names_y, kind=kind)
    assert explanation.kind == kind
    assert explanation.distance == pytest.approx(distance(x, y), abs=TIGHT)
    assert sum(pair.contribution for pair in explanation.pairs) == pytest.approx(explanation.distance, abs=1e-9)
    assert sum(pair.mass for pair in explanation.pairs) == pytest.approx(1, abs=TIGHT)
    assert [pair.mass for pair in explanation.pairs] == sorted((pair.mass for pair in explanation.pairs), reverse=True)
    plan = distance(x, y, return_plan=True).plan
    for pair in explanation.pairs:  # the names sit where the plan has them, the zero vector skipped
        assert plan[int(pair.source[1:]), int(pair.target[1:])] == pytest.approx(pair.mass, abs=TIGHT)
        assert pair.contribution == pair.mass * pair.cost
    assert ("a4" in {pair.source for pair in explanation.pairs}) == (kind == "wmd")
    assert explain(x, y, names_x, names_y, kind=kind, top=2).pairs == explanation.pairs[:2]


def test_explanations_refuse_what_does_not_fit():
    x, y = bag(0, m=2), bag(1, m=3)
    with pytest.raises(ValueError, match="each of the 3 vectors of y, got 2 names"):
        explain(x, y, ["a", "b"], ["c", "d"])
    with pytest.raises(ValueError, match="got one string"):
        explain(x, y, "ab", ["c", "d", "e"])
    with pytest.raises(ValueError, match="top must be"):
        explain(x, y, ["a", "b"], ["c", "d", "e"], top=0)
    with pytest.raises(ValueError, match="kind must be one of"):
        explain(x, y, ["a", "b"], ["c", "d", "e"], kind="emd")
    assert explain(x, np.empty((0, 4)), ["a", "b"], []) == (np.inf, "wrd", ())
