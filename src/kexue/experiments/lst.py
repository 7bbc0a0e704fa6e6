"""kexue.fm/archives/9138: ladder side-tuning, a small network beside a frozen one.

Shows: what full tuning, adapters and a ladder keep for the backward pass and how long it takes, on eight layers; how
well each does when digits 0-4 are carried over to 5-9; and, where the data are there, when a classifier of headlines is
carried over to another set of classes with few examples, the ladder reading states from disk.
"""

from __future__ import annotations

import copy
import gzip
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from kexue import nn as layers
from kexue._optional import import_optional
from kexue.errors import MissingDependencyError
from kexue.experiments._data import split_digits
from kexue.experiments._measures import count_multiplications
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_WAYS = ("full", "ladder", "probe")
_LABELS = {"full": "full tuning", "adapters": "adapters", "ladder": "ladder", "probe": "linear probe"}
_LENGTH = 24  # characters kept of a headline
_TITLES, _NEWS = "corpus_zh/thucnews_titles.jsonl.gz", "clue/fewclue_tnews"


@experiment(
    "lst",
    claim="A ladder beside a frozen backbone trains in a fraction of the memory and time, nearly as well as all of it.",
    data=("thucnews_titles", "fewclue_tnews"),
    effect=(
        "kept for backward {saved_share_ladder}; "
        "accuracy on digits {digits_accuracy_full} full, {digits_accuracy_ladder} ladder; "
        "on TNEWS {tnews_accuracy_full} full, {tnews_accuracy_ladder} ladder"
    ),
    minutes=3,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Count what is kept for backward, time it, and carry over digits and headlines."""
    small = budget == "smoke"
    cost = _cost(seed, rounds=2 if small else 5, size=(64, 4, 4, 16) if small else (256, 8, 16, 64))
    figures: dict[str, Figure] = {}
    for name, (kept, seconds, trained, work) in cost.items():
        figures |= {
            f"saved_{name}": Figure(kept / 2**20, unit="MiB kept for backward"),
            f"backward_work_{name}": Figure(work / 1e6, unit="million multiplications"),
            f"backward_{name}": Figure(1e3 * seconds, unit="ms"),
            f"trained_{name}": Figure(trained, unit="parameters"),
        }
    share = {name: cost[name][0] / cost["full"][0] for name in cost}
    figures |= {f"saved_share_{name}": Figure(share[name], unit="of full tuning") for name in ("adapters", "ladder")}
    claims = [
        Claim.check(
            "A ladder keeps at most a quarter of what full tuning keeps for the backward pass.",
            share["ladder"] <= 0.25,
            rule="bytes of the tensors saved for backward, parameters left out: ratio at most 0.25",
            figures=["saved_ladder", "saved_full", "saved_share_ladder"],
        ),
        Claim.check(
            "Adapters train as few parameters and save much less.",
            1 - share["ladder"] > 2 * (1 - share["adapters"]) and cost["adapters"][2] < 0.1 * cost["full"][2],
            rule="the ladder saves at least twice what adapters save (the paper: 2.7 times); these train under a tenth",
            figures=["saved_share_adapters", "saved_share_ladder", "trained_adapters", "trained_ladder"],
        ),
        Claim.check(
            "The backward pass of a ladder is several times as cheap as that of adapters or of full tuning.",
            3 * cost["ladder"][3] < min(cost["adapters"][3], cost["full"][3]),
            rule="multiplications in its matrix products: less than a third of either",
            figures=["backward_work_full", "backward_work_adapters", "backward_work_ladder"],
        ),
    ]
    seeds = tuple(range(seed, seed + {"smoke": 1, "small": 3, "full": 5}[budget]))
    epochs = {"smoke": 2, "small": 15, "full": 40}[budget]
    notes, transfers, used = [], {}, []
    try:
        runs = [_digits(s, epochs) for s in seeds]
    except MissingDependencyError as missing:
        notes.append(f"the digits are left out: {missing}")
    else:
        transfers["digits 0-4 to 5-9"] = {name: fmean(r[name] for r in runs) for name in _WAYS}
        claims.append(_claim("digits", "digits 0-4 to 5-9", runs, figures))
    if data is not None and (data / _TITLES).is_file() and (data / _NEWS).is_dir():
        used = [{"name": "thucnews_titles"}, {"name": "fewclue_tnews", "split": "train_few_all, test_public"}]
        runs = [_headlines(data, s, {"smoke": 10, "small": 150, "full": 2000}[budget], epochs) for s in seeds[:2]]
        transfers["headlines, to TNEWS"] = {name: fmean(r[name] for r in runs) for name in _WAYS}
        claims.append(_claim("tnews", "headlines of THUCNews to the few-shot TNEWS of CLUE", runs, figures))
        cached, live = (fmean(r[f"{what}_seconds"] for r in runs) for what in ("cached", "live"))
        figures |= {
            "epoch_from_disk": Figure(cached, unit="s", n=len(runs)),
            "epoch_with_backbone": Figure(live, unit="s", n=len(runs)),
        }
    else:
        notes.append(f"headlines are left out: {_TITLES} or {_NEWS} is not in KEXUE_DATA")
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        seeds=seeds,
        data=tuple(used),
        draw=lambda figure: _draw(figure, cost, transfers),
    )


def _claim(key: str, what: str, runs: list[dict[str, float]], figures: dict[str, Figure]) -> Claim:
    """The claim about accuracy, whose figures are added."""
    for name in _WAYS:
        values = [r[name] for r in runs]
        figures[f"{key}_accuracy_{name}"] = Figure(fmean(values), low=min(values), high=max(values), n=len(values))
    full, ladder, probe = (figures[f"{key}_accuracy_{name}"].value for name in _WAYS)
    verdict = ("not reproduced", "partly", "reproduced")[(ladder > probe) + (ladder > full - 0.02)]
    rule = (
        "mean accuracy above a linear probe of the top state, and at most 0.02 below full tuning; partly when one holds"
    )
    names = tuple(f"{key}_accuracy_{name}" for name in _WAYS)
    return Claim(f"The ladder is nearly as accurate as full tuning ({what}).", verdict, rule, names)  # type: ignore[arg-type]


def _encoder(width: int, depth: int, heads: int) -> Any:
    nn = import_optional("torch", extra="train").nn
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


def _cost(seed: int, *, rounds: int, size: tuple[int, int, int, int]) -> dict[str, tuple[int, float, int, float]]:
    """(bytes kept for backward, its median seconds, trained parameters, its multiplications) of each way, in turns."""
    torch = import_optional("torch", extra="train")
    width, depth, batch, length = size
    torch.manual_seed(seed)
    backbone = _encoder(width, depth, width // 32)
    x = torch.randn(batch, length, width)
    adapted = copy.deepcopy(backbone).requires_grad_(False)
    for layer in adapted.layers:  # y + B gelu(A y), after attention and after the feed-forward part
        for module in (layer.self_attn, layer.linear2):
            down, up = torch.nn.Linear(width, width // 16), torch.nn.Linear(width // 16, width)
            module.adapter = torch.nn.Sequential(down, torch.nn.GELU(), up)
        layer.self_attn.register_forward_hook(lambda m, _, out: (out[0] + m.adapter(out[0]), *out[1:]))
        layer.linear2.register_forward_hook(lambda m, _, out: out + m.adapter(out))
    side = layers.LadderSideNetwork(copy.deepcopy(backbone), taps=range(depth + 1), width=width // 8)
    side(x)
    ways = {"full": backbone, "adapters": adapted, "ladder": side}
    kept, seconds = {}, {name: [] for name in ways}  # type: ignore[var-annotated]
    for number in range(rounds + 1):  # the first does not count
        for name, module in ways.items():
            kept[name], loss = _kept(module, x)
            start = time.perf_counter()
            loss.backward()
            seconds[name] += [time.perf_counter() - start] if number else []
    work = {name: count_multiplications(_kept(module, x)[1].backward) for name, module in ways.items()}
    trained = {name: sum(p.numel() for p in module.parameters() if p.requires_grad) for name, module in ways.items()}
    return {name: (kept[name], median(seconds[name]), trained[name], work[name]) for name in ways}


def _kept(module: Any, x: Any) -> tuple[int, Any]:
    """Bytes of the tensors that autograd saves in a forward pass, parameters left out, and the loss."""
    torch = import_optional("torch", extra="train")
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages: dict[int, Any] = {}

    def count(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = module(x).square().mean()
    return sum(storage.nbytes() for storage in storages.values()), loss


def _train(
    trunk: Callable[[Any], Any], head: Any, parameters: list[Any], loader: Any, epochs: int, rate: float
) -> float:
    """Adam on the cross-entropy of ``head(trunk(x))``; returns the seconds an epoch took."""
    torch = import_optional("torch", extra="train")
    optimizer = torch.optim.Adam([*parameters, *head.parameters()], rate)
    start = time.perf_counter()
    for _ in range(epochs):
        for x, y in loader:
            loss = torch.nn.functional.cross_entropy(head(trunk(x).mean(1)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (time.perf_counter() - start) / max(1, epochs)


def _carry_over(backbone: Any, width: int, train: Any, test: Any, epochs: int) -> dict[str, float]:
    """Accuracy on `test` of full tuning, a ladder from states on disk, and a probe of the top state."""
    torch = import_optional("torch", extra="train")
    data = torch.utils.data
    (x, y), classes = train, int(train[1].max()) + 1
    depth = len(backbone[1].layers)
    loader = data.DataLoader(data.TensorDataset(x, y), batch_size=64, shuffle=True)
    results = {}

    def accuracy(trunk: Callable[[Any], Any], head: Any) -> float:
        with torch.no_grad():
            return float((head(trunk(test[0]).mean(1)).argmax(1) == test[1]).float().mean())

    side = layers.LadderSideNetwork(backbone, taps=range(depth + 1), width=width // 4)
    side(x[:1])
    head = torch.nn.Linear(width, classes)
    learnt = [p for p in side.parameters() if p.requires_grad]
    with tempfile.TemporaryDirectory() as folder:
        cached = side.cache_states(list(x.split(256)), folder)
        joined = data.DataLoader(data.StackDataset(cached, y), batch_size=64, shuffle=True)
        results["cached_seconds"] = _train(lambda states: side(states=states), head, learnt, joined, epochs, 3e-3)
    results["ladder"] = accuracy(side, head)
    results["live_seconds"] = _train(side, torch.nn.Linear(width, classes), learnt, loader, 1, 3e-3)

    head = torch.nn.Linear(width, classes)

    def top(x: Any) -> Any:
        with torch.no_grad():
            return backbone(x)

    _train(top, head, [], loader, epochs, 1e-2)
    results["probe"] = accuracy(top, head)

    tuned, head = copy.deepcopy(backbone).requires_grad_(True), torch.nn.Linear(width, classes)
    _train(tuned, head, list(tuned.parameters()), loader, epochs, 1e-3)
    return results | {"full": accuracy(tuned, head)}


def _digits(seed: int, epochs: int) -> dict[str, float]:
    """Pretrain on digits 0-4, carry over to 5-9; eight tokens, the rows of pixels with a mark of their place."""
    torch = import_optional("torch", extra="train")
    split = [torch.from_numpy(part) for part in split_digits(seed)]
    places = torch.eye(8)

    def part(x: Any, y: Any, low: bool) -> tuple[Any, Any]:
        chosen = (y < 5) == low
        rows = x[chosen].unflatten(1, (8, 8))
        return torch.cat([rows, places.expand(len(rows), 8, 8)], 2), y[chosen] % 5

    torch.manual_seed(seed)
    backbone = torch.nn.Sequential(torch.nn.Linear(16, 64), _encoder(64, 4, 2))
    data = torch.utils.data
    loader = data.DataLoader(data.TensorDataset(*part(split[0], split[1], True)), batch_size=64, shuffle=True)
    _train(backbone, torch.nn.Linear(64, 5), list(backbone.parameters()), loader, epochs, 1e-3)
    return _carry_over(backbone, 64, part(split[0], split[1], False), part(split[2], split[3], False), epochs)


def _headlines(data: Path, seed: int, steps: int, epochs: int) -> dict[str, float]:
    """Pretrain on the classes of THUCNews headlines, carry over to the 15 classes of the few-shot TNEWS."""
    torch = import_optional("torch", extra="train")
    titles = _lines(data / _TITLES)
    generator = np.random.default_rng(seed)
    vocabulary = {c: i + 1 for i, c in enumerate(sorted({c for row in titles for c in row["text"]}))}

    def encode(texts: list[str]) -> Any:
        ids = torch.zeros(len(texts), _LENGTH, dtype=torch.int64)
        for row, text in zip(ids, texts, strict=True):
            known = [vocabulary.get(c, 0) for c in text[:_LENGTH]]
            row[: len(known)] = torch.tensor(known)
        return ids

    torch.manual_seed(seed)
    backbone = torch.nn.Sequential(torch.nn.Embedding(len(vocabulary) + 1, 64), _encoder(64, 4, 2))
    names = {label: i for i, label in enumerate(sorted({row["label"] for row in titles}))}
    chosen = [titles[i] for i in generator.choice(len(titles), min(len(titles), 128 * steps), replace=False)]
    pretraining = torch.utils.data.TensorDataset(
        encode([row["text"] for row in chosen]), torch.tensor([names[row["label"]] for row in chosen])
    )
    loader = torch.utils.data.DataLoader(pretraining, batch_size=128, shuffle=True)
    _train(backbone, torch.nn.Linear(64, len(names)), list(backbone.parameters()), loader, 1, 1e-3)

    splits = [_lines(data / _NEWS / f"{name}.jsonl.gz") for name in ("train_few_all", "test_public")]
    classes = {label: i for i, label in enumerate(sorted({str(row["label"]) for row in splits[0]}))}
    train, test = (
        (encode([row["sentence"] for row in rows]), torch.tensor([classes[str(row["label"])] for row in rows]))
        for rows in splits
    )
    return _carry_over(backbone, 64, train, test, max(1, epochs // 2))


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _draw(figure: Any, cost: dict[str, tuple[int, float, int, float]], transfers: dict[str, dict[str, float]]) -> None:
    figure.set_size_inches(4 * (2 + len(transfers)), 4)
    axes = figure.subplots(1, 2 + len(transfers))
    for panel, index, unit, what in ((axes[0], 0, 2**-20, "MiB kept for backward"), (axes[1], 1, 1e3, "backward, ms")):
        bars = panel.bar([_LABELS[name] for name in cost], [unit * cost[name][index] for name in cost], color="C0")
        panel.bar_label(bars, fmt="%.0f")
        panel.set_ylabel(what)
        panel.margins(y=0.1)
    axes[0].set_title("memory")
    axes[1].set_title("time")
    for panel, (title, accuracy) in zip(axes[2:], transfers.items(), strict=True):
        bars = panel.bar([_LABELS[name] for name in _WAYS], [100 * accuracy[name] for name in _WAYS], color="C2")
        panel.bar_label(bars, fmt="%.1f")
        panel.set_ylabel("accuracy, %")
        panel.set_ylim(0, 108)
        panel.set_title(title)
