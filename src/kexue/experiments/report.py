"""The report of an experiment: claims, figures, the verdict, and the file that holds them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kexue._figures import save_figure
from kexue._files import replacing
from kexue.errors import DataError, MissingDependencyError

Verdict = Literal["reproduced", "partly", "not reproduced"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "partly", "not reproduced")
SCHEMA = 1


@dataclass(frozen=True)
class Figure:
    """One number of a report, with its interval and the expected value.

    `n` is the size of the sample, `source` the origin of `expected`: ``"article"``, ``"paper"`` or ``"computed"``.
    """

    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None
    expected: float | None = None
    source: str | None = None

    @classmethod
    def over_runs(cls, values: Iterable[float], unit: str = "", **fields: Any) -> Figure:
        """Mean over runs, with the smallest and the largest value as the interval and the number of runs as `n`."""
        runs = np.asarray(list(values), dtype=np.float64)
        return cls(float(runs.mean()), unit, float(runs.min()), float(runs.max()), len(runs), **fields)

    def __str__(self) -> str:
        """The number with its unit and interval, such as ``0.0227 [0.00886, 0.0377]`` or ``8.004 KiB``."""
        interval = f" [{self.low:.3g}, {self.high:.3g}]" if self.low is not None and self.high is not None else ""
        return f"{self.value:.4g}{self.unit and ' '}{self.unit}{interval}"


@dataclass(frozen=True)
class Claim:
    """A falsifiable sentence, its verdict, the rule that decides it, and the names of the figures in the rule."""

    text: str
    verdict: Verdict
    rule: str
    figures: tuple[str, ...] = ()

    @classmethod
    def check(cls, text: str, holds: bool, *, rule: str, figures: Sequence[str] = ()) -> Claim:
        """A claim decided by one comparison."""
        return cls(text, "reproduced" if holds else "not reproduced", rule, tuple(figures))

    @classmethod
    def check_parts(cls, text: str, parts: Iterable[bool], *, rule: str, figures: Sequence[str] = ()) -> Claim:
        """A claim decided by several comparisons: reproduced when all of them hold, partly when some do."""
        holds = list(parts)
        verdict: Verdict = "reproduced" if all(holds) else "partly" if any(holds) else "not reproduced"
        return cls(text, verdict, rule, tuple(figures))


@dataclass(frozen=True)
class Report:
    """The content of `report.json`, and `draw`, which paints the figure.

    An experiment fills `claims`, `figures`, `seeds`, `data`, `notes` and `draw`; `run_experiment` adds the rest.

    Attributes:
        claims: the claims, each with its verdict.
        figures: the numbers by name.
        notes: remarks, such as what was left out.
        rows: the lines of a table for a person to read: texts by column.
        seeds: seeds of the runs that figures are means over.
        data: a name, split and size for each data set.
        draw: called with an empty matplotlib figure; not saved.
        effect: size of the effect in one phrase with units and intervals, which a verdict alone does not show.
        figure: name of the figure's file beside the report; None without one.
    """

    claims: tuple[Claim, ...]
    figures: Mapping[str, Figure]
    notes: tuple[str, ...] = ()
    rows: tuple[Mapping[str, str], ...] = ()
    seeds: tuple[int, ...] = ()
    data: tuple[Mapping[str, Any], ...] = ()
    draw: Callable[[Any], None] | None = field(default=None, compare=False, repr=False)
    slug: str = ""
    title: str = ""
    title_zh: str = ""
    archive: int = 0
    claim: str = ""
    effect: str = ""
    seed: int = 0
    budget: str = "small"
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    seconds: float = 0.0
    date: str = ""
    figure: str | None = None

    def __post_init__(self) -> None:
        for claim in self.claims:
            if claim.verdict not in VERDICTS:
                raise ValueError(f"verdict {claim.verdict!r} of the claim {claim.text!r} is none of {VERDICTS}")
            missing = [name for name in claim.figures if name not in self.figures]
            if missing:
                raise ValueError(f"the claim {claim.text!r} names figures that the report lacks: {missing}")

    @property
    def verdict(self) -> Verdict:
        """`reproduced` or `not reproduced` when that is the verdict of every claim, else `partly`."""
        verdicts = {claim.verdict for claim in self.claims}
        if not verdicts:
            raise DataError(
                f"no claim of {self.slug or 'this experiment'} could be tested.",
                remedy="Its data sets are missing: set KEXUE_DATA to the folder that holds them.",
            )
        return verdicts.pop() if len(verdicts) == 1 else "partly"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in the order of the file."""
        claims = [dataclasses.asdict(claim) | {"figures": list(claim.figures)} for claim in self.claims]
        figures = {
            name: {key: value for key, value in dataclasses.asdict(figure).items() if value is not None}
            for name, figure in self.figures.items()
        }
        return {
            "schema": SCHEMA,
            "slug": self.slug,
            "title": self.title,
            "title_zh": self.title_zh,
            "archive": self.archive,
            "claim": self.claim,
            "verdict": self.verdict,
            "effect": self.effect,
            "claims": claims,
            "figures": figures,
            "seed": self.seed,
            "seeds": list(self.seeds),
            "budget": self.budget,
            "data": [dict(entry) for entry in self.data],
            "versions": dict(self.versions),
            "machine": dict(self.machine),
            "command": self.command,
            "seconds": self.seconds,
            "date": self.date,
            "figure": self.figure,
            "notes": list(self.notes),
            **({"rows": [dict(row) for row in self.rows]} if self.rows else {}),
        }

    def save(self, folder: str | os.PathLike[str]) -> Report:
        """Write `report.json` and, with matplotlib installed, `figure.png` into `folder`; return the saved report."""
        target = Path(folder)
        saved = self
        if self.draw is not None:
            try:
                save_figure(self.draw, target / "figure.png")
                saved = dataclasses.replace(self, figure="figure.png")
            except MissingDependencyError as missing:
                saved = dataclasses.replace(self, notes=(*self.notes, f"no picture: {missing}"))
        with replacing(target / "report.json") as temporary:
            text = json.dumps(saved.to_json(), ensure_ascii=False, indent=2, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        return saved

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read a report from its folder or from the file itself.

        Raises:
            DataError: the file is not a report.
        """
        source = Path(path)
        source = source / "report.json" if source.is_dir() else source
        try:
            record = json.loads(source.read_text(encoding="utf-8"))
            known = {f.name for f in dataclasses.fields(cls)} - {"draw"}
            optional = {"effect": record.get("effect", ""), "rows": tuple(record.get("rows", ()))}
            values = {name: record[name] for name in known - optional.keys()} | optional
            values["claims"] = tuple(
                Claim(**(claim | {"figures": tuple(claim["figures"])})) for claim in record["claims"]
            )
            values["figures"] = {name: Figure(**figure) for name, figure in record["figures"].items()}
            for name in ("notes", "seeds", "data"):
                values[name] = tuple(record[name])
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise DataError(
                f"not an experiment report ({error!r}).",
                path=source,
                remedy="Name the output folder of one experiment.",
            ) from error
        return cls(**values)
