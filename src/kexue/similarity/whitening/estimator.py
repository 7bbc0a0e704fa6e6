"""Whitening estimator, with one parameter for centring (beta) and one for isotropy (gamma).

y = (x - beta mu) U Lambda^(-gamma/2), first k columns, where U Lambda U' = (1/n) sum (x - beta mu)' (x - beta mu).

Sources: kexue.fm/archives/8069 (the map), 8321 (its effect on sentence similarity), 9079 (beta, gamma and k).
Differences: sums are centred and in float64 (the article's recursive form cancels); directions without variance are
cut, not divided by zero; the signs of eigenvectors are fixed.
"""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np

from kexue._arrays import Array, as_matrix, finite_rows, like, reread
from kexue._optional import import_optional
from kexue.errors import NotFittedError, NotSupported
from kexue.similarity.whitening.dense import append_dense
from kexue.similarity.whitening.files import WhiteningState, file_error, read_whitening, write_whitening
from kexue.similarity.whitening.kernel import Kernel, check_parameters, scale_spectrum, second_moment_spectrum
from kexue.similarity.whitening.mapping import map_rows
from kexue.similarity.whitening.statistics import Moments, merge_moments, moments
from kexue.similarity.whitening.transformer import Transformer

_PRESETS = {"identity": (0.0, 0.0), "rotate": (0.0, 0.0), "pca": (1.0, 0.0), "whiten": (1.0, 1.0)}


