"""Evaluation of an encoder on labelled pairs: Spearman with its largest possible value, intervals, paired tests.

Source: kexue.fm/archives/8321 (the protocol: raw, whitened, whitened and truncated, over poolings and sets).
Differences: every number comes with an interval, and binary sets with the best value that ties allow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array, as_matrix, finite_rows, host
from kexue.similarity.bootstrap import bootstrap_spearman, percentile_interval, two_sided_p_value
from kexue.similarity.metrics import pair_cosine, spearman, spearman_ceiling
from kexue.similarity.pairs import PairDataset, pair_datasets
from kexue.similarity.whitening.estimator import Whitening

Post = Whitening | None


@dataclass(frozen=True)
class EvaluationRow:
    """One setting on one data set.

    Attributes:
        dataset: name of the set; split: its part, or "".
        model: name of the encoder; pooling: its pooling, or "".
        post: name of the post-processing, "none" without.
        k: dimension of the vectors compared.
        n: number of pairs.
        spearman: x100; low, high: its 95 % interval, x100; ceiling: the best value that ties allow, x100.
        fitted_on: data behind the statistics of `post`: "this set", "given" (fitted beforehand) or "" (none).
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
    """Result of `evaluate_pairs`: one row for each set and setting, and paired tests between settings."""

    rows: list[EvaluationRow]
    tests: list[EvaluationTest]


