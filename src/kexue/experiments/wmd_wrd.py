"""kexue.fm/archives/7388: sentences as bags of vectors, compared by optimal transport.

Measures: violations of the lower bounds, the article's among them; the share of documents that a search with these
bounds solves; Spearman of WRD, WMD and the cosine of mean vectors with labels of sentence pairs; and the correlation of
a vector's length with the importance of its word, on which WRD builds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue.demo.docstrings import standard_library
from kexue.experiments import _data
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report
from kexue.similarity import (
    PairDataset,
    TransportIndex,
    pair_cosine,
    product_upper_bound,
    relaxed_wmd,
    relaxed_wrd,
    spearman,
    wcd,
    word_movers_distance,
    word_rotators_distance,
    wrd_centroid_bound,
)
from kexue.similarity.bootstrap import bootstrap_spearman, percentile_interval
from kexue.similarity.transport.problems import wmd_problem, wrd_problem

Tokens = Callable[[list[str]], list[tuple[list[str], Array]]]  # texts -> their tokens and (m, d) vectors

ENGLISH = ("stsb_en", "sick")
CHINESE = ("stsb_zh", "lcqmc", "atec", "bq", "pawsx_zh")
_OTHERS = ("WMD", "cosine of means")  # similarities that WRD is compared with
_RELATED = 0.3  # rank correlation from which length and importance count as "about equal"


@experiment(
    "wmd-wrd",
    claim="Weights from lengths and costs from angles (WRD) compare sentences better than equal weights and Euclidean "
    "costs (WMD), and its lower bound is cheap.",
    data=(*ENGLISH, *CHINESE, _data.CHARACTERS),
    effect=(
        "WRD over WMD on STS-B {stsb_en_WRD_over_WMD}; "
        "WRD over the cosine of means {stsb_en_WRD_over_cosine_of_means}; "
        "exact problem solved for {search_solved}"
    ),
    minutes=2,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Measure bounds on random pairs, exact search, sentence pairs in English and Chinese, and lengths against idf."""
    generator = np.random.default_rng(seed)
    notes: list[str] = []
    bounds = _measure_bounds({"smoke": 500, "small": 10_000, "full": 50_000}[budget], generator)
    figures = {"bounds_largest_violation": Figure(bounds.violation, n=len(bounds.wrd), expected=0.0, source="computed")}
    claims = [_bounds_claim(bounds.violation)]
    encoder = _data.attempt(_token_encoder, "MiniLM token vectors", notes)
    documents = _draw_documents(encoder, {"smoke": 500, "small": 1500, "full": 20_000}[budget], generator)
    claims.append(_search_claim(documents, {"smoke": 5, "small": 20, "full": 50}[budget], figures, notes))

    draws = {"smoke": 100, "small": 500, "full": 500}[budget]
    scores: dict[str, dict[str, float]] = {}
    used: list[PairDataset] = []
    for kind, name, tokens, wanted in _list_token_vectors(encoder, data):
        present, absent = _data.load_sentence_pairs(wanted, data, budget, generator)
        notes += [f"left out: {missing} (not in a data folder)" for missing in absent]
        if not present:
            continue
        used += present
        rankings = [_rank(pairs, tokens, draws, seed, notes) for pairs in present]
        scores |= {ranking.dataset: ranking.scores for ranking in rankings}
        claims += _ranking_claims(f"{kind} vectors ({name}; {', '.join(p.name for p in present)})", rankings, figures)
        claims.append(_importance_claim(kind, name, tokens, present, figures))
    if scores:
        notes.append("Chinese tokens are single characters; the article's are words, with stop words removed")
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        data=_data.describe_pairs(used),
        draw=lambda figure: _draw(figure, bounds, scores),
    )


def _list_token_vectors(encoder: Tokens | None, data: Path | None) -> list[tuple[str, str, Tokens, tuple[str, ...]]]:
    """Kind, name, function and data sets of the available token vectors."""
    ways: list[tuple[str, str, Tokens, tuple[str, ...]]] = []
    if encoder is not None:
        ways.append(("contextual", "MiniLM tokens", encoder, ENGLISH))
    characters = _data.load_character_vectors(data)
    if characters is not None:
        ways.append(("static", "characters", _split_characters(characters), CHINESE))
    return ways


# ---- bounds and search ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bounds:
    violation: float
    wrd: Array
    relaxed: Array
    centroid: Array


