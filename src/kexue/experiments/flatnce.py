"""kexue.fm/archives/8586: is floating-point error why contrastive learning is weak in small batches?

Measures: what rounding does to the usual cross-entropy; retrieval with FlatNCE and with InfoNCE at batches of 3, 8 and
64; and each explanation alone: rounding, the epsilon of Adam, and the weights of the anchors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.experiments._data import attempt, split_digits
from kexue.experiments._training import build_mlp, fit, torch_seed
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report
from kexue.similarity import retrieval_metrics

_BATCHES = (3, 8, 64)
_SMALL = (3, 8)
_TEMPERATURE, _NOISE = 0.07, 0.2
_WAYS = {  # name: label in the figure
    "cross_entropy": "cross-entropy, float32",
    "float64": "cross-entropy, float64",
    "exact": "exact InfoNCE",
    "epsilon": "exact InfoNCE, Adam's epsilon 1e-30",
    "rescaled": "InfoNCE, each batch rescaled",
    "flat": "FlatNCE",
}


@experiment(
    "flatnce",
    claim="Small batches suffer from rounding in the cross-entropy; FlatNCE avoids it and does better there.",
    effect=(
        "mAP at batch 3 {map_cross_entropy_3} to {map_flat_3}; at batch 64 {map_cross_entropy_64} to {map_flat_64}"
    ),
    minutes=3,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Measure gradients at growing gaps, and SimCLR on digits with six forms of the gradient in three batch sizes."""
    count, steps = {"smoke": (1, 40), "small": (3, 1500), "full": (10, 1500)}[budget]
    seeds, gaps = range(seed, seed + count), np.arange(0.0, 41.0)
    slopes = _measure_slopes(gaps)
    figures = _gradient_figures(_measure_identity(seed), slopes)
    claims = _gradient_claims(figures)
    notes: list[str] = []
    runs = attempt(lambda: _measure_digits(seeds, steps), "the claims on digits", notes)
    if runs:
        figures |= _digit_figures(runs)
        claims += _digit_claims(runs)
        untrained = np.mean([_train("exact", 3, s, 0) for s in seeds], axis=0)
        notes += [
            f"{count} seeds, {steps} steps of Adam, network 64-128-32, temperature {_TEMPERATURE}, noise {_NOISE}; "
            f"untrained: mAP {untrained[0]:.3f}, recall at 1 {untrained[1]:.3f}",
            "per anchor the two losses have the same gradient up to the factor xi / (1 + xi); what neither precision "
            "nor epsilon explains is therefore the weight of anchors, within a batch or between batches",
        ]
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        draw=lambda figure: _draw(figure, gaps, slopes, runs or {}),
        seeds=tuple(seeds),
    )


# ---- figures and claims --------------------------------------------------------------------------------------------

_Runs = Mapping[tuple[str, int], Array]  # (way, batch) -> (seeds, 3): mAP, recall at 1, share of anchors rounded away
_EXACT_17 = float(np.exp(-17.0) / (1 + np.exp(-17.0)))  # pull on a positive that leads by 17


def _gradient_figures(identity: float, slopes: Mapping[str, Array]) -> dict[str, Figure]:
    return {
        "gradient_identity_gap": Figure(identity, n=256),
        "positive_gradient_cross_entropy_gap_17": Figure(slopes["cross_entropy"][17], expected=0.0, source="computed"),
        "positive_gradient_exact_gap_17": Figure(
            slopes["exact"][17], expected=float(f"{_EXACT_17:.4g}"), source="computed"
        ),
    }


def _gradient_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    rounded, exact = (figures[f"positive_gradient_{way}_gap_17"].value for way in ("cross_entropy", "exact"))
    return [
        Claim.check(
            "log xi has the gradient of the article's xi / stop_gradient(xi).",
            figures["gradient_identity_gap"].value < 1e-12,
            rule="largest difference of the two gradients below 1e-12 in float64",
            figures=["gradient_identity_gap"],
        ),
        Claim.check(
            "In float32 the cross-entropy of an easy anchor rounds: its positive gets no gradient.",
            rounded == 0 and abs(exact / _EXACT_17 - 1) < 1e-5,
            rule="exactly 0 when the positive leads by 17; the exact form is right to 1e-5 there",
            figures=["positive_gradient_cross_entropy_gap_17", "positive_gradient_exact_gap_17"],
        ),
    ]


