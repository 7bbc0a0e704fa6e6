"""kexue.fm/archives/9085: discrete distributions built by reparameterisation, of which softmax is one.

Measures: the integral against frequencies of draws for five laws of noise; Gumbel noise against softmax; the four
properties of the article; errors of small probabilities with midpoints and with our nodes; and the accuracy on digits
of a classifier trained with normal noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.experiments._data import attempt, split_digits
from kexue.experiments._training import build_mlp, fit, share_right, shuffled_rows, torch_seed
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
    """Measure draws against probabilities, properties, quadrature error, and training with Gumbel and normal noise."""
    count, epochs = {"smoke": (1, 4), "small": (5, 40), "full": (20, 40)}[budget]
    seeds = tuple(range(seed, seed + count))
    errors = {rule: [_small_error(rule, nodes) for nodes in _NODES] for rule in ("midpoint", "ours")}
    figures = _distribution_figures(errors, seed)
    claims = _distribution_claims(figures)
    notes: list[str] = []
    accuracy = attempt(
        lambda: {law: np.array([_accuracy(law, s, epochs) for s in seeds]) for law in ("gumbel", "normal")},
        "the claim on digits",
        notes,
    )
    if accuracy:
        figures |= {f"{law}_accuracy": Figure.over_runs(runs) for law, runs in accuracy.items()}
        difference = float((accuracy["normal"] - accuracy["gumbel"]).mean())
        figures["accuracy_difference"] = Figure(difference, n=count, unit="normal minus Gumbel")
        claims.append(_accuracy_claim(difference))
        notes.append(
            f"digits: {count} seeds, {epochs} epochs, network 64-64-10, the same initial weights for both laws"
        )
    return Report(tuple(claims), figures, notes=tuple(notes), seeds=seeds, draw=lambda figure: _draw(figure, errors))


# ---- figures and claims --------------------------------------------------------------------------------------------


def _distribution_figures(errors: Mapping[str, list[float]], seed: int) -> dict[str, Figure]:
    at_64 = {rule: values[_NODES.index(64)] for rule, values in errors.items()}
    broken = sum(_count_broken(law, seed) for law in _LAWS)
    return {
        **{f"{law}_frequency_gap": Figure(_frequency_gap(law, seed), n=200_000) for law in _LAWS},
        "gumbel_quadrature_gap": Figure(_softmax_gap(seed), n=100),
        "broken_properties": Figure(broken, n=4 * len(_LAWS), expected=0),
        "midpoint_error_64_nodes": Figure(at_64["midpoint"], unit="error of log p, true p = 1.1e-5"),
        "our_error_64_nodes": Figure(at_64["ours"], unit="error of log p, true p = 1.1e-5"),
    }


def _distribution_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    value = {name: figure.value for name, figure in figures.items()}
    return [
        Claim.check(
            "The integral gives the frequencies of the perturbed argmax, for every law.",
            max(value[f"{law}_frequency_gap"] for law in _LAWS) < 0.005,
            rule="largest difference to the shares in 200,000 draws below 0.005, scores (1, 0, -1)",
            figures=[f"{law}_frequency_gap" for law in _LAWS],
        ),
        Claim.check(
            "Gumbel noise gives softmax.",
            value["gumbel_quadrature_gap"] < 1e-7,
            rule="quadrature within 1e-7 of softmax on 100 random rows of 10 scores",
            figures=["gumbel_quadrature_gap"],
        ),
        Claim.check(
            "Every law gives values in [0, 1] that sum to 1, keep the order of the scores and ignore a common shift.",
            value["broken_properties"] == 0,
            rule="no property broken by any law on 100 random rows of 10 scores",
            figures=["broken_properties"],
        ),
        Claim.check(
            "Nodes that are dense at both ends give small probabilities that midpoints miss (our addition).",
            value["our_error_64_nodes"] < 1e-3 and value["midpoint_error_64_nodes"] > 0.1,
            rule="error of log p at 64 nodes, normal noise, scores 6 apart: below 0.001 against above 0.1",
            figures=["midpoint_error_64_nodes", "our_error_64_nodes"],
        ),
    ]


def _accuracy_claim(difference: float) -> Claim:
    return Claim.check(
        "Training a classifier with normal noise in place of softmax makes no clear difference (the author reports no "
        "special benefit).",
        abs(difference) < 0.01,
        rule="mean accuracies on 597 test digits less than 0.01 apart",
        figures=["gumbel_accuracy", "normal_accuracy", "accuracy_difference"],
    )


# ---- measure -------------------------------------------------------------------------------------------------------


def _frequency_gap(law: str, seed: int) -> float:
    """Largest difference between the integral and the shares of 200,000 draws."""
    import torch

    from kexue.nn import PerturbMax

    distribution = PerturbMax(torch.tensor(_MU, dtype=torch.float64), law)
    shares = torch.bincount(distribution.sample((200_000,), generator=seed), minlength=3) / 200_000
    return float((shares - distribution.probs).abs().max())


def _random_rows(seed: int) -> Any:
    import torch

    return torch.from_numpy(np.random.default_rng(seed).normal(size=(100, 10)))


class _Gumbel:
    """Gumbel noise as a user would write it; unlike the built-in one it is integrated by quadrature."""

    @staticmethod
    def log_cdf(x: Any) -> Any:
        return -(-x).exp()

    @staticmethod
    def icdf(t: Any) -> Any:
        return -(-t.log()).log()


def _softmax_gap(seed: int) -> float:
    """Largest difference between quadrature with Gumbel noise and softmax."""
    from kexue.nn import perturb_max

    rows = _random_rows(seed)
    return float((perturb_max(rows, _Gumbel()) - rows.softmax(-1)).abs().max())


def _count_broken(law: str, seed: int) -> int:
    """Number of the four properties that do not hold."""
    from kexue.nn import perturb_max

    rows = _random_rows(seed).sort(-1).values
    p = perturb_max(rows, law)
    holds = (
        bool(((p >= 0) & (p <= 1)).all()),
        bool(((p.sum(-1) - 1).abs() < 1e-12).all()),
        bool((p.diff(dim=-1) >= 0).all()),
        bool(((perturb_max(rows + 5, law) - p).abs() < 1e-9).all()),
    )
    return holds.count(False)


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
    """Differences of two scores, and the probability of the first under each law."""
    import torch

    from kexue.nn import perturb_max

    gap = torch.linspace(-5, 5, 201, dtype=torch.float64)
    pairs = torch.stack([gap, torch.zeros_like(gap)], -1)
    return gap.numpy(), {law: perturb_max(pairs, law, nodes=256)[:, 0].numpy() for law in (*_LAWS, "uniform")}


def _accuracy(law: str, seed: int, epochs: int) -> float:
    """Test accuracy of a network 64-64-10 trained on digits with the noise of `law`."""
    torch = import_optional("torch", extra="train")
    from kexue.nn import perturb_max_cross_entropy

    X, y, X_test, y_test = (torch.from_numpy(part) for part in split_digits(seed))
    with torch_seed(seed):
        network = build_mlp(64, 64, 10)
    fit(
        network,
        lambda rows: perturb_max_cross_entropy(network(X[rows]), y[rows], law, nodes=32),
        shuffled_rows(len(X), 100, epochs, np.random.default_rng(seed)),
        torch.optim.Adam(network.parameters(), lr=3e-3),
    )
    return share_right(network, X_test, y_test)


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(figure: Any, errors: Mapping[str, list[float]]) -> None:
    left, right = figure.subplots(1, 2)
    gap, table = _two_class_curves()
    for law, p in table.items():
        left.plot(gap, p, label="gumbel (sigmoid)" if law == "gumbel" else law)
    left.set(xlabel="score of class 1 minus score of class 2", ylabel="probability of class 1")
    right.loglog(_NODES, np.maximum(errors["midpoint"], 1e-16), "s-", color="0.5", label="midpoints (the article)")
    right.loglog(_NODES, np.maximum(errors["ours"], 1e-16), "o-", label="double-exponential (here)")
    right.set(title="normal noise, scores 6 apart, p = 1.1e-5", xlabel="number of nodes", ylabel="error of log p")
    for panel in (left, right):
        panel.legend()
