"""How well do cosines agree with labels: Spearman with its ceiling, intervals and paired tests; retrieval metrics.

Source: kexue.fm/archives/8321 (the protocol: raw, whitened, whitened and truncated, over poolings and sets).
Differences: every number comes with an interval, and binary sets with the best value that ties allow.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kexue._arrays import Array, as_matrix, finite_rows, host, like
from kexue.similarity._ranks import average_ranks, bootstrap_spearman, interval
from kexue.similarity._vectors import unit_rows
from kexue.similarity.pairs import PairDataset, pair_datasets
from kexue.similarity.whitening.estimator import Whitening

Post = Whitening | None


def spearman(a: Any, b: Any) -> float:
    """Spearman's rank correlation: Pearson's correlation of average ranks.

    Source: the metric of kexue.fm/archives/8321. Compare: `scipy.stats.spearmanr`.

    Args:
        a: (n,), n >= 2, no NaN.
        b: (n,), no NaN.

    Returns:
        rho in [-1, 1]; nan, with a RuntimeWarning, where a or b is constant (0 would look like a measurement).

    Raises:
        ValueError: shapes differ, fewer than two values, or a NaN.

    Example:
        >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])
        0.8
    """
    x, y = _vector(a, "a"), _vector(b, "b")
    if x.shape != y.shape:
        raise ValueError(f"a and b must have the same length, got {len(x)} and {len(y)}.")
    if len(x) < 2:
        raise ValueError(f"a correlation needs at least 2 values, got {len(x)}.")
    p, q = (ranks - (len(x) + 1) / 2 for ranks in (average_ranks(x), average_ranks(y)))
    spread = float(np.sqrt((p @ p) * (q @ q)))
    if spread == 0:
        which = "a" if not p.any() else "b"
        warnings.warn(f"{which} is constant: its rank correlation is undefined.", RuntimeWarning, stacklevel=2)
        return float("nan")
    return float(np.clip((p @ q) / spread, -1.0, 1.0))


def spearman_ceiling(labels: Any) -> float:
    """The largest Spearman correlation that scores without ties can reach with these labels.

    sqrt(1 - sum (t^3 - t) / (n^3 - n)) over groups of t equal labels; with a share p of ones among 0/1 labels it is
    sqrt(3 n1 n0 / (n^2 - 1)), about sqrt(3 p (1 - p)): 0.866 at one half, 0.693 at one fifth.

    Args:
        labels: (n,), n >= 2.

    Returns:
        A number in [0, 1]; 0 for constant labels.

    Example:
        >>> round(spearman_ceiling([0, 1] * 500), 3)
        0.866
    """
    values = _vector(labels, "labels")
    n = len(values)
    if n < 2:
        raise ValueError(f"a correlation needs at least 2 values, got {n}.")
    ties = np.unique(values, return_counts=True)[1].astype(np.float64)
    return float(np.sqrt(max(0.0, 1.0 - (ties**3 - ties).sum() / (float(n) ** 3 - n))))


def pair_cosine(u: Any, v: Any) -> Any:
    """Cosine of each row of u with the same row of v; 0 where a row is zero.

    cos(u, v) = <u, v> / (|u| |v|), computed in float64.

    Args:
        u: (n, d), numpy or torch.
        v: (n, d).

    Returns:
        (n,), in [-1, 1]; kind and dtype of u.

    Raises:
        ValueError: the shapes differ, or a value is not finite.

    Example:
        >>> pair_cosine([[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]).round(3).tolist()
        [0.707, 0.0]
    """
    x, y = as_matrix(u, "u"), as_matrix(v, "v")
    if tuple(x.shape) != tuple(y.shape):
        raise ValueError(f"u and v must have the same shape (n, d), got {tuple(x.shape)} and {tuple(y.shape)}.")
    p, q = unit_rows(finite_rows(x, "u")), unit_rows(finite_rows(y, "v"))
    return like(np.clip(np.einsum("ij,ij->i", p, q), -1.0, 1.0), x)


# ---- pairs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationRow:
    """One setting on one data set. `spearman`, `low`, `high` and `ceiling` are x100; low and high bound 95 %.

    `post` is the name of the post-processing ("none" without), `k` the dimension of the vectors compared, `n` the
    number of pairs, `fitted_on` what the statistics of `post` were taken from: "this set", "given" or "".
    """

    dataset: str
    split: str
    model: str
    pooling: str
    post: str
    k: int
    n: int
    spearman: float
    low: float
    high: float
    ceiling: float
    fitted_on: str


@dataclass(frozen=True)
class EvaluationTest:
    """Setting a against setting b on the same pairs: difference of Spearman x100, its 95 % interval, two-sided p."""

    dataset: str
    a: str
    b: str
    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_pairs` found: rows, one for each set and setting, and paired tests between the settings."""

    rows: list[EvaluationRow]
    tests: list[EvaluationTest]


def evaluate_pairs(
    encoder: Any,
    pairs: Any,
    *,
    post: Post | Sequence[Post] | Mapping[str, Post] = None,
    poolings: Sequence[str] | None = None,
    bootstrap: int = 1000,
    compare: bool = True,
    generator: np.random.Generator | int | None = 0,
) -> Evaluation:
    """Score an encoder on labelled pairs: Spearman x100 between label and cosine, for each pooling and post-processing.

    Source: kexue.fm/archives/8321: raw, whitened, whitened and truncated. The statistics of an unfitted `Whitening` are
    taken from all texts a and b of the set at hand, labels unseen, as the article does (`fitted_on` = "this set").

    Args:
        encoder: an object with encode(texts) -> (n, d), or a function from a list of texts to (n, d). Each distinct
            text is encoded once for each pooling.
        pairs: a PairDataset, a file or name for `load_pairs`, or a list of these; or rows of (text, text, label), or
            three columns (texts, texts, labels).
        post: None for raw vectors; a Whitening; or several, in a list or by name. None inside means raw.
        poolings: for an encoder with a method with_pooling(mode); None leaves the encoder as it is.
        bootstrap: resamples of the pairs behind intervals and tests; 0 leaves them out (nan, no tests).
        compare: test settings that differ in one thing, pooling or post, against each other.
        generator: for the resamples; an int is a fresh generator with that seed.

    Returns:
        Evaluation(rows, tests).

    Raises:
        TypeError: the encoder cannot encode, or cannot change its pooling.
        ValueError: the encoder returns another number of rows than texts.

    Example:
        >>> pairs = PairDataset("toy", "", ["aa", "ab", "bb"], ["aa", "aa", "aa"], np.array([1.0, 0.5, 0.0]))
        >>> found = evaluate_pairs(lambda texts: [[t.count("a"), t.count("b")] for t in texts], pairs)
        >>> found.rows[0].spearman
        100.0
    """
    if bootstrap < 0:
        raise ValueError(f"bootstrap must be >= 0, got {bootstrap}.")
    datasets = pair_datasets(pairs)
    posts = _named_posts(post)
    encoders = [encoder] if poolings is None else [_with_pooling(encoder, mode) for mode in poolings]
    random = np.random.default_rng(generator)
    rows: list[EvaluationRow] = []
    tests: list[EvaluationTest] = []
    for data in datasets:
        settings, cosines = [], []
        for chosen in encoders:
            vectors, counts, left, right = _encoded(chosen, data)
            for name, whitening in posts.items():
                mapped, fitted_on = _mapped(whitening, vectors, counts)
                settings.append((str(getattr(chosen, "pooling", None) or ""), name, int(mapped.shape[1]), fitted_on))
                cosines.append(pair_cosine(mapped[left], mapped[right]))
        samples = bootstrap_spearman(cosines, data.labels, bootstrap, random)
        ceiling = 100 * spearman_ceiling(data.labels)
        points = [100 * spearman(cosine, data.labels) for cosine in cosines]
        for (pooling, name, k, fitted_on), point, sample in zip(settings, points, samples, strict=True):
            low, high = interval(100 * sample)
            row = (data.name, data.split, _model_name(encoder), pooling, name, k, len(data), point, low, high, ceiling)
            rows.append(EvaluationRow(*row, fitted_on=fitted_on))
        if compare and bootstrap:
            for i, j in itertools.combinations(range(len(settings)), 2):
                if (settings[i][0] == settings[j][0]) != (settings[i][1] == settings[j][1]):
                    a, b = (_label(settings[s], len(encoders), len(posts)) for s in (i, j))
                    tests.append(_test(data.name, a, b, points[i] - points[j], 100 * (samples[i] - samples[j])))
    return Evaluation(rows, tests)


def _test(dataset: str, a: str, b: str, difference: float, samples: Array) -> EvaluationTest:
    """Two-sided bootstrap test: twice the smaller share of resamples on one side of 0, the point itself counted in."""
    low, high = interval(samples)
    kept = samples[np.isfinite(samples)]
    sides = np.count_nonzero(kept <= 0), np.count_nonzero(kept >= 0)
    p = min(1.0, 2.0 * (1 + int(min(sides))) / (1 + len(kept))) if len(kept) else float("nan")
    return EvaluationTest(dataset, a, b, difference, low, high, p)


def _encoded(encoder: Any, data: PairDataset) -> tuple[Any, Array, Array, Array]:
    """Vectors of the distinct texts, how often each occurs, and the rows of texts a and of texts b."""
    place: dict[str, int] = {}
    rows = np.array([place.setdefault(text, len(place)) for text in (*data.texts_a, *data.texts_b)])
    encode: Callable[[list[str]], Any] | None = getattr(encoder, "encode", encoder if callable(encoder) else None)
    if encode is None:
        raise TypeError(f"the encoder must have encode(texts) or be callable, got {type(encoder).__name__}.")
    vectors = as_matrix(encode(list(place)), "the encoder's output")
    if vectors.shape[0] != len(place):
        raise ValueError(f"the encoder returned {vectors.shape[0]} vectors for {len(place)} texts.")
    n = len(data)
    return finite_rows(vectors, "the encoder's output"), np.bincount(rows, minlength=len(place)), rows[:n], rows[n:]


def _mapped(whitening: Post, vectors: Array, counts: Array) -> tuple[Array, str]:
    if whitening is None:
        return vectors, ""
    if whitening.__sklearn_is_fitted__():
        return whitening._map(vectors), "given"
    fresh = type(whitening)(**whitening.get_params())
    return fresh.fit(vectors, sample_weight=counts)._map(vectors), "this set"


def _named_posts(post: Post | Sequence[Post] | Mapping[str, Post]) -> dict[str, Post]:
    if isinstance(post, Mapping):
        named = dict(post)
    else:
        several = list(post) if isinstance(post, Sequence | Iterator) else [post]
        named = {_post_name(each): each for each in several}
        if len(named) < len(several):
            raise ValueError("post holds the same setting twice; give a dict with a name for each.")
    for name, each in named.items():
        if not isinstance(each, Whitening | None):
            raise TypeError(f"post {name!r} must be a Whitening or None, got {type(each).__name__}.")
    if not named:
        raise ValueError("post holds no setting; use None for raw vectors.")
    return named


def _post_name(post: Post) -> str:
    if not isinstance(post, Whitening):
        return "none"
    k = "" if post.n_components is None else f",k={post.n_components}"
    return f"beta={post.beta:g},gamma={post.gamma:g}{k}"


def _label(setting: tuple[str, str, int, str], n_poolings: int, n_posts: int) -> str:
    pooling, post, _k, _fitted_on = setting
    return post if n_poolings == 1 else pooling if n_posts == 1 else f"{pooling} {post}"


def _with_pooling(encoder: Any, mode: str) -> Any:
    if not hasattr(encoder, "with_pooling"):
        raise TypeError(
            f"{type(encoder).__name__} cannot change its pooling (no method with_pooling). Use kexue.text.Encoder, "
            "or leave poolings out."
        )
    return encoder.with_pooling(mode)


def _model_name(encoder: Any) -> str:
    name = getattr(encoder, "model_id", None) or getattr(encoder, "__name__", None) or type(encoder).__name__
    return str(name)


# ---- retrieval -----------------------------------------------------------------------------------------------------


def retrieval_metrics(embeddings: Any, labels: Any, *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Search each row among all others by cosine; a hit is right when it carries the same label.

    map = mean over queries of (1 / R) sum over right hits of (right hits so far) / (rank), R = number of right ones;
    recall_at_k = share of queries with a right hit among the first k (Recall@k of metric learning).

    Args:
        embeddings: (n, d), numpy or torch.
        labels: (n,). Rows whose label occurs once cannot be queries and only distract.
        ks: ranks for the recall, each >= 1.

    Returns:
        {"map": ..., "recall_at_1": ..., ...}, fractions. Equal cosines count in the order of the rows.

    Raises:
        ValueError: lengths differ, or no label occurs twice.

    Cost: n^2 d multiplications and n sorts of n.

    Example:
        >>> retrieval_metrics([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]], [0, 0, 1, 1], ks=(1,))
        {'map': 1.0, 'recall_at_1': 1.0}
    """
    x, ks = unit_rows(finite_rows(embeddings, "embeddings")), tuple(ks)
    classes = np.unique(host(labels), return_inverse=True)[1]
    n = len(x)
    if classes.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), one for each row of embeddings, got {classes.shape}.")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks must be >= 1, got {ks}.")
    queries = np.flatnonzero(np.bincount(classes)[classes] > 1)
    if not len(queries):
        raise ValueError("no label occurs twice, so there is nothing to retrieve.")
    precision, first = np.empty(len(queries)), np.empty(len(queries))
    step = max(1, (1 << 22) // n)
    for start in range(0, len(queries), step):
        batch = queries[start : start + step]
        scores = x[batch] @ x.T
        scores[np.arange(len(batch)), batch] = -np.inf  # the query itself comes last and is cut off
        order = np.argsort(-scores, axis=1, kind="stable")[:, : n - 1]
        right = classes[order] == classes[batch][:, None]
        ranks = np.arange(1, n)
        precision[start : start + step] = (np.cumsum(right, axis=1) / ranks * right).sum(axis=1) / right.sum(axis=1)
        first[start : start + step] = right.argmax(axis=1) + 1
    return {"map": float(precision.mean())} | {f"recall_at_{k}": float((first <= k).mean()) for k in ks}


def known_item(ranks: Any, *, k: int = 10) -> dict[str, float]:
    """Mean reciprocal rank and recall of known-item search: one right answer a query, looked for among the first k.

    mrr = mean of 1 / rank where rank <= k, else 0;  recall = share of queries with rank <= k.

    Args:
        ranks: (n,), n >= 1, from 1; infinity or NaN where the item was not found.
        k: how far a user looks.

    Returns:
        {"mrr": ..., "recall": ...}, fractions.

    Raises:
        ValueError: no ranks, or one below 1.

    Example:
        >>> known_item([1, 2, float("inf"), 20], k=10)
        {'mrr': 0.375, 'recall': 0.5}
    """
    values = np.asarray(host(ranks), dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"ranks must be (n,) with n >= 1, got shape {values.shape}.")
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}.")
    if (values < 1).any():
        raise ValueError(f"ranks count from 1, got {values[values < 1][0]:g}.")
    found = values <= k
    return {"mrr": float(np.where(found, 1.0 / values, 0.0).mean()), "recall": float(found.mean())}


# ---- inside --------------------------------------------------------------------------------------------------------


def _vector(x: Any, name: str) -> Array:
    values = np.asarray(host(x), dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {values.shape}.")
    if np.isnan(values).any():
        raise ValueError(f"{name} holds NaN at position {int(np.isnan(values).argmax())}.")
    return values
