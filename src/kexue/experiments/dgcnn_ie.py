"""kexue.fm/archives/6671: triples by dilated gated convolutions and half pointers, half tags.

Measures, on sentences of templates: F1 for each way in which triples overlap, beside what a sequence of tags can hold;
the threshold of tails; wrong subjects in training; features of known triples, with and without those of the sentence
itself; warm-up. Counts multiplications beside a Transformer. Trains on two annotated corpora where the data are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from kexue.experiments._data import attempt
from kexue.experiments._extractors import (
    Prior,
    SupervisionOfTexts,
    build_readers,
    counting_attention,
    score,
    train,
    train_plainly,
)
from kexue.experiments._measures import count_multiplications, student_interval, time_in_turns
from kexue.experiments._panels import draw_bars, draw_runs
from kexue.experiments._triple_corpora import (
    LITERATURE,
    PATTERNS,
    SKE,
    choose_sentences,
    count_taggable,
    read_literature,
    read_ske,
    write_sentences,
)
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report
from kexue.extract import TripleExample, TripleSchema

_TAILS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_OVERLAPS = tuple(pattern for pattern in PATTERNS if pattern != "none")  # the patterns that have triples
_RATES = (0.001, 0.01)  # with and without warm-up: the article's, and ten times it
_LENGTH = 64  # characters of the sentence whose multiplications are counted
_MODELS = {"dgcnn": "DGCNN", "gplinker": "GPLinker"}
_ENCODERS = {"bert_base": "12 layers of width 768", "same_width": "12 layers of the same width"}
_PRIORS: tuple[Prior, ...] = ("excluded", "told")
_SHAPE = {"num_layers": 6, "max_length": 64, "lr": 2e-3}
Values = dict[str, np.ndarray[Any, Any]]


class _Size(NamedTuple):
    """Size of a part: training sentences, epochs, seeds."""

    sentences: int
    epochs: int
    seeds: int


class _Sizes(NamedTuple):
    """Sizes of the parts; sentences held out; of annotated corpora the longest sentence, the number of predicates."""

    overlap: _Size
    few: _Size
    leak: _Size
    warm: _Size
    real: _Size
    held_out: int
    longest: int
    predicates: int


_SIZES = {
    "smoke": _Sizes(_Size(70, 2, 1), _Size(70, 2, 2), _Size(70, 2, 2), _Size(70, 2, 2), _Size(64, 1, 2), 42, 60, 10),
    "small": _Sizes(
        _Size(2000, 24, 2), _Size(500, 12, 3), _Size(120, 50, 3), _Size(300, 4, 5), _Size(1300, 15, 3), 300, 60, 10
    ),
    "full": _Sizes(
        _Size(2000, 20, 10), _Size(500, 20, 10), _Size(500, 40, 10), _Size(500, 20, 10), _Size(10**6, 40, 5), 2000,
        256, 50,
    ),
}  # fmt: skip


@experiment(
    "dgcnn-ie",
    claim="A small network of convolutions finds triples however they overlap, at a fraction of a Transformer's work.",
    data=("ske2019_sample", "literature_re"),
    effect=(
        "F1 on sentences of templates {f1_all}, at most {tags_all} by one tag for each character; "
        "recall with the tails at 0.4 {recall_0.4}, at 0.5 {recall_0.5}; "
        "multiplications {work_ratio_bert_base}"
    ),
    minutes=40,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Train on sentences of templates and, where the data are there, on annotated ones."""
    sizes, notes = _SIZES[budget], list[str]()
    held = sizes.held_out
    values: Values = {}
    values |= _over_seeds(seed, sizes.overlap, partial(_measure_overlap, held_out=held))
    values |= _over_seeds(seed, sizes.few, partial(_measure_few, held_out=held))
    values |= _over_seeds(seed, sizes.leak, partial(_measure_leak, held_out=held))
    values |= _over_seeds(seed, sizes.warm, partial(_measure_warmth, held_out=held))
    used = list[Mapping[str, Any]]()
    for name, (folder, load) in _CORPORA.items():
        if data is None or not (data / folder).is_dir():
            notes.append(f"{name} is left out: {folder} is not in KEXUE_DATA")
            continue
        parts = choose_sentences(
            load(data), longest=sizes.longest, predicates=sizes.predicates, most=sizes.real.sentences
        )
        used.append({"name": folder, "n": [len(part) for part in parts]})
        for model, label in _MODELS.items():
            measure = partial(_measure_real, parts=parts, name=name, model_type=model)
            values |= attempt(partial(_over_seeds, seed, sizes.real, measure), f"{label} on {name}", notes) or {}
    work = _measure_work(small=budget == "smoke")
    return Report(
        tuple(_claims(values, work)),
        _figures(values, work),
        tuple(notes),
        seeds=tuple(range(seed, seed + sizes.warm.seeds)),
        data=tuple(used),
        draw=lambda figure: _draw(figure, values, work),
    )


