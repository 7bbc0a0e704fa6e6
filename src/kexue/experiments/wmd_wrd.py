"""kexue.fm/archives/7388: sentences as bags of vectors, compared by moving one onto the other.

Shows: the lower bounds hold, the article's own among them; a search that trusts them solves few documents and loses
none; whether WRD ranks sentence pairs better than WMD, and both better than the cosine of mean vectors; and whether a
vector's length says how much its word matters, which is what WRD builds on.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kexue.demo.docstrings import standard_library
from kexue.experiments import _data
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report, Verdict
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
from kexue.similarity.transport.distances import wmd_problem, wrd_problem

Array = np.ndarray[Any, np.dtype[Any]]
Tokens = Callable[[list[str]], list[tuple[list[str], Array]]]  # texts -> their tokens and (m, d) vectors

ENGLISH = ("stsb_en", "sick")
CHINESE = ("stsb_zh", "lcqmc", "atec", "bq", "pawsx_zh")
_RELATED = 0.3  # a rank correlation that deserves the sign "about equal" between length and importance


@experiment(
    "wmd-wrd",
    claim="Weights from lengths and costs from angles (WRD) compare sentences better than equal weights and Euclidean "
    "costs (WMD), and its lower bound is cheap.",
    data=(*ENGLISH, *CHINESE, "tencent_char_200d"),
    effect=(
        "WRD over WMD on STS-B {stsb_en_WRD_over_WMD}; "
        "WRD over the cosine of means {stsb_en_WRD_over_cosine_of_means}; "
        "solved {search_solved}"
    ),
    minutes=2,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Bounds on random pairs; exact search; pairs of sentences in English and Chinese; lengths against idf."""
    generator = np.random.default_rng(seed)
    notes: list[str] = []
    bounds = _bounds({"smoke": 500, "small": 10_000, "full": 50_000}[budget], generator)
    figures = {"bounds_largest_violation": Figure(bounds.violation, n=len(bounds.wrd), expected=0.0, source="computed")}
    claims = [
        Claim.check(
            "The centroid and relaxed bounds never exceed the exact distance, and the product bound is never below it.",
            bounds.violation < 1e-9,
            rule="largest violation below 1e-9 on random pairs with shared tokens, zero vectors and single tokens",
            figures=["bounds_largest_violation"],
        )
    ]
    encoder = _data.attempt(_token_encoder, "MiniLM token vectors", notes)
    documents = _documents(encoder, {"smoke": 500, "small": 1500, "full": 20_000}[budget], generator)
    claims.append(_search(documents, {"smoke": 5, "small": 20, "full": 50}[budget], figures, notes))

    ways: list[tuple[str, Tokens, tuple[str, ...], bool]] = []
    if encoder is not None:
        ways.append(("MiniLM tokens", encoder, ENGLISH, False))
    table = None if data is None else data / "vectors_zh" / "tencent_char_200d.txt.gz"
    if table is not None and table.is_file():
        ways.append(("characters", _characters(table), CHINESE, True))
    scores: dict[str, dict[str, float]] = {}
    used: list[PairDataset] = []
    for name, tokens, wanted, static in ways:
        found, absent = _data.load_sentence_pairs(wanted, data, budget, generator)
        notes += [f"left out: {missing} (not in a data folder)" for missing in absent]
        if not found:
            continue
        used += found
        kind = "static" if static else "contextual"
        claims += _ranking(kind, name, tokens, found, seed, {"smoke": 100}.get(budget, 500), figures, scores, notes)
        claims.append(_importance(kind, name, tokens, found, figures))
    if scores:
        notes.append("Chinese tokens are single characters; the article's are words, with stop words removed")

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
        shown = slice(0, 1500)
        left.plot([0, 2], [0, 2], color="0.7", lw=1)
        left.plot(bounds.wrd[shown], bounds.relaxed[shown], ".", ms=3, label="relaxed")
        left.plot(bounds.wrd[shown], bounds.centroid[shown], ".", ms=3, label="centroids")
        left.set(xlabel="WRD", ylabel="lower bound", title="random bags")
        left.legend()
        for offset, way in enumerate(("cosine of means", "WMD", "WRD")):
            heights = [values[way] for values in scores.values()]
            right.bar(np.arange(len(scores)) + 0.27 * (offset - 1), heights, 0.25, label=way)
        right.set_xticks(range(len(scores)), list(scores), rotation=30)
        right.set_ylabel("Spearman x 100")
        if scores:
            right.legend()

    return Report(tuple(claims), figures, notes=tuple(notes), data=_data.describe_pairs(used), draw=draw)


@dataclass(frozen=True)
class _Bounds:
    violation: float
    wrd: Array
    relaxed: Array
    centroid: Array


def _bounds(count: int, generator: np.random.Generator) -> _Bounds:
    """How far any bound crosses the exact distance."""
    violation = -np.inf
    kept = []
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
        kept.append((wrd, relaxed, centroid))
    return _Bounds(max(violation, 0.0), *np.array(kept).T)


def _search(documents: list[Array], queries: int, figures: dict[str, Figure], notes: list[str]) -> Claim:
    """Hits with and without pruning, and how many documents each bound spares the solver."""
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
        "A search that trusts the bounds finds the exact ten nearest and solves a tenth of the documents at most.",
        same and solved * share <= 0.1,
        rule="ids equal to those of solving every document; at most 10 % solved",
        figures=["search_solved", "search_pruned_by_centroids", "search_pruned_by_relaxed"],
    )


