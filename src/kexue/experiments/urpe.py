"""kexue.fm/archives/9105: relative positions inside the softmax cannot tell equal tokens apart, and what can.

Shows: the probe (n equal tokens in, their places out) for four relative positions and for none, for absolute positions,
and for the article's remedies: a factor after the softmax, other normalisations, marker tokens; with the largest
difference between the outputs of two places as the reason.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from kexue import nn as layers
from kexue._optional import import_optional
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report, Verdict

_BLIND = {
    "none": "no position",
    "bias": "a bias an offset",
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
_WIDTH, _HEADS, _LAYERS = 64, 4, 2


@experiment(
    "urpe",
    claim="A Transformer whose only positions are relative ones inside the softmax cannot say which of n equal tokens "
    "is which; a Toeplitz factor after the softmax is enough for it.",
    effect="share of places right {accuracy_bias} without, {accuracy_urpe} with the Toeplitz factor",
    minutes=1,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Probe every kind of attention."""
    import_optional("torch", extra="train")
    n, steps, seeds = {"smoke": (4, 100, 1), "small": (32, 1000, 3), "full": (128, 4000, 5)}[budget]
    figures: dict[str, Figure] = {}
    worst, longest, off_chance = {}, {}, {}
    for kind in _LABELS:
        results = [_probe(kind, n, steps, s) for s in range(seed, seed + seeds)]
        accuracies, losses = [result.accuracy for result, _ in results], [result.loss for result, _ in results]
        worst[kind], longest[kind] = min(accuracies), max(r.steps for r, _ in results)
        off_chance[kind] = max(abs(loss - math.log(n)) for loss in losses)
        chance = kind in _BLIND
        source = "computed" if kind in {"none", "causal"} else "article"
        accuracy, loss = sum(accuracies) / seeds, sum(losses) / seeds
        figures |= {
            f"accuracy_{kind}": Figure(accuracy, n=seeds, expected=1 / n if chance else 1.0, source=source),
            f"loss_{kind}": Figure(loss, unit="nats", n=seeds, expected=math.log(n), source=source)
            if chance
            else Figure(loss, unit="nats, at the end", n=seeds),
            f"spread_{kind}": Figure(
                max(spread for _, spread in results), unit="between outputs of two places, before training", n=seeds
            ),
        }
        if kind not in _BLIND:
            figures[f"steps_{kind}"] = Figure(longest[kind], unit="until every place was right, at most", n=seeds)
    small = (
        f"after {steps} steps, every seed: loss within 0.01 of ln {n}, that of equal scores (which of them is the "
        "largest, and so the share of places right, is left to rounding)"
    )
    full = f"every place right within {steps} steps, every seed"

    def blind(text: str, kinds: list[str]) -> Claim:
        stuck = all(off_chance[kind] < 0.01 for kind in kinds)
        names = [f"{figure}_{kind}" for kind in kinds for figure in ("accuracy", "loss")]
        return Claim.check(text, stuck, rule=small, figures=names)

    def sees(text: str, kinds: list[str]) -> Claim:
        passed = [worst[kind] == 1 for kind in kinds]
        verdict: Verdict = "reproduced" if all(passed) else "partly" if any(passed) else "not reproduced"
        names = tuple(f"{figure}_{kind}" for kind in kinds for figure in ("accuracy", "steps"))
        return Claim(text, verdict, full, names)

    gated = ["urpe", "rotary_urpe"]
    telling = [kind for kind in (*_ABSOLUTE, *_REMEDIES) if kind not in gated]
    claims = (
        blind("Relative positions inside the softmax leave the probe at chance.", ["bias", "t5", "rotary"]),
        blind("So do no positions at all, and a causal mask does not help (the latter is ours).", ["none", "causal"]),
        Claim.check(
            "The reason: all rows of the weights sum to 1, so that equal tokens get equal outputs.",
            all(figures[f"spread_{kind}"].value < 1e-5 for kind in _BLIND)
            and all(
                figures[f"spread_{kind}"].value > 1e-5
                for kind in _LABELS
                if kind not in (*_BLIND, "urpe", "rotary_urpe")
            ),
            rule="outputs of any two places within 1e-5 for the blind ones and farther apart for the others before "
            "training; those with a gate of ones start blind and are left out",
            figures=[f"spread_{kind}" for kind in (*_BLIND, *telling)],
        ),
        sees("Absolute positions pass.", ["sinusoidal", "learned"]),
        sees(
            "A Toeplitz factor after the softmax passes, with a bias as with rotary positions.", ["urpe", "rotary_urpe"]
        ),
        sees("Weights without the softmax's normalisation pass.", ["l2", "none_normalised", "relu2"]),
        sees("Two marker tokens that belong to the model are enough, with the softmax as it is.", ["markers"]),
    )

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.3, 1])
        kinds = list(_LABELS)[::-1]
        colours = ["tab:red" if kind in _BLIND else "tab:green" if kind in _REMEDIES else "tab:grey" for kind in kinds]
        bars = left.barh(range(len(kinds)), [figures[f"accuracy_{kind}"].value for kind in kinds], color=colours)
        left.bar_label(bars, fmt="%.3g", padding=3)
        left.set_yticks(range(len(kinds)), [_LABELS[kind] for kind in kinds])
        left.axvline(1 / n, color="black", linestyle=":", label=f"chance, 1/{n}")
        left.set_xlim(0, 1.12)
        left.set_xlabel(f"places named rightly among {n} equal tokens")
        left.legend(loc="upper right")
        right.barh(range(len(kinds)), [longest[kind] for kind in kinds], color=colours)
        for place, kind in enumerate(kinds):
            text = f"{longest[kind]}" if worst[kind] == 1 else "never"
            right.annotate(text, (longest[kind], place), xytext=(3, 0), textcoords="offset points", va="center")
        right.set_xlim(0, 1.25 * steps)
        right.set_xlabel("steps until all are right")
        for axes in (left, right):
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)

    seeds_used = tuple(range(seed, seed + seeds))
    notes = (f"{_LAYERS} layers, {_HEADS} heads, width {_WIDTH}, Adam at 1e-3, one row of {n} equal tokens",)
    return Report(claims, figures, notes=notes, seeds=seeds_used, draw=draw)


