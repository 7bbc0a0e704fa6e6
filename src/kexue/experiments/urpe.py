"""kexue.fm/archives/9105: which position encodings let a Transformer tell equal tokens apart.

Measures: the probe (input: n equal tokens; output: the position of each) for four relative positions inside the softmax
and for none, for absolute positions, and for the article's remedies: a factor after the softmax, other normalisations,
marker tokens; and, as the reason, the largest difference between the outputs of two positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from kexue import nn as layers
from kexue._optional import import_optional
from kexue.experiments._training import torch_seed
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_BLIND = {
    "none": "no position",
    "bias": "one bias per offset",
    "t5": "T5 buckets",
    "rotary": "rotary",
    "causal": "rotary, causal mask",
}
_REMEDIES = {
    "urpe": "bias and gate (URPE)",
    "rotary_urpe": "rotary and gate",
    "l2": "bias, l2",
    "none_normalised": "bias, no denominator",
    "relu2": "bias, squared relu / n",
    "markers": "bias, two marker tokens",
}
_ABSOLUTE = {"sinusoidal": "sinusoidal", "learned": "learned"}
_LABELS = _BLIND | _ABSOLUTE | _REMEDIES
_GATED = ("urpe", "rotary_urpe")  # a gate of ones to begin with
_WEIGHTS: Mapping[str, Literal["l2", "none", "relu2"]] = {"l2": "l2", "none_normalised": "none", "relu2": "relu2"}
_WIDTH, _HEADS, _LAYERS = 64, 4, 2


@experiment(
    "urpe",
    claim="A Transformer whose only positions are relative ones inside the softmax cannot say which of n equal tokens "
    "is which; a Toeplitz factor after the softmax is enough for it.",
    effect="share of positions predicted correctly {accuracy_bias} without, {accuracy_urpe} with the Toeplitz factor",
    minutes=1,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Probe every kind of attention."""
    import_optional("torch", extra="train")
    n, steps, count = {"smoke": (4, 100, 1), "small": (32, 1000, 3), "full": (128, 4000, 5)}[budget]
    seeds = tuple(range(seed, seed + count))
    runs = {kind: [_probe(kind, n, steps, s) for s in seeds] for kind in _LABELS}
    figures = _figures(runs, n)
    return Report(
        _claims(runs, figures, n, steps),
        figures,
        notes=(f"{_LAYERS} layers, {_HEADS} heads, width {_WIDTH}, Adam at 1e-3, one row of {n} equal tokens",),
        seeds=seeds,
        draw=lambda figure: _draw(figure, runs, n, steps),
    )


# ---- figures and claims --------------------------------------------------------------------------------------------


class _Run(NamedTuple):
    """Results of one probe, and the largest difference between the outputs of two places before training."""

    accuracy: float
    loss: float
    steps: int
    spread: float


_Runs = Mapping[str, Sequence[_Run]]


def _figures(runs: _Runs, n: int) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for kind, probes in runs.items():
        count, blind = len(probes), kind in _BLIND
        source = "computed" if kind in {"none", "causal"} else "article"
        accuracy, loss = (sum(values) / count for values in zip(*((p.accuracy, p.loss) for p in probes), strict=True))
        figures[f"accuracy_{kind}"] = Figure(accuracy, n=count, expected=1 / n if blind else 1.0, source=source)
        if blind:
            figures[f"loss_{kind}"] = Figure(loss, unit="nats", n=count, expected=math.log(n), source=source)
        else:
            figures[f"loss_{kind}"] = Figure(loss, unit="nats, at the end", n=count)
        spread = max(p.spread for p in probes)
        figures[f"spread_{kind}"] = Figure(spread, unit="between outputs of two places, before training", n=count)
        if not blind:
            longest = max(p.steps for p in probes)
            figures[f"steps_{kind}"] = Figure(longest, unit="until every place was right, at most", n=count)
    return figures