def _digit_figures(runs: _Runs) -> dict[str, Figure]:
    """Retrieval by way and batch, shares of FlatNCE's gain, and shares of anchors that rounding removes."""
    figures = {
        f"{metric}_{way}_{batch}": Figure.over_runs(values[:, column])
        for (way, batch), values in runs.items()
        for column, metric in enumerate(("map", "recall1"))
    }
    for batch in _SMALL:
        for way in ("float64", "exact", "epsilon", "rescaled"):
            share = _share(runs, way, batch)
            figures[f"share_of_gain_{way}_{batch}"] = Figure(share, unit="of the gain of FlatNCE in mAP")
    for batch in _BATCHES:
        figures[f"anchors_rounded_away_{batch}"] = Figure(
            float(runs["cross_entropy", batch][:, 2].mean()), unit="share of anchors with 1 + xi = 1 in float32"
        )
    return figures


def _gain(runs: _Runs, way: str, batch: int, column: int = 0) -> Array:
    """Gain over float32 cross-entropy by seed, in mAP or another column."""
    return np.asarray(runs[way, batch][:, column] - runs["cross_entropy", batch][:, column])


def _share(runs: _Runs, way: str, batch: int) -> float:
    """Share of FlatNCE's gain in mAP that `way` reaches; 0 where FlatNCE gains nothing."""
    whole = _gain(runs, "flat", batch).mean()
    return float(_gain(runs, way, batch).mean() / whole) if whole > 0 else 0.0


def _digit_claims(runs: _Runs) -> list[Claim]:
    def names(ways: Sequence[str], batches: Sequence[int], *metrics: str) -> list[str]:
        return [f"{m}_{way}_{batch}" for m in metrics for batch in batches for way in ways]

    def reaches_half(*ways: str) -> list[bool]:
        return [max(_share(runs, way, batch) for way in ways) > 0.5 for batch in _SMALL]

    half = "reaches half of FlatNCE's gain in mean average precision over float32 cross-entropy, at batch 3 and at 8"
    higher = [bool((_gain(runs, "flat", batch) > 0).all()) for batch in _SMALL]
    first = [bool(_gain(runs, "flat", batch, 1).mean() > 0) for batch in _SMALL]
    return [
        Claim.check_parts(
            "FlatNCE retrieves better than InfoNCE in small batches.",
            [*higher, *first],
            rule="at batch 3 and at 8: mean average precision higher in every seed, and mean recall at 1 higher; "
            "partly when some of the four hold",
            figures=names(("cross_entropy", "flat"), _SMALL, "map", "recall1"),
        ),
        Claim.check(
            "In a larger batch FlatNCE is not worse.",
            bool(_gain(runs, "flat", 64).mean() > -0.01),
            rule="mean average precision at batch 64 not more than 0.01 below",
            figures=names(("cross_entropy", "flat"), (64,), "map", "recall1"),
        ),
        Claim.check_parts(
            "Rounding is why: the exact InfoNCE, or float64, closes the gap in small batches.",
            reaches_half("float64", "exact"),
            rule=f"one of the two {half}; partly when at one of them",
            figures=[
                *names(("float64", "exact"), _SMALL, "share_of_gain"),
                *(f"anchors_rounded_away_{b}" for b in _SMALL),
            ],
        ),
        Claim.check_parts(
            "The epsilon of Adam is why: without it InfoNCE closes the gap (our addition).",
            reaches_half("epsilon"),
            rule=f"epsilon 1e-30 {half}; partly when at one of them",
            figures=names(("epsilon",), _SMALL, "share_of_gain"),
        ),
        Claim.check_parts(
            "The weight of a whole batch is why: InfoNCE with the weights of each batch scaled to sum 1 closes the gap "
            "(our addition; what is left is the weights within a batch).",
            reaches_half("rescaled"),
            rule=f"it {half}; partly when at one of them",
            figures=names(("rescaled",), _SMALL, "share_of_gain"),
        ),
    ]


def _draw(figure: Any, gaps: Array, slopes: Mapping[str, Array], runs: _Runs) -> None:
    """Gradient against the lead of the positive, and retrieval by batch size."""
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    for way in ("flat", "exact", "cross_entropy"):
        shown = np.where(slopes[way] > 0, slopes[way], np.nan)
        left.semilogy(gaps, shown, "o" if way == "cross_entropy" else "-", label=_WAYS[way], markersize=4)
    left.axvline(17, color="grey", linestyle=":", label="zero from here on in float32")
    left.set_xlabel("lead of the positive over one negative")
    left.set_ylabel("gradient on the positive score")
    left.legend(fontsize=8)
    for number, (way, label) in enumerate(_WAYS.items()):
        if runs:
            at = np.arange(len(_BATCHES)) + (number - (len(_WAYS) - 1) / 2) * 0.13
            values = np.array([runs[way, batch][:, 0] for batch in _BATCHES])
            right.plot(at, values.mean(axis=1), "o", markersize=8, color=f"C{number}", label=label)
            right.vlines(at, values.min(axis=1), values.max(axis=1), color=f"C{number}", linewidth=3, alpha=0.4)
    right.set_xticks(range(len(_BATCHES)), [f"{batch}" for batch in _BATCHES])
    right.set_xlabel("anchors in a batch")
    right.set_ylabel("mAP on test digits")
    right.grid(False, axis="x")
    right.set_ylim(0.45, 0.85)
    if runs:
        right.legend(fontsize=8, ncols=2, loc="upper center")


