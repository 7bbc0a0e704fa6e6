"""kexue.fm/archives/9085: discrete distributions built by reparameterisation, of which softmax is one.

Shows: the integral against counted draws for five laws of noise; Gumbel noise is softmax; the four properties asked
for; what midpoints leave of small probabilities; and what digits say to a classifier trained with normal noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kexue._optional import import_optional
from kexue.errors import MissingDependencyError
from kexue.experiments._data import Array, split_digits
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_LAWS = ("gumbel", "normal", "logistic", "exponential", "cauchy")
_MU = (1.0, 0.0, -1.0)
_NODES = (4, 8, 16, 32, 64, 128, 256)


@experiment(
    "perturb-max",
    claim="P[argmax(scores + noise) = i] is a sound distribution for any noise, and softmax for Gumbel noise.",
    effect=(
        "largest gap between integral and frequencies {gumbel_frequency_gap}; "
        "accuracy with normal noise against softmax {accuracy_difference}"
    ),
    minutes=0.5,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Draws against probabilities, properties, quadrature error, and a classifier trained with either law."""
    seeds, epochs = {"smoke": (1, 4), "small": (5, 40), "full": (20, 40)}[budget]
    gaps = {law: _frequency_gap(law, seed) for law in _LAWS}
    gumbel, broken = _softmax_gap(seed), sum(_broken(law, seed) for law in _LAWS)
    errors = {rule: [_small_error(rule, nodes) for nodes in _NODES] for rule in ("midpoint", "ours")}
    figures = {f"{law}_frequency_gap": Figure(gap, n=200_000) for law, gap in gaps.items()}
    figures |= {
        "gumbel_quadrature_gap": Figure(gumbel, n=100),
        "broken_properties": Figure(broken, n=4 * len(_LAWS), expected=0),
        "midpoint_error_64_nodes": Figure(errors["midpoint"][_NODES.index(64)], unit="error of log p, true p = 1.1e-5"),
        "our_error_64_nodes": Figure(errors["ours"][_NODES.index(64)], unit="error of log p, true p = 1.1e-5"),
    }
    claims = [
        Claim.check(
            "The integral gives the frequencies of the perturbed argmax, for every law.",
            max(gaps.values()) < 0.005,
            rule="largest difference to the shares in 200,000 draws below 0.005, scores (1, 0, -1)",
            figures=[f"{law}_frequency_gap" for law in _LAWS],
        ),
        Claim.check(
            "Gumbel noise gives softmax.",
            gumbel < 1e-7,
            rule="quadrature within 1e-7 of softmax on 100 random rows of 10 scores",
            figures=["gumbel_quadrature_gap"],
        ),
        Claim.check(
            "Every law gives values in [0, 1] that sum to 1, keep the order of the scores and ignore a common shift.",
            broken == 0,
            rule="no property broken by any law on 100 random rows of 10 scores",
            figures=["broken_properties"],
        ),
        Claim.check(
            "Nodes that crowd at both ends give small probabilities that midpoints miss (an addition of ours).",
            errors["ours"][_NODES.index(64)] < 1e-3 and errors["midpoint"][_NODES.index(64)] > 0.1,
            rule="error of log p at 64 nodes, normal noise, scores 6 apart: below 0.001 against above 0.1",
            figures=["midpoint_error_64_nodes", "our_error_64_nodes"],
        ),
    ]
    notes: tuple[str, ...] = ()
    try:
        accuracy = {law: _accuracies(law, range(seed, seed + seeds), epochs) for law in ("gumbel", "normal")}
        difference = accuracy["normal"] - accuracy["gumbel"]
        figures |= {
            f"{law}_accuracy": Figure(float(found.mean()), low=float(found.min()), high=float(found.max()), n=seeds)
            for law, found in accuracy.items()
        }
        figures["accuracy_difference"] = Figure(float(difference.mean()), n=seeds, unit="normal minus Gumbel")
        claims.append(
            Claim.check(
                "Training a classifier with normal noise in place of softmax makes no clear difference (the author "
                "reports no special benefit).",
                abs(float(difference.mean())) < 0.01,
                rule="mean accuracies on 597 test digits less than 0.01 apart",
                figures=["gumbel_accuracy", "normal_accuracy", "accuracy_difference"],
            )
        )
        notes = (f"digits: {seeds} seeds, {epochs} epochs, network 64-64-10, the same initial weights for both laws",)
    except MissingDependencyError as missing:
        notes = (f"the claim on digits is left out: {missing}",)

    def draw(figure: Any) -> None:
        curves, rules = figure.subplots(1, 2)
        gap, table = _two_class_curves()
        for law, p in table.items():
            curves.plot(gap, p, label="gumbel (sigmoid)" if law == "gumbel" else law)
        curves.set_xlabel("score of class 1 minus score of class 2")
        curves.set_ylabel("probability of class 1")
        curves.legend()
        rules.loglog(_NODES, np.maximum(errors["midpoint"], 1e-16), "s-", color="0.5", label="midpoints (the article)")
        rules.loglog(_NODES, np.maximum(errors["ours"], 1e-16), "o-", label="double-exponential (here)")
        rules.set_xlabel("nodes")
        rules.set_ylabel("error of log p")
        rules.set_title("normal noise, scores 6 apart, p = 1.1e-5")
        rules.legend()

    return Report(tuple(claims), figures, notes=notes, seeds=tuple(range(seed, seed + seeds)), draw=draw)


