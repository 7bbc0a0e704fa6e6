import dataclasses
import json
from pathlib import Path

import pytest

from kexue import generative
from kexue.experiments import Figure, Report, generative_table, run_experiment
from kexue.experiments.generative_table import _decide, _measure, _read


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
    assert report.notes[0] == "0 of 10 runs were in the cache."
    for name in ("gan", "vae"):  # files of others
        (tmp_path / "cache" / "generative-table" / "smoke" / f"{name}-0" / "measured.json").write_text("[]")
    again = run_experiment("generative-table", budget="smoke", out=tmp_path / "again")
    assert again.notes[0] == "8 of 10 runs were in the cache."
    assert again.figures["frechet_distance_gan"] == report.figures["frechet_distance_gan"]


CONFIG = generative.ModelConfig("nice", "digits", "run", steps=10, device="cpu")


@pytest.mark.slow
def test_a_run_that_exists_is_used_again_and_another_one_is_not(tmp_path):
    config = dataclasses.replace(CONFIG, out=tmp_path / "run")
    assert _read(config) is None
    first = _measure(config, 100)
    assert first["training"] > 0 < first["sampling"]
    assert _read(config) == first
    path, settings = tmp_path / "run" / "measured.json", tmp_path / "run" / "settings.json"
    written = json.loads(settings.read_text())
    for change in ({"lr": 0.5}, {"sizes": {}}):  # of the training, which it refuses, and of the model
        settings.write_text(json.dumps(written | change))
        path.write_text(json.dumps(first | {"settings": written | change}))
        assert _read(config) is None
        assert not path.exists()
        again = _measure(config, 100)
        timed = {"training": 0, "sampling": 0}
        assert again | timed == first | timed
    older = {name: value for name, value in first.items() if name != "coverage"}
    for foreign in (first | {"versions": {"kexue": "0.0.1"}}, older, [first], "{"):
        path.write_text(foreign if isinstance(foreign, str) else json.dumps(foreign))
        assert _read(config) is None
        assert not path.exists()
    path.write_text(json.dumps(first))
    settings.write_text("{")
    assert _read(config) is None


def test_a_training_that_was_interrupted_is_no_line(tmp_path, monkeypatch):
    train = generative.train_model
    monkeypatch.setattr(generative, "train_model", lambda config: dataclasses.replace(train(config), interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        _measure(dataclasses.replace(CONFIG, out=tmp_path / "run"), 100)
    assert not Path(tmp_path / "run" / "measured.json").exists()
    monkeypatch.setattr(generative_table, "cache_folder", lambda: tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):  # in the training that loads what is needed
        run_experiment("generative-table", budget="smoke")
    assert not (tmp_path / "cache").exists()


# ---- claims ---------------------------------------------------------------------------------------------------------

ROUND = {  # numbers with which every claim holds
    "vae": {"frechet_distance": 15.0, "bits_per_dim": 1.9, "nearest_train_ratio": 1.2},
    "glow": {"frechet_distance": 8.0, "bits_per_dim": 2.1, "nearest_train_ratio": 1.2},
    "gan": {"frechet_distance": 6.0, "bits_per_dim": None, "nearest_train_ratio": 1.2},
    "diffusion": {"frechet_distance": 3.0, "bits_per_dim": 2.6, "nearest_train_ratio": 1.0},
    "flow-matching": {"frechet_distance": 2.5, "bits_per_dim": 2.4, "nearest_train_ratio": 1.0},
}


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, set()),
        ({"flow-matching": {"frechet_distance": 0.5}}, {0}),
        ({"flow-matching": {"bits_per_dim": 1.8}}, {1}),
        ({"vae": {"frechet_distance": 2.0}}, {1, 2}),
        ({"gan": {"frechet_distance": 2.7}}, {2}),
        ({"gan": {"nearest_train_ratio": 0.6}}, {3}),
    ],
)
def test_a_claim_fails_with_one_seed_that_is_against_it(changes, fails):
    other = {name: one | changes.get(name, {}) for name, one in ROUND.items()}
    runs = {name: [one, other[name], one] for name, one in ROUND.items()}
    figures = {
        f"{number}_{name}": Figure.over_runs([one[number] for one in ones])
        for name, ones in runs.items()
        for number in ROUND["gan"]
        if ones[0][number] is not None
    }
    claims = _decide(runs, figures | {"test_digits": Figure(0.6)})
    assert {i for i, claim in enumerate(claims) if claim.verdict == "not reproduced"} == fails
    assert {name for claim in claims for name in claim.figures} <= {*figures, "test_digits"}
