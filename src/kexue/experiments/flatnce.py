"""kexue.fm/archives/8586: is floating-point error why contrastive learning is weak in small batches?

Shows: what rounding does to the usual cross-entropy; who retrieves better, FlatNCE or InfoNCE, at batches of 3, 8 and
64; and which explanation holds when each is tried alone: rounding, the epsilon of Adam, or the weights of the anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.errors import MissingDependencyError
from kexue.experiments._data import split_digits
from kexue.experiments._measures import score_retrieval
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report, Verdict

_BATCHES = (3, 8, 64)
_SMALL = (3, 8)
_TEMPERATURE, _NOISE = 0.07, 0.2
_WAYS = {  # name: label in the picture
    "cross_entropy": "cross-entropy, float32",
    "float64": "cross-entropy, float64",
    "exact": "exact InfoNCE",
    "epsilon": "exact InfoNCE, Adam's epsilon 1e-30",
    "rescaled": "InfoNCE, each batch rescaled",
    "flat": "FlatNCE",
}


@experiment(
    "flatnce",
    claim="Small batches suffer from rounding in the cross-entropy, and FlatNCE, free of it, does better there.",
    effect=(
        "mAP at batch 3 {map_cross_entropy_3} to {map_flat_3}; at batch 64 {map_cross_entropy_64} to {map_flat_64}"
    ),
    minutes=3,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Gradients at growing gaps; then SimCLR on digits, six ways to form the gradient, three batch sizes."""
    seeds, steps = {"smoke": (1, 40), "small": (3, 1500), "full": (10, 1500)}[budget]
    identity, gaps = _identity(seed), np.arange(0.0, 41.0)
    slopes = _slopes(gaps)
    exact_17 = np.exp(-17.0) / (1 + np.exp(-17.0))
    figures = {
        "gradient_identity_gap": Figure(identity, n=256),
        "positive_gradient_cross_entropy_gap_17": Figure(slopes["cross_entropy"][17], expected=0.0, source="computed"),
        "positive_gradient_exact_gap_17": Figure(
            slopes["exact"][17], expected=float(f"{exact_17:.4g}"), source="computed"
        ),
    }
    claims = [
        Claim.check(
            "log xi has the gradient of the article's xi / stop_gradient(xi).",
            identity < 1e-12,
            rule="largest difference of the two gradients below 1e-12 in float64",
            figures=["gradient_identity_gap"],
        ),
        Claim.check(
            "In float32 the cross-entropy of an easy anchor rounds: its positive gets no gradient.",
            slopes["cross_entropy"][17] == 0 and abs(slopes["exact"][17] / exact_17 - 1) < 1e-5,
            rule="exactly 0 when the positive leads by 17; the exact form is right to 1e-5 there",
            figures=["positive_gradient_cross_entropy_gap_17", "positive_gradient_exact_gap_17"],
        ),
    ]
    notes: tuple[str, ...] = ()
    found: dict[tuple[str, int], Array] = {}
    try:
        found = {
            (way, batch): np.array([_train(way, batch, s, steps) for s in range(seed, seed + seeds)])
            for batch in _BATCHES
            for way in _WAYS
        }
        untrained = np.mean([_train("exact", 3, s, 0) for s in range(seed, seed + seeds)], axis=0)
    except MissingDependencyError as missing:
        notes = (f"the claims on digits are left out: {missing}",)
    if found:
        for (way, batch), values in found.items():
            for column, metric in enumerate(("map", "recall1")):
                v = values[:, column]
                figures[f"{metric}_{way}_{batch}"] = Figure(
                    float(v.mean()), low=float(v.min()), high=float(v.max()), n=len(v)
                )
        claims += _claims(found, figures)
        notes = (
            f"{seeds} seeds, {steps} steps of Adam, network 64-128-32, temperature {_TEMPERATURE}, noise {_NOISE}; "
            f"untrained: mAP {untrained[0]:.3f}, recall at 1 {untrained[1]:.3f}",
            "per anchor the two losses have the same gradient up to the factor xi / (1 + xi); what neither precision "
            "nor epsilon explains is therefore the weight of anchors, within a batch or between batches",
        )

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        for way in ("flat", "exact", "cross_entropy"):
            shown = np.where(slopes[way] > 0, slopes[way], np.nan)
            left.semilogy(gaps, shown, "o" if way == "cross_entropy" else "-", label=_WAYS[way], markersize=4)
        left.axvline(17, color="grey", linestyle=":", label="zero from here on in float32")
        left.set_xlabel("lead of the positive over one negative")
        left.set_ylabel("gradient on the positive score")
        left.legend(fontsize=8)
        for number, (way, label) in enumerate(_WAYS.items()):
            if found:
                at = np.arange(len(_BATCHES)) + (number - (len(_WAYS) - 1) / 2) * 0.13
                values = np.array([found[way, batch][:, 0] for batch in _BATCHES])
                right.plot(at, values.mean(axis=1), "o", markersize=8, color=f"C{number}", label=label)
                right.vlines(at, values.min(axis=1), values.max(axis=1), color=f"C{number}", linewidth=3, alpha=0.4)
        right.set_xticks(range(len(_BATCHES)), [f"{batch}" for batch in _BATCHES])
        right.set_xlabel("anchors in a batch")
        right.set_ylabel("mAP on test digits")
        right.grid(False, axis="x")
        right.set_ylim(0.45, 0.85)
        if found:
            right.legend(fontsize=8, ncols=2, loc="upper center")

    return Report(tuple(claims), figures, notes=notes, draw=draw, seeds=tuple(range(seed, seed + seeds)))


