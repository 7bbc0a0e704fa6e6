"""kexue.fm/archives/10519 and 10489: a linear map behind the codebook, and the rotation in place of straight-through.

Shows: which codes move in a step; usage and error of plain, diagonal, linear and both, on vectors round as the first
codes are and on clusters; the same inside an autoencoder of digits, by straight-through and by rotation; and how the
rotation hands on the gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kexue import nn as layers
from kexue._optional import import_optional
from kexue.errors import MissingDependencyError
from kexue.experiments._data import split_digits
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report, Verdict

_WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "diagonal": {"parametrization": "diagonal"},
    "linear": {"parametrization": "linear"},
    "both": {"parametrization": "linear", "train_codebook": True},
}
_LABELS = {"plain": "plain", "diagonal": "diagonal", "linear": "linear W only (SimVQ)", "both": "W and codebook"}
_CODEBOOKS = ("plain", "linear")  # in the autoencoder
_WHERE = ("round", "clusters")
_DIM, _CODES, _ROWS = 16, 512, 1024
_USED = 0.95


@experiment(
    "simvq",
    claim="A linear map behind a frozen codebook keeps all codes in use; the rotation trick gains nothing by itself.",
    effect=(
        "codes in use on clustered vectors {clusters_usage_plain} to {clusters_usage_linear}; "
        "error of digits by rotation {digits_mse_plain_straight_through} to {digits_mse_plain_rotation}"
    ),
    minutes=2,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Train quantisers alone and inside an autoencoder; look at single steps and gradients."""
    torch = import_optional("torch", extra="train")
    steps, seeds = {"smoke": (60, 1), "small": (600, 3), "full": (3000, 5)}[budget]
    seeds_used = tuple(range(seed, seed + seeds))
    curves = {
        (where, name): np.mean([_alone(where, name, steps, s) for s in seeds_used], axis=0)
        for where in _WHERE
        for name in _WAYS
    }
    usage, error = ({key: float(curve[-1, i]) for key, curve in curves.items()} for i in (1, 2))
    moved, predicted = _one_step(seed)
    gap, ratio = _rotation(seed)
    figures = {f"{where}_usage_{name}": Figure(usage[where, name], n=seeds) for where, name in curves}
    figures |= {f"{where}_mse_{name}": Figure(error[where, name], n=seeds) for where, name in curves}
    figures |= {
        "unchosen_codes_moved_plain": Figure(moved["plain"], expected=0.0, source="computed"),
        "unchosen_codes_moved_linear": Figure(moved["linear"], expected=1.0, source="article"),
        "step_formula_gap": Figure(predicted, unit="relative"),
        "rotation_gradient_gap": Figure(gap, expected=0.0, source="computed"),
        "rotation_gradient_scale": Figure(ratio, unit="codes a hundredth of z", expected=0.01, source="article"),
    }

    def decide(text: str, holds: Callable[[str], bool], rule: str, what: Sequence[str]) -> Claim:
        """A claim about both kinds of vectors; it holds partly when it holds on one."""
        verdicts: tuple[Verdict, ...] = ("not reproduced", "partly", "reproduced")
        names = [f"{where}_{name}" for where in _WHERE for name in what]
        return Claim(text, verdicts[sum(map(holds, _WHERE))], f"{rule}; partly when on one of the two", tuple(names))

    claims = [
        Claim.check(
            "A step with the linear map moves every code, chosen or not; a step without it moves the chosen ones only.",
            moved == {"plain": 0.0, "linear": 1.0},
            rule="share of the unchosen codes that one SGD step moved: 0 and 1",
            figures=["unchosen_codes_moved_plain", "unchosen_codes_moved_linear"],
        ),
        Claim.check(
            "To first order the step is -rate (dL/de_i W'W + q_i sum_j q_j' dL/de_j).",
            predicted < 1e-3,
            rule="difference to a true step at rate 1e-6 below 1e-3 of its length, q and W both learnt",
            figures=["step_formula_gap"],
        ),
        Claim.check(
            "The rotation has value q and gradient G'g (the article's rule lacks the transpose), which scales the "
            "gradient by ||q||/||z||.",
            gap < 1e-10 and abs(ratio / 0.01 - 1) < 1e-6,
            rule="difference to explicit matrices below 1e-10; mean gradient length 0.01 to 1e-6 where q is z/100 long",
            figures=["rotation_gradient_gap", "rotation_gradient_scale"],
        ),
        Claim.check(
            "Where a plain codebook leaves most codes dead, a frozen codebook behind a learnt W uses far more of them.",
            usage["clusters", "plain"] < 0.5 and usage["clusters", "linear"] > usage["clusters", "plain"] + 0.1,
            rule="usage on clustered vectors: plain below 0.5, linear higher by 0.1 at least",
            figures=["clusters_usage_linear", "clusters_usage_plain"],
        ),
        decide(
            "With W alone nearly every code is in use.",
            lambda where: usage[where, "linear"] >= _USED,
            f"usage at least {_USED} on round and on clustered vectors",
            ["usage_linear"],
        ),
        decide(
            "A diagonal W lies between plain and linear.",
            lambda where: usage[where, "plain"] < usage[where, "diagonal"] < usage[where, "linear"],
            "usage: plain < diagonal < linear",
            ["usage_plain", "usage_diagonal", "usage_linear"],
        ),
        decide(
            "W alone also quantises with a smaller error than a plain codebook.",
            lambda where: error[where, "linear"] < error[where, "plain"],
            "mean squared error on fresh vectors: linear below plain",
            ["mse_linear", "mse_plain"],
        ),
        decide(
            "Training the codebook together with W quantises better than W alone.",
            lambda where: error[where, "both"] < error[where, "linear"],
            "mean squared error on fresh vectors: both below linear",
            ["mse_both", "mse_linear", "usage_both"],
        ),
    ]
    notes = []
    digits: dict[str, tuple[float, float]] = {}
    try:
        images = split_digits(seed)
    except MissingDependencyError as missing:
        notes.append(f"the autoencoder of digits is left out: {missing}")
    else:
        train, test = torch.from_numpy(images[0]), torch.from_numpy(images[2])
        for name in _CODEBOOKS:
            for gradient in ("straight_through", "rotation"):
                runs = [_autoencoder(name, gradient, train, test, steps, s) for s in seeds_used]
                key = f"{name}_{gradient}"
                digits[key] = (float(np.mean([r[0] for r in runs])), float(np.mean([r[1] for r in runs])))
                figures[f"digits_usage_{key}"] = Figure(digits[key][0], n=seeds)
                figures[f"digits_mse_{key}"] = Figure(digits[key][1], n=seeds)
        claims += _digit_claims(digits)

    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        seeds=seeds_used,
        draw=lambda figure: _draw(figure, curves, digits),
    )


