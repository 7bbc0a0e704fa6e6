from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kexue.errors import DataError
from kexue.similarity import merge_moments, moments
from kexue.similarity.whitening import statistics, threads

# Sums of n float64 terms of size s err by about n * 1e-16 * s; 1e-12 relative leaves a thousandfold margin at n = 1000.
TIGHT = 1e-12


def oracle(x, weight=None):
    """Two-pass moments: numpy's own mean and covariance."""
    x = np.asarray(x, dtype=np.float64)
    weight = np.ones(len(x)) if weight is None else weight
    mean = np.average(x, axis=0, weights=weight)
    return weight.sum(), mean, (x - mean).T @ ((x - mean) * weight[:, None])


def assert_same(found, wanted, rtol=TIGHT):
    assert found[0] == pytest.approx(wanted[0])
    scale = np.sqrt(np.diagonal(wanted[2])).max() + 1e-300
    np.testing.assert_allclose(found[1], wanted[1], rtol=rtol, atol=rtol * scale)
    np.testing.assert_allclose(found[2], wanted[2], rtol=rtol, atol=rtol * scale**2)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int16])
@pytest.mark.parametrize("offset", [0, 100])
def test_equals_two_passes_for_every_dtype(dtype, offset):
    x = (np.random.default_rng(0).normal(size=(1000, 7)) * 20 + offset).astype(dtype)
    found = moments(x)
    assert found.mean.dtype == found.scatter.dtype == np.float64
    assert_same(found, oracle(x))
    assert (found.scatter == found.scatter.T).all()


def test_a_large_mean_does_not_cancel():
    # N(3000, 1) in float32: E[x'x] - mu'mu gives a covariance with negative variances there.
    x = np.random.default_rng(1).normal(3000.0, 1.0, size=(5000, 3)).astype(np.float32)
    naive = (x.T @ x) / np.float32(len(x)) - np.outer(x.mean(0), x.mean(0))
    assert np.abs(naive - np.eye(3)).max() > 1  # the trap is real
    found = moments(x)
    np.testing.assert_allclose(found.scatter / found.n, np.eye(3), atol=0.1)  # sampling error 1/sqrt(5000) = 0.014
    assert_same(found, oracle(x), rtol=1e-9)  # float64 sums of squares of 3000 would lose 7 of 16 digits


@pytest.mark.parametrize("order", ["first far", "last far"])
def test_rows_in_the_worst_order_keep_their_digits(order):
    # A block whose sample of first rows says "no shift needed" and whose other rows lie far away, and the reverse.
    x = np.random.default_rng(2).normal(size=(statistics._BLOCK_ROWS, 4))
    far = slice(None, 256) if order == "first far" else slice(256, None)
    x[far] += 1e6
    assert_same(moments(x), oracle(x))


