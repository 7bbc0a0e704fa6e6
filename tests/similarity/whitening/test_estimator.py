import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA, TruncatedSVD

from kexue.errors import DataError, NotFittedError, NotSupported
from kexue.similarity import Moments, Whitening, moments, pair_cosine, whiten, whitening_kernel

# float64 and a condition number below 1e3: a few units in the last place times the size of the numbers.
TIGHT = 1e-9


@pytest.fixture(scope="module")
def X():
    random = np.random.default_rng(0)
    return random.normal(size=(600, 12)) @ random.normal(size=(12, 12)) + random.normal(size=12) * 5


def gram(y):
    return y @ y.T


def cosines(y):
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    return y @ y.T


def by_definition(X, beta, gamma, k):
    """The formula of kexue.fm/archives/9079, line by line, by singular vectors instead of eigenvectors."""
    shifted = X - beta * X.mean(axis=0)
    _, s, vt = np.linalg.svd(shifted, full_matrices=False)
    return (shifted @ vt.T * (s**2 / len(X)) ** (-gamma / 2))[:, :k]


# ---- what the map is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, -0.3, 1.7])
@pytest.mark.parametrize("gamma", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("k", [12, 5])
def test_equals_the_formula(X, beta, gamma, k):
    # Signs are free, so inner products are compared. beta stands in both places: shift and second moment.
    y = Whitening(k, beta=beta, gamma=gamma).fit_transform(X)
    np.testing.assert_allclose(gram(y), gram(by_definition(X, beta, gamma, k)), rtol=TIGHT, atol=TIGHT)


def test_whitened_data_have_mean_zero_and_covariance_one(X):
    y = Whitening().fit_transform(X)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=TIGHT)
    np.testing.assert_allclose(np.cov(y.T, ddof=0), np.eye(12), atol=TIGHT)
    np.testing.assert_allclose(np.cov(Whitening(ddof=1).fit_transform(X).T, ddof=1), np.eye(12), atol=TIGHT)


def test_beta_and_gamma_zero_keep_inner_products_at_full_dimension(X):
    y = Whitening.preset("identity").fit_transform(X)
    np.testing.assert_allclose(gram(y), gram(X), rtol=TIGHT)
    # and truncation at gamma = 0 loses exactly the eigenvalues left out (archives/9079)
    w = Whitening.preset("rotate", 5).fit(X)
    lost = (X**2).sum() - (w.transform(X) ** 2).sum()
    assert lost == pytest.approx(len(X) * w.with_params(n_components=12).eigenvalues_[5:].sum(), rel=TIGHT)


@pytest.mark.parametrize("k", [3, 12])
def test_parity_with_sklearn_pca(X, k):
    ours = Whitening(k, ddof=1).fit(X)
    peer = PCA(k, whiten=True, svd_solver="full").fit(X)
    np.testing.assert_allclose(cosines(ours.transform(X)), cosines(peer.transform(X)), atol=1e-8)
    np.testing.assert_allclose(ours.eigenvalues_, peer.explained_variance_, rtol=TIGHT)
    np.testing.assert_allclose(ours.explained_variance_ratio_, peer.explained_variance_ratio_, rtol=TIGHT)
    np.testing.assert_allclose(np.abs(ours.components_ @ peer.components_.T), np.eye(k), atol=1e-7)
    plain = Whitening.preset("pca", k).fit_transform(X)
    np.testing.assert_allclose(gram(plain), gram(PCA(k, svd_solver="full").fit_transform(X)), atol=1e-8)


def test_parity_with_truncated_svd(X):
    ours = Whitening.preset("rotate", 4).fit_transform(X)
    peer = TruncatedSVD(4, algorithm="arpack").fit_transform(X)
    np.testing.assert_allclose(np.abs(ours), np.abs(peer), rtol=1e-7, atol=1e-7)


