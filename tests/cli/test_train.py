"""`kexue train` through its own door."""

import json
import os
import signal

import pytest

from kexue.cli import main
from kexue.text import RoFormerSim
from kexue.text.training import train

SMALL = ["--hidden-size", "16", "--num-layers", "1", "--num-heads", "2", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"怎么买{one}\t{one}如何购买\n" for one in "米面油盐糖茶"), encoding="utf-8")
    return path


def run(capsys, *arguments):
    code = main(["train", "sentences", *map(str, arguments)])
    return code, capsys.readouterr()


def test_pairs_to_a_model(capsys, pairs, tmp_path):
    out = tmp_path / "run"
    code, printed = run(capsys, "--data", pairs, "--out", out, "--steps", 3, *SMALL, "--json")
    assert code == 0, printed.err
    result = json.loads(printed.out)
    assert list(result) == ["run", "steps", "best_step", "metric", "value", "seconds", "checkpoint", "interrupted"]
    assert (result["run"], result["steps"], result["interrupted"]) == (str(out), 3, False)
    assert RoFormerSim.from_pretrained(out / "model").encode(["怎么买米"]).shape == (1, 16)


def test_several_files_follow_data(capsys, pairs, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"texts": ["你好", "您好", "嗨"]}\n', encoding="utf-8")
    out = tmp_path / "run"
    code, printed = run(capsys, "--data", pairs, other, "--out", out, "--limit", 1, *SMALL)
    assert code == 0, printed.err
    assert json.loads((out / "settings.json").read_text())["facts"]["texts"] == 15
    assert f"model: {out}/model" in printed.out


def test_limit_and_resume(capsys, pairs, tmp_path):
    common = ["--data", pairs, "--out", tmp_path / "run", "--steps", 4, *SMALL, "--json"]
    assert json.loads(run(capsys, *common, "--limit", 2)[1].out)["steps"] == 2
    assert json.loads(run(capsys, *common)[1].out)["steps"] == 4
    code, printed = run(capsys, *common, "--lr", 0.1)
    assert code == 1
    assert "lr was 0.0005, is 0.1" in json.loads(printed.out)["error"]["message"]


def test_a_signal_ends_with_a_code_and_the_same_command_continues(capsys, pairs, tmp_path, monkeypatch):
    def stop_at_two(_progress):
        return lambda trainer, _record: os.kill(os.getpid(), signal.SIGTERM) if trainer.place.step == 2 else None

    monkeypatch.setattr(train, "reporting", stop_at_two)
    common = ["--data", pairs, "--out", tmp_path / "run", "--steps", 4, *SMALL, "--json"]
    code, printed = run(capsys, *common)
    assert (code, json.loads(printed.out)["interrupted"]) == (130, True)
    assert "run the same command again to continue" in printed.err
    code, printed = run(capsys, *common)
    assert (code, json.loads(printed.out)["steps"]) == (0, 4)


def test_bad_input(capsys, pairs, tmp_path):
    code, printed = run(capsys, "--data", tmp_path / "no.tsv", "--out", tmp_path / "run")
    assert (code, "no.tsv" in printed.err) == (1, True)
    code, printed = run(capsys, "--data", pairs, "--out", tmp_path / "run", "--batch-size", 5)
    assert (code, "even number of rows" in printed.err) == (1, True)
    code, printed = run(capsys, "--data", pairs, "--out", tmp_path / "run", "--stage", "distill")
    assert (code, "needs a teacher" in printed.err) == (1, True)


def test_help_has_examples(capsys):
    code, printed = run(capsys, "--help")
    assert code == 0
    assert "--stage distill" in printed.out
