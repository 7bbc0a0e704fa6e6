"""What every verb shares: its common options, where its answer goes, how it fails."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer

from kexue._files import explain
from kexue._progress import Progress
from kexue._text import visible
from kexue.errors import DataError, KexueError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_COMMON: dict[str, tuple[Any, Any]] = {
    "json_output": (Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")], False),
    "seed": (Annotated[int, typer.Option("--seed", help="Everything random derives from it.")], 0),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no warnings.")], False),
    "verbose": (Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done, on stderr.")], False),
}


class _Visible:
    """What rich draws, with the control characters of users' texts made visible and rich's own left as they are."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        for segment in console.render(self._answer, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@dataclass(frozen=True)
class Output:
    """Where a verb writes: its answer on stdout, progress and remarks on stderr."""

    json: bool
    seed: int
    quiet: bool

    def emit(self, record: Mapping[str, Any], render: Callable[[], Any]) -> None:
        """Print one answer: `record` as a JSON line, or what `render` returns (text or a rich object) for a person."""
        if self.json:
            print(json_line(record), flush=True)
            return
        answer = render()
        if isinstance(answer, str):
            print(visible(answer), flush=True)
            return
        from rich.console import Console

        # A pipe has no width of its own: give it room rather than cut columns.
        console = Console() if sys.stdout.isatty() else Console(width=160)
        console.print(_Visible(answer), markup=False, highlight=False)

    def remark(self, text: str) -> None:
        """Say something on stderr that is no part of the answer."""
        if not self.quiet:
            print(visible(text), file=sys.stderr, flush=True)

    def confirm(self, question: str, option: str) -> None:
        """Ask on stderr and leave unless the answer is yes; `option` says yes beforehand, where nobody can be asked."""
        print(visible(f"{question} [y/N]: "), end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline() if sys.stdin is not None else ""
        if not answer:
            raise typer.BadParameter(f"nobody answered; add {option} to do it unasked")
        if answer.strip().lower() not in ("y", "yes"):
            self.remark("nothing was done")
            raise typer.Exit(EXIT_FAILED)

    @contextmanager
    def progress(self, label: str) -> Iterator[Progress]:
        """A bar with rate and time left on stderr; silent with `--quiet` and when stderr is no terminal."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress as Bar,
            ProgressColumn,
            SpinnerColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:,.0f}/s" if task.speed else "")

        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn(label), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        with Bar(*columns, console=console, transient=True, disable=self.quiet or not console.is_terminal) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def json_line(record: Mapping[str, Any]) -> str:
    """A record as one line of JSON, in which no control character is bare: JSON itself escapes ASCII's only."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False, default=str).translate(_CONTROLS)


_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def verb(
    app: typer.Typer, name: str, *, examples: tuple[str, ...], context: dict[str, Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a verb: it gets an `Output` first, and the options `--json --seed -q -v` are added.

    A verb that takes a `seed` of its own, to have another default, gets it.

    Args:
        app: where to register.
        name: the verb as typed.
        examples: command lines shown at the end of `--help`.
        context: settings of click, such as whether an unknown option is an argument.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(*, json_output: bool, quiet: bool, verbose: bool, **arguments: Any) -> None:
            _set_up_logging(quiet=quiet, verbose=verbose)
            seed = 0 if own_seed else arguments.pop("seed")
            try:
                function(Output(json_output, seed, quiet), **arguments)
            except EOFError as error:  # the command line's machinery would take it for Ctrl-C
                raise DataError(
                    f"a file ends too early ({error}).", remedy="Fetch or write it again: it is empty or cut short."
                ) from error

        hints = get_type_hints(function, include_extras=True)
        own = list(inspect.signature(function).parameters.values())[1:]
        own_seed = any(p.name == "seed" for p in own)
        own = [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for key, (annotation, default) in _COMMON.items()
            if not (own_seed and key == "seed")
        ]
        command.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in [*own, *common]}
        epilog = "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in examples)
        app.command(name, epilog=epilog, context_settings=context)(command)
        return function

    return register


def failure(error: BaseException) -> dict[str, Any]:
    """An exception as the JSON object that `--json` prints for it."""
    message, remedy = _told(error)
    entry: dict[str, Any] = {"type": type(error).__name__, "message": message, "remedy": remedy}
    if isinstance(error, OSError) and not isinstance(error, KexueError) and error.filename is not None:
        entry["path"] = str(error.filename)
    for place in ("path", "line", "column"):
        value = getattr(error, place, None)
        if value is not None:
            entry[place] = value
    return {"error": entry}


def _told(error: BaseException) -> tuple[str, str | None]:
    """What went wrong, and what to do about it."""
    if isinstance(error, KexueError):
        return error.message, error.remedy
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0]), None  # str() of a KeyError would add quotes
    if isinstance(error, OSError) and error.errno is not None:
        message, remedy = explain(error)
        return f"{error.filename}: {message}" if error.filename is not None else message, remedy
    if isinstance(error, MemoryError):
        return "not enough memory.", "Give it more, or take less at a time: smaller files, --batch-tokens, --memory."
    context = getattr(error, "ctx", None)  # of wrong usage
    return str(error) or type(error).__name__, f"See {context.command_path} --help." if context else None


def print_failure(error: BaseException) -> None:
    """Say what failed, where and what to do, on stderr."""
    message, remedy = _told(error)
    print(visible(f"kexue: {message}"), file=sys.stderr)
    if remedy:
        print(visible(f"       {remedy}"), file=sys.stderr)


def _set_up_logging(*, quiet: bool, verbose: bool) -> None:
    wanted = "debug" if verbose else os.environ.get("KEXUE_LOG", "warning").lower()
    levels = ("debug", "info", "warning", "error")
    if wanted not in levels:
        raise typer.BadParameter(f"KEXUE_LOG must be one of {', '.join(levels)}, got {wanted!r}")
    level = logging.ERROR if quiet else getattr(logging, wanted.upper())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("kexue: %(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("kexue").setLevel(level)
    warnings.simplefilter("ignore" if quiet else "default")
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(visible(f"kexue: warning: {message}"), file=sys.stderr)