@given(st.integers(1, 60), st.integers(1, 6), st.lists(st.integers(0, 60), max_size=4), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_chunking_gives_the_same_moments(n, d, cuts, seed):
    x = np.random.default_rng(seed).normal(size=(n, d)) * 3 + 5
    edges = sorted({0, n, *(min(c, n) for c in cuts)})
    parts = [moments(x[a:b]) for a, b in pairwise(edges)]
    whole = parts[0]
    for part in parts[1:]:
        whole = merge_moments(whole, part)
    assert_same(whole, oracle(x))


def test_merge_is_commutative_and_leaves_its_arguments():
    a, b = (moments(np.random.default_rng(s).normal(s, 1 + s, size=(50, 5))) for s in (0, 1))
    before = a.scatter.copy()
    assert_same(merge_moments(a, b), merge_moments(b, a))
    assert (a.scatter == before).all()
    with pytest.raises(ValueError, match="5 and of 1 dimensions"):
        merge_moments(a, moments([[1.0]]))


def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    x = np.random.default_rng(3).normal(size=(5 * 8192 + 17, 5)) + 2
    alone = moments(x)
    monkeypatch.setattr(threads, "_blas_threads", lambda controller: 3)
    together = moments(x)
    assert (alone.scatter == together.scatter).all()
    assert (alone.mean == together.mean).all()


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(threads, "_blas_threads", lambda controller: 2)

    def work(start):
        if start == 3:
            raise ZeroDivisionError
        return start

    with pytest.raises(ZeroDivisionError):
        list(threads.map_blocks(work, range(6)))
    assert list(threads.map_blocks(lambda i: i * i, range(9))) == [i * i for i in range(9)]


def test_a_weight_of_two_is_a_row_twice():
    random = np.random.default_rng(4)
    x, repeats = random.normal(size=(80, 4)) + 3, random.integers(0, 4, 80)
    assert_same(moments(x, sample_weight=repeats), moments(np.repeat(x, repeats, axis=0)))
    assert_same(moments(x, sample_weight=repeats * 0.25), oracle(x, repeats * 0.25))


@pytest.mark.parametrize("weight", [[1, 2], [[1], [2], [3]], [-1, 1, 1], [0, 0, 0], [np.nan, 1, 1]])
def test_bad_weights(weight):
    with pytest.raises(ValueError, match="sample_weight must"):
        moments(np.eye(3), sample_weight=weight)


@pytest.mark.parametrize("kind", ["fortran", "strided", "reversed", "big endian", "list", "torch", "bfloat16"])
def test_every_layout(kind):
    x = np.random.default_rng(5).integers(-8, 8, size=(300, 6)).astype(np.float64)  # exact in bfloat16
    views = {
        "fortran": lambda: np.asfortranarray(x),
        "strided": lambda: np.repeat(x, 2, axis=1)[:, ::2],
        "reversed": lambda: x[::-1],
        "big endian": lambda: x.astype(">f8"),
        "list": x.tolist,
        "torch": lambda: torch.tensor(x, requires_grad=True),
        "bfloat16": lambda: torch.tensor(x, dtype=torch.bfloat16),
    }
    assert_same(moments(views[kind]()), oracle(x))


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("row", [0, 70_000])
def test_a_value_that_is_not_finite_is_named(value, word, dtype, row):
    x = np.zeros((80_000, 3), dtype=dtype)
    x[row, 2] = x[row + 5, 0] = value
    with pytest.raises(DataError, match=rf"\({word}\) at row {row}, column 2") as caught:
        moments(x)
    assert "isfinite" in caught.value.remedy


def test_values_too_large_to_square():
    with pytest.raises(ValueError, match="too large"):
        moments(np.full((3, 2), 1e200) * [[1], [2], [-3]])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.zeros((0, 3)), "0 sample"),
        (np.zeros((3, 0)), "0 feature"),
        (np.zeros((3, 2), dtype=complex), "Complex data not supported"),
        ([["a", "b"]], "real numbers"),
    ],
)
def test_what_is_no_matrix(x, message):
    with pytest.raises(ValueError, match=message):
        moments(x)


@pytest.mark.parametrize("total", [1.0, 7.0, 1e-3])
def test_only_the_ratio_of_weights_counts_for_mean_and_spread(total):
    generator = np.random.default_rng(20)
    X, weight = generator.normal(size=(40, 3)) + 5, generator.uniform(0.1, 2, 40)
    weight *= total / weight.sum()
    found = moments(X, sample_weight=weight)
    centred = X - np.average(X, axis=0, weights=weight)
    assert found.n == pytest.approx(total)
    np.testing.assert_allclose(found.mean, np.average(X, axis=0, weights=weight), rtol=1e-13)
    np.testing.assert_allclose(found.scatter, (centred * weight[:, None]).T @ centred, rtol=1e-10, atol=1e-12 * total)
    both = merge_moments(moments(X[:9], sample_weight=weight[:9]), moments(X[9:], sample_weight=weight[9:]))
    np.testing.assert_allclose(both.mean, found.mean, rtol=1e-13)
    np.testing.assert_allclose(both.scatter, found.scatter, rtol=1e-10, atol=1e-12 * total)