def _measure_bounds(count: int, generator: np.random.Generator) -> _Bounds:
    """Largest violation of any bound, and WRD with its two lower bounds, on random bags of vectors."""
    violation = -np.inf
    distances = []
    for number in range(count):
        d = int(generator.integers(2, 9))
        x, y = (generator.normal(size=(int(generator.integers(1, 9)), d)) for _ in range(2))
        if number % 4 == 1:
            y = np.concatenate([x, y])
        elif number % 4 == 2 and len(x) > 1:
            x[0] = 0.0
        elif number % 4 == 3:
            x = x[:1]
        wmd, wrd = word_movers_distance(x, y), word_rotators_distance(x, y)
        relaxed, centroid = relaxed_wrd(x, y), wrd_centroid_bound(x, y)
        below = max(wcd(x, y) - wmd, relaxed_wmd(x, y) - wmd, relaxed - wrd, centroid - wrd)
        above = 0.0
        for problem, exact in ((wmd_problem(x, y), wmd), (wrd_problem(x, y), wrd)):
            if not isinstance(problem, float):
                above = max(above, exact - product_upper_bound(*problem[:3]))
        violation = max(violation, below, above)
        distances.append((wrd, relaxed, centroid))
    return _Bounds(max(violation, 0.0), *np.array(distances).T)


def _bounds_claim(violation: float) -> Claim:
    return Claim.check(
        "The centroid and relaxed bounds never exceed the exact distance, and the product bound is never below it.",
        violation < 1e-9,
        rule="largest violation below 1e-9 on random pairs with shared tokens, zero vectors and single tokens",
        figures=["bounds_largest_violation"],
    )


def _search_claim(documents: list[Array], queries: int, figures: dict[str, Figure], notes: list[str]) -> Claim:
    """Hits with and without pruning, and the share of documents for which each bound avoids the solver."""
    asked, corpus = documents[:queries], documents[queries:]
    index = TransportIndex("wrd").add(corpus)
    same, solved, centroid, relaxed = True, 0, 0, 0
    for query in asked:
        quick, slow = index.search(query, 10), index.search(query, 10, prune=False)
        same &= quick.ids == slow.ids and quick.stats.exact
        solved, centroid, relaxed = (
            total + part for total, part in zip((solved, centroid, relaxed), quick.stats[:3], strict=True)
        )
    share = 1.0 / (queries * len(corpus))
    figures["search_solved"] = Figure(100 * solved * share, "% of documents", n=len(corpus))
    figures["search_pruned_by_centroids"] = Figure(100 * centroid * share, "% of documents", n=len(corpus))
    figures["search_pruned_by_relaxed"] = Figure(100 * relaxed * share, "% of documents", n=len(corpus))
    notes.append(f"search: {queries} queries over {len(corpus)} documents, k = 10")
    return Claim.check(
        "A search that prunes by the bounds finds the exact ten nearest and solves at most a tenth of the documents.",
        same and solved * share <= 0.1,
        rule="ids equal to those of solving every document; at most 10 % solved",
        figures=["search_solved", "search_pruned_by_centroids", "search_pruned_by_relaxed"],
    )


# ---- ranking of labelled pairs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ranking:
    """Spearman x100 with the labels of one set by similarity, and WRD's lead (value, low, high) over the others."""

    dataset: str
    n: int
    scores: dict[str, float]
    leads: dict[str, tuple[float, float, float]]


def _rank(pairs: PairDataset, tokens: Tokens, draws: int, seed: int, notes: list[str]) -> _Ranking:
    """Rank correlations of three similarities with the labels; leads of WRD with 95 % bootstrap intervals."""
    left, right = (tokens(texts) for texts in (pairs.texts_a, pairs.texts_b))
    bags = [(x, y, label) for (_, x), (_, y), label in zip(left, right, pairs.labels, strict=True)]
    known = [(x, y, label) for x, y, label in bags if len(x) and len(y)]
    if len(known) < len(bags):
        notes.append(f"{pairs.name}: {len(bags) - len(known)} pairs without a known token left out")
    labels = np.array([label for _, _, label in known])
    similarity = {
        "cosine of means": pair_cosine(*(np.array([pair[i].mean(axis=0) for pair in known]) for i in (0, 1))),
        "WMD": -np.array([word_movers_distance(x, y) for x, y, _ in known]),
        "WRD": -np.array([word_rotators_distance(x, y) for x, y, _ in known]),
    }
    scores = {way: 100 * spearman(values, labels) for way, values in similarity.items()}
    replicates = bootstrap_spearman(list(similarity.values()), labels, draws, np.random.default_rng(seed))
    samples = dict(zip(similarity, 100 * replicates, strict=True))
    leads = {
        other: (scores["WRD"] - scores[other], *percentile_interval(samples["WRD"] - samples[other]))
        for other in _OTHERS
    }
    return _Ranking(pairs.name, len(known), scores, leads)