def _claims(found: dict[tuple[str, int], Array], figures: dict[str, Figure]) -> list[Claim]:
    def names(ways: Sequence[str], batches: Sequence[int], *metrics: str) -> tuple[str, ...]:
        return tuple(f"{m}_{way}_{batch}" for m in metrics for batch in batches for way in ways)

    def gain(way: str, batch: int, column: int = 0) -> Array:
        return np.asarray(found[way, batch][:, column] - found["cross_entropy", batch][:, column])

    def share(way: str, batch: int) -> float:
        """Share of FlatNCE's gain in mAP that `way` reaches; 0 where FlatNCE gains nothing."""
        whole = gain("flat", batch).mean()
        return float(gain(way, batch).mean() / whole) if whole > 0 else 0.0

    for batch in _SMALL:
        for way in ("float64", "exact", "epsilon", "rescaled"):
            figures[f"share_of_gain_{way}_{batch}"] = Figure(share(way, batch), unit="of the gain of FlatNCE in mAP")
    for batch in _BATCHES:
        figures[f"anchors_rounded_away_{batch}"] = Figure(
            float(found["cross_entropy", batch][:, 2].mean()), unit="share of anchors with 1 + xi = 1 in float32"
        )
    ranks = [bool((gain("flat", batch) > 0).all()) for batch in _SMALL]
    first = [bool(gain("flat", batch, 1).mean() > 0) for batch in _SMALL]
    rescaled = [share("rescaled", batch) > 0.5 for batch in _SMALL]

    def count(parts: list[bool]) -> Verdict:
        return "reproduced" if all(parts) else "partly" if any(parts) else "not reproduced"

    half = "reaches half of FlatNCE's gain in mean average precision over float32 cross-entropy, at batch 3 and at 8"
    return [
        Claim(
            "FlatNCE retrieves better than InfoNCE in small batches.",
            count([*ranks, *first]),
            "at batch 3 and at 8: mean average precision higher in every seed, and mean recall at 1 higher; partly "
            "when some of the four hold",
            names(("cross_entropy", "flat"), _SMALL, "map", "recall1"),
        ),
        Claim.check(
            "In a larger batch FlatNCE is at least not worse.",
            bool(gain("flat", 64).mean() > -0.01),
            rule="mean average precision at batch 64 not more than 0.01 below",
            figures=names(("cross_entropy", "flat"), (64,), "map", "recall1"),
        ),
        Claim(
            "Rounding is why: the exact InfoNCE, or float64, closes the gap in small batches.",
            count([max(share("float64", batch), share("exact", batch)) > 0.5 for batch in _SMALL]),
            f"one of the two {half}; partly when at one of them",
            (*names(("float64", "exact"), _SMALL, "share_of_gain"), *(f"anchors_rounded_away_{b}" for b in _SMALL)),
        ),
        Claim(
            "The epsilon of Adam is why: without it InfoNCE closes the gap (an addition of ours).",
            count([share("epsilon", batch) > 0.5 for batch in _SMALL]),
            f"epsilon 1e-30 {half}; partly when at one of them",
            names(("epsilon",), _SMALL, "share_of_gain"),
        ),
        Claim(
            "The weight of a whole batch is why: InfoNCE with the weights of each batch scaled to sum 1 closes the gap "
            "(an addition of ours; what is left is the weights within a batch).",
            count(rescaled),
            f"it {half}; partly when at one of them",
            names(("rescaled",), _SMALL, "share_of_gain"),
        ),
    ]


