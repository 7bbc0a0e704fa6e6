"""kexue.fm/archives/10519 and 10489: a linear map of the codebook, and a rotation in place of straight-through.

Measures: which codes move in a step; usage and error of plain, diagonal and linear codebooks and of both together, on
vectors distributed like the first codes and on clusters; the same in an autoencoder of digits, with straight-through
and with rotation; and the gradient that the rotation passes on.

A single SGD step against its formula, and the gradient of the rotation, are computed directly: nothing is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kexue import nn as layers
from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.experiments._data import attempt, split_digits
from kexue.experiments._training import build_mlp, fit, torch_seed
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "diagonal": {"parametrization": "diagonal"},
    "linear": {"parametrization": "linear"},
    "both": {"parametrization": "linear", "train_codebook": True},
}
_LABELS = {"plain": "plain", "diagonal": "diagonal", "linear": "linear W only (SimVQ)", "both": "W and codebook"}
_CODEBOOKS = ("plain", "linear")  # in the autoencoder
_GRADIENTS = ("straight_through", "rotation")
_WHERE = ("round", "clusters")
_DIM, _CODES, _ROWS = 16, 512, 1024
_NEARLY_ALL = 0.95  # share of the codes


@experiment(
    "simvq",
    claim="A linear map behind a frozen codebook keeps all codes in use; the rotation trick gains nothing by itself.",
    effect=(
        "codes in use on clustered vectors {clusters_usage_plain} to {clusters_usage_linear}; "
        "reconstruction error of digits, straight-through to rotation, "
        "{digits_mse_plain_straight_through} to {digits_mse_plain_rotation}"
    ),
    minutes=2,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Train quantisers alone and inside an autoencoder; look at single steps and gradients."""
    import_optional("torch", extra="train")
    steps, count = {"smoke": (60, 1), "small": (600, 3), "full": (3000, 5)}[budget]
    seeds = tuple(range(seed, seed + count))
    curves = {
        (where, name): np.mean([_train_alone(where, name, steps, s) for s in seeds], axis=0)
        for where in _WHERE
        for name in _WAYS
    }
    figures = _usage_figures(curves, count) | _step_figures(seed)
    claims = [*_step_claims(figures), *_usage_claims(figures)]
    notes: list[str] = []
    digits = attempt(lambda: _train_autoencoders(steps, seed, seeds), "the autoencoder of digits", notes)
    for key, (usage, error) in (digits or {}).items():
        figures |= {f"digits_usage_{key}": Figure(usage, n=count), f"digits_mse_{key}": Figure(error, n=count)}
    if digits:
        claims += _digit_claims(digits)
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        seeds=seeds,
        draw=lambda figure: _draw(figure, curves, digits or {}),
    )


# ---- measure: training ---------------------------------------------------------------------------------------------