class Whitening(Transformer):
    """Linear post-processing of vectors: centre by beta, flatten the spectrum by gamma, keep k dimensions.

    y = (x - beta mu) U Lambda^(-gamma/2) [:, :k], U Lambda U' the second moment about beta mu.

    Sources: kexue.fm/archives/8321 (beta = gamma = 1), 9079 (the two parameters). Compare: scikit-learn
    `PCA(whiten=True)`, the same map up to sign at beta = gamma = 1, ddof = 1; `TruncatedSVD` at beta = gamma = 0.

    When to choose what: (1, 1) for vectors of a plain language model, whose cosines are dominated by a few directions;
    (0, 0) with k < d to shorten the vectors of a trained sentence encoder almost for free; `tune_whitening` when
    labelled pairs are available. Whitening destroys the relative scale of directions, which a supervised encoder has
    learnt. Fit once on a corpus; never refit on a query.

    The estimator stores moments, not a solution: `partial_fit` and `merge` are exact, and any parameter may change
    afterwards (`with_params`, `set_params`) without the data. It follows the scikit-learn contract without importing
    scikit-learn.

    Args:
        n_components: k in [1, d]; None keeps d. For gamma > 0 at most `rank_` components are kept, with a warning.
        beta: share of the mean to remove, in the shift and in the second moment.
        gamma: exponent of the eigenvalues is -gamma/2; outside [0, 1] allowed, with a warning.
        eps: >= 0, ridge added to the eigenvalues.
        rcond: >= 0; eigenvalues up to rcond times the largest count as zero.
        ddof: covariance = scatter / (n - ddof); cosines do not depend on it.
        normalize: scale each output row to length 1 (a zero row stays zero, and so does one that equals beta mean up to
            rounding).

    Attributes:
        moments_: Moments seen so far.
        n_samples_seen_: total weight of the rows seen.
        mean_: (d,), float64.
        covariance_: (d, d), float64: scatter / (n - ddof), about the mean whatever beta.
        eigenvalues_: (k,), of the second moment about beta mean, descending.
        components_: (k, d), orthonormal rows.
        kernel_: (d, k); bias_: (k,). transform(X) = X @ kernel_ + bias_, computed as (X - beta mean_) @ kernel_.
        rank_: numerical rank of the second moment; 0 for equal rows.
        explained_variance_ratio_: (k,), eigenvalues over their total.
        n_features_in_: d.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(500, 8)) * np.arange(1, 9) + 3
        >>> w = Whitening(4).partial_fit(X[:200]).partial_fit(X[200:])
        >>> Y = w.transform(X)
        >>> Y.shape, bool(np.allclose(np.cov(Y.T, ddof=0), np.eye(4)))
        ((500, 4), True)
        >>> w.with_params(beta=0, gamma=0, n_components=8).transform(X).shape   # no second pass over X
        (500, 8)

    Cost: fit n d^2 once and d^3 a solution; transform n d k. Memory: 2 d^2 float64, whatever n.
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        eps: float = 0.0,
        rcond: float = 1e-10,
        ddof: int = 0,
        normalize: bool = False,
    ) -> None:
        self.n_components = n_components
        self.beta = beta
        self.gamma = gamma
        self.eps = eps
        self.rcond = rcond
        self.ddof = ddof
        self.normalize = normalize

    @classmethod
    def preset(cls, name: str, n_components: int | None = None) -> Self:
        """Return one of the named settings of kexue.fm/archives/9079.

        Args:
            name: "identity" (beta 0, gamma 0, all dimensions: cosines unchanged), "rotate" (0, 0, k), "pca" (1, 0, k)
                or "whiten" (1, 1, k).
            n_components: k; None keeps all. Not for "identity".

        Raises:
            ValueError: another name, or `n_components` with "identity".

        Example:
            >>> Whitening.preset("rotate", 128)
            Whitening(n_components=128, beta=0.0, gamma=0.0)
        """
        if name not in _PRESETS:
            raise ValueError(f"unknown preset {name!r}; expected one of {', '.join(map(repr, _PRESETS))}.")
        if name == "identity" and n_components is not None:
            raise ValueError(f'preset "identity" keeps all dimensions, got n_components={n_components}. Use "rotate".')
        beta, gamma = _PRESETS[name]
        return cls(n_components, beta=beta, gamma=gamma)

    # ---- statistics ----------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: object = None, sample_weight: Any = None) -> Self:
        """Compute the statistics of X (n, d), dropping earlier ones, and solve; y is ignored. Returns self.

        Raises:
            ValueError: no rows, NaN, or equal rows with gamma > 0, which have no direction to whiten.
        """
        stats = moments(X, sample_weight=sample_weight)  # eq. 1, 2 (9079): mu and Sigma
        self._check_parameters(stats)
        self.moments_ = stats
        self._solve()
        return self

    def partial_fit(self, X: Any, y: object = None, sample_weight: Any = None) -> Self:
        """Add rows to the statistics; any chunking gives the same result. Solved on next use. Returns self.

        A chunk without rows changes nothing, so the tail of a stream needs no special case.
        """
        x = as_matrix(X)
        if "moments_" in vars(self):
            self._check_features(x)
        if x.shape[0] == 0:
            return self
        return self.merge(moments(x, sample_weight=sample_weight))

    def merge(self, other: Whitening | Moments) -> Self:
        """Add the statistics of another worker; exact, in any order. Returns self, other is unchanged.

        Raises:
            NotFittedError: `other` has seen no data.
            ValueError: another number of dimensions.
        """
        part = other if isinstance(other, Moments) else other._require_moments()
        total = merge_moments(self.moments_, part) if "moments_" in vars(self) else part
        self._check_parameters(total)
        self.moments_ = total
        return self

    def with_params(
        self, *, beta: float | None = None, gamma: float | None = None, n_components: int | None = None
    ) -> Self:
        """Return a new estimator with other parameters, solved from the same moments; None keeps a value.

        No pass over data; one eigenproblem when beta changes, none when only gamma or n_components do.

        Raises:
            NotFittedError: nothing has been fitted.
            ValueError: a value outside its range.
        """
        changes = {"beta": beta, "gamma": gamma, "n_components": n_components}
        params = {**self.get_params(), **{k: v for k, v in changes.items() if v is not None}}
        new = type(self)(**params).merge(self)
        if "_spectrum" in vars(self):
            new._spectrum = self._spectrum
        new._solve()
        return new

    # ---- the map -------------------------------------------------------------------------------------------------

    def transform(self, X: Any) -> Any:
        """Map rows: (n, d) to (n, k), the kind, device and dtype of X; half precision is computed in float32.

        After `set_output` a data frame instead.

        Raises:
            NotFittedError: before `fit`. ValueError: wrong number of columns, or a value that is not finite.
        """
        kernel = self._solve().kernel
        x = as_matrix(X)
        self._check_features(x)
        shift = self.beta * self.moments_.mean
        result = like(map_rows(x, kernel, shift, normalize=self.normalize), x)  # eq. 2 (9079)
        return self.wrap_output(result, X)

    def fit_transform(self, X: Any, y: object = None, sample_weight: Any = None) -> Any:
        """Return fit(X).transform(X)."""
        X = reread(X)
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def inverse_transform(self, Y: Any) -> Any:
        """Map rows back: (n, k) to (n, d). Exact when nothing was truncated, else the best rank-k reconstruction.

        x = y Lambda^(gamma/2) U' + beta mu; directions without variance get beta mu.

        Raises:
            NotSupported: normalize=True, which loses the lengths.
            ValueError: Y does not have k columns.
        """
        if self.normalize:
            raise NotSupported(
                "inverse_transform needs the length of each row, which normalize=True loses.",
                remedy="Fit with normalize=False and scale the rows yourself.",
            )
        kernel = self._solve()
        y = as_matrix(Y, "Y")
        k = kernel.kernel.shape[1]
        if y.shape[1] != k:
            raise ValueError(f"Y has {y.shape[1]} columns, but {k} components are kept.")
        scale = np.ones(k)
        if self.gamma != 0:  # beyond the rank there is no variance to restore, and for gamma < 0 its power is infinite
            scale[kernel.rank :] = 0.0
            scale[: kernel.rank] = (kernel.eigenvalues[: kernel.rank] + self.eps) ** (self.gamma / 2)
        back = self.components_ * scale[:, None]
        shift = self.beta * self.moments_.mean
        return like(finite_rows(y, "Y") @ back + shift, y)

    # ---- fitted attributes ---------------------------------------------------------------------------------------

    @property
    def n_samples_seen_(self) -> float:
        """Total weight of the rows seen: their number where no weights were given."""
        return self._require_moments().n

    @property
    def n_features_in_(self) -> int:
        """Dimension d of the vectors."""
        return int(self._require_moments().mean.shape[0])

    @property
    def mean_(self) -> Array:
        """Mean of the vectors, (d,), float64."""
        return self._require_moments().mean

    @property
    def covariance_(self) -> Array:
        """Covariance of the vectors about their mean, scatter / (n - ddof): (d, d), float64."""
        stats = self._require_moments()
        return stats.scatter / (stats.n - self.ddof)

    @property
    def eigenvalues_(self) -> Array:
        """Eigenvalues, (k,), descending: mean square of each kept coordinate about beta mean."""
        return self._solve().eigenvalues

    @property
    def components_(self) -> Array:
        """Eigenvectors as orthonormal rows, (k, d), the entry of largest magnitude positive."""
        k = self._solve().kernel.shape[1]
        return self._spectrum[1].vectors[:, :k].T

    @property
    def kernel_(self) -> Array:
        """Matrix of the map, (d, k), float64."""
        return self._solve().kernel

    @property
    def bias_(self) -> Array:
        """Offset of the map, (k,), float64."""
        return self._solve().bias

    @property
    def rank_(self) -> int:
        """Number of eigenvalues above `rcond` times the largest."""
        return self._solve().rank

    @property
    def explained_variance_ratio_(self) -> Array:
        """(k,): kept eigenvalues over the sum of all; zeros where rows do not differ."""
        kernel = self._solve()
        return kernel.eigenvalues / self._spectrum[1].values.sum() if kernel.rank else np.zeros_like(kernel.eigenvalues)

    # ---- files and other libraries -------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write moments, spectrum and parameters to one safetensors file; `load` restores the same map to the bit."""
        self._solve()
        write_whitening(WhiteningState(self.get_params(), self.moments_, self._spectrum[1]), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of `save`.

        Raises:
            DataError: the file is missing, damaged, or holds something else; the path is named.
        """
        state = read_whitening(path)
        try:
            whitening = cls(**state.params)
        except TypeError as error:
            raise file_error(error, path) from error
        whitening.moments_ = state.moments
        whitening._spectrum = ((state.moments, whitening.beta, whitening.ddof), state.spectrum)
        return whitening

    def as_linear(self) -> Any:
        """Return the map as `torch.nn.Linear(d, k)`: weight kernel_.T, bias bias_, in torch's default dtype.

        `normalize` is not part of it; cosines are the same without.
        """
        torch = import_optional("torch")
        kernel = self._solve()
        d, k = kernel.kernel.shape
        linear = torch.nn.Linear(d, k)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel.kernel.T)))
            linear.bias.copy_(torch.from_numpy(kernel.bias))
        return linear

    def export_dense(self, model_folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[str]:
        """Copy a sentence-transformers folder to `out` with this map appended as a plain Dense stage.

        y = x W + b is a Dense stage with identity activation, so sentence-transformers and text-embeddings-inference
        load the result without custom code. Where the folder ends in Normalize, the Dense stage goes after it (the
        statistics are those of the vectors the folder emits) and a second Normalize follows, as it does when
        normalize=True.

        Args:
            model_folder: folder with `modules.json`.
            out: folder to write; must not exist or be empty.

        Returns:
            The type of every stage of the new folder, in order.

        Raises:
            DataError: no sentence-transformers folder, or `out` is not empty.
            SpaceMismatchError: the folder emits vectors of another dimension.
        """
        return append_dense(self.kernel_, self.bias_, model_folder, out, normalize=self.normalize)

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """Return the names of the k output columns, "whitening0", ...; `input_features` is only counted."""
        k = self._solve().kernel.shape[1]
        if input_features is not None and len(names := list(input_features)) != self.n_features_in_:
            raise ValueError(f"input_features holds {len(names)} names, but X has {self.n_features_in_} features.")
        return np.array([f"{type(self).__name__.lower()}{i}" for i in range(k)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return "moments_" in vars(self)

    # ---- inside --------------------------------------------------------------------------------------------------

    def _require_moments(self) -> Moments:
        """Return the moments, or raise NotFittedError."""
        if "moments_" not in vars(self):
            raise NotFittedError(
                f"This {type(self).__name__} has seen no data.", remedy="Call fit, partial_fit, merge or load first."
            )
        return self.moments_

    def _check_features(self, x: Any) -> None:
        """Raise ValueError unless `x` has d columns."""
        d = self.n_features_in_
        if x.shape[1] != d:
            name = type(self).__name__
            raise ValueError(f"X has {x.shape[1]} features, but {name} is expecting {d} features as input.")

    def _check_parameters(self, stats: Moments) -> None:
        """Raise on a parameter of the wrong type or range for these moments."""
        check_parameters(
            self.n_components, self.beta, self.gamma, self.eps, self.rcond, self.ddof, d=stats.mean.shape[0]
        )

    def _solve(self) -> Kernel:
        """Return the kernel of the present moments and parameters; computed again only after one of them changed."""
        stats = self._require_moments()
        options = (self.n_components, self.beta, self.gamma, self.eps, self.rcond)
        key = (stats, self.ddof, *options)
        last = vars(self).get("_solution")
        if last is not None and last[0][0] is stats and last[0][1:] == key[1:]:
            known: Kernel = last[1]
            return known
        self._check_parameters(stats)
        last = vars(self).get("_spectrum")
        if last is None or last[0][0] is not stats or last[0][1:] != (self.beta, self.ddof):
            self._spectrum = ((stats, self.beta, self.ddof), second_moment_spectrum(stats, self.beta, self.ddof))
        kernel = scale_spectrum(stats, self._spectrum[1], *options)
        self._solution = (key, kernel)
        return kernel
