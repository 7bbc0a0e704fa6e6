"""Queries typed one after the other: at a prompt on a terminal, or as lines of standard input."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from contextlib import suppress

from kexue.cli._verb import Output, print_failure
from kexue.errors import KexueError

PROMPT = "kexue> "
HELP = "A question finds documents; :k 5 shows five of them; :help shows this; Ctrl-D ends."


def answer_lines(out: Output, k: int, answer: Callable[[str, int], None]) -> None:
    """Answer each line of standard input until it ends; blank lines are skipped.

    On a terminal there is a prompt with line editing, Ctrl-C drops the line, an error is printed and the next
    question is asked, and ``:k N`` changes `k`. Elsewhere every line is a query, and an error ends the loop.

    Args:
        out: the output of the verb.
        k: hits of each answer.
        answer: prints the answer to a query with so many hits.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        for line in sys.stdin:
            if query := line.strip("\ufeff \t\r\n"):
                answer(query, k)
        return
    with suppress(ImportError):
        importlib.import_module("readline")  # gives `input` line editing, and a history of this session
    out.remark(HELP)
    while True:
        try:
            line = input(PROMPT).strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        k = _answer_line(out, line, k, answer)


def _answer_line(out: Output, line: str, k: int, answer: Callable[[str, int], None]) -> int:
    """Answer one line that was typed, a query or a command; return the number of hits from now on."""
    if line.startswith(":"):
        if number := re.fullmatch(r":k\s*([1-9]\d{0,5})", line):
            return int(number[1])
        out.remark(HELP if line == ":help" else f"no command {line}. {HELP}")
    elif line:
        try:
            answer(line, k)
        except KeyboardInterrupt:
            print()
        except (KexueError, ValueError, OSError) as error:
            print_failure(error)
    return k
