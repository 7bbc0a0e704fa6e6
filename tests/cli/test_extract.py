"""`kexue extract` through its own door."""

import json

import pytest

from kexue.cli import main

SMALL = ["--dim", "16", "--num-layers", "1", "--epochs", "1", "--fine-epochs", "0", "--device", "cpu"]


def run(capsys, *arguments):
    code = main(["extract", *map(str, arguments)])
    return code, capsys.readouterr()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("extract") / "run"
    assert main(["extract", "train", "--train", "sample", "--dev", "sample", "--out", str(out), *SMALL, "-q"]) == 0
    return out


def test_from_training_to_scores(capsys, tmp_path):
    out, found = tmp_path / "run", tmp_path / "found.jsonl"
    code, printed = run(capsys, "train", "--train", "sample", "--dev", "sample", "--out", out, *SMALL, "--json")
    assert code == 0, printed.err
    result = json.loads(printed.out)
    assert (result["run"], result["metric"], result["steps"]) == (str(out), "f1", 4)
    assert ("No triple of --dev is right" in printed.err) == (result["value"] == 0)
    texts = tmp_path / "texts.txt"
    texts.write_text("巴黎是法国的首都\n东京是日本的首都\n", encoding="utf-8")
    arguments = ("predict", out, texts, "--out", found, "--head-threshold", 0.01, "--tail-threshold", 0.01, "--json")
    code, printed = run(capsys, *arguments, "--device", "cpu")
    assert code == 0, printed.err
    record, lines = json.loads(printed.out), [json.loads(line) for line in found.read_text().splitlines()]
    assert (record["out"], record["n"]) == (str(found), 2)
    assert record["triples"] == sum(len(line["triples"]) for line in lines)
    assert [line["text"] for line in lines] == ["巴黎是法国的首都", "东京是日本的首都"]
    gold = tmp_path / "gold.csv"
    gold.write_text("text,subject,predicate,object\n巴黎是法国的首都,法国,首都,巴黎\n东京是日本的首都,日本,首都,东京\n")
    code, printed = run(capsys, "eval", "--pred", found, "--gold", gold, "--match", "tokens", "--json")
    score = json.loads(printed.out)
    assert list(score) == ["precision", "recall", "f1", "n_pred", "n_gold", "n_correct", "match", "f1_interval"]
    assert (score["n_gold"], score["match"], code) == (2, "tokens", 0)


def test_tune(capsys, trained):
    code, printed = run(capsys, "tune", trained, "--dev", "sample", "--device", "cpu", "--json", "-q")
    best = json.loads(printed.out)
    assert code == 0
    assert list(best) == ["head", "tail", "f1", "table"]
    assert len(best["table"]) == 25
    assert list(best["table"][0]) == ["head", "tail", "precision", "recall", "f1"]
    code, printed = run(capsys, "tune", trained, "--dev", "sample", "--device", "cpu", "-q")
    assert "--head-threshold 0.5 --tail-threshold 0.4: F1" in printed.out  # the defaults, where all are equal


def test_bad_input(capsys, trained, tmp_path):
    code, printed = run(capsys, "train", "--train", tmp_path / "no.csv", "--dev", "sample", "--out", tmp_path / "run")
    assert (code, "no.csv" in printed.err) == (1, True)
    code, printed = run(capsys, "predict", tmp_path, tmp_path / "x.txt", "--out", tmp_path / "y")
    assert (code, "holds no extractor" in printed.err) == (1, True)
    text = tmp_path / "x.txt"
    text.write_text("巴黎\n")
    code, printed = run(capsys, "predict", trained, text, "--out", tmp_path / "y", "--head-threshold", "2")
    assert (code, "head_threshold must be in [0, 1)" in printed.err) == (1, True)
    code, printed = run(capsys, "predict", trained, text, "--out", text)
    assert (code, "would replace an input" in printed.err, text.read_text()) == (1, True, "巴黎\n")
    code, printed = run(capsys, "predict", trained, text, "--out", tmp_path)
    assert (code, "not a regular file" in printed.err) == (1, True)


def test_the_annotated_file_itself_can_be_read_and_scored(capsys, trained, tmp_path):
    found, gold = tmp_path / "found.jsonl", tmp_path / "gold.csv"
    gold.write_text("text,subject,predicate,object\n水浒传写宋江,水浒传,人物,宋江\n水浒传写宋江,宋江,出自,水浒传\n")
    code, printed = run(capsys, "predict", trained, gold, "--out", found, "--device", "cpu")
    assert (code, printed.out.split(" in ")[0]) == (0, "0 triples of 2 texts"), printed.err
    code, printed = run(capsys, "eval", "--pred", found, "--gold", gold, "--json")
    assert (code, json.loads(printed.out)["n_gold"]) == (0, 2), printed.err
    duie = tmp_path / "duie.json"  # the ending of these files, which hold a JSON object a line
    duie.write_text('{"text": "水浒传写宋江", "spo_list": []}\n')
    code, printed = run(capsys, "predict", trained, duie, "--out", found, "--format", "jsonl", "--device", "cpu")
    assert (code, printed.out.split(" in ")[0]) == (0, "0 triples of 1 text"), printed.err


def test_help_has_examples(capsys):
    for name in ("train", "predict", "eval", "tune"):
        code, printed = run(capsys, name, "--help")
        assert (code, f"kexue extract {name}" in printed.out) == (0, True)