def _train_alone(where: str, name: str, steps: int, seed: int) -> list[tuple[int, float, float]]:
    """(step, usage, squared error per vector) on 16,384 vectors not trained on, at a dozen steps of the training."""
    torch = import_optional("torch", extra="train")
    with torch_seed(seed):
        quantizer = layers.VectorQuantizer(_DIM, _CODES, **_WAYS[name])
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(64, _DIM, generator=generator)

    def draw(count: int) -> Any:
        noise = torch.randn(count, _DIM, generator=generator)
        return noise if where == "round" else centres[torch.randint(64, (count,), generator=generator)] + noise / 2

    held_out = draw(2**14)

    def evaluate() -> tuple[float, float]:
        with torch.no_grad():
            out = quantizer(held_out)
        return float(out.usage), _DIM * float(out.codebook_loss)

    before, every = evaluate(), max(1, steps // 12)
    optimizer = torch.optim.Adam(quantizer.parameters(), 1e-2)
    done = fit(
        quantizer, lambda _: quantizer(draw(_ROWS)).loss, range(steps), optimizer, evaluate=evaluate, every=every
    )
    marks = [0, *range(every, steps, every), steps]
    return [(step, *values) for step, values in zip(marks, [before, *done.evaluations], strict=True)]


def _train_autoencoders(steps: int, seed: int, seeds: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Usage and error, by codebook and gradient, as means over the seeds."""
    torch = import_optional("torch", extra="train")
    train, _, test, _ = split_digits(seed)
    train, test = torch.from_numpy(train), torch.from_numpy(test)
    means = {}
    for name in _CODEBOOKS:
        for gradient in _GRADIENTS:
            runs = [_autoencode(name, gradient, train, test, steps, s) for s in seeds]
            means[f"{name}_{gradient}"] = (float(np.mean([r[0] for r in runs])), float(np.mean([r[1] for r in runs])))
    return means


def _autoencode(name: str, gradient: Any, train: Any, test: Any, steps: int, seed: int) -> tuple[float, float]:
    """Usage and mean squared error on the test images of 64 -> 128 -> 16, quantised as two codes of 8 of 128."""
    torch = import_optional("torch", extra="train")
    with torch_seed(seed):
        encoder, decoder = build_mlp(64, 128, 16), build_mlp(16, 128, 64)
        quantizer = layers.VectorQuantizer(8, 128, gradient=gradient, **_WAYS[name])
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *quantizer.parameters()], 2e-3)
    generator = torch.Generator().manual_seed(seed)

    def reconstruct(images: Any) -> tuple[Any, Any]:
        out = quantizer(encoder(images).unflatten(1, (2, 8)))
        return (decoder(out.quantized.flatten(1)) - images).square().mean(), out

    def loss(rows: Any) -> Any:
        error, out = reconstruct(train[rows])
        return error + out.loss

    batches = [torch.randint(len(train), (128,), generator=generator) for _ in range(2 * steps)]
    fit([encoder, decoder, quantizer], loss, batches, optimizer)
    with torch.no_grad():
        return float(reconstruct(train)[1].usage), float(reconstruct(test)[0])


# ---- measure: single steps and gradients ---------------------------------------------------------------------------


def _take_one_step(seed: int) -> tuple[dict[str, float], float]:
    """Share of the unchosen codes that one step moves, and relative distance of the step to its first-order formula."""
    torch = import_optional("torch", extra="train")
    z = torch.randn(8, _DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved, gap = {}, 0.0
    for name in ("plain", "linear", "both"):
        with torch_seed(seed):
            quantizer = layers.VectorQuantizer(_DIM, 64, **_WAYS[name]).double()
            if name != "plain":
                torch.nn.init.normal_(quantizer.map.weight, std=0.5)
        rate = 1e-6
        before = quantizer.codebook.detach().clone()
        state = copy.deepcopy(quantizer.state_dict())
        out = quantizer(z)
        g = torch.zeros_like(before).index_add_(0, out.indices, 2 * (out.quantized - z) / z.numel())  # dL/de
        out.codebook_loss.backward()
        torch.optim.SGD(quantizer.parameters(), rate).step()
        change = quantizer.codebook.detach() - before
        unchosen = torch.ones(64, dtype=torch.bool).index_fill_(0, out.indices, False)
        if name == "both":
            q, W = state["codes"], state["map.weight"].T
            expected = -rate * (g @ W.T @ W + q @ (q.T @ g))
            gap = float((change - expected).norm() / change.norm())
        else:
            moved[name] = float((change[unchosen] != 0).any(1).double().mean())
    return moved, gap


def _check_rotation(seed: int) -> tuple[float, float]:
    """Largest difference to explicit matrices; mean length of the gradient where codes are 1/100 as long as z."""
    torch = import_optional("torch", extra="train")
    generator = torch.Generator().manual_seed(seed)
    z, q, g = (torch.randn(100, _DIM, generator=generator, dtype=torch.float64) for _ in range(3))
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(layers.rotate_to(z, q), z, g)
    unit = torch.nn.functional.normalize
    u, v = unit(z.detach(), dim=1), unit(q, dim=1)
    w = unit(u + v, dim=1)
    R = torch.eye(_DIM, dtype=torch.float64) + 2 * v[:, :, None] * u[:, None] - 2 * w[:, :, None] * w[:, None]
    G = (q.norm(dim=1) / z.detach().norm(dim=1))[:, None, None] * R
    gap = max(
        float((torch.einsum("nij,ni->nj", G, g) - gradient).abs().max()),
        float((torch.einsum("nij,nj->ni", G, z.detach()) - q).abs().max()),
    )
    short = 0.01 * v * z.detach().norm(dim=1, keepdim=True)
    (gradient,) = torch.autograd.grad(layers.rotate_to(z, short), z, unit(g, dim=1))
    return gap, float(gradient.norm(dim=1).mean())


# ---- figures and claims --------------------------------------------------------------------------------------------


def _usage_figures(curves: Mapping[tuple[str, str], Array], count: int) -> dict[str, Figure]:
    usage = {f"{where}_usage_{name}": Figure(float(curve[-1, 1]), n=count) for (where, name), curve in curves.items()}
    error = {f"{where}_mse_{name}": Figure(float(curve[-1, 2]), n=count) for (where, name), curve in curves.items()}
    return usage | error


def _step_figures(seed: int) -> dict[str, Figure]:
    moved, formula_gap = _take_one_step(seed)
    gap, scale = _check_rotation(seed)
    return {
        "unchosen_codes_moved_plain": Figure(moved["plain"], expected=0.0, source="computed"),
        "unchosen_codes_moved_linear": Figure(moved["linear"], expected=1.0, source="article"),
        "step_formula_gap": Figure(formula_gap, unit="relative"),
        "rotation_gradient_gap": Figure(gap, expected=0.0, source="computed"),
        "rotation_gradient_scale": Figure(scale, unit="codes a hundredth of z", expected=0.01, source="article"),
    }


def _step_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    value = {name: figure.value for name, figure in figures.items()}
    return [
        Claim.check(
            "A step with the linear map moves every code, chosen or not; a step without it moves the chosen ones only.",
            value["unchosen_codes_moved_plain"] == 0 and value["unchosen_codes_moved_linear"] == 1,
            rule="share of the unchosen codes that one SGD step moved: 0 and 1",
            figures=["unchosen_codes_moved_plain", "unchosen_codes_moved_linear"],
        ),
        Claim.check(
            "To first order the step is -rate (dL/de_i W'W + q_i sum_j q_j' dL/de_j).",
            value["step_formula_gap"] < 1e-3,
            rule="difference to a true step at rate 1e-6 below 1e-3 of its length, q and W both learnt",
            figures=["step_formula_gap"],
        ),
        Claim.check(
            "The rotation has value q and gradient G'g (the article's rule lacks the transpose), which scales the "
            "gradient by ||q||/||z||.",
            value["rotation_gradient_gap"] < 1e-10 and abs(value["rotation_gradient_scale"] / 0.01 - 1) < 1e-6,
            rule="difference to explicit matrices below 1e-10; mean gradient length 0.01 to 1e-6 where q is z/100 long",
            figures=["rotation_gradient_gap", "rotation_gradient_scale"],
        ),
    ]


def _usage_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    value = {name: figure.value for name, figure in figures.items()}

    def usage(where: str, name: str) -> float:
        return value[f"{where}_usage_{name}"]

    def decide(text: str, holds: Callable[[str], bool], rule: str, what: Sequence[str]) -> Claim:
        """A claim about both kinds of vectors; it holds partly when it holds on one."""
        names = [f"{where}_{name}" for where in _WHERE for name in what]
        return Claim.check_parts(text, map(holds, _WHERE), rule=f"{rule}; partly when on one of the two", figures=names)

    return [
        Claim.check(
            "Where a plain codebook leaves most codes unused, a frozen codebook behind a learnt W uses far more of "
            "them.",
            value["clusters_usage_plain"] < 0.5
            and value["clusters_usage_linear"] > value["clusters_usage_plain"] + 0.1,
            rule="usage on clustered vectors: plain below 0.5, linear higher by 0.1 at least",
            figures=["clusters_usage_linear", "clusters_usage_plain"],
        ),
        decide(
            "With W alone nearly every code is in use.",
            lambda where: usage(where, "linear") >= _NEARLY_ALL,
            f"usage at least {_NEARLY_ALL} on round and on clustered vectors",
            ["usage_linear"],
        ),
        decide(
            "A diagonal W lies between plain and linear.",
            lambda where: value[f"{where}_usage_plain"] < value[f"{where}_usage_diagonal"] < usage(where, "linear"),
            "usage: plain < diagonal < linear",
            ["usage_plain", "usage_diagonal", "usage_linear"],
        ),
        decide(
            "W alone also quantises with a smaller error than a plain codebook.",
            lambda where: value[f"{where}_mse_linear"] < value[f"{where}_mse_plain"],
            "mean squared error on vectors not trained on: linear below plain",
            ["mse_linear", "mse_plain"],
        ),
        decide(
            "Training the codebook together with W quantises better than W alone.",
            lambda where: value[f"{where}_mse_both"] < value[f"{where}_mse_linear"],
            "mean squared error on vectors not trained on: both below linear",
            ["mse_both", "mse_linear", "usage_both"],
        ),
    ]


def _digit_claims(digits: Mapping[str, tuple[float, float]]) -> list[Claim]:
    (plain, plain_error), (linear, linear_error) = digits["plain_straight_through"], digits["linear_straight_through"]
    gains = [digits[f"{name}_rotation"][1] / digits[f"{name}_straight_through"][1] for name in _CODEBOOKS]
    return [
        Claim.check(
            "In an autoencoder more of the linear codes are used, and images are reconstructed with a smaller error.",
            linear > plain and linear_error < plain_error,
            rule="digits never trained on, straight-through: usage higher and error lower than with plain codes",
            figures=[f"digits_{what}_{name}_straight_through" for what in ("usage", "mse") for name in _CODEBOOKS],
        ),
        Claim.check(
            "In place of straight-through, the rotation alone brings no gain (the author's own trial).",
            min(gains) > 0.98,
            rule="error on digits at most 2 % lower than straight-through's, with plain and with linear codes",
            figures=[
                f"digits_mse_{name}_{gradient}" for name in _CODEBOOKS for gradient in ("straight_through", "rotation")
            ],
        ),
    ]


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(figure: Any, curves: Mapping[tuple[str, str], Array], digits: Mapping[str, tuple[float, float]]) -> None:
    figure.set_size_inches(13 if digits else 9, 7)
    axes = figure.subplots(2, 3 if digits else 2, squeeze=False)
    for (where, name), curve in curves.items():
        for column in (1, 2):
            panel = axes[column - 1][_WHERE.index(where)]
            panel.plot(curve[:, 0], curve[:, column], "o-", ms=3, label=_LABELS[name])
    for index, what in enumerate(("one round Gaussian", "64 clusters")):
        axes[0][index].set(title=f"{what}, d = {_DIM}", xlabel="step", ylabel=f"share of {_CODES} codes in use")
        axes[0][index].set_ylim(0, 1.03)
        axes[1][index].set(xlabel="step", ylabel="squared error per vector")
        axes[1][index].set_ylim(bottom=0)
    axes[0][0].legend()
    for row, what in enumerate(("share of 128 codes in use", "squared error per pixel") if digits else ()):
        panel = axes[row][2]
        for index, gradient in enumerate(_GRADIENTS):
            heights = [digits[f"{name}_{gradient}"][row] for name in _CODEBOOKS]
            bars = panel.bar([i + 0.4 * index for i in range(2)], heights, 0.38, label=gradient.replace("_", "-"))
            panel.bar_label(bars, fmt="%.2f" if row == 0 else "%.3f")
        panel.set_xticks([0.2, 1.2], _CODEBOOKS)
        panel.set(xlabel="codebook", ylabel=what)
        panel.margins(y=0.3)
    if digits:
        axes[0][2].set_title("autoencoder of digits")
        axes[0][2].legend(loc="upper center", ncols=2)