def _over_seeds(seed: int, size: _Size, measure: Callable[..., Mapping[str, float]]) -> Values:
    """Every figure of a part, an array over its seeds."""
    runs = [measure(s, size) for s in range(seed, seed + size.seeds)]
    return {name: np.array([one[name] for one in runs]) for name in runs[0]}


# ---- measure -------------------------------------------------------------------------------------------------------


def _measure_overlap(seed: int, size: _Size, held_out: int) -> dict[str, float]:
    """F1 of each pattern on new sentences, and the highest that a sequence of tags can reach there."""
    sentences = write_sentences(size.sentences + 200 + held_out, np.random.default_rng(seed))
    examples = [one.example for one in sentences]
    n = size.sentences
    model = train(examples[:n], examples[n : n + 200], seed, epochs=size.epochs, fine_epochs=1, dim=64, **_SHAPE)
    values: dict[str, float] = {}
    for pattern in ("all", *_OVERLAPS):
        part = [one.example for one in sentences[n + 200 :] if pattern in ("all", one.pattern)]
        held, gold = sum(map(count_taggable, part)), sum(len(one.triples) for one in part)
        values |= {f"f1_{pattern}": score(model, part).f1, f"tags_{pattern}": 2 * held / (held + gold)}
    return values


def _measure_few(seed: int, size: _Size, held_out: int) -> dict[str, float]:
    """Scores with few sentences: for each threshold of tails, and without wrong subjects.

    The threshold is chosen by F1 on one half of the held-out sentences, and all scores are those of the other half.
    """
    examples = [one.example for one in write_sentences(size.sentences + held_out, np.random.default_rng(seed))]
    n, middle = size.sentences, size.sentences + held_out // 2
    first, second = examples[n:middle], examples[middle:]
    mixed, gold = (
        train(examples[:n], first, seed, epochs=size.epochs, fine_epochs=0, dim=32, subject_sampling=way, **_SHAPE)
        for way in ("mixed", "gold")
    )
    values = {"f1_mixed": score(mixed, second).f1, "f1_gold": score(gold, second).f1}
    for tail in _TAILS:
        one = score(mixed, second, tail=tail)
        values |= {f"recall_{tail}": one.recall, f"precision_{tail}": one.precision, f"f1_{tail}": one.f1}
    chosen = max(_TAILS, key=lambda tail: score(mixed, first, tail=tail).f1)
    return values | {"tail_chosen": chosen, "f1_chosen": values[f"f1_{chosen}"]}


def _measure_leak(seed: int, size: _Size, held_out: int) -> dict[str, float]:
    """F1 on training and held-out sentences, whose names recur, with features of known triples."""
    sentences = write_sentences(size.sentences + held_out, np.random.default_rng(seed), names=15)
    examples = [one.example for one in sentences]
    seen, new = examples[: size.sentences], examples[size.sentences :]
    known = SupervisionOfTexts(seen, TripleSchema.of(seen), told=False)
    values = {"known_seen": known.share_known(seen), "known_new": known.share_known(new)}
    for prior in _PRIORS:
        model = train_plainly(seen, seed, epochs=size.epochs, dim=32, prior=prior).model
        values |= {f"seen_{prior}": score(model, seen).f1, f"new_{prior}": score(model, new).f1}
    return values


def _measure_warmth(seed: int, size: _Size, held_out: int) -> dict[str, float]:
    """Whether a training diverged, 0 or 1, and F1 on held-out sentences, with and without warm-up."""
    examples = [one.example for one in write_sentences(size.sentences + held_out, np.random.default_rng(seed))]
    values: dict[str, float] = {}
    for lr in _RATES:
        for name, warm in (("warm", True), ("cold", False)):
            model, diverged = train_plainly(
                examples[: size.sentences], seed, epochs=size.epochs, dim=32, lr=lr, warm=warm
            )
            f1 = score(model, examples[size.sentences :]).f1
            values |= {f"diverged_{name}_{lr}": float(diverged), f"warmth_f1_{name}_{lr}": f1}
    return values