def _digit_claims(digits: dict[str, tuple[float, float]]) -> list[Claim]:
    (plain, plain_error), (linear, linear_error) = digits["plain_straight_through"], digits["linear_straight_through"]
    gains = [digits[f"{name}_rotation"][1] / digits[f"{name}_straight_through"][1] for name in _CODEBOOKS]
    return [
        Claim.check(
            "Inside an autoencoder the linear codes are used more, and images come back with a smaller error.",
            linear > plain and linear_error < plain_error,
            rule="digits never trained on, straight-through: usage higher and error lower than with plain codes",
            figures=[f"digits_{what}_{name}_straight_through" for what in ("usage", "mse") for name in _CODEBOOKS],
        ),
        Claim.check(
            "Put in place of straight-through, the rotation alone brings no gain (the author's own trial).",
            min(gains) > 0.98,
            rule="error on digits at most 2 % lower than straight-through's, with plain and with linear codes",
            figures=[
                f"digits_mse_{name}_{gradient}" for name in _CODEBOOKS for gradient in ("straight_through", "rotation")
            ],
        ),
    ]


def _alone(where: str, name: str, steps: int, seed: int) -> list[tuple[int, float, float]]:
    """(step, usage, squared error per vector), on 16,384 fresh vectors, a dozen times while training."""
    torch = import_optional("torch", extra="train")
    torch.manual_seed(seed)
    quantizer = layers.VectorQuantizer(_DIM, _CODES, **_WAYS[name])
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(64, _DIM, generator=generator)

    def draw(count: int) -> Any:
        noise = torch.randn(count, _DIM, generator=generator)
        return noise if where == "round" else centres[torch.randint(64, (count,), generator=generator)] + noise / 2

    fresh = draw(2**14)
    optimizer = torch.optim.Adam(quantizer.parameters(), 1e-2)
    curve = []
    for step in range(steps + 1):
        if step % max(1, steps // 12) == 0 or step == steps:
            with torch.no_grad():
                out = quantizer(fresh)
            curve.append((step, float(out.usage), _DIM * float(out.codebook_loss)))
        if step < steps:
            _descend(optimizer, quantizer(draw(_ROWS)).loss)
    return curve


def _autoencoder(name: str, gradient: Any, train: Any, test: Any, steps: int, seed: int) -> tuple[float, float]:
    """Usage and mean squared error on the test images of 64 -> 128 -> 16, quantised as two codes of 8 of 128."""
    torch = import_optional("torch", extra="train")
    torch.manual_seed(seed)
    encoder = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 16))
    decoder = torch.nn.Sequential(torch.nn.Linear(16, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
    quantizer = layers.VectorQuantizer(8, 128, gradient=gradient, **_WAYS[name])
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *quantizer.parameters()], 2e-3)
    generator = torch.Generator().manual_seed(seed)

    def both(images: Any) -> tuple[Any, Any]:
        out = quantizer(encoder(images).unflatten(1, (2, 8)))
        return (decoder(out.quantized.flatten(1)) - images).square().mean(), out

    for _ in range(2 * steps):
        error, out = both(train[torch.randint(len(train), (128,), generator=generator)])
        _descend(optimizer, error + out.loss)
    with torch.no_grad():
        return float(both(train)[1].usage), float(both(test)[0])


