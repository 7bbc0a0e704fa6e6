"""`kexue extract`: triples from texts, from training to predictions and their scores."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from kexue.cli import _options as opt
from kexue.cli._verb import Output, verb

app = typer.Typer(
    help="Find triples (subject, predicate, object) in texts with a model that you train on annotated ones.",
    no_args_is_help=True,
)

RunFolder = Annotated[str, typer.Argument(help="Folder of a run of kexue extract train.", metavar="RUN")]
_ANNOTATED = (
    "JSON Lines with text and spo_list, or a table with text, subject, predicate, object; sample: 32 sentences."
)


@verb(
    app,
    "train",
    examples=(
        "kexue extract train --train train.csv --dev dev.csv --out run",
        "kexue extract train --train train.jsonl.gz --dev dev.jsonl.gz --schema schemas.jsonl --out run "
        "--word-vectors vectors.txt",
        "kexue extract train --train train.csv --dev dev.csv --out run --model-type gplinker --encoder bert/",
    ),
    seeded=True,
)
def train(
    out: Output,
    train: Annotated[str, typer.Option("--train", help=f"File to learn from: {_ANNOTATED}")],
    dev: Annotated[str, typer.Option(help="Another such file: the step with the highest F1 on it is kept.")],
    folder: Annotated[str, typer.Option("--out", "-o", help="Folder of the run; the model is in its folder model.")],
    schema: Annotated[
        str | None, typer.Option(help="JSON Lines with a predicate each; default: the predicates of --train and --dev.")
    ] = None,
    model_type: Annotated[
        Literal["dgcnn", "gplinker"],
        typer.Option(help="dgcnn: a small network of convolutions; gplinker: heads on a pretrained encoder."),
    ] = "dgcnn",
    word_vectors: Annotated[
        str | None,
        typer.Option(help="Of dgcnn: vectors in the text format of word2vec, or none.", metavar="FILE|none"),
    ] = None,
    segmenter: Annotated[
        Literal["jieba", "longest", "characters"] | None,
        typer.Option(help="What splits a text into the words that have vectors; default: by the file of vectors."),
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="Of gplinker: the encoder, a folder or a name (kexue models).")
    ] = "kexue/roformer-sim-tiny-zh",
    dim: Annotated[int, typer.Option(help="Width of dgcnn.", min=1)] = 128,
    num_layers: Annotated[int, typer.Option(help="Convolutions of dgcnn.", min=1, max=12)] = 12,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Characters (gplinker: tokens) of a text that are read; default: 512, or what the encoder can.", min=1
        ),
    ] = None,
    subject_sampling: Annotated[
        Literal["mixed", "gold"], typer.Option(help="Of dgcnn: mixed also learns from subjects that are none.")
    ] = "mixed",
    prior: Annotated[bool, typer.Option("--prior", help="Of dgcnn: known triples are features.")] = False,
    augmentation: Annotated[
        float, typer.Option(help="Share of texts in which a triple is replaced; none with --prior.", min=0, max=1)
    ] = 0.5,
    batch_size: Annotated[
        int | None, typer.Option(help="Texts of a step; default: a 160th of the texts, from 8 to 64.", min=1)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Largest learning rate; default: by the kind of model.")] = None,
    epochs: Annotated[int, typer.Option(help="Most epochs of the first stage.", min=1)] = 50,
    fine_epochs: Annotated[int, typer.Option(help="Epochs of the second stage, at a tenth of the rate.", min=0)] = 10,
    patience: Annotated[
        int, typer.Option(help="Epochs without a better F1 that end the first stage, once a triple was right.", min=1)
    ] = 8,
    device: opt.Device = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Precision of the arithmetic.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(help="Stop after this many steps, to try it out.", min=1)] = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run; --no-resume starts again.")] = True,
) -> None:
    """Train a model that finds triples. After an interruption the same command continues."""
    from kexue.extract import ExtractConfig, train_extractor

    config = ExtractConfig(
        train,
        dev,
        folder,
        schema=schema,
        model_type=model_type,
        word_vectors=None if word_vectors == "none" else word_vectors,
        segmenter=segmenter,
        encoder=encoder,
        dim=dim,
        num_layers=num_layers,
        max_length=max_length,
        subject_sampling=subject_sampling,
        prior=prior,
        augmentation=augmentation,
        batch_size=batch_size,
        lr=lr,
        epochs=epochs,
        fine_epochs=fine_epochs,
        patience=patience,
        seed=out.seed,
        device=device,
        precision=precision,
        limit=limit,
        resume=resume,
    )
    result = train_extractor(config, progress=out.progress)
    if result.value == 0:
        out.remark("No triple of --dev is right: train longer (--epochs), or with more texts.")
    out.emit_training(result, "F1", f"model: {result.run}/model")


@verb(
    app,
    "predict",
    examples=(
        "kexue extract predict run news.txt --out triples.jsonl",
        "kexue extract predict run news.csv --text body --out triples.jsonl --tail-threshold 0.3",
    ),
)
def predict(
    out: Output,
    run: RunFolder,
    inputs: opt.Inputs,
    file: Annotated[str, typer.Option("--out", "-o", help="File of JSON Lines, a text and its triples each.")],
    head_threshold: Annotated[
        float | None, typer.Option(help="Probability that a beginning must exceed; default: that of the model.")
    ] = None,
    tail_threshold: Annotated[
        float | None, typer.Option(help="Probability that an end must exceed; default: that of the model.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Texts of a forward pass.", min=1)] = 64,
    text: opt.TextColumn = None,
    format: opt.Format = "auto",
    device: opt.Device = "auto",
) -> None:
    """Find the triples of texts, and write them to a file."""
    import time

    from kexue._files import check_output
    from kexue._text import say_count
    from kexue.corpus import read_records
    from kexue.extract import open_extractor, write_predictions

    check_output(file, inputs=inputs)
    model = open_extractor(run, device=device)
    texts = [record.text for record in read_records(inputs, text=text, format=format)]
    started = time.perf_counter()
    with out.progress("extracting") as report:
        found = model.extract(
            texts,
            head_threshold=head_threshold,
            tail_threshold=tail_threshold,
            batch_size=batch_size,
            progress=report,
        )
    seconds = time.perf_counter() - started
    write_predictions(file, texts, found)
    record = {"out": file, "n": len(texts), "triples": sum(map(len, found)), "seconds": seconds}
    counts = say_count(sum(map(len, found)), "triple"), say_count(len(texts), "text")
    out.emit(record, lambda: f"{counts[0]} of {counts[1]} in {seconds:,.1f} s: {file}")


@verb(app, "eval", examples=("kexue extract eval --pred triples.jsonl --gold dev.jsonl",))
def evaluate(
    out: Output,
    pred: Annotated[str, typer.Option(help="File of kexue extract predict.")],
    gold: Annotated[str, typer.Option(help=f"The same texts, annotated: {_ANNOTATED}")],
    match: Annotated[
        Literal["string", "tokens"],
        typer.Option(help="How strings are compared; tokens: spaces and accents do not count."),
    ] = "string",
) -> None:
    """Compare predicted with annotated triples."""
    from kexue.extract import score_files

    score, (low, high) = score_files(pred, gold, match=match)
    out.emit(
        {**score._asdict(), "f1_interval": [low, high]},
        lambda: (
            f"F1 {score.f1:.4f} (95 % interval {low:.4f} to {high:.4f}; match by {match}), "
            f"precision {score.precision:.4f}, recall {score.recall:.4f}\n"
            f"{score.n_correct:,} correct of {score.n_pred:,} predicted and {score.n_gold:,} annotated"
        ),
    )


@verb(app, "tune", examples=("kexue extract tune run --dev dev.jsonl",))
def tune(
    out: Output,
    run: RunFolder,
    dev: Annotated[str, typer.Option(help=f"Annotated texts that were not trained on: {_ANNOTATED}")],
    device: opt.Device = "auto",
) -> None:
    """Find the thresholds with the highest F1."""
    from kexue.extract import open_extractor, read_triples, tune_thresholds

    model, examples = open_extractor(run, device=device), read_triples(dev)
    with out.progress("thresholds") as report:
        best = tune_thresholds(model, examples, progress=report)
    record = {**best._asdict(), "table": [row._asdict() for row in best.table]}
    lines = ["head  tail  precision  recall  F1"]
    lines += [f"{h:.1f}   {t:.1f}   {p:.4f}     {r:.4f}  {f:.4f}" for h, t, p, r, f in best.table]
    answer = f"--head-threshold {best.head} --tail-threshold {best.tail}: F1 {best.f1:.4f}"
    out.emit(record, lambda: "\n".join([*lines, answer]))
