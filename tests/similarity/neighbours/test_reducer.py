import numpy as np
import pytest
from scipy import special, stats

from kexue.errors import NotFittedError, NotSupported
from kexue.similarity import HubnessReducer, hubness_report

METHODS = ("csls", "center", "nicdm", "local_scaling", "mutual_proximity")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def corpus():
    generator = np.random.default_rng(6)
    X = generator.normal(size=(80, 12)) + 0.7
    return X, generator.normal(size=(9, 12)) + 0.7


def by_hand(X, Q, method, k):
    """Each formula, for all pairs at once."""
    c = unit(Q) @ unit(X).T
    own = unit(X) @ unit(X).T
    d, own_d = np.sqrt(2 - 2 * c), np.sqrt(np.maximum(0, 2 - 2 * own))
    near_q = np.sort(d, axis=1)[:, :k]
    near_y = np.sort(own_d + np.diag(np.full(len(X), 9.0)), axis=1)[:, :k]
    if method == "csls":
        return 2 * c - (1 - near_q**2 / 2).mean(axis=1)[:, None] - (1 - near_y**2 / 2).mean(axis=1)
    if method == "center":
        return unit(Q - X.mean(axis=0)) @ unit(X - X.mean(axis=0)).T
    if method == "nicdm":
        return -d / np.sqrt(near_q.mean(axis=1)[:, None] * near_y.mean(axis=1))
    if method == "local_scaling":
        return np.exp(-(d**2) / (near_q[:, -1:] * near_y[:, -1]))
    others = own_d[~np.eye(len(X), dtype=bool)].reshape(len(X), -1)  # a vector's distance to itself is no distance
    q = special.ndtr((d.mean(axis=1)[:, None] - d) / d.std(axis=1)[:, None])
    return q * special.ndtr((others.mean(axis=1) - d) / others.std(axis=1))


@pytest.mark.parametrize("method", METHODS)
def test_rescore_is_the_formula(corpus, method):
    X, Q = corpus
    ids = np.argsort(np.random.default_rng(7).random((9, 80)), axis=1)[:, :20]
    cosines = np.take_along_axis(unit(Q) @ unit(X).T, ids, axis=1)
    ours = HubnessReducer(method, k=5).fit(X).rescore(Q, cosines, ids)
    # 2 - 2c loses half the digits near c = 1 for a point with itself, which mutual proximity averages over.
    np.testing.assert_allclose(ours, np.take_along_axis(by_hand(X, Q, method, 5), ids, axis=1), atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_zero_vectors_have_a_cosine_of_zero(method):
    generator = np.random.default_rng(12)
    X = np.vstack([generator.normal(size=(20, 4)), np.zeros((3, 4))])
    Q = np.vstack([generator.normal(size=(4, 4)), np.zeros((1, 4))])
    reducer = HubnessReducer(method, k=3).fit(X)
    ids = np.tile(np.arange(23), (5, 1))

    def safe_unit(x):
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300)

    cosines = safe_unit(Q) @ safe_unit(X).T
    scores = reducer.rescore(Q, cosines, ids)
    assert np.isfinite(scores).all()
    own = safe_unit(X) @ safe_unit(X).T - np.diag(np.full(23, 9.0))
    if method == "csls":
        r_q, r_y = (np.sort(c, axis=1)[:, -3:].mean(axis=1) for c in (cosines, own))
        np.testing.assert_allclose(scores, 2 * cosines - r_q[:, None] - r_y, atol=1e-12)
        np.testing.assert_allclose(reducer.local_[20:], 0, atol=1e-12)
    if method in ("nicdm", "local_scaling"):
        assert reducer.local_[20:] == pytest.approx(2**0.5)


@pytest.mark.parametrize("n", [3, 7, 9000])
def test_centring_equal_rows_leaves_no_direction(n):
    X = np.full((n, 5), 0.1)
    reducer = HubnessReducer("center", k=2).fit(X)
    assert not reducer.augment(X).any()
    assert not reducer.augment_queries(X[:2] + 1e-17).any()
    assert reducer.augment_queries(X[:2] + 1e-9).any()