def test_beta_stands_in_the_second_moment_too(X):
    # The trap: shift the data by beta mu, but whiten with the covariance about mu.
    values, vectors = np.linalg.eigh(np.cov(X.T, ddof=0))
    wrong = (X - 0.5 * X.mean(axis=0)) @ vectors / np.sqrt(values)
    right = Whitening(beta=0.5).fit_transform(X)
    assert np.abs(gram(right) - gram(wrong)).max() > 0.1
    np.testing.assert_allclose(right.T @ right / len(X), np.eye(12), atol=TIGHT)


def test_transform_is_the_affine_map(X):
    w = Whitening(5, beta=0.7, gamma=0.4).fit(X)
    np.testing.assert_allclose(w.transform(X), X @ w.kernel_ + w.bias_, atol=TIGHT)
    np.testing.assert_allclose(w.bias_, -0.7 * w.mean_ @ w.kernel_, atol=TIGHT)
    assert (w.kernel_.shape, w.bias_.shape, w.components_.shape, w.eigenvalues_.shape) == ((12, 5), (5,), (5, 12), (5,))
    np.testing.assert_allclose(w.components_ @ w.components_.T, np.eye(5), atol=TIGHT)
    np.testing.assert_allclose(w.covariance_, np.cov(X.T, ddof=0), atol=TIGHT)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_inverse(X, beta, gamma):
    w = Whitening(beta=beta, gamma=gamma, eps=0.01).fit(X)
    np.testing.assert_allclose(w.inverse_transform(w.transform(X)), X, atol=1e-8)
    # truncated: the best rank-k reconstruction, hence a projection
    w = w.with_params(n_components=4)
    once = w.inverse_transform(w.transform(X))
    np.testing.assert_allclose(w.inverse_transform(w.transform(once)), once, atol=1e-8)
    wanted = len(X) * w.with_params(n_components=12).eigenvalues_[4:].sum()
    assert ((X - once) ** 2).sum() == pytest.approx(wanted, rel=1e-8)  # Eckart-Young
    with pytest.raises(NotSupported, match="normalize"):
        Whitening(normalize=True).fit(X).inverse_transform(X)


def test_rotating_the_data_changes_no_cosine(X):
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))
    for beta, gamma in ((1, 1), (0, 0), (0.5, 0.3)):
        kwargs = {"n_components": 6, "beta": beta, "gamma": gamma}
        np.testing.assert_allclose(cosines(whiten(X @ q, **kwargs)), cosines(whiten(X, **kwargs)), atol=1e-8)
    # full whitening does not even notice a general linear map or a shift
    m = np.random.default_rng(2).normal(size=(12, 12))
    np.testing.assert_allclose(cosines(whiten(X @ m + 7)), cosines(whiten(X)), atol=1e-7)


def test_signs_are_fixed(X):
    components = Whitening().fit(X).components_
    largest = np.abs(components).argmax(axis=1)
    assert (components[np.arange(12), largest] > 0).all()
    np.testing.assert_allclose(Whitening().fit(X[::-1]).components_, components, atol=1e-8)


def test_eps_is_a_ridge_on_the_eigenvalues(X):
    plain, ridged = Whitening().fit(X), Whitening(eps=2.0).fit(X)
    sizes = np.linalg.norm(ridged.kernel_, axis=0)
    np.testing.assert_allclose(sizes, (plain.eigenvalues_ + 2.0) ** -0.5, rtol=TIGHT)
    np.testing.assert_allclose(ridged.eigenvalues_, plain.eigenvalues_, rtol=TIGHT)