def _frequency_gap(law: str, seed: int) -> float:
    import torch

    from kexue.nn import PerturbMax

    distribution = PerturbMax(torch.tensor(_MU, dtype=torch.float64), law)
    shares = torch.bincount(distribution.sample((200_000,), generator=seed), minlength=3) / 200_000
    return float((shares - distribution.probs).abs().max())


def _random_rows(seed: int) -> Any:
    import torch

    return torch.from_numpy(np.random.default_rng(seed).normal(size=(100, 10)))


class _Gumbel:
    """Gumbel noise as a user would write it, which goes through the quadrature."""

    @staticmethod
    def log_cdf(x: Any) -> Any:
        return -(-x).exp()

    @staticmethod
    def icdf(t: Any) -> Any:
        return -(-t.log()).log()


def _softmax_gap(seed: int) -> float:
    from kexue.nn import perturb_max

    rows = _random_rows(seed)
    return float((perturb_max(rows, _Gumbel()) - rows.softmax(-1)).abs().max())


def _broken(law: str, seed: int) -> int:
    """How many of the four properties fail."""
    from kexue.nn import perturb_max

    rows = _random_rows(seed).sort(-1).values
    p = perturb_max(rows, law)
    kept = (
        bool(((p >= 0) & (p <= 1)).all()),
        bool(((p.sum(-1) - 1).abs() < 1e-12).all()),
        bool((p.diff(dim=-1) >= 0).all()),
        bool(((perturb_max(rows + 5, law) - p).abs() < 1e-9).all()),
    )
    return kept.count(False)


def _small_error(rule: str, nodes: int) -> float:
    """Error of log p for the lower of two scores 6 apart, normal noise; the closed form is Phi(-6/sqrt 2)."""
    import torch
    from scipy.special import log_ndtr, ndtri

    from kexue.nn import log_perturb_max

    if rule == "ours":
        found = float(log_perturb_max(torch.tensor([-6.0, 0.0], dtype=torch.float64), "normal", nodes=nodes)[0])
    else:
        e = torch.from_numpy(ndtri((np.arange(nodes) + 0.5) / nodes))
        terms = torch.special.log_ndtr(torch.tensor([[-6.0], [6.0]], dtype=torch.float64) + e)
        found = float(terms.logsumexp(-1).log_softmax(0)[0])
    return abs(found - float(log_ndtr(-6 / np.sqrt(2))))


def _two_class_curves() -> tuple[Array, dict[str, Array]]:
    import torch

    from kexue.nn import perturb_max

    gap = torch.linspace(-5, 5, 201, dtype=torch.float64)
    pairs = torch.stack([gap, torch.zeros_like(gap)], -1)
    return gap.numpy(), {law: perturb_max(pairs, law, nodes=256)[:, 0].numpy() for law in (*_LAWS, "uniform")}


def _accuracies(law: str, seeds: range, epochs: int) -> Array:
    import_optional("sklearn", extra="bench")
    return np.array([_accuracy(law, seed, epochs) for seed in seeds])


def _accuracy(law: str, seed: int, epochs: int) -> float:
    import torch

    from kexue.nn import perturb_max_cross_entropy

    X, y, X_test, y_test = (torch.from_numpy(part) for part in split_digits(seed))
    generator = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in np.array_split(generator.permutation(len(X)), len(X) // 100):
            optimizer.zero_grad()
            loss: Any = perturb_max_cross_entropy(network(X[rows]), y[rows], law, nodes=32)
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return float((network(X_test).argmax(-1) == y_test).double().mean())
