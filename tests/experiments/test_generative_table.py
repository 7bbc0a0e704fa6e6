import dataclasses
import json
from pathlib import Path

import pytest

from kexue import generative
from kexue.experiments import Report, run_experiment
from kexue.experiments.generative_table import _measure


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_the_table_has_a_line_for_every_model_of_images(tmp_path):
    report = run_experiment("generative-table", budget="smoke", out=tmp_path / "out")
    names = [row["model"] for row in report.rows]
    assert names == [name for name in generative.list_models() if name != "univae"]
    rows = {row["model"]: row for row in report.rows}
    assert (rows["vae"]["kind"], rows["vae"]["weights"], rows["ign"]["bits/dim"]) == ("bound", "102,225", "none")
    distance = report.figures["frechet_distance_vae"]
    assert rows["vae"]["Fréchet distance"] == str(distance)
    assert distance.value > report.figures["test_digits"].value
    assert (report.archive, report.seeds) == (0, (0,))
    assert Report.load(tmp_path / "out") == report
    assert (tmp_path / "out" / "figure.png").exists()


@pytest.mark.slow
def test_a_run_that_exists_is_used_again_and_one_with_other_settings_is_not(tmp_path):
    folder = tmp_path / "run"
    first = _measure("nice", "smoke", 0, folder)
    assert first["training"] > 0 < first["sampling"]
    path = folder / "measured.json"
    path.write_text(json.dumps(first | {"training": -1.0}))
    assert _measure("nice", "smoke", 0, folder)["training"] == -1.0
    settings = folder / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lr": 0.5}))
    again = _measure("nice", "smoke", 0, folder)
    assert again["training"] > 0
    timed = ("training", "sampling")
    assert {name: again[name] for name in again if name not in timed} == {
        name: first[name] for name in first if name not in timed
    }


def test_a_training_that_was_interrupted_is_no_line(tmp_path, monkeypatch):
    train = generative.train_model
    monkeypatch.setattr(generative, "train_model", lambda config: dataclasses.replace(train(config), interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        _measure("nice", "smoke", 0, tmp_path / "run")
    assert not Path(tmp_path / "run" / "measured.json").exists()
