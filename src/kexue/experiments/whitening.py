"""kexue.fm/archives/8321: whitening improves the cosines of unsupervised vectors, but not of every vector.

Measures: Spearman of raw, whitened and truncated vectors on planted pairs (what whitening removes), on digits (where it
hurts and truncation repairs it), on English STS with a supervised encoder, and on the article's Chinese sets with means
of character vectors.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kexue.experiments import _data
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report
from kexue.similarity import Evaluation, PairDataset, Whitening, evaluate_pairs

_COLOURS = {"raw": "0.55", "whitened": "tab:blue", "truncated": "tab:orange"}


@experiment(
    "whitening",
    claim="Whitening improves the cosines of unsupervised sentence vectors more often than not, truncation helps "
    "further, and supervised vectors should be left alone.",
    data=_data.SENTENCES,
    effect=(
        "Spearman: planted {made_up_raw} to {made_up_whitened}; "
        "digits {digits_raw} to {digits_whitened}; "
        "MiniLM on STS-B {MiniLM_stsb_en_raw} to {MiniLM_stsb_en_whitened}"
    ),
    minutes=1.5,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Evaluate raw, whitened and truncated vectors on planted pairs, digits, and the sentences in the data folder."""
    notes: list[str] = []
    sets = _data.load_similarity_data(seed, data, budget, notes)
    results = _evaluate_all(sets, {"smoke": 100, "small": 1000, "full": 2000}[budget], seed, notes)
    if sets.absent:
        notes.append(f"left out, since the data are missing: {', '.join(sets.absent)}")
    notes.append(
        "not tested, since weights of Chinese BERT and SimBERT are missing: which pooling is best, whether larger "
        "models are better, and that SimBERT is best on every set but PAWSX"
    )
    return Report(
        tuple(_claims(results)),
        _figures(results),
        tuple(notes),
        data=sets.describe(),
        draw=lambda figure: _draw(figure, results),
    )


# ---- measure -------------------------------------------------------------------------------------------------------


def _evaluate_all(sets: _data.SimilarityData, draws: int, seed: int, notes: list[str]) -> dict[str, Evaluation]:
    """Spearman on every available set, by name of its encoder."""
    evaluate = partial(_evaluate, draws=draws, seed=seed)
    results = {"made up": evaluate(sets.planted, [sets.planted.pairs], {"whitened": None})}
    if sets.digits is not None:
        ks = {"whitened": None, "k32": 32, "k16": 16, "k8": 8}
        results["digits"] = evaluate(sets.digits, [sets.digits.pairs], ks)
    if sets.sentences is not None:
        texts = list(dict.fromkeys(text for pairs in sets.english for text in (*pairs.texts_a, *pairs.texts_b)))
        ks = {"whitened": None, "truncated": 128}
        results["MiniLM"] = evaluate(sets.sentences, sets.english, ks, corpus=texts)
        notes.append(f"MiniLM: statistics of the {len(texts)} texts of all English sets of the run together")
        if len(sets.english) > 1:
            results["MiniLM, own texts"] = evaluate(sets.sentences, sets.english[:1], {"whitened": None})
            notes.append(
                "own texts: with statistics of the few texts of one set, whitening 384 dimensions does more harm"
            )
    if sets.chinese and sets.characters is not None:
        results["characters"] = evaluate(sets.characters, sets.chinese, {"whitened": None, "truncated": 67})
    return results


def _evaluate(
    encoder: Any,
    pairs: list[PairDataset],
    ks: Mapping[str, int | None],
    *,
    draws: int,
    seed: int,
    corpus: list[str] | None = None,
) -> Evaluation:
    """Raw vectors and whitened ones of each dimension, with statistics of the texts in `corpus`, else of each set."""
    posts = {"raw": None, **{post: Whitening(k) for post, k in ks.items()}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="kept")  # directions that never vary are cut, as they should be
        if corpus is not None:
            posts = {post: each and each.fit(encoder.encode(corpus)) for post, each in posts.items()}
        return evaluate_pairs(encoder, pairs, post=posts, bootstrap=draws, generator=seed)


# ---- figures and claims --------------------------------------------------------------------------------------------


_EXPECTED: dict[str, tuple[float, str]] = {
    "made up raw": (73.2, "computed"),
    "made up whitened": (97.0, "computed"),
    "digits raw": (38.6, "computed"),
    "digits whitened": (22.1, "computed"),
    "digits k32": (28.1, "computed"),
    "digits k16": (36.2, "computed"),
    "digits k8": (40.5, "computed"),
}


def _figures(results: Mapping[str, Evaluation]) -> dict[str, Figure]:
    figures = {}
    for name, result in results.items():
        for row in result.rows:
            key = f"{name} {row.post}" if name == row.dataset else f"{name} {row.dataset} {row.post}"
            expected, source = _EXPECTED.get(key, (None, None))
            figures[key.replace(",", "").replace(" ", "_")] = Figure(
                row.spearman, "x100", row.low, row.high, row.n, expected, source
            )
    return figures


def _claims(results: Mapping[str, Evaluation]) -> list[Claim]:
    claims = [_anisotropy_claim(results["made up"])]
    if "digits" in results:
        claims += _digit_claims(results["digits"])
    if "MiniLM" in results:
        claims.append(_supervised_claim(results["MiniLM"]))
    if "characters" in results:
        claims += _chinese_claims(results["characters"])
    return claims