def _ranking_claims(where: str, rankings: Sequence[_Ranking], figures: dict[str, Figure]) -> list[Claim]:
    """Claims about WRD against either other similarity, whose figures are added."""
    for one in rankings:
        for way, value in one.scores.items():
            figures[f"{one.dataset}_{way.replace(' ', '_')}"] = Figure(value, "Spearman x100", n=one.n)
        for other, (lead, low, high) in one.leads.items():
            figures[f"{one.dataset}_WRD_over_{other.replace(' ', '_')}"] = Figure(
                lead, "Spearman x100", low, high, one.n
            )
    texts = {
        "WMD": f"WRD ranks pairs better than WMD on {where}.",
        "cosine of means": f"WRD ranks pairs better than the cosine of mean vectors on {where} (our comparison).",
    }
    return [
        Claim.check_parts(
            text,
            [one.leads[other][1] > 0 for one in rankings],
            rule="the 95 % bootstrap interval of the difference of Spearman lies above 0: on all sets, on some, on "
            "none",
            figures=[f"{one.dataset}_WRD_over_{other.replace(' ', '_')}" for one in rankings],
        )
        for other, text in texts.items()
    ]


# ---- lengths -------------------------------------------------------------------------------------------------------


def _importance_claim(
    kind: str, name: str, tokens: Tokens, sets: Sequence[PairDataset], figures: dict[str, Figure]
) -> Claim:
    """Mean length of a token's vectors against log(texts / texts with the token), tokens in 5 texts or more."""
    texts = list(dict.fromkeys(text for pairs in sets for text in [*pairs.texts_a, *pairs.texts_b]))
    lengths: dict[str, list[float]] = {}
    texts_with: dict[str, int] = {}
    for names, vectors in tokens(texts):
        for token, length in zip(names, np.linalg.norm(vectors, axis=1).tolist(), strict=True):
            lengths.setdefault(token, []).append(length)
        for token in set(names):
            texts_with[token] = texts_with.get(token, 0) + 1
    common = [token for token, count in texts_with.items() if count >= 5]
    mean = np.array([np.mean(lengths[token]) for token in common])
    idf = np.log(len(texts) / np.array([texts_with[token] for token in common]))
    key = f"length_against_idf_{kind}"
    figures[key] = Figure(spearman(mean, idf), "Spearman", n=len(common))
    return Claim.check(
        f"The length of a token's vector says how important the token is: {kind} vectors ({name}).",
        figures[key].value > _RELATED,
        rule=f"Spearman of mean length and inverse document frequency above {_RELATED}, tokens in 5 texts or more",
        figures=[key],
    )


# ---- token vectors -------------------------------------------------------------------------------------------------


def _draw_documents(encoder: Tokens | None, count: int, generator: np.random.Generator) -> list[Array]:
    """Docstrings as token vectors; without a model, random bags about planted topics."""
    if encoder is not None:
        texts = [entry.text for entry in standard_library()]
        sample = generator.choice(len(texts), min(count, len(texts)), replace=False)
        return [vectors for _, vectors in encoder([texts[i] for i in sample])]
    words = generator.normal(size=(25, 1, 32)) + 0.5 * generator.normal(size=(25, 30, 32))
    words *= generator.gamma(4, 0.25, size=(25, 30, 1))
    topics = generator.integers(25, size=count)
    return [words[topic][generator.integers(30, size=generator.integers(3, 20))] for topic in topics]


def _token_encoder() -> Tokens:
    """MiniLM's token vectors, in float32 on the CPU, each text encoded once."""
    from kexue.text import Encoder

    encoder = Encoder("all-MiniLM-L6-v2", device="cpu", dtype="float32")
    cache: dict[str, tuple[list[str], Array]] = {}

    def encode(texts: list[str]) -> list[tuple[list[str], Array]]:
        new = [text for text in dict.fromkeys(texts) if text not in cache]
        for text, bag in zip(new, encoder.encode_tokens(new), strict=True):
            cache[text] = (bag.tokens, bag.vectors)
        return [cache[text] for text in texts]

    return encode


def _split_characters(characters: _data.CharacterVectors) -> Tokens:
    """A text's known characters with their vectors."""

    def split(texts: list[str]) -> list[tuple[list[str], Array]]:
        known = [characters.split(text) for text in texts]
        return [(each, characters.stack(each)) for each in known]

    return split


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(figure: Any, bounds: _Bounds, scores: Mapping[str, Mapping[str, float]]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    some = slice(0, 1500)
    left.plot([0, 2], [0, 2], color="0.7", lw=1)
    left.plot(bounds.wrd[some], bounds.relaxed[some], ".", ms=3, label="relaxed")
    left.plot(bounds.wrd[some], bounds.centroid[some], ".", ms=3, label="centroids")
    left.set(xlabel="WRD", ylabel="lower bound", title="random bags")
    left.legend()
    for offset, way in enumerate((*_OTHERS[::-1], "WRD")):
        heights = [values[way] for values in scores.values()]
        right.bar(np.arange(len(scores)) + 0.27 * (offset - 1), heights, 0.25, label=way)
    right.set_xticks(range(len(scores)), list(scores), rotation=30)
    right.set(xlabel="data set", ylabel="Spearman x100")
    if scores:
        right.legend()
