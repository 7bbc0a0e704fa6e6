"""kexue.fm/archives/9138: ladder side-tuning, a small network beside a frozen one.

Measures: what full tuning, adapters and a ladder keep for the backward pass of eight layers, and its duration; accuracy
of each after transfer from digits 0-4 to 5-9; and, where the data are there, after transfer from headlines to another
set of classes with few examples, where the ladder reads states from disk, and on the same examples with the encoder
that is a part of kexue, as `kexue clue train` tunes it.

The cost of a backward pass is measured on the bare pass, without an optimizer: nothing is trained there.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np

from kexue import nn as layers
from kexue._optional import import_optional
from kexue.experiments._clue_ladder import Tuned, tune_shipped
from kexue.experiments._data import attempt, read_lines, split_digits
from kexue.experiments._measures import count_multiplications, count_saved, time_in_turns
from kexue.experiments._panels import draw_bars
from kexue.experiments._training import Training, fit, share_right, torch_seed
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_WAYS = ("full", "ladder", "probe")
_LABELS = {"full": "full tuning", "adapters": "adapters", "ladder": "ladder", "probe": "linear probe"}
_LENGTH = 24  # characters of a headline that are read
_TITLES, _NEWS = "corpus_zh/thucnews_titles.jsonl.gz", "clue/fewclue_tnews"


class _Cost(NamedTuple):
    """Costs of a backward pass: bytes of saved tensors, median seconds, trained parameters, multiplications."""

    saved: int
    seconds: float
    trained: int
    work: float


class _Transfer(NamedTuple):
    """Accuracy of each way, and seconds of an epoch of the ladder: from states on disk, and with the backbone."""

    accuracy: dict[str, float]
    seconds_from_disk: float
    seconds_with_backbone: float


@experiment(
    "lst",
    claim="A ladder beside a frozen backbone trains in a fraction of the memory and time, nearly as well as full "
    "tuning.",
    data=("thucnews_titles", "fewclue_tnews"),
    effect=(
        "memory kept for the backward pass {saved_share_ladder}; "
        "accuracy on digits {digits_accuracy_full} full, {digits_accuracy_ladder} ladder; "
        "on TNEWS {tnews_accuracy_full} full, {tnews_accuracy_ladder} ladder"
    ),
    minutes=15,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Measure the backward pass, and transfer to other digits and other headlines."""
    smoke = budget == "smoke"
    cost = _measure_cost(seed, rounds=2 if smoke else 5, size=(64, 4, 4, 16) if smoke else (256, 8, 16, 64))
    figures = _cost_figures(cost)
    claims = _cost_claims(cost, figures)
    seeds = tuple(range(seed, seed + {"smoke": 1, "small": 3, "full": 5}[budget]))
    epochs = {"smoke": 2, "small": 15, "full": 40}[budget]
    notes: list[str] = []
    used: tuple[Mapping[str, Any], ...] = ()
    transfers = {}
    digits = attempt(lambda: [_transfer_digits(s, epochs) for s in seeds], "the digits", notes)
    if digits:
        transfers["digits 0-4 to 5-9"] = digits
        figures |= _accuracy_figures("digits", digits)
        claims.append(_accuracy_claim("digits", "digits 0-4 to 5-9", figures))
    if data is not None and (data / _TITLES).is_file() and (data / _NEWS).is_dir():
        used = ({"name": "thucnews_titles"}, {"name": "fewclue_tnews", "split": "train_few_all, test_public"})
        steps = {"smoke": 10, "small": 150, "full": 2000}[budget]
        news = [_transfer_headlines(data, s, steps, epochs) for s in seeds[:2]]
        transfers["headlines, to TNEWS"] = news
        figures |= _accuracy_figures("tnews", news) | {
            "epoch_from_disk": Figure(fmean(run.seconds_from_disk for run in news), unit="s", n=len(news)),
            "epoch_with_backbone": Figure(fmean(run.seconds_with_backbone for run in news), unit="s", n=len(news)),
        }
        claims.append(_accuracy_claim("tnews", "headlines of THUCNews to the few-shot TNEWS of CLUE", figures))
    else:
        notes.append(f"headlines are left out: {_TITLES} or {_NEWS} is not in KEXUE_DATA")
    tuned = tune_shipped(budget, seeds[:3], data)
    if tuned is not None:
        figures |= tuned.figures()
        claims.append(_accuracy_claim("clue", "a pretrained encoder of three layers on the few-shot TNEWS", figures))
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        seeds=seeds,
        data=used,
        draw=lambda figure: _draw(figure, cost, transfers, tuned),
    )


