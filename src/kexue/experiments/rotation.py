"""kexue.fm/archives/8453: three orthogonal matrices take one unit vector to another.

Measures: orthogonality and target of the three closed forms on the article's own vectors, the disputed first one
included; the distance to the Rodrigues rotation in three dimensions; and where the closed forms break down in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report
from kexue.similarity import rotation_between

_KINDS = ("rotation", "householder", "symmetric")
_DIMENSIONS = 64
_ANGLES = np.logspace(-4, 0, 9)  # between b and -a


@experiment(
    "rotation",
    claim="Three closed forms give an orthogonal matrix from a to b, without a basis.",
    effect="largest error of orthogonality in float32 near b = -a: as written {article_form_error_float32}; "
    "normalised {normalised_form_error_float32}",
    minutes=0.1,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Check orthogonality, target, determinants and traces, and errors in float32 near opposite vectors."""
    generator = np.random.default_rng(seed)
    pairs = {"smoke": 20, "small": 200, "full": 2000}[budget]
    figures = _exact_figures(pairs, generator)
    errors = {
        name: np.array([_worst_error(form, angle, pairs, generator) for angle in _ANGLES])
        for name, form in {"normalised": rotation_between, "article": closed_form}.items()
    }
    for name, values in errors.items():
        figures[f"{name}_form_error_float32"] = Figure(float(values[0]), n=pairs, unit="at 1e-4 rad from opposite")
    return Report(
        _claims(figures),
        figures,
        notes=("an error of 1000 stands for infinity or NaN",),
        draw=lambda figure: _draw(figure, errors),
    )


# ---- figures and claims --------------------------------------------------------------------------------------------


def _exact_figures(pairs: int, generator: np.random.Generator) -> dict[str, Figure]:
    """Figures of errors in float64."""
    a, b = np.arange(1.0, 6.0), np.arange(9.0, 4.0, -1.0)
    worst = max(max(_errors(closed_form(a, b, kind), a, b)) for kind in _KINDS)
    disputed = _errors(closed_form(a, b, "rotation"), a, b)[0]
    rodrigues = max(_rodrigues_gap(*generator.normal(size=(2, 3))) for _ in range(pairs))
    invariants = max(_invariant_gap(generator.normal(size=(2, d)), kind) for kind in _KINDS for d in range(2, 12))
    return {
        "article_vectors_worst_error": Figure(worst, n=3, expected=0.0, source="article"),
        "first_form_orthogonality_error": Figure(disputed, n=1, expected=2e-16, source="computed"),
        "rodrigues_gap": Figure(rodrigues, n=pairs),
        "determinant_and_trace_gap": Figure(invariants, n=30),
    }


def _claims(figures: Mapping[str, Figure]) -> tuple[Claim, ...]:
    value = {name: figure.value for name, figure in figures.items()}
    return (
        Claim.check(
            "All three forms are orthogonal and take the article's vectors to one another.",
            value["article_vectors_worst_error"] < 1e-14,
            rule="largest entry of T'T - I and of Ta - b below 1e-14 in float64",
            figures=["article_vectors_worst_error"],
        ),
        Claim.check(
            "The first form, which a reader disputed, is orthogonal.",
            value["first_form_orthogonality_error"] < 1e-15,
            rule="largest entry of T'T - I below 1e-15 on the article's vectors",
            figures=["first_form_orthogonality_error"],
        ),
        Claim.check(
            "In three dimensions the first form is the rotation about the cross product.",
            value["rodrigues_gap"] < 1e-13,
            rule="largest difference to Rodrigues' matrix below 1e-13 on random pairs",
            figures=["rodrigues_gap"],
        ),
        Claim.check(
            "Determinants are 1, -1, (-1)^(d-1) and traces d - 2 + 2 a'b, d - 2, 2 - d: the symmetric form is far from "
            "the identity even where a = b.",
            value["determinant_and_trace_gap"] < 1e-12,
            rule="largest deviation over d = 2 ... 11 below 1e-12",
            figures=["determinant_and_trace_gap"],
        ),
        Claim.check(
            "Near b = -a the map stays orthogonal in float32 when s is normalised, and not when the formula is "
            "computed as written (our addition: the article does not treat rounding).",
            value["normalised_form_error_float32"] < 1e-5 < value["article_form_error_float32"],
            rule="largest entry of T'T - I at an angle of 1e-4 from b = -a, d = 64: below and above 1e-5",
            figures=["article_form_error_float32", "normalised_form_error_float32"],
        ),
    )


# ---- measure -------------------------------------------------------------------------------------------------------


def closed_form(a: Array, b: Array, kind: str = "rotation") -> Array:
    """The article's formula, computed as written and in the dtype of its inputs."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    c, eye = a @ b, np.eye(len(a), dtype=a.dtype)
    if kind == "rotation":
        return np.asarray(eye + 2 * np.outer(b, a) - np.outer(a + b, a + b) / (1 + c))
    if kind == "householder":
        return np.asarray(eye - np.outer(a - b, a - b) / (1 - c))
    return np.asarray(np.outer(a + b, a + b) / (1 + c) - eye)


def _errors(T: Array, a: Array, b: Array) -> tuple[float, float]:
    """Largest entries of T'T - I and of Ta - b."""
    target = T @ (a / np.linalg.norm(a)) - b / np.linalg.norm(b)
    return float(np.abs(T.T @ T - np.eye(len(a))).max()), float(np.abs(target).max())


def _rodrigues_gap(a: Array, b: Array) -> float:
    """Largest difference to Rodrigues' matrix in three dimensions."""
    from scipy.spatial.transform import Rotation

    axis = np.cross(a, b)
    angle = np.arctan2(np.linalg.norm(axis), a @ b)
    expected = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
    return float(np.abs(rotation_between(a, b) - expected).max())


def _invariant_gap(pair: Array, kind: Any) -> float:
    """Largest deviation of determinant and trace from their closed forms."""
    a, b = pair
    d, T = len(a), rotation_between(a, b, kind=kind)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    determinant = {"rotation": 1, "householder": -1, "symmetric": (-1) ** (d - 1)}[kind]
    trace = {"rotation": d - 2 + 2 * cosine, "householder": d - 2, "symmetric": 2 - d}[kind]
    return float(max(abs(np.linalg.det(T) - determinant), abs(np.trace(T) - trace)))


def _worst_error(form: Any, angle: float, pairs: int, generator: np.random.Generator) -> float:
    """Largest orthogonality error in float32 over pairs whose b lies `angle` away from -a."""
    worst = 0.0
    for _ in range(pairs):
        a, side = np.linalg.qr(generator.normal(size=(_DIMENSIONS, 2)))[0].T
        b = -np.cos(angle) * a + np.sin(angle) * side
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            T = form(a.astype(np.float32), b.astype(np.float32))
            error = np.abs(T.T @ T - np.eye(_DIMENSIONS)).max()
        worst = max(worst, float(error) if np.isfinite(error) else 1e3)  # 1e3 stands for inf and NaN
    return worst


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(figure: Any, errors: Mapping[str, Array]) -> None:
    panel = figure.add_subplot()
    panel.loglog(_ANGLES, errors["article"], "s-", label="1/(1 + a'b), as written")
    panel.loglog(_ANGLES, errors["normalised"], "o-", label="two reflections along normalised vectors")
    panel.set(xlabel="angle between b and -a, rad", ylabel="largest entry of T'T - I, float32, d = 64")
    panel.legend()
