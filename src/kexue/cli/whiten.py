"""`kexue whiten`: fit, apply, tune and export a whitening."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue._files import check_output, replacing
from kexue.cli import _options as opt
from kexue.cli._verb import Output, verb

if TYPE_CHECKING:
    import numpy as np


app = typer.Typer(help="Fit, apply, tune and export a whitening.", no_args_is_help=True)

_Beta = Annotated[float, typer.Option(help="Share of the mean to subtract: 0 none, 1 all.")]
_Gamma = Annotated[float, typer.Option(help="Strength of the scaling: 0 rotates only, 1 whitens fully.")]
_Whitening = Annotated[Path, typer.Argument(help="A file from `kexue whiten fit` or `tune`.", metavar="W")]
_OutFile = Annotated[Path, typer.Option("--out", help="File to write.")]


@verb(
    app,
    "fit",
    examples=(
        "kexue whiten fit faq.jsonl --text question --dims 128 --out w.safetensors",
        "kexue whiten fit x.npy --out w.safetensors",
    ),
)
def fit(
    out: Output,
    inputs: Annotated[list[str], typer.Argument(help="Text files, or .npy files of vectors (n, d).")],
    target: _OutFile,
    beta: _Beta = 1.0,
    gamma: _Gamma = 1.0,
    dims: opt.Dims = None,
    text: opt.TextColumn = None,
    encoding_errors: opt.EncodingErrors = "strict",
    max_bytes: opt.MaxBytes = "16M",
    model: opt.Model = "auto",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_tokens: opt.BatchTokens = 8192,
) -> None:
    """Fit a whitening to vectors, or to texts that are encoded first; memory does not grow with the input."""
    from kexue.corpus.vectors import read_vectors, vector_chunks
    from kexue.similarity import Whitening

    check_output(target, inputs=inputs)
    start = time.perf_counter()
    whitening = Whitening(dims, beta=beta, gamma=gamma)
    chunks: Iterable[np.ndarray[Any, Any]]
    files = [name for name in inputs if name.endswith(".npy")]
    if files and len(files) < len(inputs):
        raise typer.BadParameter("give files of vectors (.npy) or files of texts, not both")
    if files:
        chunks = itertools.chain.from_iterable([vector_chunks(read_vectors(name), name) for name in files])
    else:
        encoder = opt.load_encoder(model, device, dtype, batch_tokens)
        chunks = _encode_chunks(encoder.encode_documents, inputs, text, encoding_errors, max_bytes)
    with out.progress("fitting") as progress:
        done = 0
        for chunk in chunks:
            whitening.partial_fit(chunk)
            progress(done := done + len(chunk), None)
    whitening.save(target)
    record = {
        "whitening": str(target),
        "n": int(whitening.n_samples_seen_),
        "d": len(whitening.mean_),
        "k": whitening.kernel_.shape[1],
        "rank": int(whitening.rank_),
        "beta": beta,
        "gamma": gamma,
        "explained": float(whitening.explained_variance_ratio_.sum()),
        "seconds": time.perf_counter() - start,
    }
    out.emit(
        record,
        lambda: "{n:,} vectors, {d} -> {k} dimensions that keep {explained:.1%} of the variance; {whitening}".format(
            **record
        ),
    )


@verb(app, "apply", examples=("kexue whiten apply w.safetensors x.npy --out y.npy",))
def apply(
    out: Output,
    whitening: _Whitening,
    vectors: Annotated[Path, typer.Argument(help="A .npy file (n, d).")],
    target: _OutFile,
) -> None:
    """Transform a file of vectors, chunk by chunk."""
    import numpy as np

    from kexue.corpus.vectors import CHUNK, read_vectors, vector_chunks
    from kexue.similarity import Whitening

    check_output(target, inputs=[vectors])
    start = time.perf_counter()
    loaded, source = Whitening.load(whitening), read_vectors(vectors)
    shape = (len(source), loaded.kernel_.shape[1])
    with out.progress("transforming") as progress, replacing(target) as temporary, temporary.open("wb") as stream:
        header = {"descr": source.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for position, chunk in enumerate(vector_chunks(source, vectors)):
            stream.write(np.ascontiguousarray(loaded.transform(chunk), dtype=source.dtype).tobytes())
            progress(min(len(source), (position + 1) * CHUNK), len(source))
    record = {"out": str(target), "n": shape[0], "k": shape[1], "seconds": time.perf_counter() - start}
    out.emit(record, lambda: f"{shape[0]:,} vectors of {shape[1]} dimensions in {target}")


@verb(
    app,
    "tune",
    examples=(
        "kexue whiten tune pairs.tsv --out w.safetensors",
        "kexue whiten tune stsb_en --cv 5 --out w.safetensors",
    ),
    seeded=True,
)
def tune(
    out: Output,
    pairs: Annotated[
        str, typer.Argument(help="Labelled pairs: a tsv, csv or jsonl file, or the name of a set in KEXUE_DATA.")
    ],
    target: _OutFile,
    fit_on: Annotated[
        list[str] | None,
        typer.Option("--fit", help="Files of texts for the statistics; default: the texts of the pairs."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of a named set, such as test.")] = None,
    cv: Annotated[int, typer.Option(help="Number of folds of the cross-validation.", min=2)] = 5,
    text: opt.TextColumn = None,
    encoding_errors: opt.EncodingErrors = "strict",
    max_bytes: opt.MaxBytes = "16M",
    model: opt.Model = "auto",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_tokens: opt.BatchTokens = 8192,
) -> None:
    """Choose beta, gamma and the dimensions on labelled pairs; the score printed is that of held-out pairs."""
    import numpy as np

    from kexue.similarity import load_pairs, tune_whitening

    check_output(target, inputs=[pairs, *(fit_on or ())])
    data = load_pairs(pairs, split, errors=encoding_errors, max_bytes=opt.parse_size(max_bytes))
    encoder = opt.load_encoder(model, device, dtype, batch_tokens)
    with out.progress("encoding") as progress:
        both = encoder.encode_queries([*data.texts_a, *data.texts_b], progress=progress)
    a, b = both[: len(data.texts_a)], both[len(data.texts_a) :]
    fitted_on = both
    if fit_on:
        chunks = _encode_chunks(encoder.encode_queries, fit_on, text, encoding_errors, max_bytes)
        fitted_on = np.concatenate(list(chunks))
    tuned = tune_whitening(fitted_on, (a, b), data.labels, cv=cv, generator=out.seed)
    tuned.whitening.save(target)
    table = [dataclasses.asdict(row) if dataclasses.is_dataclass(row) else dict(row) for row in tuned.table]
    record = {
        "beta": tuned.whitening.beta,
        "gamma": tuned.whitening.gamma,
        "k": tuned.whitening.kernel_.shape[1],
        "score": tuned.score,
        "low": tuned.low,
        "high": tuned.high,
        "raw": tuned.raw,
        "table": table,
        "advice": tuned.advice,
        "whitening": str(target),
    }
    out.emit(
        record,
        lambda: (
            "beta {beta:g}, gamma {gamma:g}, {k} dimensions: held-out Spearman {score:.3f} "
            "[{low:.3f}, {high:.3f}], raw vectors {raw:.3f}\n{advice}\n{whitening}".format(**record)
        ),
    )


@verb(app, "export", examples=("kexue whiten export w.safetensors all-MiniLM-L6-v2/ --out model-128/",))
def export(
    out: Output,
    whitening: _Whitening,
    model: Annotated[str, typer.Argument(help="Encoder: a folder, a name or hub id, or auto (for English).")],
    target: Annotated[Path, typer.Option("--out", help="Folder to write.")],
) -> None:
    """Export the encoder with the whitening as a Dense layer, which other servers can load."""
    import json

    import numpy as np

    from kexue.similarity import Whitening
    from kexue.text import Encoder, find_model

    loaded, folder = Whitening.load(whitening), find_model(model)
    loaded.export_dense(folder, target)
    probes = ["A probe sentence.", "Another one, a little longer than the first.", "42"]
    expected = loaded.transform(Encoder(str(folder), dtype="float32").encode(probes))
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    received = Encoder(str(target), dtype="float32").encode(probes)
    stages = [stage["path"] or "." for stage in json.loads((target / "modules.json").read_bytes())]
    record = {
        "folder": str(target),
        "stages": stages,
        "dims": received.shape[1],
        "max_difference": float(np.abs(received - expected).max()),
    }
    out.emit(
        record,
        lambda: (
            f"{target}: {received.shape[1]} dimensions, stages {', '.join(stages)}; "
            f"differs from the original by at most {record['max_difference']:.1e}"
        ),
    )


def _encode_chunks(
    encode: Callable[[list[str]], np.ndarray[Any, Any]],
    inputs: list[str],
    text: str | None,
    errors: str,
    max_bytes: str,
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the vectors of the texts in files, chunk by chunk."""
    from kexue.corpus import read_records
    from kexue.corpus.vectors import CHUNK

    records = read_records(inputs, text=text, errors=errors, max_bytes=opt.parse_size(max_bytes))
    texts = (record.text for record in records)
    while chunk := list(itertools.islice(texts, CHUNK)):
        yield encode(chunk)
