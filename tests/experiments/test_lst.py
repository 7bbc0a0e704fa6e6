import os
from pathlib import Path

import pytest

from kexue.experiments import run_experiment
from kexue.experiments._clue_ladder import tune_shipped


def test_the_ladder_keeps_little_for_backward(tmp_path, monkeypatch):
    monkeypatch.delenv("KEXUE_DATA", raising=False)
    report = run_experiment("lst", budget="smoke", out=tmp_path)
    assert report.claims[0].verdict == "reproduced"
    assert report.figures["saved_ladder"].value < report.figures["saved_adapters"].value
    assert report.figures["saved_adapters"].value < report.figures["saved_full"].value
    assert any("headlines are left out" in note for note in report.notes)
    assert (tmp_path / "figure.png").exists()


@pytest.mark.data
def test_the_shipped_encoder_is_tuned_in_three_ways_and_each_run_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path))
    data = Path(os.environ["KEXUE_DATA"])
    tuned = tune_shipped("smoke", (0, 1), data)
    assert tuned.saved["probe"] < tuned.saved["ladder"] < tuned.saved["full"]
    assert {name: len(runs) for name, runs in tuned.runs.items()} == {"full": 2, "ladder": 2, "probe": 2}
    figures = tuned.figures()
    assert figures["clue_saved_share"].value == tuned.saved["ladder"] / tuned.saved["full"]
    monkeypatch.setattr("kexue.experiments._clue_runs._train", None)  # nothing is trained again
    assert tune_shipped("smoke", (0, 1), data).runs == tuned.runs
    assert not list((tmp_path / "clue").glob("*/*/best"))


def test_without_the_data_no_encoder_is_tuned(tmp_path):
    assert tune_shipped("smoke", (0,), None) is None
    assert tune_shipped("smoke", (0,), tmp_path) is None