def test_normalize(X):
    y = Whitening(4, normalize=True).fit(X).transform(np.vstack([X, X.mean(axis=0)]))
    np.testing.assert_allclose(np.linalg.norm(y[:-1], axis=1), 1, atol=TIGHT)
    w = Whitening(normalize=True).fit([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    assert w.transform(np.zeros((1, 2))).tolist() == [[0.0, 0.0]]  # x = mean: a zero row, not nan


# ---- rank ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:kept")
@pytest.mark.parametrize("case", ["few rows", "constant column", "duplicate column", "one direction"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rank_deficient_data_are_cut_with_a_warning(case, dtype):
    random = np.random.default_rng(3)
    x = random.normal(size=(200, 10))
    rank = {"few rows": 5, "constant column": 9, "duplicate column": 9, "one direction": 1}[case]
    if case == "few rows":
        x = x[:6]  # n rows about their mean span n - 1 dimensions
    elif case == "constant column":
        x[:, 4] = 0.1
    elif case == "duplicate column":
        x[:, 4] = x[:, 5]
    else:
        x = x[:, :1] * np.arange(1, 11, dtype=np.float32)
    x = x.astype(dtype)
    with pytest.warns(UserWarning, match=rf"kept {rank} of 10 components"):
        w = Whitening(rcond=1e-10 if dtype == np.float64 or case != "one direction" else 1e-6).fit(x)
    assert w.rank_ == rank == w.kernel_.shape[1] == len(w.eigenvalues_)
    y = w.transform(x)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(np.cov(y.T, ddof=0).reshape(rank, rank), np.eye(rank), atol=1e-4)
    back = w.inverse_transform(y)
    np.testing.assert_allclose(back, x, atol=1e-4)  # nothing that varies was lost
    assert whiten(x, n_components=rank).shape == (len(x), rank)


def test_gamma_zero_divides_by_nothing_and_cuts_nothing():
    x = np.random.default_rng(4).normal(size=(6, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        w = Whitening(gamma=0.0).fit(x)
    assert w.kernel_.shape == (10, 10)
    assert w.rank_ == 5
    assert np.isfinite(w.transform(x)).all()
    np.testing.assert_allclose(w.inverse_transform(w.transform(x)), x, atol=TIGHT)


def test_a_ridge_keeps_all_components():
    x = np.random.default_rng(5).normal(size=(6, 10))
    assert np.isfinite(Whitening(eps=1e-3).fit_transform(x)).all()
    assert Whitening(eps=1e-3).fit(x).kernel_.shape == (10, 10)


def test_no_variance_at_all():
    same = np.ones((4, 3))
    with pytest.raises(ValueError, match="no variance"):
        Whitening().fit(same)
    assert Whitening(gamma=0.0).fit_transform(same).tolist() == [[0.0] * 3] * 4
    one = np.array([[3.0, 4.0]])
    with pytest.raises(ValueError, match="n_samples=1"):
        Whitening().fit(one)
    np.testing.assert_allclose(gram(Whitening.preset("rotate").fit_transform(one)), [[25.0]])
    with pytest.raises(ValueError, match="ddof=1"):
        Whitening(ddof=1).fit(one)


# ---- streams -------------------------------------------------------------------------------------------------------


def test_partial_fit_and_merge_equal_fit(X):
    whole = Whitening(7).fit(X)
    stream = Whitening(7)
    for chunk in np.array_split(X, [1, 5, 5, 300]):  # one chunk of one row, one of none
        stream.partial_fit(chunk)
    workers = [Whitening().partial_fit(part) for part in np.array_split(X, 3)]
    merged = Whitening(7).merge(workers[0]).merge(workers[1]).merge(workers[2].moments_)
    for other in (stream, merged):
        assert other.n_samples_seen_ == 600
        np.testing.assert_allclose(other.mean_, whole.mean_, rtol=TIGHT)
        np.testing.assert_allclose(other.covariance_, whole.covariance_, rtol=1e-8, atol=TIGHT)
        np.testing.assert_allclose(other.transform(X), whole.transform(X), atol=1e-8)
    assert workers[0].n_samples_seen_ == 200
    with pytest.raises(ValueError, match=r"3 features, but Whitening is expecting 12"):
        stream.partial_fit(np.zeros((2, 3)))
    with pytest.raises(NotFittedError):
        stream.merge(Whitening())


def test_sample_weight(X):
    repeats = np.random.default_rng(6).integers(0, 3, len(X))
    weighted = Whitening().fit(X, sample_weight=repeats)
    np.testing.assert_allclose(weighted.kernel_, Whitening().fit(np.repeat(X, repeats, axis=0)).kernel_, atol=1e-8)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_with_params_solves_from_the_moments(X, beta):
    w = Whitening().fit(X)
    again = w.with_params(beta=beta, gamma=0.5, n_components=3)
    np.testing.assert_allclose(again.kernel_, Whitening(3, beta=beta, gamma=0.5).fit(X).kernel_, atol=1e-8)
    # Sigma_beta = Cov + (1 - beta)^2 mu' mu
    shifted = X - beta * X.mean(axis=0)
    second = shifted.T @ shifted / len(X)
    np.testing.assert_allclose(w.covariance_ + (1 - beta) ** 2 * np.outer(w.mean_, w.mean_), second, atol=1e-9)
    assert (w.n_components, w.beta, w.gamma) == (None, 1.0, 1.0)
    assert again.n_samples_seen_ == 600


def test_one_eigenproblem_serves_every_gamma_and_k(X, monkeypatch):
    w = Whitening(beta=0.5).fit(X)
    monkeypatch.setattr(np.linalg, "eigh", None)  # calling it would raise
    for gamma in (0.0, 0.3, 1.0):
        assert w.with_params(gamma=gamma, n_components=4).kernel_.shape == (12, 4)


def test_set_params_takes_effect_on_a_fitted_estimator(X):
    w = Whitening().fit(X)
    w.set_params(gamma=0.0, n_components=3)
    np.testing.assert_allclose(w.transform(X), Whitening(3, gamma=0.0).fit(X).transform(X), atol=TIGHT)


def test_pure_functions(X):
    kernel = whitening_kernel(moments(X), n_components=4, beta=0.5, gamma=0.5)
    w = Whitening(4, beta=0.5, gamma=0.5).fit(X)
    assert (kernel.kernel == w.kernel_).all()
    assert (kernel.bias == w.bias_).all()
    assert kernel.rank == 12
    assert (whiten(X, n_components=4, beta=0.5, gamma=0.5) == w.transform(X)).all()
    assert isinstance(w.moments_, Moments)


# ---- what goes in and out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_numpy_dtypes(X, dtype):
    x = (X * 10).astype(dtype)
    w = Whitening(4).fit(x)
    y = w.transform(x)
    assert y.dtype == (dtype if dtype != np.int64 else np.float64)
    assert w.kernel_.dtype == np.float64
    tolerance = {np.float16: 2e-2, np.float32: 1e-4}.get(dtype, TIGHT)  # the rounding of x itself, times the kernel
    np.testing.assert_allclose(y, x.astype(np.float64) @ w.kernel_ + w.bias_, atol=tolerance)
    assert w.inverse_transform(y).dtype == y.dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_torch(X, dtype):
    x = torch.tensor(X, dtype=dtype, requires_grad=True)
    w = Whitening(4).fit(x)
    y = w.transform(x)
    assert isinstance(y, torch.Tensor)
    assert y.dtype == dtype
    assert y.device == x.device
    reference = Whitening(4).fit(x.detach().double().numpy())
    assert pair_cosine(y.double().numpy(), reference.transform(x.detach().double().numpy())).min() > 0.999
    assert isinstance(whiten(x), torch.Tensor)


def test_float32_with_a_large_mean_keeps_its_digits():
    x = (np.random.default_rng(7).normal(size=(2000, 6)) + 2000).astype(np.float32)
    w = Whitening().fit(x)
    wanted = x.astype(np.float64) @ w.kernel_ + w.bias_
    # x itself is rounded to 1e-4; x @ kernel + bias in float32 would err by 2000 * 6e-8 * sqrt(6) more in each entry
    np.testing.assert_allclose(w.transform(x), wanted, atol=2e-4)


def test_zero_rows_and_wrong_input(X):
    w = Whitening(4).fit(X)
    assert w.transform(np.zeros((0, 12), dtype=np.float32)).shape == (0, 4)
    assert w.inverse_transform(np.zeros((0, 4))).shape == (0, 12)
    with pytest.raises(ValueError, match="X has 3 features, but Whitening is expecting 12 features"):
        w.transform(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="Y has 12 columns, but 4"):
        w.inverse_transform(X)
    with pytest.raises(ValueError, match="Reshape your data"):
        w.transform(X[0])
    bad = X.copy()
    bad[400, 7] = np.nan
    with pytest.raises(DataError, match="row 400, column 7"):
        w.transform(bad)
    with pytest.raises(DataError, match="row 400, column 7"):
        Whitening().fit(bad)
    with pytest.raises(TypeError, match="sparse"):
        w.fit(__import__("scipy.sparse").sparse.eye(5).tocsr())


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"n_components": 13}, ValueError, r"n_components=13 must lie in \[1, 12\]"),
        ({"n_components": 0}, ValueError, "n_components=0"),
        ({"n_components": 2.0}, TypeError, "int or None"),
        ({"n_components": True}, TypeError, "int or None"),
        ({"beta": "1"}, TypeError, "beta must be a real number"),
        ({"beta": np.nan}, ValueError, "beta must be finite"),
        ({"gamma": np.inf}, ValueError, "gamma must be finite"),
        ({"eps": -1.0}, ValueError, "eps must be >= 0"),
        ({"rcond": -1e-3}, ValueError, "rcond must be >= 0"),
        ({"ddof": 600}, ValueError, "ddof=600"),
    ],
)
def test_parameters_out_of_range(X, params, error, message):
    with pytest.raises(error, match=message):
        Whitening(**params).fit(X)


@pytest.mark.parametrize("gamma", [-0.5, 1.5])
def test_gamma_outside_the_unit_interval_warns(X, gamma):
    with pytest.warns(UserWarning, match="outside"):
        y = Whitening(gamma=gamma).fit_transform(X)
    np.testing.assert_allclose(gram(y), gram(by_definition(X, 1.0, gamma, 12)), rtol=1e-7, atol=1e-7)


def test_presets():
    assert repr(Whitening.preset("pca", 8)) == "Whitening(n_components=8, gamma=0.0)"
    assert repr(Whitening.preset("whiten")) == "Whitening()"
    assert repr(Whitening.preset("rotate", 8)) == "Whitening(n_components=8, beta=0.0, gamma=0.0)"
    with pytest.raises(ValueError, match="unknown preset 'zca'"):
        Whitening.preset("zca")
    with pytest.raises(ValueError, match="all dimensions"):
        Whitening.preset("identity", 8)


def test_before_fit():
    for use in (lambda w: w.mean_, lambda w: w.transform([[1.0]]), lambda w: w.save("x"), lambda w: w.with_params()):
        with pytest.raises(NotFittedError, match="fit"):
            use(Whitening())
    assert not hasattr(Whitening(), "kernel_")


def test_top_k_subspace_is_stable_under_rounding_to_float32(X):
    a, b = (Whitening(4).fit(x).components_ for x in (X, X.astype(np.float32)))
    assert subspace_angles(a.T, b.T).max() < 1e-4


# --- what is no direction --------------------------------------------------------------------------------------------


def equal_rows(n, value, dtype):
    return np.tile(np.array([0.1, -0.7, 0.3, 1 / 3]) + value, (n, 1)).astype(dtype)


def fitted_in_one_go(X):
    return Whitening().fit(X)


def fitted_in_chunks(X):
    whitening = Whitening()
    for chunk in np.array_split(X, min(len(X), 7)):
        whitening.partial_fit(chunk)
    return whitening.kernel_


def fitted_with_weights(X):
    return Whitening().fit(X, sample_weight=np.random.default_rng(0).uniform(0.1, 3, len(X)))


def fitted_beside_rows_without_weight(X):
    others = np.random.default_rng(0).normal(size=(300, X.shape[1]))
    return Whitening().fit(np.vstack([others, X]), sample_weight=np.repeat([0.0, 1.0], [300, len(X)]))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 300, 9000])
