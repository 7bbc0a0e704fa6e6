"""kexue.fm/archives/7302: AdaFactor, adaptive steps at the memory of a matrix's rows and columns.

Shows: bytes of state for layers of growing width and for BERT-base; that the factors are the nearest matrix of rank
one; what zero gradients do to the product as it is written; accuracy on digits beside Adam; and, where the data are
there, a small language model of Chinese poems beside Adam, each at the best of its rates.
"""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from kexue import nn as layers, optim
from kexue._optional import import_optional
from kexue.errors import MissingDependencyError
from kexue.experiments._optimizers import Make, best_digits, state_bytes
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_WIDTHS = (64, 128, 256, 512, 1024, 2048)
_RATES = {"adam": (1e-3, 3e-3, 1e-2), "adafactor": (0.03, 0.1, 0.3)}
_LABELS = {"adam": "Adam", "adafactor": "AdaFactor"}
_POEMS = "corpus_zh/poems_song_ci.txt.gz"
_LENGTH, _VOCABULARY, _HIDDEN = 32, 1024, 128


@experiment(
    "adafactor",
    claim="AdaFactor trains like Adam and keeps a few numbers a row and a column of each matrix as its state.",
    data=("poems_song_ci",),
    effect=(
        "state of BERT-base {state_bert_base_adam} to {state_bert_base_adafactor}; "
        "held-out loss {poems_loss_adam} to {poems_loss_adafactor}"
    ),
    minutes=4,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Count bytes, check the factors, and train digits and a language model beside Adam."""
    import_optional("torch", extra="train")
    memory = {name: [_layer_bytes(name, width) for width in _WIDTHS] for name in _RATES}
    at_1024 = {name: memory[name][_WIDTHS.index(1024)] for name in _RATES}
    bert = {name: _bert_bytes(name) for name in _RATES}
    slope, sign_gap = _nearest(seed)
    product, ours = _zeros()
    figures = {
        "state_1024_adam": Figure(at_1024["adam"] / 2**20, unit="MiB", expected=8.0, source="computed"),
        "state_1024_adafactor": Figure(at_1024["adafactor"] / 2**10, unit="KiB", expected=8.0, source="computed"),
        "state_bert_base_adam": Figure(bert["adam"] / 2**20, unit="MiB"),
        "state_bert_base_adafactor": Figure(bert["adafactor"] / 2**20, unit="MiB"),
        "state_bert_base_share": Figure(bert["adafactor"] / bert["adam"]),
        "slope_of_the_divergence": Figure(slope, expected=0.0, source="paper"),
        "gap_to_signs": Figure(sign_gap, expected=0.0, source="computed"),
        "nan_from_zero_gradients_product": Figure(product, unit="share"),
        "nan_from_zero_gradients_ours": Figure(ours, unit="share", expected=0.0, source="computed"),
    }
    claims = [
        Claim.check(
            "The state of a square layer grows with its width, not with its area.",
            at_1024["adafactor"] < 0.01 * at_1024["adam"] and memory["adafactor"][-1] < 2.1 * at_1024["adafactor"],
            rule="weights of 1024 x 1024: below 1 % of Adam's; twice the width takes at most 2.1 times the bytes",
            figures=["state_1024_adam", "state_1024_adafactor"],
        ),
        Claim.check(
            "So does that of a whole BERT-base, of 109 million parameters.",
            bert["adafactor"] < 0.01 * bert["adam"],
            rule="state of all parameters, vectors too, below 1 % of Adam's",
            figures=["state_bert_base_adam", "state_bert_base_adafactor", "state_bert_base_share"],
        ),
        Claim.check(
            "The factors are the nearest matrix of rank one in generalised Kullback-Leibler divergence, and exact "
            "where the squares are of rank one: there the update is the sign of the gradient.",
            slope < 1e-12 and sign_gap < 1e-12,
            rule="slope of the divergence by the logarithm of each factor, and distance to the signs, below 1e-12",
            figures=["slope_of_the_divergence", "gap_to_signs"],
        ),
        Claim.check(
            "The product of the factors as it is written gives NaN in float32 for gradients of zero, since the "
            "square of the epsilon underflows; dividing before multiplying does not (an addition of ours).",
            product == 1 and ours == 0,
            rule="share of NaN in the first update of a matrix without gradient: all and none",
            figures=["nan_from_zero_gradients_product", "nan_from_zero_gradients_ours"],
        ),
    ]
    seeds = tuple(range(seed, seed + {"smoke": 1, "small": 5, "full": 10}[budget]))
    curves: dict[str, dict[str, Any]] = {}
    notes, used = [], []
    try:
        epochs = {"smoke": 2, "small": 15, "full": 30}[budget]
        curves["digits"] = {name: _digits(name, seeds, epochs, budget) for name in _RATES}
    except MissingDependencyError as missing:
        notes.append(f"the digits are left out: {missing}")
    else:
        claims.append(_digits_claim(curves["digits"], figures, len(seeds)))
    if data is not None and (data / _POEMS).is_file():
        poems = _Poems(data / _POEMS)
        steps = {"smoke": 5, "small": 300, "full": 2000}[budget]
        curves["poems"] = {name: poems.best(name, seeds[:3], steps, budget) for name in _RATES}
        used.append({"name": "poems_song_ci", "split": "last twentieth held out", "n": len(poems.ids)})
        claims.append(_poems_claim(curves["poems"], figures, len(seeds[:3])))
    else:
        notes.append("the language model is left out: KEXUE_DATA has no poems_song_ci")
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        seeds=seeds,
        data=tuple(used),
        draw=lambda figure: _draw(figure, memory, curves),
    )


def _maker(name: str, rate: float) -> Make:
    torch = import_optional("torch", extra="train")
    kind = {"adam": torch.optim.Adam, "adafactor": optim.Adafactor}[name]
    return lambda params: kind(params, rate)


def _stepped(name: str, shapes: list[tuple[int, ...]], device: str) -> int:
    """Bytes of state after a step; on the device "meta" nothing is computed."""
    torch = import_optional("torch", extra="train")
    params = [torch.nn.Parameter(torch.ones(shape, device=device)) for shape in shapes]
    optimizer = _maker(name, 1e-3)(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return state_bytes(optimizer)


def _layer_bytes(name: str, width: int) -> int:
    return _stepped(name, [(width, width)], "cpu")


def _bert_bytes(name: str) -> int:
    d, inner = 768, 3072
    block = [*[(d, d), (d,)] * 4, (inner, d), (inner,), (d, inner), (d,), *[(d,)] * 4]
    return _stepped(name, [(30522, d), (512, d), (2, d), (d,), (d,), *block * 12, (d, d), (d,)], "meta")


def _nearest(seed: int) -> tuple[float, float]:
    """Largest slope of the divergence at the factors; distance of the update to signs where g^2 has rank one."""
    torch = import_optional("torch", extra="train")
    generator = torch.Generator().manual_seed(seed)
    squares = torch.randn(130, 140, generator=generator, dtype=torch.float64).square()
    p = torch.nn.Parameter(torch.ones_like(squares))
    p.grad = squares.sqrt()
    optimizer = optim.Adafactor([p], 0.1)
    optimizer.step()
    R, C = (optimizer.state[p][f"exp_avg_sq_{kind}"].clone().requires_grad_() for kind in ("row", "col"))
    fitted = R * C / R.mean().detach()
    divergence = (squares * (squares / fitted).log() - squares + fitted).mean()
    slopes = [g * x for g, x in zip(torch.autograd.grad(divergence, (R, C)), (R, C), strict=True)]
    slope = max(float(x.detach().abs().max()) for x in slopes)

    r, c = (torch.randn(n, generator=generator, dtype=torch.float64).exp() for n in (130, 140))
    p = torch.nn.Parameter(torch.zeros_like(squares))
    p.grad = r[:, None] * c * torch.randn(130, 140, generator=generator).sign()
    optim.Adafactor([p], 1.0, scale_parameter=False).step()
    return slope, float((p.detach() + p.grad.sign()).abs().max())


def _zeros() -> tuple[float, float]:
    """Share of NaN in the first update of a matrix without gradient: of R C / mean(R) as written, and of ours."""
    torch = import_optional("torch", extra="train")
    g = torch.zeros(128, 128)
    R, C = ((g.square() + 1e-30).mean(dim, keepdim=True) for dim in (1, 0))
    written = g / (R * C / R.mean()).sqrt()
    p = torch.nn.Parameter(torch.ones(128, 128))
    p.grad = g
    optim.Adafactor([p]).step()
    return float(written.isnan().double().mean()), float(p.detach().isnan().double().mean())


def _digits(name: str, seeds: tuple[int, ...], epochs: int, budget: Budget) -> Any:
    rates = _RATES[name][1:2] if budget == "smoke" else _RATES[name]
    return best_digits(lambda rate: _maker(name, rate), rates, seeds, epochs)


def _digits_claim(curves: dict[str, Any], figures: dict[str, Figure], seeds: int) -> Claim:
    last = {name: curves[name][:, -1] for name in curves}
    for name, values in last.items():
        figures[f"digits_accuracy_{name}"] = Figure(
            float(values.mean()), low=float(values.min()), high=float(values.max()), n=seeds
        )
    return Claim.check(
        "It classifies digits as well as Adam.",
        last["adafactor"].mean() > last["adam"].mean() - 0.01,
        rule="mean accuracy on 597 test digits at the best of three rates each: at most 0.01 below Adam's",
        figures=["digits_accuracy_adam", "digits_accuracy_adafactor"],
    )


def _poems_claim(curves: dict[str, Any], figures: dict[str, Figure], seeds: int) -> Claim:
    for name, (_, runs, size) in curves.items():
        last = [run[-1] for run in runs]
        figures[f"poems_loss_{name}"] = Figure(fmean(last), unit="nats", low=min(last), high=max(last), n=seeds)
        figures[f"poems_state_{name}"] = Figure(size / 2**10, unit="KiB")
    losses = {name: figures[f"poems_loss_{name}"].value for name in curves}
    return Claim.check(
        "It trains a small language model as well as Adam, with a hundredth of its state.",
        losses["adafactor"] < losses["adam"] + 0.02
        and figures["poems_state_adafactor"].value < 0.01 * figures["poems_state_adam"].value,
        rule="mean held-out loss at the best of three rates each at most 0.02 nats above Adam's; state below 1 %",
        figures=[f"poems_{what}_{name}" for what in ("loss", "state") for name in curves],
    )


class _Poems:
    """Song poems as characters, and a Transformer of two blocks that learns to go on."""

    def __init__(self, path: Path) -> None:
        torch = import_optional("torch", extra="train")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            text = file.read()
        number = {c: i + 1 for i, (c, _) in enumerate(Counter(text).most_common(_VOCABULARY - 1))}
        self.ids = torch.tensor([number.get(c, 0) for c in text])
        self.cut = len(self.ids) * 19 // 20

    def best(self, name: str, seeds: tuple[int, ...], steps: int, budget: Budget) -> tuple[float, list[Any], int]:
        """The rate that is best for the first seed, held-out losses with it for every seed, and bytes of state."""
        rates = _RATES[name][1:2] if budget == "smoke" else _RATES[name]
        first = {rate: self.train(_maker(name, rate), seeds[0], steps) for rate in rates}
        rate = min(first, key=lambda rate: first[rate][0][-1])
        others = [self.train(_maker(name, rate), s, steps)[0] for s in seeds[1:]]
        return rate, [first[rate][0], *others], first[rate][1]

    def train(self, make: Make, seed: int, steps: int) -> tuple[list[float], int]:
        """Held-out loss in nats a character, ten times on the way, and bytes of state; the rate falls to 0."""
        torch = import_optional("torch", extra="train")
        torch.manual_seed(seed)
        config = layers.TransformerConfig(_VOCABULARY, _HIDDEN, 2, 4, norm="pre", num_segments=0)
        model, head = layers.Transformer(config), torch.nn.Linear(_HIDDEN, _VOCABULARY)
        optimizer = make([*model.parameters(), *head.parameters()])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        past = torch.ones(_LENGTH, _LENGTH, dtype=torch.bool).tril()
        generator = torch.Generator().manual_seed(seed)

        def loss(start: int, stop: int, rows: int, generator: Any) -> Any:
            starts = torch.randint(start, stop - _LENGTH, (rows, 1), generator=generator)
            x = self.ids[starts + torch.arange(_LENGTH + 1)]
            states = model(x[:, :-1], mask=past.expand(rows, -1, -1)).last_hidden_state
            return torch.nn.functional.cross_entropy(head(states).flatten(0, 1), x[:, 1:].flatten())

        curve = []
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss(0, self.cut, 8, generator).backward()
            optimizer.step()
            schedule.step()
            if step % max(1, steps // 10) == 0:
                with torch.no_grad():
                    curve.append(float(loss(self.cut, len(self.ids), 512, torch.Generator().manual_seed(0))))
        return curve, state_bytes(optimizer)


def _draw(figure: Any, memory: dict[str, list[int]], curves: dict[str, dict[str, Any]]) -> None:
    figure.set_size_inches(4.5 * (1 + len(curves)), 4)
    axes = figure.subplots(1, 1 + len(curves), squeeze=False)[0]
    for index, name in enumerate(_RATES):
        axes[0].loglog(_WIDTHS, memory[name], "o-", color=f"C{index}", label=_LABELS[name], base=2)
        if "digits" in curves:
            mean = 100 * curves["digits"][name].mean(0)
            axes[1].plot(range(1, len(mean) + 1), mean, "o-", ms=3, color=f"C{index}", label=_LABELS[name])
        if "poems" in curves:
            rate, runs, _ = curves["poems"][name]
            mean = np.mean(runs, axis=0)
            share = np.linspace(0, 100, len(mean) + 1)[1:]
            axes[-1].plot(share, mean, "o-", ms=3, color=f"C{index}", label=f"{_LABELS[name]}, rate {rate:g}")
    axes[0].set(title="state of one square layer", xlabel="width", ylabel="bytes")
    if "digits" in curves:
        axes[1].set(title="digits", xlabel="epoch", ylabel="test accuracy, %")
    if "poems" in curves:
        axes[-1].set(title="language model of poems", xlabel="share of the steps, %", ylabel="held-out loss, nats")
    for panel in axes:
        panel.legend()
