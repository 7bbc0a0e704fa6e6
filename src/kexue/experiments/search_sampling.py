"""kexue.fm/archives/8062, 8084, 8194: text written by sampling a score known up to a constant.

Measures: every sampler against enumeration; the two algorithms of Metropolis on a ring; what the numbers of positions
and block moves are for; annealing against hill climbing on spin glasses; and, with one language model of n-grams,
rejection against chains, length against gamma, and sentences around given words against beam search.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.experiments._measures import student_interval
from kexue.experiments._sampling_texts import (
    CHAINS,
    GAMMAS,
    WRITING,
    Collapse,
    Corpus,
    Lengths,
    Written,
    compare_lengths,
    compare_rejection,
    distinct_pairs,
    open_corpus,
    perplexity,
    write_all,
)
from kexue.experiments._sampling_toys import (
    Positions,
    balance_gap,
    count_reached,
    forget_positions,
    measure_variations,
    ring_acceptance,
    search_glasses,
)
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report


class _Sizes(NamedTuple):
    seeds: int  # of the toys
    glasses: int
    flips: int  # of a chain on a spin glass
    sentences: int  # that the model learns
    drawn: int  # that it writes by itself
    steps: int  # of a chain of sentences
    counts: tuple[int, ...]  # of words


_SIZES = {
    "smoke": _Sizes(1, 3, 1000, 3000, 1000, 400, (2,)),
    "small": _Sizes(3, 12, 5000, 60_000, 6000, 4000, (2, 4)),
    "full": _Sizes(20, 50, 30_000, 200_000, 50_000, 20_000, (2, 4)),
}


@experiment(
    "search-sampling",
    claim="Text that must meet constraints can be written by sampling a score known up to a constant.",
    effect=(
        "largest total variation from the enumerated law {largest_variation}; with four words the model writes "
        "{rejection_4_words} of its sentences right, chains accept {acceptance_4_words} of their moves; "
        "perplexity of samples {perplexity_samples}, of beams {perplexity_beams}"
    ),
    data=("corpus_zh", "parallel_en_zh"),
    minutes=5,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Compare samplers with enumeration, annealing with hill climbing, chains of sentences with other ways to them."""
    sizes = _SIZES[budget]
    seeds = tuple(range(seed, seed + sizes.seeds))
    variations = [measure_variations(each) for each in seeds]
    positions = forget_positions(seed)
    glasses = search_glasses(100, sizes.glasses, sizes.flips, seed)
    # few sentences of real ones lack some of the words
    corpus = open_corpus(None if budget == "smoke" else data, sizes.sentences)
    collapse = compare_rejection(corpus, sizes.drawn, sizes.steps // 4, seed)
    lengths = compare_lengths(corpus, 3 * sizes.steps, sizes.drawn // 2, seed)
    written = write_all(corpus, sizes.counts, sizes.steps, seed)
    figures = (
        _toy_figures(variations, positions, seed)
        | _glass_figures(glasses)
        | _collapse_figures(collapse)
        | _length_figures(lengths)
        | _writing_figures(corpus, written)
    )
    claims = [*_toy_claims(figures), *_glass_claims(figures), *_text_claims(figures)]
    notes = (
        f"language model: Kneser-Ney 5-grams of characters, {corpus.sentences} texts, {corpus.name}",
        "beam search is a grid beam search on the same model; transformers 5 has no constrained beam search any more",
        *(f"{'、'.join(one.words)}: {corpus.lm.decode(one.samples[1.0][0])}" for one in written),
    )
    return Report(
        tuple(claims),
        figures,
        notes=notes,
        seeds=seeds,
        data=({"name": corpus.name, "texts": corpus.sentences},),
        draw=lambda figure: _draw(figure, variations, positions, glasses, collapse, lengths, corpus, written),
    )


def _interval(values: Any, unit: str = "", **fields: Any) -> Figure:
    mean, low, high = student_interval(values)
    return Figure(mean, unit, low, high, len(values), **fields)


# ---- toys -----------------------------------------------------------------------------------------------------------


def _toy_figures(variations: Sequence[Mapping[str, float]], positions: Positions, seed: int) -> dict[str, Figure]:
    figures = {
        f"variation_{name}": Figure.over_runs([one[name] for one in variations], "total variation")
        for name in variations[0]
    }
    ring = ring_acceptance(seed)
    single, tv_single = count_reached(["replace"], seed)
    block, tv_block = count_reached(["replace", "block"], seed)
    return figures | {
        "largest_variation": Figure(max(max(one.values()) for one in variations), n=len(variations)),
        "detailed_balance_gap": Figure(balance_gap(), expected=0.0, source="computed"),
        "ring_acceptance_1953": Figure(ring["1953"], n=100_000, expected=0.105, source="computed"),
        "ring_acceptance_hastings": Figure(ring["hastings"], n=100_000, expected=0.6, source="computed"),
        "length_with_positions": Figure(positions.right_length, "letters", expected=3.0, source="computed"),
        "length_without_positions": Figure(positions.wrong_length, "letters"),
        "largest_mass_without_positions": Figure(float(positions.masses.max()), expected=0.1, source="computed"),
        "smallest_mass_without_positions": Figure(float(positions.masses.min()), expected=0.1, source="computed"),
        "reached_by_single_edits": Figure(single, "of 12 strings"),
        "reached_with_blocks": Figure(block, "of 12 strings"),
        "variation_single_edits": Figure(tv_single, "total variation"),
        "variation_with_blocks": Figure(tv_block, "total variation"),
    }


def _toy_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    value = {name: figure.value for name, figure in figures.items()}
    return [
        Claim.check(
            "Metropolis-Hastings, Gibbs, importance sampling and rejection agree with the enumerated law.",
            value["largest_variation"] < 0.02 and value["detailed_balance_gap"] < 1e-12,
            rule="total variation of 100,000 samples below 0.02 for every sampler and seed; detailed balance to 1e-12",
            figures=["largest_variation", "detailed_balance_gap"],
        ),
        Claim.check(
            "The acceptance of 1953 is right and slow.",
            abs(value["ring_acceptance_1953"] - 0.105) < 0.01 and abs(value["ring_acceptance_hastings"] - 0.6) < 0.01,
            rule="accepted on a ring of four states within 0.01 of the exact 0.105 against 0.6",
            figures=["ring_acceptance_1953", "ring_acceptance_hastings"],
        ),
        Claim.check(
            "With protected words the numbers of positions must be counted.",
            abs(value["length_with_positions"] - 3) < 0.05 and abs(value["length_without_positions"] - 3) > 0.25,
            rule="mean length within 0.05 of the exact 3 with the factor, off by more than 0.25 without it",
            figures=["length_with_positions", "length_without_positions", "largest_mass_without_positions"],
        ),
        Claim.check(
            "Under a hard constraint single edits may not lead everywhere; block moves do.",
            value["reached_by_single_edits"] == 4
            and value["reached_with_blocks"] == 12
            and value["variation_with_blocks"] < 0.02,
            rule="4 of 12 strings reached by single edits, 12 with blocks, which sample them with variation below 0.02",
            figures=["reached_by_single_edits", "reached_with_blocks", "variation_with_blocks"],
        ),
    ]


def _glass_figures(glasses: Mapping[str, Array]) -> dict[str, Figure]:
    return {f"maximum_{name}": _interval(values, "best of 20 chains") for name, values in glasses.items()} | {
        f"annealing_minus_{name}": _interval(glasses["annealing"] - glasses[name]) for name in ("climbing", "restarts")
    }


def _glass_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    return [
        Claim.check(
            f"Annealing finds higher maxima than hill climbing {words}.",
            (figures[f"annealing_minus_{name}"].low or 0) > 0,
            rule="mean of paired differences on spin glasses of 100 spins, 95 % interval above 0",
            figures=[f"annealing_minus_{name}"],
        )
        for name, words in (
            ("climbing", "from the same 20 starts, with as many moves each"),
            ("restarts", "from 200 starts, with as many moves in all"),
        )
    ]


# ---- texts ----------------------------------------------------------------------------------------------------------


def _collapse_figures(collapse: Collapse) -> dict[str, Figure]:
    figures = {}
    for k in range(1, 5):
        rates = collapse.rejection[k]
        figures[f"rejection_{k}_words"] = Figure(float(rates.mean()), n=collapse.drawn * len(rates))
        figures[f"acceptance_{k}_words"] = _interval(collapse.chains[k])
    figures["acceptance_0_words"] = _interval(collapse.chains[0])
    return figures


def _length_figures(lengths: Lengths) -> dict[str, Figure]:
    return {
        f"length_gamma_{gamma}": _interval(row, "characters")
        for gamma, row in zip(GAMMAS, lengths.by_gamma, strict=True)
    } | {
        "length_of_the_model": _interval(lengths.direct, "characters"),
        "length_kept": _interval(lengths.kept, "characters"),
    }


def _writing_figures(corpus: Corpus, written: Sequence[Written]) -> dict[str, Figure]:
    lm = corpus.lm
    figures = {
        "perplexity_held_out": Figure(lm.perplexity(corpus.held_out), n=len(corpus.held_out)),
        "constraints_kept": Figure(
            float(np.mean([one.kept for one in written])), n=len(written), expected=1.0, source="computed"
        ),
        "annealing_at_least_beam": Figure(
            float(np.mean([one.annealed > one.beam - 1e-9 for one in written])), "of the sets"
        ),
        "annealing_minus_beam": _interval([one.annealed - one.beam for one in written], "nats of the best sentence"),
        "perplexity_beams": _interval([perplexity(lm, one.beams) for one in written]),
        "distinct_beams": _interval([distinct_pairs(one.beams) for one in written], "distinct-2"),
    }
    for gamma in WRITING:
        name = "samples" if gamma == 1 else f"samples_gamma_{gamma}"
        texts = [one.samples[gamma] for one in written]
        figures |= {
            f"perplexity_{name}": _interval([perplexity(lm, each) for each in texts]),
            f"distinct_{name}": _interval([distinct_pairs(each) for each in texts], "distinct-2"),
            f"rhat_{name}": Figure.over_runs([one.rhat[gamma] for one in written]),
        }
    gains = [distinct_pairs(one.samples[1.0]) - distinct_pairs(one.beams) for one in written]
    return figures | {"distinct_gain": _interval(gains, "samples minus beams")}


def _overlap(one: Figure, other: Figure) -> bool:
    """Whether the intervals of two figures overlap."""
    return (one.low or 0) <= (other.high or 0) and (one.high or 0) >= (other.low or 0)


def _text_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    value = {name: figure.value for name, figure in figures.items()}
    rejection = [value[f"rejection_{k}_words"] for k in range(1, 5)]
    accepted = [value[f"acceptance_{k}_words"] for k in range(1, 5)]
    lengths = [figures[f"length_gamma_{gamma}"] for gamma in GAMMAS]
    model, one = figures["length_of_the_model"], figures["length_gamma_1.0"]
    names = [f"{name}_{k}_words" for name in ("rejection", "acceptance") for k in (1, 4)]
    return [
        Claim.check(
            "Rejection collapses as words are added, while chains go on accepting moves.",
            rejection[0] > 100 * rejection[3] and accepted[3] > accepted[0] / 2,
            rule="from one to four words the share of sentences with all of them falls more than 100 times, the "
            "share of accepted moves less than 2 times",
            figures=names,
        ),
        Claim.check(
            "A smaller gamma gives longer sentences.",
            all(a.value > b.value for a, b in itertools.pairwise(lengths)),
            rule="mean length falls with every step of gamma",
            figures=[f"length_gamma_{gamma}" for gamma in GAMMAS],
        ),
        Claim.check(
            "With gamma = 1 the chain writes sentences as long as the model does.",
            _overlap(one, model),
            rule="95 % intervals of the mean lengths overlap",
            figures=["length_gamma_1.0", "length_of_the_model"],
        ),
        Claim.check(
            "Chains with gamma = 1 that start with sentences of the model keep their length.",
            _overlap(figures["length_kept"], model),
            rule="95 % intervals overlap, of the model's sentences and of the ends of 200 chains of 600 moves",
            figures=["length_kept", "length_of_the_model"],
        ),
        Claim.check(
            "All sentences meet the constraints.",
            value["constraints_kept"] == 1,
            rule="every state of every chain",
            figures=["constraints_kept"],
        ),
        Claim.check(
            f"{CHAINS} samples are more varied than {CHAINS} beams.",
            (figures["distinct_gain"].low or 0) > 0,
            rule="mean of paired differences of distinct-2 over the sets of words, 95 % interval above 0",
            figures=["distinct_gain", "distinct_samples", "distinct_beams"],
        ),
        Claim.check(
            "Annealing finds sentences at least as probable as beam search does.",
            value["annealing_at_least_beam"] >= 0.5 and (figures["annealing_minus_beam"].high or 0) >= 0,
            rule="for at least half of the sets of words, and the interval of the difference of log p reaches 0",
            figures=["annealing_at_least_beam", "annealing_minus_beam"],
        ),
    ]


# ---- picture --------------------------------------------------------------------------------------------------------


def _draw(
    figure: Any,
    variations: Sequence[Mapping[str, float]],
    positions: Positions,
    glasses: Mapping[str, Array],
    collapse: Collapse,
    lengths: Lengths,
    corpus: Corpus,
    written: Sequence[Written],
) -> None:
    figure.set_size_inches(13, 7.5)
    axes = figure.subplots(2, 3)
    _draw_toys(axes[0], variations, positions, glasses)
    rates, chains, lines = axes[1, 0], np.mean(collapse.chains, 1), axes[1, 1]
    share, least = collapse.rejection.mean(1), 1 / (collapse.drawn * collapse.rejection.shape[1])
    seen = np.flatnonzero(share)
    rates.semilogy(seen, share[seen], "o-", label="sentences of the model with all words")
    none = np.flatnonzero(share == 0)
    rates.semilogy(none, np.full(len(none), least), "v", color="0.5", label=f"none of {1 / least:,.0f}")
    rates.semilogy(range(5), chains, "s-", label="moves that chains accept")
    rates.set(xlabel="number of words", ylabel="share", xticks=range(5), title="rejection collapses, chains do not")
    rates.legend(fontsize=8, loc="lower left")
    lines.plot(GAMMAS, lengths.by_gamma, "o", color="0.7", ms=3)
    lines.plot(GAMMAS, lengths.by_gamma.mean(1), "o-", label="chains of p^gamma")
    lines.axhline(lengths.direct.mean(), color="k", ls="--", lw=0.8, label="drawn from p")
    lines.set(xlabel="gamma", ylabel="characters", title="length against gamma")
    lines.legend(fontsize=8)
    cloud = axes[1, 2]
    groups = [(f"samples, gamma = {gamma}", [one.samples[gamma] for one in written]) for gamma in WRITING]
    for name, texts in [*groups, ("beams", [one.beams for one in written])]:
        cloud.plot(
            [perplexity(corpus.lm, each) for each in texts], [distinct_pairs(each) for each in texts], "o", label=name
        )
    cloud.axvline(corpus.lm.perplexity(corpus.held_out), color="k", ls="--", lw=0.8, label="unseen sentences")
    cloud.set(xscale="log", xlabel="perplexity", ylabel="distinct-2", title="sentences around words")
    cloud.legend(fontsize=8)


def _draw_toys(
    axes: Any, variations: Sequence[Mapping[str, float]], positions: Positions, glasses: Mapping[str, Array]
) -> None:
    bars, masses, maxima = axes
    names = list(variations[0])
    for i, name in enumerate(names):
        bars.plot([one[name] for one in variations], [i] * len(variations), "o", color="tab:blue", ms=4)
    bars.axvline(0.02, color="k", ls="--", lw=0.8)
    bars.set(
        yticks=range(len(names)),
        ylabel="sampler",
        xlim=(0, 0.022),
        xlabel="total variation",
        title="100,000 samples against enumeration",
    )
    bars.set_yticklabels([name.replace("_", " ") for name in names])
    masses.bar(range(10), positions.masses, color="tab:orange", label="numbers of positions forgotten")
    masses.axhline(0.1, color="k", ls="--", lw=0.8, label="the target")
    masses.set(
        xlabel="the ten strings a..k..a, short to long", ylabel="probability", xticks=[], title="the position factor"
    )
    masses.legend(fontsize=8)
    low = min(values.min() for values in glasses.values())
    high = max(values.max() for values in glasses.values())
    for name, label in (
        ("climbing", "hill climbing, the same starts"),
        ("restarts", "hill climbing, 10 times the starts"),
    ):
        maxima.plot(glasses[name], glasses["annealing"], "o", ms=4, label=label)
    maxima.plot([low, high], [low, high], "k--", lw=0.8)
    maxima.set(xlabel="best by hill climbing", ylabel="best by annealing", title="spin glasses, best of 20")
    maxima.legend(fontsize=8)
