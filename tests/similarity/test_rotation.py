import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from kexue.similarity.rotation import RotationOperator, align_mean, rotation_between

KINDS = ("rotation", "householder", "symmetric")
# Products of two reflections in float64: a few units in the last place times a small factor.
TIGHT = 1e-13


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def closed_form(a, b, kind):
    """The article's formulas, singular points and all."""
    a, b = unit(a), unit(b)
    c, eye = a @ b, np.eye(len(a))
    if kind == "rotation":
        return eye + 2 * np.outer(b, a) - np.outer(a + b, a + b) / (1 + c)
    if kind == "householder":
        return eye - np.outer(a - b, a - b) / (1 - c)
    return np.outer(a + b, a + b) / (1 + c) - eye


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [2, 3, 7, 64])
def test_equals_the_article_s_closed_form(kind, d):
    generator = np.random.default_rng(d)
    a, b = generator.normal(size=(2, d)) * 3
    np.testing.assert_allclose(rotation_between(a, b, kind=kind), closed_form(a, b, kind), atol=TIGHT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [2, 3, 10])
def test_laws(kind, d):
    a, b = unit(np.random.default_rng(d).normal(size=(2, d)))
    T = rotation_between(a, b, kind=kind)
    np.testing.assert_allclose(T @ a, b, atol=TIGHT)
    np.testing.assert_allclose(T.T @ T, np.eye(d), atol=TIGHT)
    determinant = {"rotation": 1, "householder": -1, "symmetric": (-1) ** (d - 1)}[kind]
    trace = {"rotation": d - 2 + 2 * a @ b, "householder": d - 2, "symmetric": 2 - d}[kind]
    assert np.linalg.det(T) == pytest.approx(determinant, abs=TIGHT)
    assert np.trace(T) == pytest.approx(trace, abs=TIGHT)
    if kind == "rotation":  # fixes what is orthogonal to both
        basis = np.linalg.qr(np.column_stack([a, b, np.random.default_rng(0).normal(size=(d, d - 2))]))[0][:, 2:]
        np.testing.assert_allclose(T @ basis, basis, atol=TIGHT)
    else:
        np.testing.assert_allclose(T, T.T, atol=TIGHT)
        np.testing.assert_allclose(T @ b, a, atol=TIGHT)


def test_the_article_s_vectors():
    a, b = np.arange(1.0, 6.0), np.arange(9.0, 4.0, -1.0)
    for kind in KINDS:
        T = rotation_between(a, b, kind=kind)
        np.testing.assert_allclose(T @ unit(a), unit(b), atol=TIGHT)


def test_three_dimensions_is_rodrigues():
    a, b = unit(np.random.default_rng(1).normal(size=(2, 3)))
    axis = np.cross(a, b)
    angle = np.arctan2(np.linalg.norm(axis), a @ b)
    expected = Rotation.from_rotvec(angle * unit(axis)).as_matrix()
    np.testing.assert_allclose(rotation_between(a, b), expected, atol=TIGHT)


