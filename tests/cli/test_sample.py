"""`kexue sample` beside the functions that it calls."""

import json
import math

import pytest

from kexue.cli import main
from kexue.sampling import diagnose
from kexue.sampling.text import NGramLM, load_lm, write_keywords
from kexue.sampling.text.runs import read_run


@pytest.fixture
def run(capsys):
    """Run `kexue sample`: (exit code, stdout, stderr)."""

    def run(*arguments):
        code = main(["sample", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_sentences_are_those_of_the_function(run):
    code, out, _ = run("keywords", "--words", "广州", "美食", "--steps", 20, "--chains", 3, "--seed", 4, "--json")
    record = json.loads(out)
    written = write_keywords(["广州", "美食"], load_lm(), steps=20, chains=3, generator=4)
    assert code == 0
    assert record["words"] == ["广州", "美食"]
    assert [one["text"] for one in record["sentences"]] == written.sentences
    assert [one["log_rho"] for one in record["sentences"]] == pytest.approx(written.log_rho)
    assert record["satisfied"] == 1
    assert record["run"] is None
    assert record["acceptance"] == pytest.approx(written.result.accepted.mean())
    assert set(record["acceptance_by_move"]) <= {"insert", "delete", "replace", "swap", "block"}
    assert {"rhat", "ess"} <= record.keys()


def test_sentences_are_printed_with_their_scores(run):
    code, out, err = run("keywords", "咖啡", "--steps", 5, "--chains", 2, "--min-length", 8, "--max-length", 10)
    assert code == 0
    assert all(line.startswith("Doubt: ") for line in err.splitlines())
    for line in out.splitlines():
        score, text = line.split(maxsplit=1)
        assert "咖啡" in text
        assert 8 <= len(text) <= 10
        assert float(score) < 0


def test_a_run_is_written_and_judged(run, tmp_path):
    code, out, _ = run("keywords", "咖啡", "--steps", 30, "--chains", 2, "--out", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(out)["run"] == str(tmp_path / "run")
    code, out, _ = run("diagnose", tmp_path / "run", "--json")
    report = json.loads(out)
    assert code == 0
    assert {"ess_bulk", "ess_tail", "iat", "rhat", "acceptance", "acceptance_by_move", "distinct", "flags"} == set(
        report
    )
    result, _ = read_run(tmp_path / "run")
    assert report == diagnose(result, len, lambda text: text.find("咖啡")).record()
    code, out, _ = run("diagnose", tmp_path / "run")
    assert "2 chains of 30 states" in out


def test_texts_are_rewritten(run):
    code, out, _ = run("paraphrase", "我想去看电影。", "--steps", 10, "--chains", 2, "--json")
    record = json.loads(out)
    assert code == 0
    assert {"text", "sentences", "acceptance", "run"} <= record.keys()
    assert "我想去看电影。" not in [one["text"] for one in record["sentences"]]
    code, out, _ = run("shorten", "我想和朋友一起去看电影。", "--length", 6, "--steps", 10, "--chains", 2, "--json")
    sentences = json.loads(out)["sentences"]
    assert code == 0
    assert sentences
    for one in sentences:
        assert len(one["text"]) <= 6
        assert -1 <= one["similarity"] <= 1


def test_a_model_is_trained_and_used(run, tmp_path):
    texts = [f"退货要{days}天。" for days in "一二三四五六七八九十"] * 6
    (tmp_path / "faq.txt").write_text("\n".join(texts), encoding="utf-8")
    code, out, _ = run("lm-train", tmp_path / "faq.txt", "--out", tmp_path / "lm", "--order", 3, "--json")
    record = json.loads(out)
    assert code == 0
    assert record["tokens"] == 60 * 7
    assert record["types"] == 15
    rest = NGramLM(3).fit([text for i, text in enumerate(texts) if i % 50])
    assert record["perplexity"] == pytest.approx(rest.perplexity(texts[::50]))
    code, out, _ = run("keywords", "退货", "--lm", f"ngram:{tmp_path / 'lm'}", "--steps", 50, "--json")
    assert code == 0
    assert "退货要" in json.loads(out)["sentences"][0]["text"]


def test_control_characters_of_a_model_do_not_reach_the_terminal(run, tmp_path, monkeypatch):
    NGramLM(2).fit(["ab\x1b[5m\nab\t", "b\x1b\nb"]).save(tmp_path / "lm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal: the sentences are shown while they change
    code, out, err = run("keywords", "ab", "--lm", f"ngram:{tmp_path / 'lm'}", "--steps", 60, "--min-length", 12)
    assert code == 0
    assert "␊" in out
    assert all(float(line.split()[0]) < 0 for line in out.splitlines())
    assert "writing" in err
    assert "\x1b[5m" not in out + err


def test_numbers_that_are_not_known_are_null(run):
    code, out, _ = run("keywords", "咖啡", "--steps", 2, "--chains", 1, "--json")
    record = json.loads(out)
    assert code == 0
    assert (record["rhat"], record["ess"]) == (None, None)
    assert not math.isnan(record["acceptance"])


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("keywords",), 2, "no word: give some"),
        (("keywords", " "), 1, "words[0] is blank"),
        (("keywords", "龘"), 1, "never seen the character '龘'"),
        (("keywords", "广州", "美食", "--max-length", 3), 1, "4 tokens, and max_length is 3"),
        (("keywords", "广州", "--min-length", 9, "--max-length", 8), 1, "9 tokens or more and 8 or fewer"),
        (("keywords", "广州", "--lm", "gpt"), 1, "got 'gpt'"),
        (("keywords", "广州", "--gamma", 0), 1, "gamma must be > 0"),
        (("paraphrase", " "), 1, "blank"),
        (("shorten", " "), 1, "blank"),
        (("diagnose", "/no/such/run"), 1, "holds no run"),
        (("lm-train", "/no/such/file.txt", "--out", "/tmp/x"), 1, "no such file"),
    ],
)
def test_wrong_requests(run, arguments, code, told):
    exit_code, written, err = run(*arguments)
    assert exit_code == code
    assert not written
    assert told in " ".join(err.replace("│", " ").split())