@pytest.mark.parametrize("value", [0.0, 1e6, 1e-6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "fit", [fitted_in_one_go, fitted_in_chunks, fitted_with_weights, fitted_beside_rows_without_weight]
)
def test_equal_rows_are_refused_in_the_same_words(n, value, dtype, fit):
    with pytest.raises(ValueError, match=r"n_samples=\S+ row\(s\) show no variance, so there is nothing to whiten"):
        fit(equal_rows(n, value, dtype))


@pytest.mark.parametrize("n", [3, 7, 9000])
def test_equal_rows_have_rank_0_where_nothing_is_divided(n):
    whitening = Whitening(gamma=0.0).fit(equal_rows(n, 0.0, np.float64))
    assert whitening.rank_ == 0
    assert not whitening.explained_variance_ratio_.any()
    assert np.abs(whitening.transform(equal_rows(5, 0.1, np.float64))).max() < 1


def test_rows_that_differ_by_little_still_have_a_direction():
    # A spread of 1e-12 beside a mean of 1: ten thousand times rounding.
    X = 1 + 1e-12 * np.random.default_rng(1).normal(size=(500, 3))
    whitening = Whitening().fit(X)
    assert whitening.rank_ == 3
    np.testing.assert_allclose(np.cov(whitening.transform(X).T, ddof=0), np.eye(3), atol=1e-3)  # digits left: 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_a_row_that_is_the_mean_has_no_direction_to_normalize(dtype, beta):
    X = (np.random.default_rng(2).normal(size=(1000, 4)) + 7).astype(dtype)
    whitening = Whitening(beta=beta, normalize=True).fit(X)
    rows = np.vstack([beta * whitening.mean_, X[0]]).astype(dtype)
    y = whitening.transform(rows)
    assert not y[0].any()
    assert np.linalg.norm(y[1]) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("gamma", [-1.0, -0.5, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("rank", [2, 5])
def test_inverse_of_rows_of_any_rank(gamma, rank):
    generator = np.random.default_rng(3)
    X = generator.normal(size=(40, rank)) @ generator.normal(size=(rank, 5)) + 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the rank, and of gamma below 0
        whitening = Whitening(gamma=gamma).fit(X)
        back = whitening.inverse_transform(whitening.transform(X))
    np.testing.assert_allclose(back, X, atol=1e-6)


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-200, 1e-150, 1e-30, 1e30, 1e150, 1e200])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_every_scale_is_whitened_or_refused_by_name(scale, gamma):
    X = np.random.default_rng(4).normal(size=(50, 3)) + 1
    if 1e-152 < scale < 1e153:
        y = Whitening(gamma=gamma).fit_transform(X * scale)
        np.testing.assert_allclose(y, Whitening(gamma=gamma).fit_transform(X) * (scale if gamma == 0 else 1), rtol=1e-6)
    else:
        with pytest.raises(ValueError, match="square in float64"):
            Whitening(gamma=gamma).fit(X * scale)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalized_rows_have_length_1_at_every_scale(scale, dtype):
    X = (np.random.default_rng(12).normal(size=(50, 3)) * scale).astype(dtype)
    y = Whitening(gamma=0.0, normalize=True).fit_transform(X)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-40, 1e-35, 1e35])
