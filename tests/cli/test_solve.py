import json
import math

import pytest

from kexue.cli import main


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


def test_the_answer_as_json(run):
    code, out, _ = run("solve", "x^3-6x^2+11x-6", "--json")
    record = json.loads(out)
    assert code == 0
    assert set(record) == {
        "polynomial",
        "degree",
        "discriminant",
        "nature",
        "formula_exists",
        "roots",
        "steps",
        "figure",
    }
    assert (record["polynomial"], record["degree"], record["discriminant"]) == ([1, -6, 11, -6], 3, 4)
    assert [(r["re"], r["im"], r["exact"], r["multiplicity"]) for r in record["roots"]] == [
        (1.0, 0.0, "1", 1), (2.0, 0.0, "2", 1), (3.0, 0.0, "3", 1)]  # fmt: skip
    assert set(record["roots"][0]) == {"re", "im", "exact", "multiplicity", "backward_error", "condition"}
    assert record["steps"] == []


def test_the_answer_for_people(run):
    code, out, _ = run("solve", "(x-3)^3 (x^2+1)")
    assert code == 0
    assert "x = 3   3 times" in out
    assert "x = -i   = -I" in out
    assert "magnified infinitely" in out
    _, out, _ = run("solve", "x^5 - x - 1")
    assert "Abel-Ruffini" in out
    assert run("solve", "5")[0] == 0


@pytest.mark.parametrize("text", ["-x^2+1", "-2x+4", "- x^2 + 1"])
def test_a_minus_in_front_is_no_option(run, text):
    code, out, _ = run("solve", text, "--json")
    assert code == 0
    assert json.loads(out)["polynomial"][0] < 0


def test_steps_digits_and_picture(run, tmp_path):
    _, out, _ = run("solve", "x^3-3x+1", "--steps", "--json")
    assert any("y2 y3 = y1^2 - e2/3 = 1" in step for step in json.loads(out)["steps"])
    _, out, _ = run("solve", "x^3-3x+1", "--latex")
    assert "\\begin{gather*}" in out
    assert "\\tfrac" in out
    code, out, _ = run("solve", "x^2 = 2", "--digits", "50", "--figure", "roots.png", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["roots"][1]["re"] == "1.4142135623730950488016887242096980785696718753769"
    assert record["figure"] == "roots.png"
    assert (tmp_path / "roots.png").read_bytes().startswith(b"\x89PNG")
    assert math.isclose(record["roots"][1]["condition"], 1)


def test_mistakes(run):
    code, _, err = run("solve", "x^2+*3")
    assert code == 1
    assert "column 5" in err
    assert "\n      ^" in err
    code, out, _ = run("solve", "x+y", "--json")
    assert code == 1
    assert json.loads(out)["error"]["column"] == 3
    code, _, err = run("solve", "0")
    assert code == 1
    assert "every number" in err
    assert run("solve")[0] == 2
    assert run("solve", "x", "--digits", "none")[0] == 2