def _measure_real(
    seed: int, size: _Size, parts: Sequence[Sequence[TripleExample]], name: str, model_type: str
) -> dict[str, float]:
    """Scores on the last of three parts of a corpus, by the step that was best on the second, and seconds."""
    start = time.perf_counter()
    shapes = {"dgcnn": {"dim": 64, "num_layers": 6, "max_length": 256, "lr": 2e-3}, "gplinker": {"lr": 2e-4}}
    learnt, choice, test = parts
    model = train(learnt, choice, seed, epochs=size.epochs, fine_epochs=1, model_type=model_type, **shapes[model_type])
    key = f"{name}_{model_type}"
    values = {f"{key}_seconds": time.perf_counter() - start}
    for suffix, tail in (("", None), *([("_0.5", 0.5)] if model_type == "dgcnn" else [])):
        one = score(model, test, tail)
        values |= {f"{key}_{what}{suffix}": getattr(one, what) for what in ("f1", "precision", "recall")}
    return values


def _measure_work(*, small: bool) -> dict[str, float]:
    """Million multiplications for each character, and texts of 64 characters in a second."""
    readers = build_readers(_LENGTH, small=small)
    seconds = time_in_turns({name: partial(_identity, read) for name, read in readers.items()}, 2 if small else 6)
    with counting_attention():
        work = {f"work_{name}": count_multiplications(read) / _LENGTH / 1e6 for name, read in readers.items()}
    speed = {f"texts_{name}": 1 / median(times[1:]) for name, times in seconds.items()}
    return work | speed | {f"work_ratio_{name}": work["work_dgcnn"] / work[f"work_{name}"] for name in _ENCODERS}


def _identity(read: Any) -> Any:
    return read


def _load_ske(data: Path) -> tuple[list[TripleExample], ...]:
    dev = read_ske(data, "dev")
    return read_ske(data, "train"), dev[::2], dev[1::2]


def _load_literature(data: Path) -> tuple[list[TripleExample], ...]:
    return tuple(read_literature(data, split) for split in ("train", "valid", "test"))


_CORPORA = {"ske": (SKE, _load_ske), "literature": (LITERATURE, _load_literature)}


# ---- figures and claims --------------------------------------------------------------------------------------------


def _figures(values: Values, work: Mapping[str, float]) -> dict[str, Figure]:
    units = {"work": "million multiplications for each character", "texts": "texts in a second"}
    figures = {
        name: Figure.over_runs(runs, "s" if name.endswith("seconds") else "") for name, runs in values.items()
    } | {name: Figure(value, units[name.partition("_")[0]]) for name, value in work.items() if "ratio" not in name}
    return figures | {
        f"work_ratio_{name}": Figure(work[f"work_ratio_{name}"], f"of {label}") for name, label in _ENCODERS.items()
    }


def _claims(values: Values, work: Mapping[str, float]) -> list[Claim]:
    interval = "95 % interval over the seeds (Student's t)"

    def above(a: str, b: str) -> bool:
        return student_interval(values[a] - values[b])[1] > 0

    lost = ("predicates", "nested")
    claims = [
        Claim.check_parts(
            "Half pointers, half tags find triples in all five ways of overlapping.",
            [float(values[f"f1_{pattern}"].min()) >= 0.95 for pattern in ("all", *_OVERLAPS)],
            rule="F1 on new sentences at least 0.95 in every seed: of all of them, and of each pattern",
            figures=[f"f1_{pattern}" for pattern in ("all", *_OVERLAPS)],
        ),
        Claim.check_parts(
            "One tag for each character cannot hold two predicates of one pair, nor a name inside another.",
            [bool((values[f"tags_{pattern}"] < np.minimum(values[f"f1_{pattern}"], 0.95)).all()) for pattern in lost],
            rule="the highest F1 of any tags is below 0.95, and below that of the trained network, in every seed",
            figures=[f"{what}_{pattern}" for pattern in (*lost, "all") for what in ("tags", "f1")],
        ),
        *_threshold_claims(values, "", "on few sentences of templates"),
        Claim.check(
            "Wrong subjects in training make a better extractor.",
            above("f1_mixed", "f1_gold"),
            rule=f"F1 with ends of subjects drawn independently above that with right ones alone, {interval}",
            figures=["f1_mixed", "f1_gold"],
        ),
        Claim.check_parts(
            "Features of known triples must leave out those of the sentence itself: else it learns to copy them.",
            [above("seen_told", "seen_excluded"), above("new_excluded", "new_told")],
            rule=f"with its own triples F1 is higher on training sentences, and lower on new ones, {interval}",
            figures=[f"{where}_{prior}" for where in ("seen", "new") for prior in _PRIORS],
        ),
        Claim.check(
            "Without warm-up a training may diverge.",
            bool(values["diverged_cold_0.001"].any() and not values["diverged_warm_0.001"].any()),
            rule="at the article's rate of 0.001 a training without warm-up diverges (an infinite loss, or a higher "
            "one in the last epoch than in the first) in at least one seed, and with it in none",
            figures=[f"diverged_{name}_{lr}" for lr in _RATES for name in ("warm", "cold")],
        ),
        Claim.check(
            "It works at a tenth of the price of a Transformer of the size of BERT-base.",
            work["work_ratio_bert_base"] <= 0.1,
            rule="multiplications in matrix products and convolutions, for a sentence of 64 characters with three "
            "subjects: at most a tenth",
            figures=["work_dgcnn", "work_bert_base", "work_ratio_bert_base", "work_ratio_same_width"],
        ),
    ]
    if "ske_dgcnn_f1" in values:
        claims += _threshold_claims(values, "ske_dgcnn_", "on the sample of SKE 2019")
    return claims