# ---- measure -------------------------------------------------------------------------------------------------------


def _measure_digits(seeds: Sequence[int], steps: int) -> dict[tuple[str, int], Array]:
    return {
        (way, batch): np.array([_train(way, batch, s, steps) for s in seeds]) for batch in _BATCHES for way in _WAYS
    }


def _train(way: str, batch: int, seed: int, steps: int) -> tuple[float, float, float]:
    """SimCLR on noisy digits; mAP and recall at 1 of the test digits, share of anchors whose 1 + xi rounded to 1."""
    torch = import_optional("torch", extra="train")
    from kexue.losses import InfoNCELoss, contrastive_diagnostics

    X, _, X_test, y_test = split_digits(seed)
    dtype = torch.float64 if way == "float64" else torch.float32
    images = torch.from_numpy(X).to(dtype)
    with torch_seed(seed):
        network = build_mlp(64, 128, 32).to(dtype)
    views = InfoNCELoss(_TEMPERATURE)  # its scores of all 2B views against each other are those of every way
    rounded: list[float] = []

    def loss(drawn: Any) -> Any:
        rows, noises = drawn
        x = images[rows]
        a, b = (network(x + _NOISE * noise.to(dtype)) for noise in noises)
        scores, labels, mask = views.scores(a, b)
        if way in ("cross_entropy", "float64"):
            rounded.append(contrastive_diagnostics(scores, labels, mask=mask)["share_below_eps"].item() / steps)
        return _loss(way, scores, labels, mask)

    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-30 if way == "epsilon" else 1e-8)
    fit(network, loss, _draw_batches(len(images), batch, steps, seed), optimizer)
    with torch.no_grad():
        scores = retrieval_metrics(network(torch.from_numpy(X_test).to(dtype)), y_test, ks=(1,))
    return scores["map"], scores["recall_at_1"], sum(rounded)


def _loss(way: str, scores: Any, labels: Any, mask: Any) -> Any:
    """The loss of one way to form the gradient."""
    torch = import_optional("torch", extra="train")
    from kexue.losses import flat_nce, info_nce

    if way in ("cross_entropy", "float64"):
        return torch.nn.functional.cross_entropy(scores.masked_fill(~mask, -torch.inf), labels)
    if way in ("exact", "epsilon"):
        return info_nce(scores, labels, mask=mask)
    if way == "flat":
        return flat_nce(scores, labels, mask=mask)
    log_xi = flat_nce(scores, labels, mask=mask, reduction="none")
    weights = log_xi.detach().sigmoid()  # xi / (1 + xi): with it FlatNCE has the gradient of InfoNCE
    return (weights * log_xi).sum() / weights.sum()


def _draw_batches(count: int, batch: int, steps: int, seed: int) -> list[tuple[Any, list[Any]]]:
    """Row numbers and the noise of two views, for each step."""
    torch = import_optional("torch", extra="train")
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randint(count, (batch,), generator=generator),
            [torch.randn(batch, 64, generator=generator) for _ in range(2)],
        )
        for _ in range(steps)
    ]


def _measure_identity(seed: int) -> float:
    """Largest difference between the gradients of log xi and xi / stop_gradient(xi)."""
    torch = import_optional("torch", extra="train")
    from kexue.losses import flat_nce

    scores = 5 * torch.randn(256, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    scores.requires_grad_()
    labels = torch.zeros(256, dtype=torch.int64)
    (ours,) = torch.autograd.grad(flat_nce(scores, labels, reduction="sum"), scores)
    xi = (scores[:, 1:] - scores[:, :1]).exp().sum(dim=1)
    (article,) = torch.autograd.grad((xi / xi.detach()).sum(), scores)
    return float((ours - article).abs().max())


def _measure_slopes(gaps: Array) -> dict[str, Array]:
    """Minus the gradient on the positive in float32, for one negative that lies `gap` below."""
    torch = import_optional("torch", extra="train")
    from kexue.losses import flat_nce, info_nce

    ways = {"cross_entropy": torch.nn.functional.cross_entropy, "exact": info_nce, "flat": flat_nce}
    slopes = {}
    for way, loss in ways.items():
        scores = torch.zeros(len(gaps), 2)
        scores[:, 0] = torch.from_numpy(gaps)
        scores.requires_grad_()
        total = loss(scores, torch.zeros(len(gaps), dtype=torch.int64), reduction="sum")
        slopes[way] = -torch.autograd.grad(total, scores)[0][:, 0].double().numpy() + 0.0  # turns -0 into 0
    return slopes
