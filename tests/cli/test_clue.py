import json
import subprocess
import sys

import pytest

from kexue.cli import main
from kexue.clue import get_task, list_tasks


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def gold(tmp_path):
    """Three headlines with their topics, and predictions, of which two are right."""
    lines = [{"id": i, "sentence": f"标题{i}", "label": label} for i, label in enumerate(["100", "101", "102"])]
    (tmp_path / "dev.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "out").mkdir()
    get_task("tnews").write_submission(["100", "101", "103"], tmp_path / "out" / "tnews11_predict.json")
    return tmp_path


def test_list(run):
    code, out, _ = run("clue", "list", "--json")
    assert code == 0
    tasks = json.loads(out)["tasks"]
    assert [task["name"] for task in tasks] == [info.name for info in list_tasks()]
    assert tasks[0] == {
        "name": "afqmc", "framing": "text", "metric": "accuracy", "train": 34334, "dev": 4316, "test": 3861,
    }  # fmt: skip
    code, out, _ = run("clue", "list")
    assert "ocnli_50k_predict.json" in out


def test_eval(run, gold):
    arguments = ("clue", "eval", "tnews", "--pred", "out/tnews11_predict.json", "--gold", "dev.json")
    code, out, _ = run(*arguments, "--json")
    assert (code, json.loads(out)) == (
        0, {"task": "tnews", "n": 3, "accuracy": 2 / 3, "intervals": {"accuracy": [0.0, 1.0]}},
    )  # fmt: skip
    assert "accuracy 0.6667 (95 % interval 0.0000 to 1.0000)\nof 3 examples" in run(*arguments)[1]


def test_eval_of_entities_and_of_answers(run, tmp_path):
    task = get_task("cluener")
    path = tmp_path / "gold.json"
    path.write_text(json.dumps({"text": "王芳在北京", "label": {"name": {"王芳": [[0, 1]]}}}) + "\n")
    task.write_submission([{"name": {"王芳": [[0, 1]]}}], tmp_path / "pred.json", task.read(path))
    code, out, _ = run("clue", "eval", "cluener", "--pred", "pred.json", "--gold", "gold.json", "--json")
    record = json.loads(out)
    assert code == 0
    assert (record["macro_f1"], record["micro_f1"], record["per_type"]["name"]["f1"]) == (0.1, 1, 1)
    out = run("clue", "eval", "cluener", "--pred", "pred.json", "--gold", "gold.json")[1]
    assert "macro_f1 0.1000 (95 % interval 0.1000 to 0.1000)" in out
    assert "position" in out
    qas = [{"id": f"Q{i}", "question": "？", "answers": [{"text": "王芳", "answer_start": 0}]} for i in range(2)]
    path.write_text(json.dumps({"context": "王芳在北京", "qas": qas}))
    (tmp_path / "pred.json").write_text('{"Q0": "王芳"}')
    code, out, err = run("clue", "eval", "cmrc2018", "--pred", "pred.json", "--gold", "gold.json", "--json")
    scores = {"em": 0.5, "f1": 0.5, "intervals": {"em": [0, 1], "f1": [0, 1]}}
    assert json.loads(out) == {"task": "cmrc2018", "n": 2, **scores}
    assert "1 of 2 questions have no prediction" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("news", "--pred", "out/tnews11_predict.json", "--gold", "dev.json"), "no task is called 'news'"),
        (("afqmc", "--pred", "out/tnews11_predict.json", "--gold", "dev.json"), "a record of tnews or iflytek"),
        (("tnews", "--pred", "none.json", "--gold", "dev.json"), "no such file"),
        (("tnews", "--pred", "dev.json", "--gold", "out/tnews11_predict.json"), "'sentence' is missing"),
    ],
)
def test_eval_tells_what_is_wrong(run, gold, arguments, message):
    code, out, err = run("clue", "eval", *arguments)
    assert (code, out) == (1, "")
    assert message in err
    code, out, _ = run("clue", "eval", *arguments, "--json")
    assert message in json.loads(out)["error"]["message"]


def test_check_and_bundle(run, gold):
    code, out, _ = run("clue", "check-submission", "out", "--json")
    assert code == 0
    assert json.loads(out) == {
        "ok": True, "files": [{"name": "tnews11_predict.json", "lines": 3, "ok": True}], "problems": [],
    }  # fmt: skip
    assert "tnews11_predict.json: 3 predictions, ok" in run("clue", "check-submission", "out")[1]
    code, out, _ = run("clue", "bundle", "out", "--out", "submit.zip", "--json")
    assert (code, json.loads(out)) == (0, {"out": "submit.zip", "files": ["tnews11_predict.json"]})
    assert "submit.zip: tnews11_predict.json" in run("clue", "bundle", "out", "-o", "submit.zip")[1]


def test_check_of_faults(run, gold):
    get_task("tnews").write_submission(dict.fromkeys(range(2), "100"), gold / "out" / "tnews11_predict.json")
    (gold / "test.json").write_text((gold / "dev.json").read_text())
    code, out, _ = run("clue", "check-submission", "out", "--data", ".", "--json")
    record = json.loads(out)
    assert (code, record["ok"], record["files"][0]["ok"]) == (1, False, False)
    assert record["problems"] == [
        {"file": "tnews11_predict.json", "line": None, "message": "2 lines, but the test file has 3 examples"}
    ]
    code, out, _ = run("clue", "check-submission", "out", "--data", ".")
    assert code == 1
    assert "tnews11_predict.json: 2 lines, but" in out
    bad = "".join(json.dumps({"id": i, "label": "105"}) + "\n" for i in range(30))
    (gold / "out" / "tnews11_predict.json").write_text(bad)
    out = run("clue", "check-submission", "out")[1]
    assert "line 1: the label must be one of 100" in out
    assert "and 10 more problems" in out
    code, _, err = run("clue", "bundle", "out", "--out", "submit.zip")
    assert code == 1
    assert "line 1: the label must be one of 100" in err
    assert not (gold / "submit.zip").exists()


def test_neither_torch_nor_transformers_is_loaded(gold):
    code = (
        "import sys\nfrom kexue.cli import main\n"
        f"assert main(['clue', 'eval', 'tnews', '--pred', {str(gold / 'out/tnews11_predict.json')!r}, "
        f"'--gold', {str(gold / 'dev.json')!r}]) == 0\n"
        f"assert main(['clue', 'check-submission', {str(gold / 'out')!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'nltk'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
