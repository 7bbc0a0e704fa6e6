"""Common options of every verb, and how output and errors are printed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, get_type_hints

import typer

from kexue._files import explain
from kexue._progress import Progress
from kexue._text import visible
from kexue.errors import DataError, KexueError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_COMMON: dict[str, tuple[Any, Any]] = {
    "json_output": (Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")], False),
    "seed": (Annotated[int, typer.Option("--seed", help="Random seed.")], 0),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no warnings.")], False),
    "verbose": (Annotated[bool, typer.Option("--verbose", "-v", help="Log details on stderr.")], False),
}
_HIDDEN_SEED = (Annotated[int, typer.Option("--seed", hidden=True)], 0)


class _Visible:
    """A rich renderable with the control characters of users' texts made visible."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        for segment in console.render(self._answer, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@dataclasses.dataclass(frozen=True)
class Output:
    """Output of a verb: its result on stdout, progress and messages on stderr."""

    json: bool
    seed: int
    quiet: bool

    def emit(self, record: Mapping[str, Any], render: Callable[[], Any]) -> None:
        """Print one result: `record` as a JSON line with `--json`, else the text or rich object of `render`."""
        if self.json:
            print(json_line(record), flush=True)
            return
        answer = render()
        if isinstance(answer, str):
            print(visible(answer), flush=True)
            return
        from rich.console import Console

        # A pipe has no width: use a large one rather than cut columns.
        console = Console() if sys.stdout.isatty() else Console(width=160)
        console.print(_Visible(answer), markup=False, highlight=False)

    def emit_training(self, result: Any, measure: str, made: str) -> None:
        """Print the result of a training; exit with the code of an interruption where a signal ended it.

        Args:
            result: a `TrainResult`.
            measure: name of its value, for a person.
            made: what the training has made, for a person.
        """
        best = "" if result.best_step is None else f" (best, step {result.best_step:,})"
        value = "" if result.value is None else f"{measure} {result.value:.4g}{best}, "
        self.emit(
            dataclasses.asdict(result),
            lambda: (
                f"{result.steps:,} steps, {value}{result.seconds:,.0f} s\n"
                f"{made}{', of an interrupted run' * result.interrupted}"
            ),
        )
        if result.interrupted:
            raise KeyboardInterrupt

    def remark(self, text: str) -> None:
        """Print a message on stderr, which is not part of the result."""
        if not self.quiet:
            print(visible(text), file=sys.stderr, flush=True)

    def confirm(self, question: str, option: str) -> None:
        """Ask on stderr, and exit unless the answer is yes; `option` is the option that answers yes beforehand."""
        print(visible(f"{question} [y/N]: "), end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline() if sys.stdin is not None else ""
        if not answer:
            raise typer.BadParameter(
                f"no answer was given (expected y or n on stdin); add {option} to skip the question"
            )
        if answer.strip().lower() not in ("y", "yes"):
            self.remark("nothing was done")
            raise typer.Exit(EXIT_FAILED)

    @contextmanager
    def progress(self, label: str) -> Iterator[Progress]:
        """Yield a progress function that draws a bar on stderr, unless `--quiet` or stderr is not a terminal."""
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
        hidden = self.quiet or not console.is_terminal
        with Bar(*columns, console=console, transient=True, disable=hidden, redirect_stdout=False) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def json_line(record: Mapping[str, Any]) -> str:
    """Return a record as one line of JSON with all control characters escaped; JSON only requires those of ASCII."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False, default=str).translate(_CONTROLS)


_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def verb(
    app: typer.Typer,
    name: str,
    *,
    examples: tuple[str, ...],
    context: dict[str, Any] | None = None,
    seeded: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a verb with the common options; its first argument is an `Output`.

    Args:
        app: the group of verbs.
        name: the verb as typed.
        examples: command lines at the end of `--help`.
        context: settings of click, such as whether an unknown option is an argument.
        seeded: the verb uses the seed of its `Output`. Other verbs accept `--seed` without showing it in their help;
            one with its own argument `seed` gets that instead.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(*, json_output: bool, quiet: bool, verbose: bool, **arguments: Any) -> None:
            _set_up_logging(quiet=quiet, verbose=verbose)
            seed = 0 if own_seed else arguments.pop("seed")
            try:
                function(Output(json_output, seed, quiet), **arguments)
            except KeyboardInterrupt as error:
                again = "; run the same command again to continue" if arguments.get("resume") else ""
                print(f"kexue: interrupted{again}", file=sys.stderr)
                raise typer.Exit(EXIT_INTERRUPTED) from error
            except BrokenPipeError as error:  # the reader of the output has ended, as `| head` does
                discard_stdout()
                raise typer.Exit from error
            except EOFError as error:  # typer would take it for Ctrl-C
                raise DataError(f"a file is truncated ({error}).", remedy="Fetch or write it again.") from error

        hints = get_type_hints(function, include_extras=True)
        own = list(inspect.signature(function).parameters.values())[1:]
        own_seed = any(p.name == "seed" for p in own)
        own = [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        options = {key: value for key, value in _COMMON.items() if not (own_seed and key == "seed")}
        if not (own_seed or seeded):
            options["seed"] = _HIDDEN_SEED
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for key, (annotation, default) in options.items()
        ]
        command.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in [*own, *common]}
        epilog = "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in examples)
        app.command(name, epilog=epilog, context_settings=context)(command)
        return function

    return register


@contextmanager
def telling_memory() -> Iterator[None]:
    """Turn torch's errors of too little memory, which are no MemoryError, into one."""
    try:
        yield
    except RuntimeError as error:
        if "memory" in str(error) and "allocate" in str(error):
            raise MemoryError from error
        raise


def discard_stdout() -> None:
    """Point the process's standard output at the null device, so that the flush at exit does not fail."""
    if sys.stdout is not sys.__stdout__ or sys.stdout is None:  # replaced by a caller of `main`, whose it is
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, sys.stdout.fileno())
    finally:
        os.close(null)


def failure_record(error: BaseException) -> dict[str, Any]:
    """Return an exception as the JSON object that `--json` prints."""
    message, remedy = _describe(error)
    entry: dict[str, Any] = {"type": type(error).__name__, "message": message, "remedy": remedy}
    if isinstance(error, OSError) and not isinstance(error, KexueError) and error.filename is not None:
        entry["path"] = str(error.filename)
    for place in ("path", "line", "column"):
        value = getattr(error, place, None)
        if value is not None:
            entry[place] = value
    if faults := getattr(error, "faults", None):
        entry["faults"] = faults
    return {"error": entry}


def _describe(error: BaseException) -> tuple[str, str | None]:
    """Return the message of an exception, and the remedy if it has one."""
    if isinstance(error, KexueError):
        return error.message, error.remedy
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0]), None  # str() of a KeyError would add quotes
    if isinstance(error, OSError) and error.errno is not None:
        message, remedy = explain(error)
        return f"{error.filename}: {message}" if error.filename is not None else message, remedy
    if isinstance(error, MemoryError):
        return (
            "not enough memory.",
            "Use a machine with more memory, smaller files, or lower --batch-tokens, --memory or --image-size.",
        )
    context = getattr(error, "ctx", None)  # of wrong usage
    return str(error) or type(error).__name__, f"See {context.command_path} --help." if context else None


def print_failure(error: BaseException) -> None:
    """Print message and remedy of an exception on stderr."""
    message, remedy = _describe(error)
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