def _threshold_claims(values: Values, key: str, where: str) -> list[Claim]:
    low, high = ("_0.4", "_0.5") if not key else ("", "_0.5")
    return [
        Claim.check(
            f"A threshold of tails of 0.4 {what} ({where}).",
            student_interval(values[f"{key}{name}{low}"] - values[f"{key}{name}{high}"])[1] > 0,
            rule=f"{name} above that of 0.5, heads at 0.5, 95 % interval over the seeds (Student's t)",
            figures=[f"{key}{one}{at}" for one in dict.fromkeys((name, "precision")) for at in (low, high)],
        )
        for name, what in (("recall", "finds more triples than one of 0.5"), ("f1", "is better than one of 0.5"))
    ]


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(figure: Any, values: Values, work: Mapping[str, float]) -> None:
    figure.set_size_inches(18, 9)
    (overlap, tails, sampling), (leak, costs, real) = figure.subplots(2, 3)
    places = np.arange(len(_OVERLAPS) + 1)
    for at, (what, label) in enumerate((("tags", "one tag a character, at most"), ("f1", "network"))):
        heights = [values[f"{what}_{pattern}"].mean() for pattern in (*_OVERLAPS, "all")]
        overlap.bar(places + 0.4 * at - 0.2, heights, 0.4, label=label)
    overlap.set_xticks(places, [*_OVERLAPS, "all"], rotation=20)
    overlap.set(title="overlaps", xlabel="pattern of the sentence", ylabel="F1", ylim=(0, 1.25))
    overlap.legend(loc="upper center", ncols=2)
    for what in ("precision", "recall", "f1"):
        tails.plot(_TAILS, [values[f"{what}_{tail}"].mean() for tail in _TAILS], "o-", label=what)
    tails.set(title="threshold of tails, few sentences", xlabel="threshold", ylabel="score")
    tails.legend()
    draw_runs(sampling, {name: values[f"f1_{name}"] for name in ("mixed", "gold")})
    sampling.set(title="subjects in training, few sentences", xlabel="drawn", ylabel="F1 on new sentences")
    draw_runs(
        leak, {f"{where},\n{prior}": values[f"{where}_{prior}"] for where in ("seen", "new") for prior in _PRIORS}
    )
    leak.set(title="known triples as features", xlabel="sentences, own triples in the features", ylabel="F1")
    labels = {"dgcnn": "DGCNN, 128", **{"bert_base": "Transformer, 768", "same_width": "Transformer, 128"}}
    draw_bars(costs, {label: work[f"work_{name}"] for name, label in labels.items()})
    costs.set(title="work, 12 layers", xlabel="network, width", ylabel="million multiplications a character")
    runs = {
        f"{corpus},\n{label}": values[f"{corpus}_{model}_f1"]
        for corpus in _CORPORA
        for model, label in _MODELS.items()
        if f"{corpus}_{model}_f1" in values
    }
    if runs:
        draw_runs(real, runs)
        real.set(title="annotated corpora", xlabel="corpus, model", ylabel="F1 on new sentences")
    else:
        real.set_axis_off()