def _by_post(result: Evaluation) -> dict[str, dict[str, Any]]:
    """Rows by post-processing and data set."""
    table: dict[str, dict[str, Any]] = {}
    for row in result.rows:
        table.setdefault(row.post, {})[row.dataset] = row
    return table


def _anisotropy_claim(result: Evaluation) -> Claim:
    raw, white = (_by_post(result)[post]["made up"] for post in ("raw", "whitened"))
    return Claim.check(
        "Whitening restores similarity that three dominant directions and a shift have hidden.",
        white.low > raw.high and white.spearman > 95,
        rule="intervals of raw and whitened do not meet, and whitened exceeds 95",
        figures=["made_up_raw", "made_up_whitened"],
    )


def _digit_claims(result: Evaluation) -> list[Claim]:
    row = {post: rows["digits"] for post, rows in _by_post(result).items()}
    falling = [row[post].spearman for post in ("whitened", "k32", "k16", "k8")]
    return [
        Claim.check(
            "There is no free lunch: whitening can hurt.",
            row["whitened"].high < row["raw"].low,
            rule="digits: the interval of whitened lies below that of raw",
            figures=["digits_raw", "digits_whitened"],
        ),
        Claim.check(
            "Truncation helps further; here it recovers what whitening lost.",
            falling == sorted(falling) and row["k8"].spearman > row["raw"].low,
            rule="digits: the score rises as k falls from all 61 to 8, where it reaches the interval of raw",
            figures=["digits_raw", "digits_k32", "digits_k16", "digits_k8"],
        ),
    ]


def _supervised_claim(result: Evaluation) -> Claim:
    tests = {(t.dataset, t.a, t.b): t for t in result.tests}
    names = list(_by_post(result)["raw"])
    worse = [name for name in names if tests[name, "raw", "whitened"].low > 0]
    better = [name for name in names if tests[name, "raw", "whitened"].high < 0]
    return Claim(
        "Vectors of a supervised encoder should not be whitened.",
        "reproduced" if len(worse) == len(names) else "partly" if len(worse) > len(better) else "not reproduced",
        f"paired bootstrap on each set, raw minus whitened: clearly worse on {len(worse)} of {len(names)}, "
        f"clearly better on {len(better)}; reproduced = worse on all",
        tuple(f"MiniLM_{name}_{post}" for name in names for post in ("raw", "whitened")),
    )


def _chinese_claims(result: Evaluation) -> list[Claim]:
    score = {post: {name: row.spearman for name, row in rows.items()} for post, rows in _by_post(result).items()}
    names = list(score["raw"])
    helped = [name for name in names if score["whitened"][name] > score["raw"][name]]
    further = [name for name in names if score["truncated"][name] > score["whitened"][name]]
    every = tuple(f"characters_{name}_{post}" for name in names for post in score)
    claims = [
        Claim.check(
            "Unsupervised vectors gain from whitening more often than not.",
            2 * len(helped) > len(names),
            rule=f"whitened above raw on more than half of the sets: {len(helped)} of {len(names)}",
            figures=every,
        ),
        Claim.check(
            "Truncation to a third of the dimensions helps further.",
            2 * len(further) > len(names),
            rule=f"truncated above whitened on more than half of the sets: {len(further)} of {len(names)}",
            figures=every,
        ),
    ]
    if "bq" in names:
        claims.append(
            Claim.check(
                "BQ gets worse by whitening. (The article says so of BERT-like encoders; here averages of characters.)",
                score["whitened"]["bq"] < score["raw"]["bq"],
                rule="bq: whitened below raw",
                figures=["characters_bq_raw", "characters_bq_whitened"],
            )
        )
    if "pawsx_zh" in names and len(names) > 1:
        best = {name: max(score[post][name] for post in score) for name in names}
        claims.append(
            Claim.check(
                "PAWSX is very hard for all.",
                best["pawsx_zh"] == min(best.values()),
                rule="the best score on pawsx_zh is the lowest best score of all sets",
                figures=every,
            )
        )
    return claims


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(figure: Any, results: Mapping[str, Evaluation]) -> None:
    widths = [max(2.0, len({row.dataset for row in result.rows}) + 0.5) for result in results.values()]
    panels = figure.subplots(1, len(results), sharey=True, width_ratios=widths, squeeze=False)[0]
    for panel, (name, result) in zip(panels, results.items(), strict=True):
        datasets = list(dict.fromkeys(row.dataset for row in result.rows))
        posts = list(dict.fromkeys(row.post for row in result.rows))
        width = 0.8 / len(posts)
        for position, post in enumerate(posts):
            rows = [row for row in result.rows if row.post == post]
            scores = [row.spearman for row in rows]
            spread = [[row.spearman - row.low for row in rows], [row.high - row.spearman for row in rows]]
            at = np.arange(len(datasets)) + (position - (len(posts) - 1) / 2) * width
            colour = _COLOURS.get(post, "tab:orange")
            label = post if post in _COLOURS and panel is panels[-1] else None
            panel.bar(at, scores, width, yerr=spread, color=colour, label=label, error_kw={"lw": 0.8})
            if post.startswith("k"):
                panel.text(at[0], 1, f"k={post[1:]}", rotation=90, ha="center", va="bottom", fontsize=7)
        panel.set_xticks(range(len(datasets)), datasets, rotation=35, ha="right", fontsize=8)
        panel.set_title(name.rpartition(", ")[2], fontsize=9)
    figure.supxlabel("data set", fontsize=9)
    panels[0].set_ylabel("Spearman x100, 95 % interval")
    panels[-1].legend(fontsize=8)
