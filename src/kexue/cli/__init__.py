"""The command line: `kexue VERB ...`. One file per verb; it imports the rest of the package only when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import kexue
from kexue._text import visible
from kexue.cli import (
    _verb,
    clue,
    clue_train,
    cluster,
    compare,
    demo,
    doctor,
    evaluate,
    extract,
    generate,
    hubness,
    index,
    index_duplicates,
    index_merge,
    mcp,
    model,
    models,
    plan,
    projector,
    reproduce,
    sample,
    search,
    serve,
    shuffle,
    solve,
    summarize,
    train,
    whiten,
)
from kexue.errors import KexueError

__all__ = ["app", "main"]

app = typer.Typer(
    name="kexue",
    help="Search your own texts by meaning, and run the experiments of the articles of kexue.fm.",
    epilog="Start with `kexue demo`, then `kexue index build faq.jsonl --text question --out faq.kx`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for module in (index_merge, index_duplicates):
    module.register(index.app)
clue_train.register(clue.app)
app.add_typer(index.app, name="index")
app.add_typer(whiten.app, name="whiten")
app.add_typer(train.app, name="train")
app.add_typer(model.app, name="model")
app.add_typer(clue.app, name="clue")
app.add_typer(extract.app, name="extract")
app.add_typer(sample.app, name="sample")
app.add_typer(cluster.app, name="cluster")
app.add_typer(projector.app, name="projector")
for module in (
    search, serve, mcp, compare, evaluate, hubness, summarize, generate, plan, shuffle, solve, reproduce, demo,
    models, doctor,
):  # fmt: skip
    module.register(app)

_UsageError: type[Any] = typer.BadParameter.__mro__[1]  # click's class, wherever this version of typer keeps it


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kexue {kexue.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 ok, 1 failed, 2 wrong usage, 130 interrupted.

    Example:
        >>> from kexue.cli import main
        >>> main(["--version"])
        kexue 0.1.0
        0
    """
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has ended, as `| head` does
        _verb.discard_stdout()
        return 0
    return code


def _run(arguments: list[str]) -> int:
    """Run the command line; print an error in the form that `--json` or a person expects."""
    as_json = "--json" in arguments
    try:
        with _verb.telling_memory():
            code = app(arguments, standalone_mode=False, prog_name="kexue")
    except _UsageError as error:
        if as_json:
            print(_verb.json_line(_verb.failure_record(error)))
        else:
            error.message = visible(str(error.message))
            error.show()
        return _verb.EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        print("kexue: interrupted", file=sys.stderr)
        return _verb.EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except (KexueError, OSError, ValueError, KeyError, TypeError, ArithmeticError, MemoryError) as error:
        if as_json:
            print(_verb.json_line(_verb.failure_record(error)))
        else:
            _verb.print_failure(error)
        return _verb.EXIT_FAILED
    return code if isinstance(code, int) else 0