def _train(way: str, batch: int, seed: int, steps: int) -> tuple[float, float, float]:
    """SimCLR on noisy digits; mAP and recall at 1 of the test digits, share of anchors whose 1 + xi rounded to 1."""
    torch = import_optional("torch", extra="train")
    from kexue.losses import InfoNCELoss, contrastive_diagnostics, flat_nce, info_nce

    X, _, X_test, y_test = split_digits(seed)
    dtype = torch.float64 if way == "float64" else torch.float32
    images = torch.from_numpy(X).to(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32)).to(dtype)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-30 if way == "epsilon" else 1e-8)
    noise = torch.Generator().manual_seed(seed)
    scored = InfoNCELoss(_TEMPERATURE)  # its scores of all 2B views against each other serve every way
    rounded = 0.0
    for _ in range(steps):
        x = images[torch.randint(len(images), (batch,), generator=noise)]
        a, b = (network(x + _NOISE * torch.randn(x.shape, generator=noise).to(dtype)) for _ in range(2))
        scores, labels, mask = scored.scores(a, b)
        if way in ("cross_entropy", "float64"):
            loss = torch.nn.functional.cross_entropy(scores.masked_fill(~mask, -torch.inf), labels)
            rounded += contrastive_diagnostics(scores, labels, mask=mask)["share_below_eps"].item() / steps
        elif way in ("exact", "epsilon"):
            loss = info_nce(scores, labels, mask=mask)
        elif way == "flat":
            loss = flat_nce(scores, labels, mask=mask)
        else:
            log_xi = flat_nce(scores, labels, mask=mask, reduction="none")
            weights = log_xi.detach().sigmoid()  # xi / (1 + xi): with it FlatNCE has the gradient of InfoNCE
            loss = (weights * log_xi).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        map_, recall = score_retrieval(network(torch.from_numpy(X_test).to(dtype)).numpy(), y_test)
    return map_, recall, rounded


def _identity(seed: int) -> float:
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


def _slopes(gaps: Array) -> dict[str, Array]:
    """Minus the gradient on the positive in float32, for one negative that lies `gap` below."""
    torch = import_optional("torch", extra="train")
    from kexue.losses import flat_nce, info_nce

    ways = {"cross_entropy": torch.nn.functional.cross_entropy, "exact": info_nce, "flat": flat_nce}
    found = {}
    for way, loss in ways.items():
        scores = torch.zeros(len(gaps), 2)
        scores[:, 0] = torch.from_numpy(gaps)
        scores.requires_grad_()
        total = loss(scores, torch.zeros(len(gaps), dtype=torch.int64), reduction="sum")
        found[way] = -torch.autograd.grad(total, scores)[0][:, 0].double().numpy() + 0.0  # no -0
    return found
