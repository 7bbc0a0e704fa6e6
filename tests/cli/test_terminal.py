"""What steers a terminal is shown, not obeyed, whichever verb prints it and wherever it comes from."""

from __future__ import annotations

import json
import logging
import unicodedata
import warnings

import pytest

from kexue._text import visible
from kexue.cli import _verb, main
from kexue.errors import DataError
from kexue.search import Index

CONTROLS = "".join(map(chr, [*range(32), *range(127, 160)]))
STEERING = CONTROLS.replace("\n", "").replace("\t", "") + "\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ud800"
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\u202ered"


@pytest.mark.parametrize("character", STEERING)
def test_a_steering_character_is_shown(character) -> None:
    shown = visible(f"a{character}b")
    assert shown.startswith("a")
    assert shown.endswith("b")
    assert len(shown) > 2
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)


def test_all_else_stays() -> None:
    text = "a\tb\nc 退货 é 😀 ‍ ✅"
    assert visible(text) == text


@pytest.fixture
def hostile(tiny_model, monkeypatch, tmp_path, encoder_of):
    """A folder with an index, vectors and lines, all with texts that steer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEXUE_MODEL", str(tiny_model))
    texts = [f"the dog {n} runs and plays {HOSTILE}" for n in range(14)]
    with Index.create("i.kx", encoder_of(tiny_model)) as index:
        index.add(texts, ids=[f"{n}{HOSTILE}" for n in range(14)], metadata=[{HOSTILE: HOSTILE}] * 14)
    # A line end is no part of a line.
    lines = [text.replace("\r", "") for text in texts]
    (tmp_path / "t.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def encoder_of():
    from kexue.text import Encoder

    return lambda folder: Encoder(folder, device="cpu")


VERBS = [
    ("search", "i.kx", f"a dog {HOSTILE}", "another", "--explain"),
    ("search", "i.kx", "a dog", "--rerank", "wrd", "--explain"),
    ("search", "i.kx", "a dog", "--filter", f"x={HOSTILE}"),
    ("compare", f"a dog {HOSTILE}", f"a cat {HOSTILE}", "--explain"),
    ("hubness", "i.kx", "-k", "3"),
    ("summarize", "t.txt", "-k", "3"),
    ("index", "info", "i.kx"),
    ("index", "delete", "i.kx", "--id", f"nosuch{HOSTILE}"),
    ("search", f"nosuch{HOSTILE}.kx", "a dog"),
    ("search", "i.kx", "a dog", f"--nosuch{HOSTILE}"),
    ("search", "i.kx", "a dog", "-k", f"nosuch{HOSTILE}"),
    ("search", "i.kx", "a dog", "--rerank", f"nosuch{HOSTILE}"),
    ("search", "i.kx", "a dog", "--filter", f"no{HOSTILE}condition"),
    (f"nosuch{HOSTILE}", "i.kx"),
    ("summarize", f"nosuch{HOSTILE}.txt"),
    ("index", "build", "t.txt", "--text", f"nosuch{HOSTILE}", "--out", "o.kx"),
]


@pytest.mark.parametrize("arguments", VERBS, ids=lambda arguments: " ".join(arguments)[:30].replace("\x1b", ""))
def test_no_verb_prints_what_steers(hostile, capsys, arguments) -> None:
    main(list(arguments))
    out, err = capsys.readouterr()
    assert out or err
    for stream in (out, err):
        assert not set(stream) & set(STEERING), arguments
    main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert not set(out) & set(CONTROLS.replace("\n", ""))
    assert all(isinstance(json.loads(line), dict) for line in out.splitlines())
    assert not set(err) & set(STEERING)


def test_warnings_logs_and_failures_are_shown_alike(capsys) -> None:
    with warnings.catch_warnings():
        _verb._show_warning(UserWarning(HOSTILE), UserWarning, "x", 1)
    _verb.print_failure(DataError(HOSTILE, remedy=HOSTILE))
    _verb.Output(False, 0, False).remark(HOSTILE)
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 4
    assert not set(err) & set(STEERING)
    record = logging.LogRecord("kexue", logging.WARNING, "x", 1, "said %s", (HOSTILE,), None)
    assert not set(_verb._Formatter("%(message)s").format(record)) & set(STEERING)


def test_colours_of_rich_itself_stay(monkeypatch, capsys) -> None:
    from rich.console import Console
    from rich.text import Text

    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        patch.setattr(
            "rich.console.Console", lambda **more: Console(force_terminal=True, color_system="standard", **more)
        )
        _verb.Output(False, 0, False).emit({}, lambda: Text(f"red {HOSTILE}", style="red"))
    out = capsys.readouterr().out
    assert out.count("\x1b[31m") == 1
    assert "\x9b" not in out
    assert "\x07" not in out


# Numbers


@pytest.mark.parametrize(
    ("percentile", "shown"),
    [
        (100 * 300_000 / 300_001, "99.9996"),
        (99.999999, "99.9999"),
        (99.996, "99.9960"),
        (99.0, "99.00"),
        (98.999, "98.99"),
        (50.0, "50.00"),
        (0.0, "0.00"),
        (12.3456, "12.34"),
    ],
)
def test_a_percentile_is_never_rounded_up(percentile, shown) -> None:
    from kexue.cli._answers import format_percentile

    assert format_percentile(percentile) == shown
    assert float(shown) <= percentile


def test_hubness_of_a_sample_says_so(hostile, capsys, monkeypatch) -> None:
    main(["hubness", "i.kx", "-k", "3", "--json"])
    whole = json.loads(capsys.readouterr().out)
    assert (whole["n"], whole["documents"]) == (14, 14)
    main(["hubness", "i.kx", "-k", "3"])
    assert "sample" not in capsys.readouterr().out
    monkeypatch.setattr("kexue.search.sample.SAMPLE", 9)
    main(["hubness", "i.kx", "-k", "3", "--json"])
    part = json.loads(capsys.readouterr().out)
    assert (part["n"], part["documents"]) == (9, 14)
    main(["hubness", "i.kx", "-k", "3"])
    assert "9 vectors (a sample of 14 documents)" in capsys.readouterr().out
