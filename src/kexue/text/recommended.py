"""The models that kexue recommends: what each reads, how it is got, whether it is here, and what was measured.

The figures are those that ``benchmarks/models.py --write`` has put into ``recommended.json``, with date and sizes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kexue.errors import KexueError
from kexue.text.models import (
    DEFAULT_MODEL,
    MULTILINGUAL,
    MULTILINGUAL_HUB,
    TINY_CHINESE,
    cached_models,
    find_model,
    named_default,
    package_folder,
    tiny_chinese_folder,
)
from kexue.text.unpacking import check_package, package_file, unpacked_folder

FIGURES = Path(__file__).with_name("recommended.json")


@dataclass(frozen=True)
class RecommendedModel:
    """A model that kexue recommends.

    Attributes:
        name: for ``--model`` and `Encoder`.
        reads: its languages.
        chosen: texts for which ``auto`` takes it.
        license: of its weights.
        dims: width of a vector.
        max_length: tokens read of a text.
        bytes: of the model folder on the disk.
        get: command that installs it.
        hub: its id on the hub, for machines with a network.
    """

    name: str
    reads: str
    chosen: str
    license: str
    dims: int
    max_length: int
    bytes: int
    get: str
    hub: str


RECOMMENDED_ENGLISH = RecommendedModel(
    name=DEFAULT_MODEL,
    reads="English",
    chosen="English texts",
    license="Apache-2.0",
    dims=384,
    max_length=256,
    bytes=91_600_000,
    get='pip install "kexue[minilm]"',
    hub=DEFAULT_MODEL,
)
RECOMMENDED_MULTILINGUAL = RecommendedModel(
    name=MULTILINGUAL,
    reads="about 100 languages",
    chosen="texts in any other language, or mixed",
    license="MIT",
    dims=384,
    max_length=512,
    bytes=244_300_000,
    get='pip install "kexue[multilingual]"',
    hub=MULTILINGUAL_HUB,
)
RECOMMENDED_CHINESE = RecommendedModel(
    name=TINY_CHINESE,
    reads="Chinese",
    chosen="Chinese, without the one above",
    license="Apache-2.0",
    dims=192,
    max_length=512,
    bytes=8_200_000,
    get="a part of kexue",
    hub=TINY_CHINESE,
)
RECOMMENDED = (RECOMMENDED_ENGLISH, RECOMMENDED_MULTILINGUAL, RECOMMENDED_CHINESE)


def read_figures() -> dict[str, Any]:
    """Return what was measured: ``date``, ``speed``, ``questions``, ``pairs``; see ``benchmarks/models.py``."""
    figures: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8"))
    return figures


def find_place(model: RecommendedModel) -> Path | None:
    """Return where a recommended model is on this machine: a folder, or the packaged file that is unpacked at first
    use; None where it is not here. Nothing is checked, written or fetched.
    """
    if model is RECOMMENDED_ENGLISH:
        places = [package_folder()]
    elif model is RECOMMENDED_CHINESE:
        places = [tiny_chinese_folder()]
    else:
        places = [unpacked_folder() if package_file() is not None else None, package_file()]
    places.append(cached_models().get(model.hub))
    return next((place for place in places if place is not None and place.exists()), None)


def describe_models() -> dict[str, Any]:
    """Return the record of `kexue models --json`: the recommended models, others in the hub's cache, the date.

    Of each recommended one: the fields of `RecommendedModel`; ``here`` and ``place``; ``speed``, all-MiniLM-L6-v2 = 1;
    ``quality``, by language: Spearman x100 as a mean over the sets, and of each; ``recall``, by the language of the
    question: recall@10 of questions about English texts.
    """
    figures = read_figures()
    rows = []
    for model in RECOMMENDED:
        place = find_place(model)
        rows.append(
            {
                **model.__dict__,
                "here": place is not None,
                "place": None if place is None else str(place),
                "speed": _of(figures["speed"], model)[0]["relative"],
                "quality": {language: _quality(figures, model, language) for language in ("en", "zh")},
                "recall": {row["language"]: _interval(row, "recall") for row in _of(figures["questions"], model)},
            }
        )
    known = {model.hub for model in RECOMMENDED}
    others = [{"name": name, "place": str(place)} for name, place in cached_models().items() if name not in known]
    return {"models": rows, "others": others, "measured": figures["date"]}


def check_models() -> tuple[list[str], list[str]]:
    """Return the default models on this machine, one line each, and what is wrong with them; nothing is fetched.

    Without the English model, or with one whose files were changed, that is wrong; the other one is optional.
    """
    lines, faults = [], []
    name = named_default()
    for model in RECOMMENDED if name is None else ():
        place = find_place(model)
        try:
            if place is not None and place == package_file():
                check_package(place)
                lines.append(f"{model.name}: {place}, unpacked at its first use")
            elif place is not None or model is RECOMMENDED_ENGLISH:
                lines.append(f"{model.name}: {find_model(model.name)}")
        except KexueError as error:
            faults.append(str(error))
    if name is not None:
        try:
            lines.append(str(find_model(name)))
        except KexueError as error:
            faults.append(str(error))
    return lines, faults


def _of(rows: list[dict[str, Any]], model: RecommendedModel) -> list[dict[str, Any]]:
    """Return the rows of one model."""
    return [row for row in rows if row["model"] == model.name]


def _quality(figures: dict[str, Any], model: RecommendedModel, language: str) -> dict[str, Any]:
    """Return the mean over the sets of one language, and each of them."""
    rows = [row for row in _of(figures["pairs"], model) if row["language"] == language]
    sets = {f"{row['set']} {row['split']}": {"n": row["n"], **_interval(row, "spearman")} for row in rows}
    return {"spearman": float(np.mean([row["spearman"] for row in rows])), "sets": sets}


def _interval(row: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a figure and its 95 % interval."""
    return {name: row[name], "low": row["low"], "high": row["high"], "n": row["n"]}
