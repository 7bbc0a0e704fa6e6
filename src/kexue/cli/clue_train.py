"""`kexue clue train` and `predict`: an encoder tuned on a task of CLUE, and its predictions for the site."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from kexue._files import check_output
from kexue._text import say_count
from kexue.cli._verb import Output, verb

_TRAIN = (
    "kexue clue train cluener --model kexue/roformer-sim-tiny-zh --data cluener --out run",
    "kexue clue train tnews --model hfl/chinese-roberta-wwm-ext --data tnews --out run --tune ladder",
    "kexue clue train c3 --model multilingual-e5-small --data c3 --out run --limit 20",
)
_PREDICT = ("kexue clue predict tnews --run run --data tnews/test1.1.json --out tnews11_predict.json",)
TaskName = Annotated[str, typer.Argument(help="A task, as kexue clue list names it.", metavar="TASK")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to `kexue clue`."""
    verb(app, "train", examples=_TRAIN, seeded=True)(train)
    verb(app, "predict", examples=_PREDICT)(predict)


def train(
    out: Output,
    task: TaskName,
    model: Annotated[str, typer.Option(help="Encoder: a folder with safetensors, or a name.")],
    data: Annotated[str, typer.Option(help="Folder of the task's files, with train and dev.")],
    folder: Annotated[str, typer.Option("--out", "-o", help="Folder of the run.")],
    tune: Annotated[
        Literal["full", "ladder", "linear"],
        typer.Option(
            help="full: all weights; ladder: a small network beside the frozen encoder, in less memory; linear: the "
            "head alone."
        ),
    ] = "full",
    optimizer: Annotated[Literal["adafactor", "adamw"], typer.Option(help="Optimizer.")] = "adafactor",
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: by the optimizer and --tune.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; default: by the task.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples of a batch; default: by the task.", min=1)] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a row; default: by the task.", min=16)] = None,
    device: Device = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Precision of the arithmetic.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(help="Stop after this many steps, to try it out.", min=1)] = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run; --no-resume starts again.")] = True,
) -> None:
    """Train an encoder on a task of CLUE; the epoch with the best score on dev is kept. After an interruption the same
    command continues."""
    from kexue.clue import ClueConfig, train_task

    config = ClueConfig(
        task,
        model,
        data,
        folder,
        tune=tune,
        optimizer=optimizer,
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        max_length=max_length,
        limit=limit,
        seed=out.seed,
        device=device,
        precision=precision,
        resume=resume,
    )
    result = train_task(config, progress=out.progress)
    out.emit_training(result, result.metric or "loss", f"run: {result.run}")


def predict(
    out: Output,
    task: TaskName,
    run: Annotated[str, typer.Option(help="Folder of a run of kexue clue train.")],
    data: Annotated[str, typer.Option(help="File to predict, with or without answers.")],
    file: Annotated[str, typer.Option("--out", "-o", help="File of predictions, as the site of CLUE accepts it.")],
    device: Device = "auto",
) -> None:
    """Predict a file of a task, and write the predictions as the site of CLUE accepts them."""
    from kexue.clue import get_task, predict_task

    check_output(file, ".json", ".jsonl", inputs=[data])
    chosen = get_task(task)
    examples = chosen.read(data)
    predictions = predict_task(run, examples, task=task, device=device, progress=out.progress)
    chosen.write_submission(predictions, file, examples)
    out.emit(
        {"out": file, "n": len(predictions)}, lambda: f"{say_count(len(predictions), 'prediction')} written to {file}"
    )
