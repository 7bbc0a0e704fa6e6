"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from kexue.similarity import Whitening
    from kexue.text import Encoder

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Files (txt, csv, tsv, xlsx, jsonl, parquet; also compressed), folders of text files, or - for stdin."
    ),
]
IndexPath = Annotated[str, typer.Argument(help="Index: a file, or milvus://HOST:PORT/NAME.", metavar="INDEX")]
TextColumn = Annotated[str | None, typer.Option("--text", help="Column of the text.")]
IdColumn = Annotated[str | None, typer.Option("--id", help="Column of the id; default: a hash of the text.")]
MetadataColumns = Annotated[
    list[str] | None,
    typer.Option("--metadata", help="Metadata columns to store, for filters; separated by commas, or repeated."),
]
Format = Annotated[str, typer.Option("--format", help="auto, txt, csv, tsv, xlsx, jsonl or parquet.")]
EncodingErrors = Annotated[
    Literal["strict", "replace"],
    typer.Option("--encoding-errors", help="strict: a malformed byte is an error; replace: insert U+FFFD and count."),
]
Encoding = Annotated[
    str, typer.Option("--encoding", help="auto (UTF-8, UTF-16 with its mark, GB18030), or a name such as big5.")
]
Delimiter = Annotated[
    str | None,
    typer.Option("--delimiter", help="What separates the fields of csv and tsv; default: found in the file."),
]
Sheet = Annotated[str | None, typer.Option("--sheet", help="Sheet of an xlsx file; default: the first that is shown.")]
OnError = Annotated[
    Literal["stop", "skip"],
    typer.Option("--on-error", help="Records without text or id, malformed or double ones: stop, or skip them."),
]
Check = Annotated[bool, typer.Option("--check", help="Only read, and report every fault; exit code 1 if there is any.")]
MaxBytes = Annotated[str, typer.Option("--max-bytes", help="Longest line, row or document to read, such as 64M.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="Encoder: a folder, a name or hub id (kexue models), or auto: by the texts.",
        envvar="KEXUE_MODEL",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
BatchTokens = Annotated[int, typer.Option("--batch-tokens", help="Tokens of one batch.", min=1)]
Dehub = Annotated[
    Literal["none", "csls", "center"],
    typer.Option("--dehub", help="Correction for hubs (documents that are near very many others): csls or center."),
]
Approx = Annotated[
    str, typer.Option("--approx", help="Kind of search: exact, approx, or auto (approx in a large index).")
]
Passages = Annotated[
    str,
    typer.Option(
        "--passages",
        help="Passages of long texts: auto (of what is longer than the model reads), none, TOKENS, or TOKENS:OVERLAP.",
    ),
]
Truncate = Annotated[
    Literal["allow", "error"],
    typer.Option("--truncate", help="Texts whose end the model would not read: allow counts them, error refuses them."),
]
Dims = Annotated[int | None, typer.Option("--dims", help="Dimensions to keep.", min=1)]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        help="Condition FIELD=VALUE (or !=, <, <=, >, >=), FIELD=A|B for one of several values, or a filter in JSON; "
        "with several conditions, all must hold.",
    ),
]


def load_encoder(model: str, device: str, dtype: str, batch_tokens: int, **options: Any) -> Encoder:
    """Open the encoder that the common model options describe."""
    from kexue.text import Encoder

    return Encoder(model, device=device, dtype=dtype, batch_tokens=batch_tokens, **options)


def parse_size(size: str) -> int:
    """Parse ``"16M"`` as bytes."""
    from kexue.corpus.shuffle.options import parse_size

    return parse_size(size, "--max-bytes")


def parse_delimiter(delimiter: str | None) -> str | None:
    """Return a delimiter; ``tab``, and a backslash with t, stand for a tab."""
    return "\t" if delimiter in ("tab", "\\t") else delimiter


def split_names(given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of an option that may be repeated, each time with several names: no name comes twice.

    >>> split_names(["a, b", "c", "a"])
    ('a', 'b', 'c')
    """
    names = (name.strip() for words in given or () for name in words.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


def parse_passages(given: str) -> str:
    """Return a `--passages` value after a check; typer.BadParameter where it is malformed."""
    from kexue.search.splitting import Splitting

    try:
        Splitting.parse(given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return given


def parse_whitening(spec: str, dims: int | None = None) -> Whitening | None:
    """Parse a `--whiten` value: the name of a preset, a saved file, or ``beta=1,gamma=0.5,k=128``.

    Args:
        spec: ``"none"``, ``"pca"``, ``"rotate"``, ``"whiten"``, a path, or settings separated by commas.
        dims: dimensions to keep; None: those of `spec`.

    Raises:
        typer.BadParameter: `spec` is none of these.
    """
    from kexue.similarity import Whitening

    if spec == "none":
        if dims is not None:
            raise typer.BadParameter("--dims needs a whitening: add --whiten pca (or rotate, whiten)")
        return None
    if spec in ("pca", "rotate", "whiten"):
        return Whitening.preset(spec, dims)
    if Path(spec).is_file():
        saved = Whitening.load(spec)
        return saved if dims is None else saved.with_params(n_components=dims)
    names = {"beta": "beta", "gamma": "gamma", "k": "n_components"}
    settings: dict[str, Any] = {} if dims is None else {"n_components": dims}
    for part in spec.split(","):
        key, _equals, value = part.partition("=")
        try:
            settings[names[key.strip()]] = int(value) if key.strip() == "k" else float(value)
        except (KeyError, ValueError):
            raise typer.BadParameter(
                f"--whiten {spec!r} is neither a saved file nor a known setting; give none, pca, rotate, whiten, "
                "a file from `kexue whiten fit`, or settings such as beta=1,gamma=0.5,k=128"
            ) from None
    return Whitening(**settings)