def test_single_precision_at_its_ends_is_computed_in_double(scale):
    X = (np.random.default_rng(5).normal(size=(200, 3)) * scale).astype(np.float32)
    y = Whitening().fit_transform(X)
    assert y.dtype == np.float32
    np.testing.assert_allclose(np.cov(y.T, ddof=0), np.eye(3), atol=1e-3)


def test_a_gamma_out_of_float64_is_named():
    X = np.random.default_rng(6).normal(size=(50, 2)) * 1e-20
    with pytest.warns(UserWarning, match="outside"), pytest.raises(ValueError, match="gamma=40"):
        Whitening(gamma=40.0).fit(X)


# --- kinds of input --------------------------------------------------------------------------------------------------


def flipped(x):
    return x[::-1, ::-1].copy()[::-1, ::-1]


def read_only(x):
    x = x.copy()
    x.setflags(write=False)
    return x


def as_tensor(dtype):
    def convert(x):
        torch = pytest.importorskip("torch")
        return torch.tensor(x, dtype=getattr(torch, dtype))

    return convert


KINDS = {
    "list": (lambda x: x.tolist(), 1e-12),
    "iterator of rows": (iter, 1e-12),
    "map of lists": (lambda x: map(list, x), 1e-12),
    "flipped": (flipped, 1e-12),
    "fortran": (np.asfortranarray, 1e-12),
    "read only": (read_only, 1e-12),
    "longdouble": (lambda x: x.astype(np.longdouble), 1e-12),
    "float32": (lambda x: x.astype(np.float32), 1e-4),
    "float16": (lambda x: x.astype(np.float16), 2e-2),
    "tensor": (as_tensor("float64"), 1e-12),
    "bfloat16": (as_tensor("bfloat16"), 1e-1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_matrix_is_read(kind):
    convert, close = KINDS[kind]
    X = np.random.default_rng(7).normal(size=(60, 3)) * [1, 2, 3]
    expected = Whitening().fit_transform(X)
    for y in (
        Whitening().fit_transform(convert(X)),
        whiten(convert(X)),
        Whitening().fit(convert(X)).transform(convert(X)),
        Whitening().partial_fit(convert(X)).transform(convert(X)),
    ):
        y = np.asarray(y.float() if kind == "bfloat16" else y, dtype=np.float64)  # noqa: PLW2901 - as numbers
        np.testing.assert_allclose(y, expected, atol=close)


def test_meta_and_sparse_tensors_are_refused_by_name():
    torch = pytest.importorskip("torch")
    whitening = Whitening().fit(np.random.default_rng(8).normal(size=(9, 3)))
    for call in (Whitening().fit, Whitening().partial_fit, whitening.transform, whitening.inverse_transform):
        with pytest.raises(ValueError, match="meta device"):
            call(torch.ones(4, 3, device="meta"))
        with pytest.raises(TypeError, match="to_dense"):
            call(torch.eye(3).to_sparse())


def test_no_rows_are_refused_by_fit_and_mapped_to_none():
    whitening = Whitening(2).fit(np.random.default_rng(9).normal(size=(9, 3)))
    assert whitening.transform(np.empty((0, 3))).shape == (0, 2)
    assert whitening.inverse_transform(np.empty((0, 2))).shape == (0, 3)
    with pytest.raises(ValueError, match="0 sample"):
        Whitening().fit(np.empty((0, 3)))


# --- scikit-learn's conventions --------------------------------------------------------------------------------------


def test_data_frames_come_out_where_they_are_asked_for():
    pandas, sklearn = pytest.importorskip("pandas"), pytest.importorskip("sklearn")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X = np.random.default_rng(10).normal(size=(30, 4))
    frame = pandas.DataFrame(X, columns=list("abcd"), index=[f"row {i}" for i in range(30)])
    expected = Whitening(2).fit_transform(X)
    pipeline = make_pipeline(StandardScaler(), Whitening(2)).set_output(transform="pandas")
    out = pipeline.fit_transform(frame)
    assert list(out.columns) == ["whitening0", "whitening1"] == list(pipeline.get_feature_names_out())
    assert list(out.index) == list(frame.index)
    one = Whitening(2).set_output(transform="pandas")
    assert one.set_output() is one
    np.testing.assert_allclose(one.fit_transform(frame).to_numpy(), expected)
    assert isinstance(sklearn.clone(one).fit(frame).transform(frame), pandas.DataFrame)
    assert isinstance(one.set_output(transform="default").transform(frame), np.ndarray)
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(Whitening(2).fit(X).transform(X), pandas.DataFrame)
        assert isinstance(whiten(X), np.ndarray)


def test_feature_names_need_a_fit_and_the_right_number():
    whitening = Whitening(2)
    with pytest.raises(NotFittedError):
        whitening.get_feature_names_out()
    whitening.fit(np.random.default_rng(11).normal(size=(9, 3)))
    assert whitening.get_feature_names_out(["x", "y", "z"]).tolist() == ["whitening0", "whitening1"]
    with pytest.raises(ValueError, match="3 features"):
        whitening.get_feature_names_out(["x"])
    with pytest.raises(ValueError, match="arrow"):
        whitening.set_output(transform="arrow")
