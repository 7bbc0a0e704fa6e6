"""`kexue summarize`: choose the sentences that best represent many, around a topic."""

from __future__ import annotations

from typing import Annotated

import typer

from kexue.cli import _options as opt
from kexue.cli._verb import Output, verb

_EXAMPLES = (
    "kexue summarize reviews.txt -n 5",
    "kexue summarize reviews.txt --topic battery --budget 40",
    "kexue summarize reviews.csv --text review --topic 电池 --model chinese-encoder/ --json",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "summarize", examples=_EXAMPLES)(summarize)


def summarize(
    out: Output,
    inputs: opt.Inputs,
    topic: Annotated[
        list[str] | None,
        typer.Option(help="Topic word: the topic is the mean of the sentences that contain it. Repeat for several."),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Largest number of sentences.", min=1)] = 5,
    k: Annotated[int, typer.Option("-k", help="Number of neighbours in the graph.", min=1)] = 10,
    redundancy: Annotated[
        float, typer.Option(help="A sentence is skipped if its cosine to a chosen one is larger than this.")
    ] = 0.8,
    budget: Annotated[
        int | None, typer.Option(help="Largest number of words in all; a Chinese character counts as one.")
    ] = None,
    text: opt.TextColumn = None,
    encoding_errors: opt.EncodingErrors = "strict",
    max_bytes: opt.MaxBytes = "16M",
    model: opt.Model = "auto",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_tokens: opt.BatchTokens = 8192,
) -> None:
    """Choose the sentences nearest to a topic by geodesic distance, leaving out almost equal ones."""
    from kexue.corpus import read_records
    from kexue.similarity import GeodesicSummarizer

    records = read_records(inputs, text=text, errors=encoding_errors, max_bytes=opt.parse_size(max_bytes))
    sentences = [record.text for record in records]
    encoder = opt.load_encoder(model, device, dtype, batch_tokens)
    with out.progress("encoding") as progress:
        summary = GeodesicSummarizer(k, topic=topic or "mean", redundancy=redundancy, budget=budget).summarize(
            sentences, lambda texts: encoder.encode_queries(texts, progress=progress), n=n
        )
    chosen = zip(summary.indices, summary.sentences, summary.scores, summary.distances, summary.paths, strict=True)
    record = {
        "topic": topic or "mean",
        "n": len(sentences),
        "unreachable": summary.n_unreachable,
        "sentences": [
            {"index": index, "text": sentence, "score": score, "distance": distance, "path": path}
            for index, sentence, score, distance, path in chosen
        ],
    }
    lines = [f"{d:.3f}  {s}" for d, s in zip(summary.distances, summary.sentences, strict=True)]
    head = f"distance  sentence ({len(summary.indices)} of {len(sentences)})"
    out.emit(record, lambda: "\n".join([head, *lines]))
