"""Every command that the documentation shows can be pasted into a shell as it stands."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import typer

from kexue.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if not {"_build", "generated"} & set(path.parts)),
]
_BLOCK = re.compile(r"^```([\w-]*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SHELLS = ("sh", "bash", "shell", "console", "")
_RUNS = re.compile(r"(^|[|;&]\s*)(\w+=\S* )*kexue [a-z-]")
_INLINE = re.compile(r"(?<!`)`(kexue [^`\n]+)`(?!`)")


def commands_of(page: Path) -> list[str]:
    """Lines that run kexue, continued lines and quotations joined; blocks of other languages are left out."""
    lines: list[str] = []
    for language, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language not in _SHELLS:
            continue
        pending = ""
        for line in block.replace("\\\n", " ").splitlines():
            pending += line
            try:
                shlex.split(pending, comments=True)
            except ValueError:  # a quotation that goes on
                pending += "\n"
                continue
            lines.append(pending.strip().removeprefix("$ "))
            pending = ""
    return [line for line in lines if _RUNS.search(line)]


def problems_of(line: str, defined: str = "") -> list[str]:
    """What keeps a line from doing what it says when it is pasted."""
    found = []
    unquoted = re.sub(r"'[^']*'", "''", line)
    for name in re.findall(r"\$\{?([A-Za-z_]\w*)(?!\w|:-)", unquoted):
        if not re.search(rf"(^|\s|export ){name}=", defined) and name != "HOME":
            found.append(f"${name} is not set")
    bare = re.sub(r'"(\\.|[^"\\])*"', '""', unquoted)
    bare = re.sub(r" >>? [\w./-]+", "", bare.split(" #")[0])  # output that goes to a file
    found += [f"an unquoted {mark}" for mark in re.findall(r"&&?|[<>]", bare) if mark != "&&"]
    for part in _parts(line):
        words = list(itertools.dropwhile(re.compile(r"[A-Za-z_]\w*=").match, part))
        if words[:1] == ["kexue"]:
            found += _usage(words[1:])
    return found


def _parts(line: str) -> list[list[str]]:
    """The words of each command of a line, without redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;"):
            parts.append([])
        elif set(word) <= {">"}:
            next(lexer, None)
        else:
            parts[-1].append(word)
    return parts


def _usage(words: list[str]) -> list[str]:
    """What click's own parser says of the words after `kexue`."""
    command = typer.main.get_command(app)
    context = typer.Context(command)
    try:
        while words and hasattr(command, "get_command") and not words[0].startswith("-"):
            name, *words = words
            command = command.get_command(context, name)
            if command is None:
                return [f"no verb {name}"]
            context = typer.Context(command, info_name=name, parent=context, **command.context_settings)
        _, rest, _ = command.make_parser(context).parse_args(list(words))
        takes = sum(p.nargs if p.nargs > 0 else 10**6 for p in command.params if p.param_type_name == "argument")
    except Exception as error:  # click's own kinds
        return [str(error) or type(error).__name__]
    return [f"too many words: {rest}"] if len(rest) > takes else []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_can_be_pasted(page):
    text = page.read_text(encoding="utf-8")
    wrong = {}
    for line in commands_of(page):
        problems = problems_of(line, text)
        if problems:
            wrong[line] = problems
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_filters_named_in_the_text_are_quoted(page):
    for command in _INLINE.findall(page.read_text(encoding="utf-8")):
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", command)
        assert not re.search(r"--filter\s+\S*[<>&]", bare), command


def test_the_examples_of_the_help_can_be_pasted():
    command = typer.main.get_command(app)
    groups, examples = [command], []
    while groups:
        for one in groups.pop().commands.values():
            if hasattr(one, "commands"):
                groups.append(one)
            examples += re.findall(r"`(kexue [^`]+)`", one.epilog or "")
    assert len(examples) > 30
    assert {line: problems for line in examples if (problems := problems_of(line))} == {}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("kexue search faq.kx q --filter year>=2020", "unquoted >"),
        ("kexue search $INDEX q", "$INDEX is not set"),
        ("kexue serch faq.kx q", "no verb serch"),
        ("kexue search faq.kx q --filtr a=b", "--filtr"),
        ("kexue doctor a b c", "too many words"),
        ("kexue serve a.kx &", "unquoted &"),
        ("kexue search <index> query", "unquoted <"),
    ],
)
def test_a_command_that_cannot_be_pasted_is_found(line, problem):
    assert any(problem in one for one in problems_of(line)), problems_of(line)


def test_a_command_that_can_be_pasted_is_let_through():
    for line in ("kexue search faq.kx 'a & b' --filter 'year>=2020'", "A=1 kexue doctor --json | head -3  # a > b",
                 "kexue solve \"x^2 < 3\"", "kexue reproduce --list"):  # fmt: skip
        assert problems_of(line) == []
