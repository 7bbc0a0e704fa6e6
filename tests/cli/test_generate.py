"""`kexue generate` beside the model that it calls."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from kexue.cli import main
from kexue.text import RoFormerSim, RoFormerSimConfig
from kexue.text.roformer_sim.characters import write_tokenizer
from kexue.text.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a small RoFormer-Sim with random weights."""
    place = tmp_path_factory.mktemp("writer")
    write_tokenizer(place, list("怎么退货的流程是什几天能到今天气很好多久款银行卡?"))
    tokenizer = TextTokenizer(place)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = RoFormerSimConfig(tokenizer.vocabulary_size, hidden_size=32, num_layers=2, max_length=24)
        model = RoFormerSim(config, tokenizer)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(place / "model")
    return place / "model"


@pytest.fixture
def run(folder, capsys):
    """Run `kexue generate` with the small model: (exit code, stdout, stderr)."""

    def run(*arguments, model=folder):
        code = main(["generate", *map(str, arguments), "--model", str(model)])
        return code, *capsys.readouterr()

    return run


def test_json_holds_what_the_model_writes(run, folder):
    code, text, _ = run("怎么退货", "银行卡", "-n", 4, "--samples", 30, "--seed", 7, "--json")
    assert code == 0
    first, second = map(json.loads, text.splitlines())
    assert list(first) == ["text", "results", "samples", "duplicates", "seed", "model"]
    expected = RoFormerSim.from_pretrained(folder).similar("怎么退货", n=30, k=4, generator=7)
    assert first["results"] == [{"text": one.text, "score": pytest.approx(one.score)} for one in expected]
    assert (first["samples"], first["seed"], first["model"]) == (30, 7, str(folder))
    assert second["text"] == "银行卡"
    assert json.loads(run("银行卡", "-n", 4, "--samples", 30, "--seed", 7, "--json")[1]) == second


def test_the_options_decide_what_is_written(run, folder):
    options = ("--top-p", 0.8, "--top-k", 5, "--temperature", 0.5, "--mask", "0, 3", "--json", "--samples", 40)
    record = json.loads(run("怎么退货", *options)[1])
    model = RoFormerSim.from_pretrained(folder)
    written = model.generate("怎么退货", n=40, top_p=0.8, top_k=5, temperature=0.5, mask_positions=[0, 3], generator=0)
    assert {one["text"] for one in record["results"]} <= set(written)
    assert record["duplicates"] >= 40 - len(set(written))
    bounded = json.loads(run("怎么退货", *options, "--min-score", -0.2, "--max-score", 0.2)[1])
    assert all(-0.2 <= one["score"] <= 0.2 for one in bounded["results"])


def test_a_person_sees_a_list(run):
    code, text, err = run("怎么退货", "-n", 3, "--temperature", 3)
    assert (code, err) == (0, "")
    head, *lines = text.splitlines()
    assert head.startswith("怎么退货: 3 of 100 sentences")
    assert len(lines) == 3
    assert [float(line.split()[0]) for line in lines] == sorted((float(one.split()[0]) for one in lines), reverse=True)


def test_lines_of_standard_input_are_texts(run, monkeypatch):
    lines = SimpleNamespace(buffer=io.BytesIO("怎么退货\n\n银行卡\n".encode()))
    monkeypatch.setattr(sys, "stdin", lines)
    records = [json.loads(line) for line in run("-", "--json", "--samples", 3)[1].splitlines()]
    assert [record["text"] for record in records] == ["怎么退货", "银行卡"]


class Terminal(io.StringIO):
    """Standard error on a terminal."""

    def isatty(self):
        return True


def test_answers_go_to_standard_output_while_the_bar_is_on_a_terminal(run, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    _, text, _ = run("怎么退货", "银行卡", "--samples", 3, "--json")
    assert [json.loads(line)["text"] for line in text.splitlines()] == ["怎么退货", "银行卡"]
    assert "writing" in terminal.getvalue()
    assert "怎么退货" not in terminal.getvalue()


def test_what_is_not_read_is_told(run):
    code, _, err = run("龘怎么靐龘", "--samples", 2)
    assert code == 0
    assert "the model does not know 龘, 靐; it reads [UNK] there" in err
    assert "the text was cut: at most 24 tokens are read" in run("怎么退货" * 20, "--samples", 2)[2]
    assert run("怎么退货", "--samples", 2)[2] == ""
    assert run("龘", "--samples", 2, "-q")[2] == ""


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("",), 2, "text 1 is blank"),
        (("退货", " "), 2, "text 2 is blank"),
        (("退货", "--mask", "1,x"), 2, "--mask takes whole numbers separated by commas, such as 2,3; got '1,x'"),
        (
            ("怎么退货", "退货", "--mask", "2"),
            1,
            "'退货': mask_positions: got 2, expected places of the text's 2 tokens",
        ),
        (("退货", "\u200b"), 1, "is blank, expected a sentence"),
        (("退货", "--min-score", "0.9", "--max-score", "0.1"), 2, "--min-score 0.9 is above --max-score 0.1"),
        (("退货", "--top-p", "0"), 1, "top_p must be above 0 and at most 1, got 0.0"),
    ],
)
def test_wrong_requests(run, arguments, code, told):
    exit_code, written, err = run(*arguments)
    assert exit_code == code
    assert not written  # before the first text is
    assert told in " ".join(err.replace("│", " ").split())


def test_a_model_that_cannot_write_is_refused(run, tiny_model):
    code, _, err = run("怎么退货", model=tiny_model)
    assert code == 1
    assert "this model cannot write sentences" in err
    assert "folders of RoFormer-Sim and SimBERT" in err
    assert "language model head" in err
