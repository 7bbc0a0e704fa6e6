import dataclasses
import json
from pathlib import Path

import pytest

from kexue import generative
from kexue.experiments import Report, generative_table, run_experiment
from kexue.experiments.generative_table import _measure


@pytest.mark.slow
def test_the_table_has_a_line_for_every_model_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(generative_table, "cache_folder", lambda: tmp_path / "cache")
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
    for change in ({"lr": 0.5}, {"sizes": {}}):  # of the training, which it refuses, and of the model
        settings = json.loads((folder / "settings.json").read_text())
        (folder / "settings.json").write_text(json.dumps(settings | change))
        path.write_text(json.dumps(first | {"training": -1.0, "settings": settings | change}))
        again = _measure("nice", "smoke", 0, folder)
        assert again["training"] > 0
        timed = {"training": 0, "sampling": 0}
        assert again | timed == first | timed


def test_a_training_that_was_interrupted_is_no_line(tmp_path, monkeypatch):
    train = generative.train_model
    monkeypatch.setattr(generative, "train_model", lambda config: dataclasses.replace(train(config), interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        _measure("nice", "smoke", 0, tmp_path / "run")
    assert not Path(tmp_path / "run" / "measured.json").exists()