def _claims(runs: _Runs, figures: Mapping[str, Figure], n: int, steps: int) -> tuple[Claim, ...]:
    def blind(text: str, *kinds: str) -> Claim:
        return Claim.check(
            text,
            all(abs(probe.loss - math.log(n)) < 0.01 for kind in kinds for probe in runs[kind]),
            rule=f"after {steps} steps, every seed: loss within 0.01 of ln {n}, that of equal scores (which of them is "
            "the largest, and so the share of places right, is left to rounding)",
            figures=[f"{figure}_{kind}" for kind in kinds for figure in ("accuracy", "loss")],
        )

    def sees(text: str, *kinds: str) -> Claim:
        return Claim.check_parts(
            text,
            [min(probe.accuracy for probe in runs[kind]) == 1 for kind in kinds],
            rule=f"every place right within {steps} steps, every seed",
            figures=[f"{figure}_{kind}" for kind in kinds for figure in ("accuracy", "steps")],
        )

    return (
        blind("Relative positions inside the softmax leave the probe at chance.", "bias", "t5", "rotary"),
        blind("So does a model without positions, and a causal mask does not help (our addition).", "none", "causal"),
        _reason_claim(figures),
        sees("Absolute positions pass.", "sinusoidal", "learned"),
        sees("A Toeplitz factor after the softmax passes, with a bias as with rotary positions.", *_GATED),
        sees("Weights without the softmax's normalisation pass.", "l2", "none_normalised", "relu2"),
        sees("Two marker tokens that belong to the model are enough, with the softmax as it is.", "markers"),
    )


def _reason_claim(figures: Mapping[str, Figure]) -> Claim:
    spread = {kind: figures[f"spread_{kind}"].value for kind in (*_BLIND, *_ABSOLUTE, *_REMEDIES) if kind not in _GATED}
    return Claim.check(
        "The reason: all rows of the weights sum to 1, so that equal tokens get equal outputs.",
        all(value < 1e-5 if kind in _BLIND else value > 1e-5 for kind, value in spread.items()),
        rule="before training, outputs of any two places within 1e-5 where the probe fails, and farther apart where "
        "it passes; gates, which start as ones, are left out",
        figures=[f"spread_{kind}" for kind in spread],
    )


# ---- measure -------------------------------------------------------------------------------------------------------


def _probe(kind: str, n: int, steps: int, seed: int) -> _Run:
    """The probe of one kind of attention."""
    torch = import_optional("torch", extra="train")
    with torch_seed(seed):
        model = _build_model(kind, n)
    with torch.no_grad():
        scores = model(torch.ones(1, n, dtype=torch.int64))[0]
    spread = float((scores - scores[:1]).abs().max())
    result = layers.position_probe(model, n=n, steps=steps, lr=1e-3, generator=seed)
    return _Run(result.accuracy, result.loss, result.steps, spread)