def _ranking(
    kind: str,
    name: str,
    tokens: Tokens,
    found: list[PairDataset],
    seed: int,
    draws: int,
    figures: dict[str, Figure],
    scores: dict[str, dict[str, float]],
    notes: list[str],
) -> list[Claim]:
    """Spearman of three similarities with the labels, and bootstrap intervals of WRD's lead."""
    leads: dict[str, list[str]] = {"WMD": [], "cosine of means": []}
    verdicts: dict[str, list[bool]] = {"WMD": [], "cosine of means": []}
    for pairs in found:
        left, right = (tokens(texts) for texts in (pairs.texts_a, pairs.texts_b))
        bags = [(x, y, label) for (_, x), (_, y), label in zip(left, right, pairs.labels, strict=True)]
        kept = [(x, y, label) for x, y, label in bags if len(x) and len(y)]
        if len(kept) < len(bags):
            notes.append(f"{pairs.name}: {len(bags) - len(kept)} pairs without a known token left out")
        labels = np.array([label for _, _, label in kept])
        similarity = {
            "cosine of means": pair_cosine(*(np.array([pair[i].mean(axis=0) for pair in kept]) for i in (0, 1))),
            "WMD": -np.array([word_movers_distance(x, y) for x, y, _ in kept]),
            "WRD": -np.array([word_rotators_distance(x, y) for x, y, _ in kept]),
        }
        scores[pairs.name] = {way: 100 * spearman(values, labels) for way, values in similarity.items()}
        for way, value in scores[pairs.name].items():
            figures[f"{pairs.name}_{way.replace(' ', '_')}"] = Figure(value, "Spearman x100", n=len(kept))
        generator = np.random.default_rng(seed)
        rows = [generator.integers(0, len(kept), len(kept)) for _ in range(draws)]
        for other, keys in leads.items():
            again = [
                100 * (spearman(similarity["WRD"][r], labels[r]) - spearman(similarity[other][r], labels[r]))
                for r in rows
            ]
            low, high = np.quantile(again, [0.025, 0.975])
            lead = scores[pairs.name]["WRD"] - scores[pairs.name][other]
            key = f"{pairs.name}_WRD_over_{other.replace(' ', '_')}"
            figures[key] = Figure(lead, "Spearman x100", float(low), float(high), len(kept))
            keys.append(key)
            verdicts[other].append(bool(low > 0))
    where = f"{kind} vectors ({name}; {', '.join(pairs.name for pairs in found)})"
    rule = "the 95 % bootstrap interval of the difference of Spearman lies above 0: on all sets, on some, on none"
    return [
        Claim(f"WRD ranks pairs better than WMD on {where}.", _share(verdicts["WMD"]), rule, tuple(leads["WMD"])),
        Claim(
            f"WRD ranks pairs better than the cosine of mean vectors on {where} (a comparison of ours).",
            _share(verdicts["cosine of means"]),
            rule,
            tuple(leads["cosine of means"]),
        ),
    ]


def _share(holds: list[bool]) -> Verdict:
    return "reproduced" if all(holds) else "partly" if any(holds) else "not reproduced"


def _importance(kind: str, name: str, tokens: Tokens, found: list[PairDataset], figures: dict[str, Figure]) -> Claim:
    """Mean length of a token's vectors against log(texts / texts with the token), tokens in 5 texts or more."""
    texts = list(dict.fromkeys(text for pairs in found for text in [*pairs.texts_a, *pairs.texts_b]))
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


def _documents(encoder: Tokens | None, count: int, generator: np.random.Generator) -> list[Array]:
    """Docstrings as token vectors; without a model, sentences about made-up topics."""
    if encoder is not None:
        texts = [entry.text for entry in standard_library()]
        chosen = generator.choice(len(texts), min(count, len(texts)), replace=False)
        return [vectors for _, vectors in encoder([texts[i] for i in chosen])]
    words = generator.normal(size=(25, 1, 32)) + 0.5 * generator.normal(size=(25, 30, 32))
    words *= generator.gamma(4, 0.25, size=(25, 30, 1))
    topics = generator.integers(25, size=count)
    return [words[topic][generator.integers(30, size=generator.integers(3, 20))] for topic in topics]


def _token_encoder() -> Tokens:
    from kexue.text import Encoder

    encoder = Encoder("all-MiniLM-L6-v2", device="cpu", dtype="float32")
    known: dict[str, tuple[list[str], Array]] = {}

    def tokens(texts: list[str]) -> list[tuple[list[str], Array]]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for text, found in zip(new, encoder.encode_tokens(new), strict=True):
            known[text] = (found.tokens, found.vectors)
        return [known[text] for text in texts]

    return tokens


def _characters(path: Path) -> Tokens:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        dim = int(file.readline().split()[1])
        rows = (line.rstrip("\n").split(" ") for line in file)
        vectors = {character: np.array(values, dtype=np.float64) for character, *values in rows}

    def tokens(texts: list[str]) -> list[tuple[list[str], Array]]:
        names = [[character for character in text if character in vectors] for text in texts]
        return [(each, np.array([vectors[c] for c in each]).reshape(-1, dim)) for each in names]

    return tokens
