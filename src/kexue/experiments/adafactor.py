"""kexue.fm/archives/7302: AdaFactor, adaptive steps whose state is one vector per row and one per column of a matrix.

Measures: bytes of state for layers of growing width and for BERT-base; whether the factors are the nearest matrix of
rank one; the effect of zero gradients on the product as written; accuracy on digits; and, where the data are there, the
loss of a small language model of Chinese poems. In the last two, AdaFactor is compared with Adam, each at
the best of its rates.

Bytes, factors and zero gradients need a single optimizer step, which is called directly: nothing is trained there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue import nn as layers, optim
from kexue._optional import import_optional
from kexue.experiments._data import attempt, read_lines
from kexue.experiments._optimizers import (
    LABELS,
    Make,
    bind_rate,
    claim_as_accurate,
    compare_on_digits,
    draw_digits,
    figures_of_digits,
    limit_rates,
)
from kexue.experiments._training import fit, torch_seed
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_WIDTHS = (64, 128, 256, 512, 1024, 2048)
_RATES = {"adam": (1e-3, 3e-3, 1e-2), "adafactor": (0.03, 0.1, 0.3)}
_POEMS = "corpus_zh/poems_song_ci.txt.gz"
_LENGTH, _VOCABULARY, _HIDDEN = 32, 1024, 128


@experiment(
    "adafactor",
    claim="AdaFactor trains like Adam, with a few numbers for each row and each column of a matrix as its state.",
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
    seeds = tuple(range(seed, seed + {"smoke": 1, "small": 5, "full": 10}[budget]))
    notes: list[str] = []
    memory = {name: [_layer_bytes(name, width) for width in _WIDTHS] for name in _RATES}
    figures = _state_figures(memory) | _factor_figures(seed)
    claims = [*_state_claims(memory, figures), *_factor_claims(figures)]
    digits = attempt(lambda: compare_on_digits(_RATES, seeds, budget), "the digits", notes)
    if digits:
        figures |= figures_of_digits(digits)
        claims.append(claim_as_accurate(digits, "adafactor"))
    poems: dict[str, _PoemRuns] = {}
    used = []
    if data is not None and (data / _POEMS).is_file():
        text = _Poems(data / _POEMS)
        steps = {"smoke": 5, "small": 300, "full": 2000}[budget]
        poems = {name: text.train_at_best_rate(name, seeds[:3], steps, budget) for name in _RATES}
        used.append({"name": "poems_song_ci", "split": "last twentieth held out", "n": len(text.ids)})
        figures |= _poem_figures(poems)
        claims.append(_poem_claim(figures))
    else:
        notes.append("the language model is left out: KEXUE_DATA has no poems_song_ci")
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        seeds=seeds,
        data=tuple(used),
        draw=lambda figure: _draw(figure, memory, digits, poems),
    )


# ---- measure -------------------------------------------------------------------------------------------------------


def _state_bytes(optimizer: Any) -> int:
    """Bytes of every tensor in the state."""
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())


def _bytes_after_step(name: str, shapes: list[tuple[int, ...]], device: str) -> int:
    """Bytes of state after one step; on the device "meta" nothing is computed."""
    torch = import_optional("torch", extra="train")
    params = [torch.nn.Parameter(torch.ones(shape, device=device)) for shape in shapes]
    optimizer = bind_rate(name, 1e-3)(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return _state_bytes(optimizer)


def _layer_bytes(name: str, width: int) -> int:
    return _bytes_after_step(name, [(width, width)], "cpu")


def _bert_bytes(name: str) -> int:
    """Bytes of state for all parameters of BERT-base."""
    d, inner = 768, 3072
    block = [*[(d, d), (d,)] * 4, (inner, d), (inner,), (d, inner), (d,), *[(d,)] * 4]
    return _bytes_after_step(name, [(30522, d), (512, d), (2, d), (d,), (d,), *block * 12, (d, d), (d,)], "meta")


def _rank_one_gaps(seed: int) -> tuple[float, float]:
    """Largest slope of the divergence at the factors; distance of the update to the signs where g^2 has rank one."""
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


def _nan_shares() -> tuple[float, float]:
    """Share of NaN in the first update for a zero gradient: of R C / mean(R) as written, and of `Adafactor`."""
    torch = import_optional("torch", extra="train")
    g = torch.zeros(128, 128)
    R, C = ((g.square() + 1e-30).mean(dim, keepdim=True) for dim in (1, 0))
    written = g / (R * C / R.mean()).sqrt()
    p = torch.nn.Parameter(torch.ones(128, 128))
    p.grad = g
    optim.Adafactor([p]).step()
    return float(written.isnan().double().mean()), float(p.detach().isnan().double().mean())


class _PoemRuns(NamedTuple):
    """The best rate, held-out losses with it (seed, ten points), and bytes of state."""

    rate: float
    losses: np.ndarray[Any, Any]
    state_bytes: int


class _Poems:
    """Song poems as characters, and a Transformer of two blocks that predicts the next character."""

    def __init__(self, path: Path) -> None:
        torch = import_optional("torch", extra="train")
        text = "".join(f"{line}\n" for line in read_lines(path))
        number = {c: i + 1 for i, (c, _) in enumerate(Counter(text).most_common(_VOCABULARY - 1))}
        self.ids = torch.tensor([number.get(c, 0) for c in text])
        self.end_of_training = len(self.ids) * 19 // 20

    def train_at_best_rate(self, name: str, seeds: tuple[int, ...], steps: int, budget: Budget) -> _PoemRuns:
        """Train every seed at the rate that is best for the first one."""
        first = {rate: self.train(bind_rate(name, rate), seeds[0], steps) for rate in limit_rates(_RATES[name], budget)}
        rate = min(first, key=lambda rate: first[rate][0][-1])
        losses, size = first[rate]
        others = [self.train(bind_rate(name, rate), s, steps)[0] for s in seeds[1:]]
        return _PoemRuns(rate, np.array([losses, *others]), size)

    def train(self, make: Make, seed: int, steps: int) -> tuple[list[float], int]:
        """Held-out loss, nats per character, after each tenth of the steps, and bytes of state; the rate falls to 0."""
        torch = import_optional("torch", extra="train")
        with torch_seed(seed):
            config = layers.TransformerConfig(_VOCABULARY, _HIDDEN, 2, 4, norm="pre", num_segments=0)
            model, head = layers.Transformer(config), torch.nn.Linear(_HIDDEN, _VOCABULARY)
        optimizer = make([*model.parameters(), *head.parameters()])
        past = torch.ones(_LENGTH, _LENGTH, dtype=torch.bool).tril()
        generator = torch.Generator().manual_seed(seed)

        def loss(start: int, stop: int, rows: int, generator: Any) -> Any:
            starts = torch.randint(start, stop - _LENGTH, (rows, 1), generator=generator)
            x = self.ids[starts + torch.arange(_LENGTH + 1)]
            states = model(x[:, :-1], mask=past.expand(rows, -1, -1)).last_hidden_state
            return torch.nn.functional.cross_entropy(head(states).flatten(0, 1), x[:, 1:].flatten())

        end = self.end_of_training
        curve = fit(
            [model, head],
            lambda _step: loss(0, end, 8, generator),
            range(steps),
            optimizer,
            scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps),
            evaluate=lambda: float(loss(end, len(self.ids), 512, torch.Generator().manual_seed(0))),
            every=max(1, steps // 10),
        ).evaluations
        return curve, _state_bytes(optimizer)


# ---- figures and claims --------------------------------------------------------------------------------------------


def _state_figures(memory: Mapping[str, list[int]]) -> dict[str, Figure]:
    at_1024 = {name: memory[name][_WIDTHS.index(1024)] for name in _RATES}
    bert = {name: _bert_bytes(name) for name in _RATES}
    return {
        "state_1024_adam": Figure(at_1024["adam"] / 2**20, unit="MiB", expected=8.0, source="computed"),
        "state_1024_adafactor": Figure(at_1024["adafactor"] / 2**10, unit="KiB", expected=8.0, source="computed"),
        "state_bert_base_adam": Figure(bert["adam"] / 2**20, unit="MiB"),
        "state_bert_base_adafactor": Figure(bert["adafactor"] / 2**20, unit="MiB"),
        "state_bert_base_share": Figure(bert["adafactor"] / bert["adam"]),
    }


def _factor_figures(seed: int) -> dict[str, Figure]:
    slope, sign_gap = _rank_one_gaps(seed)
    product, ours = _nan_shares()
    return {
        "slope_of_the_divergence": Figure(slope, expected=0.0, source="paper"),
        "gap_to_signs": Figure(sign_gap, expected=0.0, source="computed"),
        "nan_from_zero_gradients_product": Figure(product, unit="share"),
        "nan_from_zero_gradients_ours": Figure(ours, unit="share", expected=0.0, source="computed"),
    }


def _state_claims(memory: Mapping[str, list[int]], figures: Mapping[str, Figure]) -> list[Claim]:
    adam, adafactor = (memory[name][_WIDTHS.index(1024)] for name in _RATES)
    return [
        Claim.check(
            "The state of a square layer grows with its width, not with its area.",
            adafactor < 0.01 * adam and memory["adafactor"][-1] < 2.1 * adafactor,
            rule="weights of 1024 x 1024: below 1 % of Adam's; twice the width takes at most 2.1 times the bytes",
            figures=["state_1024_adam", "state_1024_adafactor"],
        ),
        Claim.check(
            "The state of a whole BERT-base (109 million parameters) shrinks in the same way.",
            figures["state_bert_base_share"].value < 0.01,
            rule="state of all parameters, vectors too, below 1 % of Adam's",
            figures=["state_bert_base_adam", "state_bert_base_adafactor", "state_bert_base_share"],
        ),
    ]


def _factor_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    return [
        Claim.check(
            "The factors are the nearest matrix of rank one in generalised Kullback-Leibler divergence, and exact "
            "where the squares are of rank one: there the update is the sign of the gradient.",
            figures["slope_of_the_divergence"].value < 1e-12 and figures["gap_to_signs"].value < 1e-12,
            rule="slope of the divergence by the logarithm of each factor, and distance to the signs, below 1e-12",
            figures=["slope_of_the_divergence", "gap_to_signs"],
        ),
        Claim.check(
            "The product of the factors, computed as written, gives NaN in float32 for gradients of zero, because "
            "the square of the epsilon underflows; dividing before multiplying does not (our addition).",
            figures["nan_from_zero_gradients_product"].value == 1
            and figures["nan_from_zero_gradients_ours"].value == 0,
            rule="share of NaN in the first update of a matrix whose gradient is 0: 1 and 0",
            figures=["nan_from_zero_gradients_product", "nan_from_zero_gradients_ours"],
        ),
    ]


def _poem_figures(poems: Mapping[str, _PoemRuns]) -> dict[str, Figure]:
    figures = {}
    for name, runs in poems.items():
        figures[f"poems_loss_{name}"] = Figure.over_runs(runs.losses[:, -1], unit="nats")
        figures[f"poems_state_{name}"] = Figure(runs.state_bytes / 2**10, unit="KiB")
    return figures


def _poem_claim(figures: Mapping[str, Figure]) -> Claim:
    losses, states = ({name: figures[f"poems_{what}_{name}"].value for name in _RATES} for what in ("loss", "state"))
    return Claim.check(
        "It trains a small language model as well as Adam, with a hundredth of its state.",
        losses["adafactor"] < losses["adam"] + 0.02 and states["adafactor"] < 0.01 * states["adam"],
        rule="mean held-out loss at the best of three rates each at most 0.02 nats above Adam's; state below 1 %",
        figures=[f"poems_{what}_{name}" for what in ("loss", "state") for name in _RATES],
    )


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(figure: Any, memory: Mapping[str, list[int]], digits: Any, poems: Mapping[str, _PoemRuns]) -> None:
    count = 1 + bool(digits) + bool(poems)
    figure.set_size_inches(4.5 * count, 4)
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for index, name in enumerate(_RATES):
        panels[0].loglog(_WIDTHS, memory[name], "o-", color=f"C{index}", label=LABELS[name], base=2)
    panels[0].set(title="state of one square layer", xlabel="width", ylabel="state, bytes")
    if digits:
        draw_digits(panels[1], digits)
    if poems:
        for index, (name, runs) in enumerate(poems.items()):
            mean = runs.losses.mean(0)
            share = np.linspace(0, 100, len(mean) + 1)[1:]
            panels[-1].plot(share, mean, "o-", ms=3, color=f"C{index}", label=f"{LABELS[name]}, rate {runs.rate:g}")
        panels[-1].set(title="language model of poems", xlabel="share of the steps, %", ylabel="held-out loss, nats")
    for panel in panels:
        panel.legend()