def test_householder_and_symmetric_agree_in_the_plane():
    a, b = np.random.default_rng(2).normal(size=(2, 2))
    T = [rotation_between(a, b, kind=kind) for kind in ("householder", "symmetric")]
    np.testing.assert_allclose(*T, atol=TIGHT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epsilon", [0.0, 1e-7, 1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("sign", [1, -1])
def test_float32_stays_orthogonal_near_both_singular_points(kind, epsilon, sign):
    generator = np.random.default_rng(3)
    a = unit(generator.normal(size=64))
    b = sign * unit(a + epsilon * unit(generator.normal(size=64)))
    a, b = a.astype(np.float32), b.astype(np.float32)
    T = rotation_between(a, b, kind=kind)
    assert T.dtype == np.float32
    # Entries rounded once to float32 (6e-8); a sum of 64 squares of them is good to a few 1e-7.
    np.testing.assert_allclose(T.T @ T, np.eye(64), atol=5e-7)
    np.testing.assert_allclose(T @ a, b, atol=5e-7)


def as_kind(x, library, dtype):
    x = x.astype(dtype)
    return pytest.importorskip("torch").from_numpy(x) if library == "torch" else x


# What lies between exactly collinear and clearly not: multiples whose rounding leaves a residue, and true small angles.
ANGLES = (0.0, 1e-17, 1e-16, 1e-15, 1e-12, 1e-8, 1e-4)
MULTIPLES = {
    "float64": (1.0, -1.0, 0.3, -0.3, -0.1, 7.0, -3.0, -1e150, 1e-150),
    "float32": (1.0, -1.0, 0.3, -0.3, -0.1, 7.0, -3.0, -1e30, 1e-30),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [2, 3, 17, 1000])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_near_both_singular_points_a_still_goes_to_b(kind, d, library, dtype):
    generator = np.random.default_rng(d)
    tight = TIGHT if dtype == "float64" else 1e-6  # of T's entries, rounded once
    for multiple, angle in itertools.product(MULTIPLES[dtype], ANGLES):
        a = generator.normal(size=d)
        b = multiple * (a + angle * np.linalg.norm(a) * unit(generator.normal(size=d)))
        x, y = (as_kind(v, library, dtype) for v in (a, b))
        # The vectors as they were given, rounded to their dtype.
        here, there = (unit(np.asarray(v, dtype=np.float64) / np.abs(np.asarray(v)).max()) for v in (x, y))
        operator = rotation_between(x, y, kind=kind, as_operator=True)
        reached = np.asarray(operator.apply(as_kind(here, library, "float64")))
        np.testing.assert_allclose(reached, there, atol=tight, err_msg=f"{multiple=} {angle=}")
        back = np.asarray(operator.T.apply(as_kind(there, library, "float64")))
        np.testing.assert_allclose(back, here, atol=tight, err_msg=f"{multiple=} {angle=}")
        if d < 100:
            T = np.asarray(rotation_between(x, y, kind=kind), dtype=np.float64)
            np.testing.assert_allclose(T @ here, there, atol=tight, err_msg=f"{multiple=} {angle=}")
            np.testing.assert_allclose(T.T @ T, np.eye(d), atol=2 * tight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("multiple", [1.0, -1.0, 0.3, -0.3])
def test_collinear_members_of_a_batch_have_finite_gradients(kind, multiple):
    torch = pytest.importorskip("torch")
    a = torch.tensor(np.random.default_rng(8).normal(size=(3, 4)), requires_grad=True)
    b = torch.tensor(np.random.default_rng(9).normal(size=(3, 4)), requires_grad=True)
    with torch.no_grad():
        b[1] = multiple * a[1]
    rotation_between(a, b, kind=kind)[:, 0].sum().backward()
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


def test_equal_vectors_turn_nothing():
    a = np.array([3.0, 0.0, 4.0])
    for b in (a, 0.3 * a, 7 * a):
        np.testing.assert_allclose(rotation_between(a, b), np.eye(3), atol=TIGHT)
    for b in (-a, -0.3 * a, -7 * a):
        assert np.linalg.det(rotation_between(a, b)) == pytest.approx(1, abs=TIGHT)


@pytest.mark.parametrize(("kind", "b"), [("rotation", -2.0), ("symmetric", -2.0), ("householder", 2.0)])
def test_one_dimension_has_its_limits(kind, b):
    with pytest.raises(ValueError, match="dimension"):
        rotation_between([1.0], [b], kind=kind)


def test_one_dimension_elsewhere():
    assert rotation_between([2.0], [3.0]).item() == pytest.approx(1)
    assert rotation_between([2.0], [-3.0], kind="householder").item() == pytest.approx(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_operator_equals_matrix_and_transposes(kind):
    generator = np.random.default_rng(4)
    a, b = generator.normal(size=(2, 9))
    X = generator.normal(size=(20, 9))
    operator = rotation_between(a, b, kind=kind, as_operator=True)
    assert isinstance(operator, RotationOperator)
    T = operator.matrix()
    np.testing.assert_allclose(T, rotation_between(a, b, kind=kind), atol=TIGHT)
    np.testing.assert_allclose(operator.apply(X), X @ T.T, atol=TIGHT)
    np.testing.assert_allclose(operator.apply(X[0]), T @ X[0], atol=TIGHT)
    np.testing.assert_allclose(operator.T.apply(operator.apply(X)), X, atol=TIGHT)
    np.testing.assert_allclose(operator.T.matrix(), T.T, atol=TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_members(kind):
    generator = np.random.default_rng(5)
    a, b = generator.normal(size=(2, 4, 6))
    b[1] = -a[1]
    b[2] = a[2]
    batch = rotation_between(a, b, kind=kind)
    assert batch.shape == (4, 6, 6)
    for i in range(4):
        np.testing.assert_allclose(batch[i], rotation_between(a[i], b[i], kind=kind), atol=TIGHT)
    X = generator.normal(size=(4, 3, 6))
    applied = rotation_between(a, b, kind=kind, as_operator=True).apply(X)
    np.testing.assert_allclose(applied, X @ np.swapaxes(batch, -1, -2), atol=TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_equals_numpy_and_has_gradients(kind):
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(6)
    a, b = generator.normal(size=(2, 5))
    tensors = [torch.tensor(x, requires_grad=True) for x in (a, b)]
    T = rotation_between(*tensors, kind=kind)
    np.testing.assert_allclose(T.detach().numpy(), rotation_between(a, b, kind=kind), atol=TIGHT)
    assert torch.autograd.gradcheck(lambda x, y: rotation_between(x, y, kind=kind), tensors)
    # A batch with a singular member still has finite gradients.
    x = torch.tensor(np.stack([a, a]), requires_grad=True)
    singular = a if kind == "householder" else -a
    rotation_between(x, torch.tensor(np.stack([b, singular])), kind=kind).sum().backward()
    assert torch.isfinite(x.grad).all()
    single = rotation_between(tensors[0].float(), tensors[1].float(), kind=kind, as_operator=True)
    assert single.apply(torch.ones(3, 5)).dtype == torch.float32


def test_align_mean_turns_the_mean_and_keeps_the_gram():
    X = np.random.default_rng(7).normal(loc=1.0, size=(50, 8))
    target = np.eye(8)[0] * 5
    Y = align_mean(X, target)
    np.testing.assert_allclose(unit(Y.mean(axis=0)), np.eye(8)[0], atol=TIGHT)
    np.testing.assert_allclose(Y @ Y.T, X @ X.T, atol=1e-12)  # inner products of size about 30


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("multiple", [-3.0, -0.1, 0.3, 3.0])
@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150])
def test_align_mean_to_a_multiple_of_the_mean(library, multiple, scale):
    for seed in range(30):
        X = np.random.default_rng(seed).normal(loc=1.0, size=(20, 6)) * scale
        target = multiple * (X / scale).mean(axis=0)
        Y = np.asarray(align_mean(as_kind(X, library, "float64"), target))
        np.testing.assert_allclose(unit(Y.mean(axis=0) / scale), unit(target), atol=1e-12)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_mean_that_is_rounding_has_no_direction(library, dtype):
    # 0.1 + 0.2 - 0.3 is 3e-17, and no direction; nor is what subtracting the mean leaves.
    residue = np.array([[0.1, 0.1], [0.2, 0.2], [-0.3, -0.3]])
    X = np.random.default_rng(9).normal(size=(1000, 3)).astype(dtype)
    for rows in (residue, X - X.mean(axis=0)):
        with pytest.raises(ValueError, match="zero up to rounding"):
            align_mean(as_kind(rows, library, dtype), np.ones(rows.shape[1]))
    with pytest.raises(ValueError, match="n >= 1"):
        align_mean(as_kind(X[:0], library, dtype), np.ones(3))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["int64", "float16", "float32", "float64"])
def test_rows_keep_their_dtype_and_integers_become_float64(library, dtype):
    operator = rotation_between([1.0, 2.0, 3.0], [-1.0, 0.0, 1.0], as_operator=True)
    rows = np.arange(12).reshape(4, 3)
    exact = operator.apply(rows.astype(np.float64))
    turned = np.asarray(operator.apply(as_kind(rows, library, dtype)))
    assert turned.dtype == ("float64" if dtype == "int64" else dtype)
    np.testing.assert_allclose(turned, exact, rtol={"float16": 1e-3, "float32": 1e-6}.get(dtype, 1e-14), atol=1e-6)
    centred = align_mean(as_kind(rows, library, dtype), [0.0, 1.0, 0.0])
    assert np.asarray(centred).dtype == turned.dtype


def test_meta_and_complex_are_refused_by_name():
    torch = pytest.importorskip("torch")
    meta = torch.ones(3, device="meta")
    with pytest.raises(ValueError, match="b is on the meta device"):
        rotation_between(torch.ones(3), meta)
    with pytest.raises(ValueError, match="embeddings is on the meta device"):
        align_mean(meta[None], [1.0, 0, 0])
    with pytest.raises(ValueError, match="meta"):
        rotation_between(torch.ones(3), torch.arange(3), as_operator=True).apply(meta)
    with pytest.raises(ValueError, match="complex"):
        rotation_between(np.ones(3), np.ones(3) * 1j)


@pytest.mark.parametrize(
    ("a", "b", "options", "said"),
    [
        ([0.0, 0.0], [1.0, 0.0], {}, "zero"),
        ([1.0, 0.0], [np.nan, 0.0], {}, "finite"),
        ([1.0, 0.0], [1.0, 0.0, 0.0], {}, r"\(3,\)"),
        ([1.0, 0.0], [0.0, 1.0], {"kind": "mirror"}, "householder"),
        ([2.0, 0.0], [0.0, 1.0], {"normalize": False}, "unit"),
    ],
)
def test_bad_input_is_named(a, b, options, said):
    with pytest.raises(ValueError, match=said):
        rotation_between(np.array(a), np.array(b), **options)
    with pytest.raises(ValueError, match="expected vectors of 2"):
        rotation_between([1.0, 0.0], [0.0, 1.0], as_operator=True).apply(np.ones((3, 4)))


def test_tiny_and_huge_vectors_have_directions():
    T = rotation_between(np.array([1e-200, 0.0]), np.array([0.0, 1e200]))
    np.testing.assert_allclose(T @ [1.0, 0.0], [0.0, 1.0], atol=TIGHT)