def _descend(optimizer: Any, loss: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _one_step(seed: int) -> tuple[dict[str, float], float]:
    """Share of the unchosen codes that one step moves, and how far the step is from its first-order formula."""
    torch = import_optional("torch", extra="train")
    z = torch.randn(8, _DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved, gap = {}, 0.0
    for name in ("plain", "linear", "both"):
        torch.manual_seed(seed)
        quantizer = layers.VectorQuantizer(_DIM, 64, **_WAYS[name]).double()
        if name != "plain":
            torch.nn.init.normal_(quantizer.map.weight, std=0.5)
        rate = 1e-6
        before = quantizer.codebook.detach().clone()
        state = copy.deepcopy(quantizer.state_dict())
        out = quantizer(z)
        g = torch.zeros_like(before).index_add_(0, out.indices, 2 * (out.quantized - z) / z.numel())  # dL/de
        _descend(torch.optim.SGD(quantizer.parameters(), rate), out.codebook_loss)
        change = quantizer.codebook.detach() - before
        unchosen = torch.ones(64, dtype=torch.bool).index_fill_(0, out.indices, False)
        if name == "both":
            q, W = state["codes"], state["map.weight"].T
            expected = -rate * (g @ W.T @ W + q @ (q.T @ g))
            gap = float((change - expected).norm() / change.norm())
        else:
            moved[name] = float((change[unchosen] != 0).any(1).double().mean())
    return moved, gap


def _rotation(seed: int) -> tuple[float, float]:
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


def _draw(figure: Any, curves: dict[tuple[str, str], Any], digits: dict[str, tuple[float, float]]) -> None:
    figure.set_size_inches(13 if digits else 9, 7)
    axes = figure.subplots(2, 3 if digits else 2, squeeze=False)
    for (where, name), curve in curves.items():
        for column in (1, 2):
            panel = axes[column - 1][_WHERE.index(where)]
            panel.plot(curve[:, 0], curve[:, column], "o-", ms=3, label=_LABELS[name])
    for index, what in enumerate(("one round Gaussian", "64 clusters")):
        axes[0][index].set(title=f"{what}, d = {_DIM}", ylabel=f"share of {_CODES} codes in use", ylim=(0, 1.03))
        axes[1][index].set(xlabel="step", ylabel="squared error per vector")
        axes[1][index].set_ylim(bottom=0)
    axes[0][0].legend()
    for row, what in enumerate(("share of 128 codes in use", "squared error per pixel") if digits else ()):
        panel = axes[row][2]
        for index, gradient in enumerate(("straight_through", "rotation")):
            heights = [digits[f"{name}_{gradient}"][row] for name in _CODEBOOKS]
            bars = panel.bar([i + 0.4 * index for i in range(2)], heights, 0.38, label=gradient.replace("_", "-"))
            panel.bar_label(bars, fmt="%.2f" if row == 0 else "%.3f")
        panel.set_xticks([0.2, 1.2], _CODEBOOKS)
        panel.set(ylabel=what)
        panel.margins(y=0.3)
    if digits:
        axes[0][2].set_title("autoencoder of digits")
        axes[0][2].legend(loc="upper center", ncols=2)
