"""Every task, from its sample files to a submission, with the encoder that is a part of kexue, through both doors."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from tests.clue.conftest import CHINESE

import kexue.clue
from kexue.cli import main
from kexue.clue import ClueConfig, check_submission, get_task, list_tasks, predict_task, train_task
from kexue.clue.splits import read_split
from kexue.errors import DataError

SAMPLES = Path(kexue.clue.__file__).parent / "samples"


def copy_samples(task, folder, *splits):
    """Put the samples of a task into a folder as its files of these splits."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        shutil.copy(SAMPLES / f"{task}.json", folder / f"{split}.json")
        if task == "chid":
            shutil.copy(SAMPLES / "chid_answer.json", folder / f"{split}_answer.json")
    return folder


@pytest.mark.parametrize("task", [info.name for info in list_tasks()])
def test_two_steps_and_a_submission_of_the_samples_of_each_task(task, tmp_path):
    chosen = get_task(task)
    tests = ("test1.0", "test1.1") if len(chosen.info.submissions) > 1 else ("test",)
    data = copy_samples(task, tmp_path / "data" / task, "train", "dev", *tests)
    config = ClueConfig(
        task, CHINESE, data, tmp_path / "run", tune="linear", limit=2, batch_size=2, max_length=64, device="cpu"
    )
    result = train_task(config)
    test = data / f"{tests[0]}.json"
    predictions = predict_task(tmp_path / "run", test, device="cpu")
    examples = chosen.read(test)
    scores = chosen.metric(predictions, examples)
    assert result.steps == 2
    assert result.value == pytest.approx(scores[chosen.info.metric])  # dev is the same file
    for name in chosen.info.submissions:
        chosen.write_submission(predictions, tmp_path / "sent" / name, examples)
    report = check_submission(tmp_path / "sent", data=tmp_path / "data")
    assert report.ok, report.problems


def test_the_command_trains_continues_and_predicts(tmp_path, capsys, monkeypatch):
    data = copy_samples("tnews", tmp_path / "tnews", "train", "dev")
    train = ["clue", "train", "tnews", "--model", CHINESE, "--data", str(data), "--out", str(tmp_path / "run")]
    train += ["--epochs", "2", "--batch-size", "8", "--device", "cpu", "--json", "-q"]
    assert main([*train, "--limit", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert main(train) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["metric"] == "accuracy"
    assert record["steps"] == 2 * -(-len(get_task("tnews").sample()) // 8)
    out = tmp_path / "tnews10_predict.json"
    asked = ["--run", str(tmp_path / "run"), "--data", str(data / "dev.json"), "--out", str(out), "--json"]
    assert main(["clue", "predict", "tnews", *asked]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "n": len(get_task("tnews").sample())}
    assert main(["clue", "eval", "tnews", "--pred", str(out), "--gold", str(data / "dev.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(record["value"])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((data / "dev.json").read_bytes())))
    asked[3] = "-"
    assert main(["clue", "predict", "tnews", *asked]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == len(get_task("tnews").sample())
    asked[3] = str(data / "dev.json")
    assert main(["clue", "predict", "tnews", *asked, "--out", asked[3]]) == 1
    assert "would replace an input" in capsys.readouterr().out
    assert main(["clue", "predict", "tnews", *asked, "--out", "-"]) == 1
    assert "ends in .json" in capsys.readouterr().out
    assert main(["clue", "predict", "afqmc", *asked]) == 1
    assert "this is a record of tnews" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.json", "dev.json", "test.json", "train_0.json"], ["train.json"]),
        (["train_few_all.jsonl.gz", "train_0.jsonl.gz"], ["train_few_all.jsonl.gz"]),
        (["train.50k.json", "train.3k.json"], ["train.50k.json"]),
        (["m-train.json", "d-train.json", "m-dev.json"], ["m-train.json", "d-train.json"]),
        (["train.json", "train_answer.json"], ["train.json"]),
    ],
)
def test_the_files_of_a_split_are_known_by_their_names(names, expected, tmp_path, monkeypatch):
    for name in names:
        (tmp_path / name).touch()
    task = get_task("tnews")
    monkeypatch.setattr(task, "read", lambda path: [path.name])
    assert read_split(task, tmp_path, "train") == expected


@pytest.mark.parametrize("names", [[], ["dev.json"], ["train.json", "train.jsonl.gz"], ["train_0.json"]])
def test_a_folder_without_one_file_of_a_split_is_told(names, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="expected one file of train"):
        read_split(get_task("tnews"), tmp_path, "train")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_split(get_task("tnews"), tmp_path / "none", "train")
