"""Whitening with one knob for centring and one for isotropy.

y = (x - beta mu) U Lambda^(-gamma/2), first k columns, where U Lambda U' = (1/n) sum (x - beta mu)' (x - beta mu).

Sources: kexue.fm/archives/8069 (the map), 8321 (what it does to sentence similarity), 9079 (beta, gamma and k).
Differences: sums are centred and in float64 (the article's recursive form cancels); directions without variance are
cut instead of divided by zero; eigenvectors carry a fixed sign.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Self

import numpy as np

from kexue._arrays import Array, as_matrix, finite_rows, host, like, raise_non_finite, reread, working_dtype
from kexue._optional import import_optional
from kexue.errors import NotFittedError, NotSupported
from kexue.similarity._vectors import unit_rows
from kexue.similarity.whitening.kernel import Kernel, check_parameters, solve, spectrum
from kexue.similarity.whitening.statistics import Moments, merge_moments, moments
from kexue.similarity.whitening.threads import map_blocks

_PRESETS = {"identity": (0.0, 0.0), "rotate": (0.0, 0.0), "pca": (1.0, 0.0), "whiten": (1.0, 1.0)}
_OUTPUTS = ("default", "pandas", "polars")
_BLOCK_ROWS, _CHUNK_ROWS = 4_096, 512  # of `transform`: a task of a thread, and what stays in the second-level cache


def whiten(
    embeddings: Any,
    *,
    n_components: int | None = None,
    beta: float = 1.0,
    gamma: float = 1.0,
    eps: float = 0.0,
    rcond: float = 1e-10,
    ddof: int = 0,
    normalize: bool = False,
) -> Any:
    """Whiten a set of vectors by its own statistics, in one call: moments, kernel, transform.

    y = (x - beta mu) U Lambda^(-gamma/2) [:, :k]; at beta = gamma = 1 and full rank y has mean 0 and covariance I.

    Source: kexue.fm/archives/8321 and 9079. To apply the same map to other vectors, keep a `Whitening`.

    Args:
        embeddings: (n, d), numpy or torch, finite. The other arguments are those of `Whitening`.
        n_components: k in [1, d]; None keeps d.
        beta: share of the mean to remove.
        gamma: share of the anisotropy to remove.
        eps: ridge on the eigenvalues.
        rcond: relative size below which an eigenvalue counts as zero.
        ddof: divisor n - ddof.
        normalize: scale each row of the result to length 1.

    Returns:
        (n, k), the kind, device and dtype of `embeddings`.

    Raises:
        ValueError: see `moments` and `whitening_kernel`.

    Example:
        >>> import numpy as np
        >>> y = whiten(np.random.default_rng(0).normal(5.0, [1.0, 9.0], size=(100, 2)))
        >>> bool(np.allclose(y.T @ y / 100, np.eye(2)))
        True
    """
    embeddings = reread(embeddings)
    whitening = Whitening(n_components, beta=beta, gamma=gamma, eps=eps, rcond=rcond, ddof=ddof, normalize=normalize)
    return whitening.fit(embeddings)._map(embeddings)


class Whitening:
    """Linear post-processing of vectors: centre by beta, flatten by gamma, keep k dimensions.

    y = (x - beta mu) U Lambda^(-gamma/2) [:, :k], U Lambda U' the second moment about beta mu.

    Sources: kexue.fm/archives/8321 (beta = gamma = 1), 9079 (the two knobs). Compare: scikit-learn `PCA(whiten=True)`,
    the same map up to sign at beta = gamma = 1, ddof = 1; `TruncatedSVD` at beta = gamma = 0.

    When to choose what: (1, 1) for vectors of a plain language model, whose cosines are dominated by a few directions;
    (0, 0) with k < d to shorten the vectors of a trained sentence encoder almost for free; `tune_whitening` when
    labelled pairs are at hand. What whitening destroys: the relative scale of directions, which a supervised encoder
    has learnt. Fit once on a corpus; never refit on a query.

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
        """Take the statistics of X (n, d), forgetting earlier ones, and solve; y is ignored. Returns self.

        Raises:
            ValueError: no rows, NaN, or equal rows with gamma > 0, which have no direction to whiten.
        """
        found = moments(X, sample_weight=sample_weight)
        self._check(found)
        self.moments_ = found
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
        return self._absorb(moments(x, sample_weight=sample_weight))

    def merge(self, other: Whitening | Moments) -> Self:
        """Add the statistics another worker has gathered; exact, in any order. Returns self, other is unchanged.

        Raises:
            NotFittedError: `other` has seen no data.
            ValueError: another number of dimensions.
        """
        return self._absorb(other if isinstance(other, Moments) else other._fitted())

    def with_params(
        self, *, beta: float | None = None, gamma: float | None = None, n_components: int | None = None
    ) -> Self:
        """Return a new estimator with other knobs, solved from the same moments; None keeps a value.

        No pass over data; one eigenproblem when beta changes, none when only gamma or n_components do.

        Raises:
            NotFittedError: nothing has been fitted.
            ValueError: a value outside its range.
        """
        found = self._fitted()
        changes = {"beta": beta, "gamma": gamma, "n_components": n_components}
        new = type(self)(**{**self.get_params(), **{k: v for k, v in changes.items() if v is not None}})
        new.moments_ = found
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
        return self._dressed(self._map(X), X)

    def _map(self, X: Any) -> Any:
        kernel = self._solve()
        x = as_matrix(X)
        self._check_features(x)
        d, k = kernel.kernel.shape
        dtype = working_dtype(x)
        if dtype == np.float32 and not 1e-30 < np.abs(kernel.kernel).max(initial=0.0) < 1e30:
            dtype = np.dtype(np.float64)
        weights = kernel.kernel.astype(dtype)
        shift = (self.beta * self.moments_.mean).astype(dtype)
        noise = 8 * float(np.finfo(dtype).eps) * float(np.abs(shift).max())
        out = np.empty((x.shape[0], k), dtype=dtype)

        def block(start: int) -> bool:
            finite = True
            work = np.empty((min(_CHUNK_ROWS, x.shape[0]), d), dtype=dtype)
            for i in range(start, min(start + _BLOCK_ROWS, x.shape[0]), _CHUNK_ROWS):
                chunk, result = host(x[i : i + _CHUNK_ROWS]), out[i : i + _CHUNK_ROWS]
                with np.errstate(invalid="ignore", over="ignore"):
                    shifted = np.subtract(chunk, shift, out=work[: len(chunk)], casting="same_kind")
                    np.matmul(shifted, weights, out=result)
                    finite = finite and bool(np.isfinite(result.sum()))
                if self.normalize:
                    result[np.abs(shifted).max(axis=1) <= noise] = 0.0  # the mean itself has no direction
                    with np.errstate(over="ignore"):
                        length = np.linalg.norm(result, axis=1, keepdims=True)
                    plain = (length > 1e-15) & (length < 1e15)
                    np.divide(result, length, out=result, where=plain)
                    if not plain.all():  # squares may have left the dtype
                        result[~plain[:, 0]] = unit_rows(result[~plain[:, 0]])
            return finite

        blocks = range(0, x.shape[0], _BLOCK_ROWS)
        if not all(map_blocks(block, blocks) if x.shape[0] > _CHUNK_ROWS else map(block, blocks)):
            raise_non_finite(x)
            if not np.isfinite(out).all():
                raise ValueError(
                    f"X holds values too large to transform in {dtype}. Divide by a constant before fitting."
                )
        return like(out, x)

    def fit_transform(self, X: Any, y: object = None, sample_weight: Any = None) -> Any:
        """Return fit(X).transform(X)."""
        X = reread(X)
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def inverse_transform(self, Y: Any) -> Any:
        """Map rows back: (n, k) to (n, d). Exact when nothing was truncated, else the best rank-k reconstruction.

        x = y Lambda^(gamma/2) U' + beta mu; directions without variance get beta mu.

        Raises:
            NotSupported: normalize=True, which divided the length away.
            ValueError: Y does not have k columns.
        """
        if self.normalize:
            raise NotSupported(
                "inverse_transform needs the length of each row, and normalize=True divided it away.",
                remedy="Fit with normalize=False and scale the rows yourself.",
            )
        kernel = self._solve()
        y = as_matrix(Y, "Y")
        k = kernel.kernel.shape[1]
        if y.shape[1] != k:
            raise ValueError(f"Y has {y.shape[1]} columns, but {k} components are kept.")
        scale = np.ones(k)
        if self.gamma != 0:  # beyond the rank there is no variance to give back, and below 0 its power is infinite
            scale[kernel.rank :] = 0.0
            scale[: kernel.rank] = (kernel.eigenvalues[: kernel.rank] + self.eps) ** (self.gamma / 2)
        back = self.components_ * scale[:, None]
        shift = self.beta * self.moments_.mean
        return like(finite_rows(y, "Y") @ back + shift, y)

    # ---- what was learnt -----------------------------------------------------------------------------------------

    @property
    def n_samples_seen_(self) -> float:
        """Total weight of the rows seen: their number where no weights were given."""
        return self._fitted().n

    @property
    def n_features_in_(self) -> int:
        """Dimension d of the vectors."""
        return int(self._fitted().mean.shape[0])

    @property
    def mean_(self) -> Array:
        """(d,), float64."""
        return self._fitted().mean

    @property
    def covariance_(self) -> Array:
        """(d, d), float64: scatter / (n - ddof), about the mean."""
        found = self._fitted()
        return found.scatter / (found.n - self.ddof)

    @property
    def eigenvalues_(self) -> Array:
        """(k,), descending: mean square of each kept coordinate about beta mean."""
        return self._solve().eigenvalues

    @property
    def components_(self) -> Array:
        """(k, d), orthonormal rows, the entry of largest magnitude positive."""
        k = self._solve().kernel.shape[1]
        return self._spectrum[1].vectors[:, :k].T

    @property
    def kernel_(self) -> Array:
        """(d, k), float64."""
        return self._solve().kernel

    @property
    def bias_(self) -> Array:
        """(k,), float64."""
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

    # ---- files and neighbours ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write moments, spectrum and parameters to one safetensors file; `load` gives back the same map to the bit."""
        from kexue.similarity.whitening.files import save

        self._solve()
        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, damaged, or holds something else; the path is named.
        """
        from kexue.similarity.whitening.files import load

        return load(cls, path)

    def as_linear(self) -> Any:
        """Return the map as `torch.nn.Linear(d, k)`: weight kernel_.T, bias bias_, in torch's default dtype.

        `normalize` is not part of it; cosines do not notice.
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
            DataError: no sentence-transformers folder, or `out` is taken.
            SpaceMismatchError: the folder emits vectors of another dimension.
        """
        from kexue.similarity.whitening.files import export_dense

        return export_dense(self, model_folder, out)

    # ---- the estimator contract ----------------------------------------------------------------------------------

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """Names of the k output columns, "whitening0", "whitening1", ...; `input_features` is only counted."""
        k = self._solve().kernel.shape[1]
        if input_features is not None and len(names := list(input_features)) != self.n_features_in_:
            raise ValueError(f"input_features holds {len(names)} names, but X has {self.n_features_in_} features.")
        return np.array([f"{type(self).__name__.lower()}{i}" for i in range(k)], dtype=object)

    def set_output(self, *, transform: str | None = None) -> Self:
        """Let `transform` return what scikit-learn's transformers do: "default", "pandas" or "polars". Returns self.

        None changes nothing. Without a choice `sklearn.set_config(transform_output=...)` is followed.
        """
        if transform not in (None, *_OUTPUTS):
            raise ValueError(f"transform must be one of {', '.join(_OUTPUTS)} or None, got {transform!r}.")
        if transform is not None:
            self._sklearn_output_config = {"transform": transform}
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments; a fitted estimator answers with the new ones at once. Returns self."""
        for name, value in params.items():
            if name not in _PARAMETERS:
                raise ValueError(f"unknown parameter {name!r}; Whitening has {', '.join(_PARAMETERS)}.")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        changed = [f"{k}={v!r}" for k, v in self.get_params().items() if v is not _DEFAULTS[k] and v != _DEFAULTS[k]]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        return "moments_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        utils = import_optional("sklearn.utils", extra="bench")
        return utils.Tags(
            estimator_type=None,
            target_tags=utils.TargetTags(required=False),
            transformer_tags=utils.TransformerTags(preserves_dtype=["float64", "float32"]),
        )

    # ---- inside --------------------------------------------------------------------------------------------------

    def _dressed(self, result: Any, X: Any) -> Any:
        """The result as `set_output` or scikit-learn's settings ask for it."""
        chosen = vars(self).get("_sklearn_output_config", {}).get("transform")
        if chosen is None and (sklearn := sys.modules.get("sklearn")) is not None:
            chosen = sklearn.get_config()["transform_output"]
        if chosen in (None, "default"):
            return result
        frames = import_optional(chosen, extra="bench")
        columns = self.get_feature_names_out()
        if chosen == "polars":
            return frames.DataFrame(host(result), schema=columns.tolist())
        return frames.DataFrame(host(result), columns=columns, index=getattr(X, "index", None))

    def _fitted(self) -> Moments:
        if "moments_" not in vars(self):
            raise NotFittedError(
                f"This {type(self).__name__} has seen no data.", remedy="Call fit, partial_fit, merge or load first."
            )
        return self.moments_

    def _check_features(self, x: Any) -> None:
        d = self.n_features_in_
        if x.shape[1] != d:
            name = type(self).__name__
            raise ValueError(f"X has {x.shape[1]} features, but {name} is expecting {d} features as input.")

    def _absorb(self, part: Moments) -> Self:
        total = merge_moments(self.moments_, part) if "moments_" in vars(self) else part
        self._check(total)
        self.moments_ = total
        return self

    def _check(self, found: Moments) -> None:
        check_parameters(
            self.n_components, self.beta, self.gamma, self.eps, self.rcond, self.ddof, d=found.mean.shape[0]
        )

    def _solve(self) -> Kernel:
        """Kernel for the present moments and parameters; solved again only when one of them has changed."""
        found = self._fitted()
        knobs = (self.n_components, self.gamma, self.eps, self.rcond)
        key = (found, self.beta, self.ddof, *knobs)
        solved = vars(self).get("_solution")
        if solved is not None and solved[0][0] is found and solved[0][1:] == key[1:]:
            kernel: Kernel = solved[1]
            return kernel
        self._check(found)
        known = vars(self).get("_spectrum")
        if known is None or known[0][0] is not found or known[0][1:] != (self.beta, self.ddof):
            self._spectrum = ((found, self.beta, self.ddof), spectrum(found, self.beta, self.ddof))
        kernel = solve(found, self._spectrum[1], self.n_components, self.beta, self.gamma, self.eps, self.rcond)
        self._solution = (key, kernel)
        return kernel


_DEFAULTS = Whitening().__dict__.copy()
_PARAMETERS = tuple(_DEFAULTS)