def _build_model(kind: str, n: int) -> Any:
    """A Transformer of two layers with one kind of attention, and a score for every place."""
    nn = import_optional("torch.nn", extra="train")
    markers = 2 if kind == "markers" else 0

    class Probed(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(2 + markers, _WIDTH)
            self.absolute = _build_absolute(kind, n)
            self.bias = _build_bias(kind, n + markers)
            self.gate = layers.ToeplitzGate(_HEADS, n) if kind in _GATED else None
            maps = [(_WIDTH, 3 * _WIDTH), (_WIDTH, _WIDTH), (_WIDTH, 4 * _WIDTH), (4 * _WIDTH, _WIDTH)]
            self.blocks = nn.ModuleList(
                nn.ModuleList([nn.Linear(*shape) for shape in maps] + [nn.LayerNorm(_WIDTH) for _ in "ab"])
                for _ in range(_LAYERS)
            )
            self.out = nn.Linear(_WIDTH, n)

        def forward(self, ids: Any) -> Any:
            if markers:  # one marker token before, one after
                ids = nn.functional.pad(nn.functional.pad(ids, (1, 0), value=2), (0, 1), value=3)
            places = _places(ids)
            x = self.embed(ids)
            x = x if self.absolute is None else x + self.absolute(places)
            bias = None if self.bias is None else self.bias(places, places)
            gate = None if self.gate is None else self.gate(places, places)
            for qkv, out, up, down, norm1, norm2 in self.blocks:
                q, k, v = (part.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in qkv(norm1(x)).chunk(3, -1))
                mixed = _attend(kind, q, k, v, bias, gate)
                x = x + out(mixed.transpose(1, 2).flatten(-2))
                x = x + down(nn.functional.gelu(up(norm2(x))))
            return self.out(x)[:, markers // 2 : ids.shape[1] - markers // 2]

    return Probed()


def _places(ids: Any) -> Any:
    torch = import_optional("torch", extra="train")
    return torch.arange(ids.shape[1], device=ids.device)


def _build_absolute(kind: str, n: int) -> Any:
    """Absolute positions of a kind, or None."""
    if kind == "sinusoidal":
        return layers.SinusoidalPositions(_WIDTH)
    return layers.LearnedPositions(n, _WIDTH) if kind == "learned" else None


def _build_bias(kind: str, n: int) -> Any:
    """A bias for each offset, with random values, for the kinds that have one, else None."""
    nn = import_optional("torch.nn", extra="train")
    bias: Any = None
    if kind == "t5":
        bias = layers.T5Bias(_HEADS)
    elif kind in {"bias", "urpe", "markers", *_WEIGHTS}:
        bias = layers.ToeplitzGate(_HEADS, n)  # a table of offsets, here added to the scores
    if bias is not None:
        nn.init.normal_(bias.table, std=0.5)
    return bias


def _attend(kind: str, q: Any, k: Any, v: Any, bias: Any, gate: Any) -> Any:
    """Attention of a kind; q, k, v (batch, heads, n, d)."""
    torch = import_optional("torch", extra="train")
    if kind in {"rotary", "rotary_urpe", "causal"}:
        q, k = layers.apply_rotary(q, k)
    if kind in _WEIGHTS:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
        return layers.attention_weights(scores, normalize=_WEIGHTS[kind]) @ v
    n = q.shape[-2]
    mask = torch.ones(n, n, dtype=torch.bool).tril() if kind == "causal" else None
    return layers.urpe_attention(q, k, v, gate=gate, bias=bias, mask=mask)


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(figure: Any, runs: _Runs, n: int, steps: int) -> None:
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.3, 1])
    kinds = list(_LABELS)[::-1]
    rows = range(len(kinds))
    colours = ["tab:red" if kind in _BLIND else "tab:green" if kind in _REMEDIES else "tab:grey" for kind in kinds]
    bars = left.barh(rows, [fmean(probe.accuracy for probe in runs[kind]) for kind in kinds], color=colours)
    left.bar_label(bars, fmt="%.3g", padding=3)
    left.set_yticks(rows, [_LABELS[kind] for kind in kinds])
    left.axvline(1 / n, color="black", linestyle=":", label=f"chance, 1/{n}")
    left.set(xlim=(0, 1.12), xlabel=f"share of {n} equal tokens whose place is named", ylabel="kind of attention")
    left.legend(loc="upper right")
    longest = [max(probe.steps for probe in runs[kind]) for kind in kinds]
    right.barh(rows, longest, color=colours)
    for row, kind in enumerate(kinds):
        text = f"{longest[row]}" if min(probe.accuracy for probe in runs[kind]) == 1 else "never"
        right.annotate(text, (longest[row], row), xytext=(3, 0), textcoords="offset points", va="center")
    right.set(xlim=(0, 1.25 * steps), xlabel="steps until all are right")
    for panel in (left, right):
        panel.grid(axis="y", visible=False)
        panel.tick_params(axis="y", length=0)