def _probe(kind: str, n: int, steps: int, seed: int) -> tuple[Any, float]:
    """The probe's result, and the largest difference between two places before training."""
    torch = import_optional("torch", extra="train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(kind, n)
    with torch.no_grad():
        scores = model(torch.ones(1, n, dtype=torch.int64))[0]
    spread = float((scores - scores[:1]).abs().max())
    return layers.position_probe(model, n=n, steps=steps, lr=1e-3, generator=seed), spread


def _model(kind: str, n: int) -> Any:
    """A Transformer of two layers with one kind of attention, and a score for every place."""
    torch = import_optional("torch", extra="train")
    functional, module = torch.nn.functional, torch.nn
    weighing: Any = {"l2": "l2", "none_normalised": "none", "relu2": "relu2"}.get(kind, "softmax")
    markers = 2 if kind == "markers" else 0

    class Probed(module.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = module.Embedding(2 + markers, _WIDTH)
            absolute = {"sinusoidal": layers.SinusoidalPositions, "learned": layers.LearnedPositions}
            self.absolute = None
            if kind in absolute:
                self.absolute = absolute[kind](*((n, _WIDTH) if kind == "learned" else (_WIDTH,)))
            self.bias: Any = None
            if kind == "t5":
                self.bias = layers.T5Bias(_HEADS)
            elif kind in {"bias", "urpe", "l2", "none_normalised", "relu2", "markers"}:
                self.bias = layers.ToeplitzGate(_HEADS, n + markers)  # a table of offsets, here added to the scores
            if self.bias is not None:
                module.init.normal_(self.bias.table, std=0.5)
            self.gate = layers.ToeplitzGate(_HEADS, n) if kind in {"urpe", "rotary_urpe"} else None
            maps = [(_WIDTH, 3 * _WIDTH), (_WIDTH, _WIDTH), (_WIDTH, 4 * _WIDTH), (4 * _WIDTH, _WIDTH)]
            self.blocks = module.ModuleList(
                module.ModuleList([module.Linear(*shape) for shape in maps] + [module.LayerNorm(_WIDTH) for _ in "ab"])
                for _ in range(_LAYERS)
            )
            self.out = module.Linear(_WIDTH, n)

        def forward(self, ids: Any) -> Any:
            if markers:  # one before, one after
                ids = functional.pad(functional.pad(ids, (1, 0), value=2), (0, 1), value=3)
            places = torch.arange(ids.shape[1], device=ids.device)
            x = self.embed(ids)
            x = x if self.absolute is None else x + self.absolute(places)
            bias = None if self.bias is None else self.bias(places, places)
            gate = None if self.gate is None else self.gate(places, places)
            mask = torch.ones(len(places), len(places), dtype=torch.bool).tril() if kind == "causal" else None
            for qkv, out, up, down, norm1, norm2 in self.blocks:
                q, k, v = (part.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in qkv(norm1(x)).chunk(3, -1))
                if kind in {"rotary", "rotary_urpe", "causal"}:
                    q, k = layers.apply_rotary(q, k)
                if weighing == "softmax":
                    mixed = layers.urpe_attention(q, k, v, gate=gate, bias=bias, mask=mask)
                else:
                    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
                    mixed = layers.attention_weights(scores, normalize=weighing) @ v
                x = x + out(mixed.transpose(1, 2).flatten(-2))
                x = x + down(functional.gelu(up(norm2(x))))
            return self.out(x)[:, markers // 2 : ids.shape[1] - markers // 2]

    return Probed()