# ---- measure: the cost of a backward pass --------------------------------------------------------------------------


def _build_encoder(width: int, depth: int, heads: int) -> Any:
    nn = import_optional("torch", extra="train").nn
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


def _add_adapters(backbone: Any, width: int) -> Any:
    """A frozen copy with y + B gelu(A y), trained, after attention and after the feed-forward part of each layer."""
    nn = import_optional("torch", extra="train").nn
    adapted = copy.deepcopy(backbone).requires_grad_(False)
    for layer in adapted.layers:
        for module in (layer.self_attn, layer.linear2):
            down, up = nn.Linear(width, width // 16), nn.Linear(width // 16, width)
            module.adapter = nn.Sequential(down, nn.GELU(), up)
        layer.self_attn.register_forward_hook(lambda m, _, out: (out[0] + m.adapter(out[0]), *out[1:]))
        layer.linear2.register_forward_hook(lambda m, _, out: out + m.adapter(out))
    return adapted


def _measure_cost(seed: int, *, rounds: int, size: tuple[int, int, int, int]) -> dict[str, _Cost]:
    """The cost of each way of tuning; the ways alternate, so that the machine treats them alike."""
    torch = import_optional("torch", extra="train")
    width, depth, batch, length = size
    with torch_seed(seed):
        backbone = _build_encoder(width, depth, width // 32)
        x = torch.randn(batch, length, width)
        adapted = _add_adapters(backbone, width)
        side = layers.LadderSideNetwork(copy.deepcopy(backbone), taps=range(depth + 1), width=width // 8)
        side(x)
    ways = {"full": backbone, "adapters": adapted, "ladder": side}
    saved = {name: count_saved(module, _loss_of(module, x))[0] for name, module in ways.items()}
    passes = {name: partial(_prepare_backward, module, x) for name, module in ways.items()}
    seconds = time_in_turns(passes, rounds + 1)
    return {
        name: _Cost(
            saved[name],
            median(seconds[name][1:]),  # the first pass is a warm-up
            sum(p.numel() for p in module.parameters() if p.requires_grad),
            count_multiplications(passes[name]()),
        )
        for name, module in ways.items()
    }


def _prepare_backward(module: Any, x: Any) -> Callable[[], None]:
    """The backward pass of a module, after its forward pass."""
    backward: Callable[[], None] = _loss_of(module, x)().backward
    return backward


def _loss_of(module: Any, x: Any) -> Callable[[], Any]:
    """The forward pass of a module, up to a scalar."""
    return lambda: module(x).square().mean()


# ---- measure: transfer ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Classifier:
    """A trunk, from inputs to states (n, tokens, d); a head on their mean; and the module that learns beside it."""

    trunk: Callable[[Any], Any]
    head: Any
    learner: Any = None

    def __call__(self, x: Any) -> Any:
        return self.head(self.trunk(x).mean(1))


def _train(
    classifier: _Classifier, read: Callable[[Any], Any], labels: Any, epochs: int, rate: float, size: int = 64
) -> Training:
    """Adam on the cross-entropy; a batch is ``read(row numbers)``, in an order drawn from torch's global generator."""
    torch = import_optional("torch", extra="train")
    loader = torch.utils.data.DataLoader(range(len(labels)), batch_size=size, shuffle=True)
    modules = [part for part in (classifier.learner, classifier.head) if part is not None]
    learnt = [p for module in modules for p in module.parameters() if p.requires_grad]
    return fit(
        modules,
        lambda rows: torch.nn.functional.cross_entropy(classifier(read(rows)), labels[rows]),
        [rows for _ in range(epochs) for rows in loader],
        torch.optim.Adam(learnt, rate),
    )


def _transfer(backbone: Any, width: int, train: Any, test: Any, epochs: int) -> _Transfer:
    """Accuracy on `test` of full tuning, a ladder from states on disk, and a probe of the top state."""
    torch = import_optional("torch", extra="train")
    (x, y), classes = train, int(train[1].max()) + 1
    depth = len(backbone[1].layers)
    accuracy = {}

    def build_head() -> Any:
        return torch.nn.Linear(width, classes)

    side = layers.LadderSideNetwork(backbone, taps=range(depth + 1), width=width // 4)
    side(x[:1])
    ladder = _Classifier(side, build_head(), side)
    with tempfile.TemporaryDirectory() as folder:
        cached = side.cache_states(list(x.split(256)), folder)
        from_disk = replace(ladder, trunk=lambda states: side(states=states))
        collate = torch.utils.data.default_collate
        disk = _train(from_disk, lambda rows: collate(cached.__getitems__(rows.tolist())), y, epochs, 3e-3)
    accuracy["ladder"] = share_right(ladder, *test)
    live = _train(_Classifier(side, build_head(), side), x.__getitem__, y, 1, 3e-3)

    def top(x: Any) -> Any:
        with torch.no_grad():
            return backbone(x)

    probe = _Classifier(top, build_head())
    _train(probe, x.__getitem__, y, epochs, 1e-2)
    accuracy["probe"] = share_right(probe, *test)

    tuned = copy.deepcopy(backbone).requires_grad_(True)
    full = _Classifier(tuned, build_head(), tuned)
    _train(full, x.__getitem__, y, epochs, 1e-3)
    accuracy["full"] = share_right(full, *test)
    return _Transfer(accuracy, disk.seconds / epochs, live.seconds)


def _transfer_digits(seed: int, epochs: int) -> _Transfer:
    """Pretrain on digits 0-4, transfer to 5-9; eight tokens, the rows of pixels with a mark of their position."""
    torch = import_optional("torch", extra="train")
    X, y, X_test, y_test = (torch.from_numpy(part) for part in split_digits(seed))
    positions = torch.eye(8)

    def select(x: Any, y: Any, low: bool) -> tuple[Any, Any]:
        chosen = (y < 5) == low
        rows = x[chosen].unflatten(1, (8, 8))
        return torch.cat([rows, positions.expand(len(rows), 8, 8)], 2), y[chosen] % 5

    with torch_seed(seed):
        backbone = torch.nn.Sequential(torch.nn.Linear(16, 64), _build_encoder(64, 4, 2))
        x, labels = select(X, y, True)
        _train(_Classifier(backbone, torch.nn.Linear(64, 5), backbone), x.__getitem__, labels, epochs, 1e-3)
        return _transfer(backbone, 64, select(X, y, False), select(X_test, y_test, False), epochs)


def _transfer_headlines(data: Path, seed: int, steps: int, epochs: int) -> _Transfer:
    """Pretrain on the classes of THUCNews headlines, transfer to the 15 classes of the few-shot TNEWS."""
    torch = import_optional("torch", extra="train")
    titles = [json.loads(line) for line in read_lines(data / _TITLES)]
    generator = np.random.default_rng(seed)
    vocabulary = {c: i + 1 for i, c in enumerate(sorted({c for row in titles for c in row["text"]}))}

    def encode(texts: list[str]) -> Any:
        ids = torch.zeros(len(texts), _LENGTH, dtype=torch.int64)
        for row, text in zip(ids, texts, strict=True):
            known = [vocabulary.get(c, 0) for c in text[:_LENGTH]]
            row[: len(known)] = torch.tensor(known)
        return ids

    names = {label: i for i, label in enumerate(sorted({row["label"] for row in titles}))}
    sample = [titles[i] for i in generator.choice(len(titles), min(len(titles), 128 * steps), replace=False)]
    ids, labels = encode([row["text"] for row in sample]), torch.tensor([names[row["label"]] for row in sample])
    splits = [
        [json.loads(line) for line in read_lines(data / _NEWS / f"{name}.jsonl.gz")]
        for name in ("train_few_all", "test_public")
    ]
    classes = {label: i for i, label in enumerate(sorted({str(row["label"]) for row in splits[0]}))}
    train, test = (
        (encode([row["sentence"] for row in rows]), torch.tensor([classes[str(row["label"])] for row in rows]))
        for rows in splits
    )
    with torch_seed(seed):
        backbone = torch.nn.Sequential(torch.nn.Embedding(len(vocabulary) + 1, 64), _build_encoder(64, 4, 2))
        head = torch.nn.Linear(64, len(names))
        _train(_Classifier(backbone, head, backbone), ids.__getitem__, labels, 1, 1e-3, size=128)
        return _transfer(backbone, 64, train, test, max(1, epochs // 2))


# ---- figures and claims --------------------------------------------------------------------------------------------


def _cost_figures(cost: Mapping[str, _Cost]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, one in cost.items():
        figures |= {
            f"saved_{name}": Figure(one.saved / 2**20, unit="MiB kept for backward"),
            f"backward_work_{name}": Figure(one.work / 1e6, unit="million multiplications"),
            f"backward_{name}": Figure(1e3 * one.seconds, unit="ms"),
            f"trained_{name}": Figure(one.trained, unit="parameters"),
        }
    for name in ("adapters", "ladder"):
        figures[f"saved_share_{name}"] = Figure(cost[name].saved / cost["full"].saved, unit="of full tuning")
    return figures


def _accuracy_figures(key: str, runs: Sequence[_Transfer]) -> dict[str, Figure]:
    return {f"{key}_accuracy_{name}": Figure.over_runs(run.accuracy[name] for run in runs) for name in _WAYS}


def _cost_claims(cost: Mapping[str, _Cost], figures: Mapping[str, Figure]) -> list[Claim]:
    saved_adapters, saved_ladder = (figures[f"saved_share_{name}"].value for name in ("adapters", "ladder"))
    return [
        Claim.check(
            "A ladder keeps at most a quarter of what full tuning keeps for the backward pass.",
            saved_ladder <= 0.25,
            rule="bytes of the tensors saved for backward, parameters left out: ratio at most 0.25",
            figures=["saved_ladder", "saved_full", "saved_share_ladder"],
        ),
        Claim.check(
            "Adapters train as few parameters and save much less.",
            1 - saved_ladder > 2 * (1 - saved_adapters) and cost["adapters"].trained < 0.1 * cost["full"].trained,
            rule="the ladder saves at least twice as much as adapters (the paper: 2.7 times); these train less than "
            "a tenth",
            figures=["saved_share_adapters", "saved_share_ladder", "trained_adapters", "trained_ladder"],
        ),
        Claim.check(
            "The backward pass of a ladder costs several times less than that of adapters or of full tuning.",
            3 * cost["ladder"].work < min(cost["adapters"].work, cost["full"].work),
            rule="multiplications in its matrix products: less than a third of either",
            figures=["backward_work_full", "backward_work_adapters", "backward_work_ladder"],
        ),
    ]


def _accuracy_claim(key: str, what: str, figures: Mapping[str, Figure]) -> Claim:
    names = [f"{key}_accuracy_{name}" for name in _WAYS]
    full, ladder, probe = (figures[name].value for name in names)
    return Claim.check_parts(
        f"The ladder is nearly as accurate as full tuning ({what}).",
        [ladder > probe, ladder > full - 0.02],
        rule="mean accuracy above a linear probe of the top state, and at most 0.02 below full tuning; partly when one "
        "holds",
        figures=names,
    )


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(
    figure: Any, cost: Mapping[str, _Cost], transfers: Mapping[str, Sequence[_Transfer]], tuned: Tuned | None
) -> None:
    accuracies = {
        title: {name: fmean(run.accuracy[name] for run in runs) for name in _WAYS} for title, runs in transfers.items()
    }
    if tuned is not None:
        accuracies["kexue's encoder, on TNEWS"] = tuned.means()
    figure.set_size_inches(4 * (2 + len(accuracies)), 4)
    memory, duration, *others = figure.subplots(1, 2 + len(accuracies))
    draw_bars(memory, {_LABELS[name]: one.saved / 2**20 for name, one in cost.items()}, form="%.0f")
    memory.set(title="memory", xlabel="what is trained", ylabel="kept for backward, MiB")
    draw_bars(duration, {_LABELS[name]: 1e3 * one.seconds for name, one in cost.items()}, form="%.0f")
    duration.set(title="time", xlabel="what is trained", ylabel="backward pass, ms")
    for panel, (title, means) in zip(others, accuracies.items(), strict=True):
        draw_bars(panel, {_LABELS[name]: 100 * means[name] for name in _WAYS}, color="C2")
        panel.set(title=title, xlabel="what is trained", ylabel="accuracy, %", ylim=(0, 108))