class _Setting(NamedTuple):
    """One pooling and post-processing, with the cosines of all pairs under it."""

    pooling: str
    post: str
    k: int
    fitted_on: str
    cosines: Array


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
            text is encoded once for each pooling; by ``encode_queries`` where it exists, as `kexue.text.Encoder` has it
            for models with prompts.
        pairs: a PairDataset, a file or name for `load_pairs`, or a list of these; or rows of (text, text, label), or
            three columns (texts, texts, labels).
        post: None for raw vectors; a Whitening; or several, in a list or by name. None inside means raw.
        poolings: for an encoder with a method with_pooling(mode); None leaves the encoder unchanged.
        bootstrap: number of resamples of the pairs behind intervals and tests; 0 leaves them out (nan, no tests).
        compare: test settings that differ in one thing, pooling or post, against each other.
        generator: for the resamples; an int is a fresh generator with that seed.

    Returns:
        Evaluation(rows, tests).

    Raises:
        TypeError: the encoder cannot encode, or cannot change its pooling.
        ValueError: the encoder returns another number of rows than texts.

    Example:
        >>> pairs = PairDataset("toy", "", ["aa", "ab", "bb"], ["aa", "aa", "aa"], np.array([1.0, 0.5, 0.0]))
        >>> result = evaluate_pairs(lambda texts: [[t.count("a"), t.count("b")] for t in texts], pairs)
        >>> result.rows[0].spearman
        100.0
    """
    if bootstrap < 0:
        raise ValueError(f"bootstrap must be >= 0, got {bootstrap}.")
    datasets = pair_datasets(pairs)
    posts = _name_posts(post)
    if hasattr(encoder, "choose_model"):  # the model of Encoder("auto"), by these texts
        encoder.choose_model([text for data in datasets for text in (*data.texts_a, *data.texts_b)])
    encoders = [encoder] if poolings is None else [_set_pooling(encoder, mode) for mode in poolings]
    model, random = _model_name(encoder), np.random.default_rng(generator)
    rows: list[EvaluationRow] = []
    tests: list[EvaluationTest] = []
    for data in datasets:
        settings = [setting for each in encoders for setting in _apply_posts(each, posts, data)]
        samples = bootstrap_spearman([setting.cosines for setting in settings], data.labels, bootstrap, random)
        points = [100 * spearman(each.cosines, data.labels) for each in settings]  # section "结果汇总" (8321)
        rows += [_row(data, model, *each) for each in zip(settings, points, samples, strict=True)]
        if compare and bootstrap:
            labels = [_short_name(setting, len(encoders), len(posts)) for setting in settings]
            tests += [
                _paired_test(data.name, labels[i], labels[j], points[i] - points[j], 100 * (samples[i] - samples[j]))
                for i, j in itertools.combinations(range(len(settings)), 2)
                if (settings[i].pooling == settings[j].pooling) != (settings[i].post == settings[j].post)
            ]
    return Evaluation(rows, tests)


def _apply_posts(encoder: Any, posts: Mapping[str, Post], data: PairDataset) -> Iterator[_Setting]:
    """Encode the texts of a set once, and yield the cosines of its pairs after each post-processing."""
    vectors, counts, left, right = _encode_distinct(encoder, data)
    pooling = str(getattr(encoder, "pooling", None) or "")
    for name, whitening in posts.items():
        mapped, fitted_on = _apply_post(whitening, vectors, counts)
        yield _Setting(pooling, name, int(mapped.shape[1]), fitted_on, pair_cosine(mapped[left], mapped[right]))


def _row(data: PairDataset, model: str, setting: _Setting, point: float, samples: Array) -> EvaluationRow:
    """Row of one setting; `point` is x100, its resamples are not."""
    low, high = percentile_interval(100 * samples)
    return EvaluationRow(
        data.name,
        data.split,
        model,
        setting.pooling,
        setting.post,
        setting.k,
        len(data),
        point,
        low,
        high,
        ceiling=100 * spearman_ceiling(data.labels),
        fitted_on=setting.fitted_on,
    )


def _paired_test(dataset: str, a: str, b: str, difference: float, samples: Array) -> EvaluationTest:
    """Bootstrap test of a difference from its resamples."""
    return EvaluationTest(dataset, a, b, difference, *percentile_interval(samples), two_sided_p_value(samples))


def _encode_distinct(encoder: Any, data: PairDataset) -> tuple[Array, Array, Array, Array]:
    """Return vectors of the distinct texts, how often each occurs, and the rows of texts a and of texts b."""
    row_of: dict[str, int] = {}
    rows = np.array([row_of.setdefault(text, len(row_of)) for text in (*data.texts_a, *data.texts_b)])
    encode: Callable[[list[str]], Any] | None = getattr(encoder, "encode", encoder if callable(encoder) else None)
    encode = getattr(encoder, "encode_queries", encode)  # both texts of a pair get the same prompt
    if encode is None:
        raise TypeError(f"the encoder must have encode(texts) or be callable, got {type(encoder).__name__}.")
    vectors = as_matrix(encode(list(row_of)), "the encoder's output")
    if vectors.shape[0] != len(row_of):
        raise ValueError(f"the encoder returned {vectors.shape[0]} vectors for {len(row_of)} texts.")
    n = len(data)
    counts = np.bincount(rows, minlength=len(row_of))
    return finite_rows(vectors, "the encoder's output"), counts, rows[:n], rows[n:]


def _apply_post(whitening: Post, vectors: Array, counts: Array) -> tuple[Array, str]:
    """Return the transformed vectors, and which data the whitening was fitted on."""
    if whitening is None:
        return vectors, ""
    if whitening.__sklearn_is_fitted__():
        return host(whitening.transform(vectors)), "given"
    fresh = type(whitening)(**whitening.get_params())
    return host(fresh.fit(vectors, sample_weight=counts).transform(vectors)), "this set"


def _name_posts(post: Post | Sequence[Post] | Mapping[str, Post]) -> dict[str, Post]:
    """Return the post-processings by name."""
    if isinstance(post, Mapping):
        named = dict(post)
    else:
        several = list(post) if isinstance(post, Sequence | Iterator) else [post]
        named = {_post_name(each): each for each in several}
        if len(named) < len(several):
            raise ValueError("post has the same setting twice; give a dict with a name for each.")
    for name, each in named.items():
        if not isinstance(each, Whitening | None):
            raise TypeError(f"post {name!r} must be a Whitening or None, got {type(each).__name__}.")
    if not named:
        raise ValueError("post holds no setting; use None for raw vectors.")
    return named


def _post_name(post: Post) -> str:
    """Name of a post-processing, such as "beta=1,gamma=1,k=256"."""
    if not isinstance(post, Whitening):
        return "none"
    k = "" if post.n_components is None else f",k={post.n_components}"
    return f"beta={post.beta:g},gamma={post.gamma:g}{k}"


def _short_name(setting: _Setting, n_poolings: int, n_posts: int) -> str:
    """Name of a setting in a test: the pooling is left out where there is one only, and so is the post."""
    if n_poolings == 1:
        return setting.post
    return setting.pooling if n_posts == 1 else f"{setting.pooling} {setting.post}"


def _set_pooling(encoder: Any, mode: str) -> Any:
    """Return the encoder with another pooling."""
    if not hasattr(encoder, "with_pooling"):
        raise TypeError(
            f"{type(encoder).__name__} cannot change its pooling (no method with_pooling). Use kexue.text.Encoder, "
            "or leave poolings out."
        )
    return encoder.with_pooling(mode)


def _model_name(encoder: Any) -> str:
    """Name of an encoder: its model_id, or that of the function or class."""
    return str(getattr(encoder, "model_id", None) or getattr(encoder, "__name__", None) or type(encoder).__name__)
