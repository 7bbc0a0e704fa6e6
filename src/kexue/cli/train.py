"""`kexue train`: training of models."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from kexue.cli._verb import Output, verb

app = typer.Typer(help="Train models; an interrupted training continues.", no_args_is_help=True)

_EXAMPLES = (
    "kexue train sentences --data pairs.tsv --out run --init kexue/roformer-sim-tiny-zh",
    "kexue train sentences --stage distill --data texts.txt --teacher multilingual-e5-small --out run "
    "--validation stsb_zh --steps 20000",
    "kexue train sentences --stage supervise --data labelled.jsonl --validation valid.tsv --init run/model --out run2",
)


@verb(app, "sentences", examples=_EXAMPLES, seeded=True)
def sentences(
    out: Output,
    data: Annotated[
        list[str],
        typer.Option(
            help="File of texts (.txt, a text a line), pairs or groups (tsv, csv, jsonl, xlsx, parquet; columns "
            "text_a, text_b and maybe label, or texts); several may follow."
        ),
    ],
    folder: Annotated[str, typer.Option("--out", help="Folder of the run; the model is in its folder model.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="More files of --data.")] = None,
    stage: Annotated[
        Literal["pretrain", "distill", "supervise"],
        typer.Option(
            help="pretrain: from texts that mean the same; distill: from any texts and a teacher; supervise: from "
            "labelled pairs."
        ),
    ] = "pretrain",
    init: Annotated[
        str | None,
        typer.Option(help="Model to start from; teacher: the first layers of the teacher; default: a new one."),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Model to learn from, for distill.")] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            help="Labelled pairs: a file, or the name of a set, of which valid is read; the step with the "
            "highest Spearman correlation is kept. Default: the last step."
        ),
    ] = None,
    loss: Annotated[
        Literal["cosent", "classify", "mse", "hinge"], typer.Option(help="Loss on labelled pairs, for supervise.")
    ] = "cosent",
    batch_size: Annotated[int, typer.Option(help="Rows of a step; a pair has two.", min=2)] = 128,
    chunk_size: Annotated[
        int | None, typer.Option(help="Rows held in memory at a time, for large batches; default: all.", min=1)
    ] = None,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 5e-4,
    steps: Annotated[int, typer.Option(help="Steps of the training.", min=1)] = 10_000,
    noise: Annotated[float, typer.Option(help="Share of texts read with noise on whole words.", min=0, max=1)] = 0.5,
    max_length: Annotated[int, typer.Option(help="Tokens of a text; the rest is left out.", min=4)] = 64,
    hidden_size: Annotated[int, typer.Option(help="Width of a new model.", min=1)] = 256,
    num_layers: Annotated[int, typer.Option(help="Layers of a new model.", min=1)] = 4,
    num_heads: Annotated[int, typer.Option(help="Attention heads of a new model.", min=1)] = 4,
    vector_size: Annotated[
        int | None, typer.Option(help="Width of the vectors; default: that of the model.", min=1)
    ] = None,
    dropout: Annotated[float, typer.Option(help="Dropout in training.", min=0, max=1)] = 0.1,
    ema: Annotated[float | None, typer.Option(help="Decay of the average of the weights; default: none.")] = None,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations and checkpoints.", min=1)] = 1000,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Precision of the arithmetic.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(help="Stop after this many steps, to try it out.", min=1)] = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run; --no-resume starts again.")] = True,
) -> None:
    """Train a sentence model (RoFormer-Sim) on your own texts or pairs. After an interruption the same command
    continues."""
    from kexue.text import SentenceConfig, train_sentences

    config = SentenceConfig(
        stage=stage,
        data=[*data, *(more or [])],
        out=folder,
        init=init,
        teacher=teacher,
        validation=validation,
        loss=loss,
        batch_size=batch_size,
        chunk_size=chunk_size,
        lr=lr,
        steps=steps,
        noise=noise,
        max_length=max_length,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        vector_size=vector_size,
        dropout=dropout,
        ema=ema,
        eval_every=eval_every,
        seed=out.seed,
        device=device,
        precision=precision,
        limit=limit,
        resume=resume,
    )
    result = train_sentences(config, progress=out.progress)
    out.emit_training(result, result.metric or "loss", f"model: {result.run}/model")