@pytest.mark.parametrize("n", [50, 20_000])
def test_mutual_proximity_leaves_a_vector_s_own_distance_out(n):
    unit_circle = np.random.default_rng(13).normal(size=(n, 2))
    reducer = HubnessReducer("mutual_proximity", k=1).fit(unit_circle)
    some = unit(unit_circle)[:: max(1, n // 10_000)]
    for row in (0, 1, 2, n - 1):
        chords = np.linalg.norm(some - unit(unit_circle)[row], axis=1)
        chords = chords[chords > 0]
        # 2 - 2 cos loses half the digits near 0; the mean keeps seven.
        np.testing.assert_allclose(reducer.local_[row], [chords.mean(), chords.std()], rtol=1e-6)


def test_csls_as_vectors_orders_as_the_formula(corpus):
    X, Q = corpus
    reducer = HubnessReducer("csls", k=5).fit(X)
    documents, queries = reducer.augment(X), reducer.augment_queries(Q)
    assert documents.shape == (80, 13)
    products = queries @ documents.T
    explicit = by_hand(X, Q, "csls", 5)
    np.testing.assert_array_equal(np.argsort(-products, axis=1), np.argsort(-explicit, axis=1))
    near_q = np.sort(np.sqrt(2 - 2 * unit(Q) @ unit(X).T), axis=1)[:, :5]
    np.testing.assert_allclose(products - (1 - near_q**2 / 2).mean(axis=1)[:, None], explicit, atol=1e-12)


def test_centre_as_vectors(corpus):
    X, Q = corpus
    reducer = HubnessReducer("center").fit(X)
    products = reducer.augment_queries(Q) @ reducer.augment(X).T
    np.testing.assert_allclose(products, by_hand(X, Q, "center", 5), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reduces_hubness_of_the_shifted_gaussian(method):
    X = np.random.default_rng(8).normal(size=(600, 60)) + 1
    everyone = np.tile(np.arange(600), (600, 1))
    scores = HubnessReducer(method, k=10).fit(X).rescore(X, unit(X) @ unit(X).T, everyone)
    np.fill_diagonal(scores, -np.inf)
    after = np.bincount(np.argsort(-scores, axis=1)[:, :10].ravel(), minlength=600)
    assert stats.skew(after) < 0.6 * hubness_report(X, 10, metric="cosine").k_skewness


def test_dtype_and_kind_are_kept(corpus):
    torch = pytest.importorskip("torch")
    X = torch.tensor(corpus[0], dtype=torch.float32)
    reducer = HubnessReducer("csls", k=5).fit(X)
    assert reducer.augment(X).dtype == torch.float32
    assert reducer.augment_queries(corpus[1].astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ids", [[[-1]], [[80]], [[1.5]]])
def test_ids_that_are_no_rows_are_named(corpus, method, ids):
    X, Q = corpus
    reducer = HubnessReducer(method, k=5).fit(X)
    with pytest.raises(ValueError, match=r"\[0, 80\)"):
        reducer.rescore(Q[:1], [[0.5]], ids)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_named(corpus, method, bad):
    X, Q = corpus
    reducer = HubnessReducer(method, k=5).fit(X)
    with pytest.raises(ValueError, match="row 0"):
        reducer.rescore(Q[:1], [[bad]], [[0]])
    with pytest.raises(ValueError, match="row 0"):
        reducer.rescore(Q[:1] * bad, [[0.5]], [[0]])
    with pytest.raises(ValueError, match="row 0"):
        HubnessReducer(method, k=5).fit(X * bad)


def test_bad_input_is_named(corpus):
    X, Q = corpus
    with pytest.raises(ValueError, match="more than k"):
        HubnessReducer(k=10).fit(X[:10])
    with pytest.raises(NotFittedError, match="fit"):
        HubnessReducer().augment_queries(Q)
    with pytest.raises(NotSupported, match="rescore"):
        HubnessReducer("nicdm").fit(X).augment(X)
    with pytest.raises(ValueError, match="csls"):
        HubnessReducer("magic")
