"""`kexue model`: generative models of images and texts, from training to samples and their quality."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any

import typer

from kexue.cli._verb import Output, verb

app = typer.Typer(
    help="Train models that generate images or texts; sample, judge, encode and decode with them.",
    no_args_is_help=True,
)

RunFolder = Annotated[str, typer.Argument(help="Folder of a run of kexue model train.", metavar="RUN")]
Items = Annotated[
    str,
    typer.Argument(
        help="An image file, a folder of images, a .npy file, or the name of a set (its test part); for a model of "
        "texts a text file with a sentence a line.",
        metavar="IMAGES",
    ),
]
OutFile = Annotated[str, typer.Option("--out", "-o", help="File: .png (a sheet) or .npy for images, .txt for texts.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]


@verb(
    app,
    "train",
    examples=(
        "kexue model train vae --data digits --out run",
        "kexue model train realnvp --data photos/ --image-size 32 --out run --steps 50000",
        "kexue model train glow --data mnist --out run --limit 20",
        "kexue model train diffusion --data digits --out run",
        "kexue model train diffusion --data photos/ --image-size 32 --captions captions.csv --out run",
        "kexue model train gan --data digits --out run",
    ),
    seeded=True,
)
def train(
    out: Output,
    name: Annotated[
        str,
        typer.Argument(
            help="vae, vqvae, nice, realnvp, glow, univae, diffusion, flow-matching, ebm, gan or ign.", metavar="NAME"
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="digits, mnist, fashion-mnist, or a folder of images; of univae a text file with a sentence a line."
        ),
    ],
    folder: Annotated[str, typer.Option("--out", "-o", help="Folder of the run.")],
    steps: Annotated[int | None, typer.Option(help="Most steps of the training; default: by the model.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Items of a step; default: by the model.", min=2)] = None,
    lr: Annotated[float | None, typer.Option(help="Largest learning rate; default: by the model.")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the average of the weights, 0: none; default: by the model.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width to which images are resized; default: unchanged.", min=1)
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(
            help="Of diffusion and flow-matching: what the images show, a table (.csv, .tsv, .jsonl) with the columns "
            "file, a name in the folder of images, and text."
        ),
    ] = None,
    device: Device = "auto",
    limit: Annotated[int | None, typer.Option(help="Stop after this many steps, to try it out.", min=1)] = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run; --no-resume starts again.")] = True,
) -> None:
    """Train a model on a set of images, or on lines of text. After an interruption the same command continues.

    A tenth of the data is held back; the step with the lowest loss on it is kept, and the training ends when it no
    longer falls; an ebm, gan or ign, whose loss does not tell how good it is, is trained to the end. Meanwhile
    `tensorboard --logdir RUN` shows samples and losses.
    """
    from kexue.cli._captions import load_captions
    from kexue.generative import ModelConfig, train_model

    config = ModelConfig(
        name,
        data,
        folder,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        ema=ema,
        image_size=image_size,
        captions=None if captions is None else load_captions(captions, device, out),
        seed=out.seed,
        device=device,
        limit=limit,
        resume=resume,
    )
    result = train_model(config, progress=out.progress)
    out.emit_training(result, "loss", f"samples: {result.samples}")


@verb(
    app,
    "sample",
    examples=(
        "kexue model sample run -n 64 --out sheet.png",
        "kexue model sample run -n 1000 --out samples.npy --temperature 0.8 --seed 1",
        "kexue model sample run --out threes.png --condition 3 --scale 2 --solver dpmpp_2m --steps 20",
        'kexue model sample run --out dogs.png --prompt "a dog on the beach" --scale 2',
    ),
    seeded=True,
)
def sample(
    out: Output,
    run: RunFolder,
    file: OutFile,
    n: Annotated[int, typer.Option("-n", help="Number of samples.", min=1)] = 64,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Spread of the latents, or of texts of the choice of characters; below 1: more typical, less variety. "
            "Default: 1; of texts the likeliest characters, as with 0.",
            min=0,
        ),
    ] = None,
    truncation: Annotated[
        float | None,
        typer.Option(help="Of a GAN: largest latent; below 2: more typical images, less variety. Default: any."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Of a diffusion: steps from noise to image; default: 50. Of ebm: steps of a chain. Of ign: passes.",
            min=1,
        ),
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="Of a diffusion: ddim, dpmpp_2m, heun, ddpm, ...; default: ddim.")
    ] = None,
    eta: Annotated[
        float | None, typer.Option(help="Of ddim: new noise in each step, 0: none, 1: as DDPM; default: 0.", min=0)
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="Of a diffusion: guidance. 0: any class, 1: the class, above 1: more typical; default: 1."),
    ] = None,
    condition: Annotated[
        str | None, typer.Option(help="Of a diffusion: name of a class; default: each as often as in the data.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Of a diffusion with captions: what the images show; default: anything.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Draw samples of a model into a file. Sample i of a seed is the same one whatever -n is."""
    from kexue.cli._captions import encode_prompt
    from kexue.generative import open_run, sample_run

    if prompt is not None and condition is not None:
        raise typer.BadParameter("a model has classes or captions: give --condition or --prompt, not both")
    opened = open_run(run, device=device)
    told = condition if prompt is None else encode_prompt(opened, prompt, device)
    spread = {"temperature": temperature, "truncation": truncation}
    settings = {"steps": steps, "solver": solver, "eta": eta, "scale": scale, "condition": told}
    with out.progress("sampling") as progress:
        sampled = sample_run(opened, n, file, seed=out.seed, progress=progress, **spread, **settings)
    record = dataclasses.asdict(sampled)
    out.emit(
        record,
        lambda: f"{n} samples in {file}, {record['seconds']:.2f} s; network passes for each: {record['network_calls']}",
    )


@verb(app, "evaluate", examples=("kexue model evaluate run", "kexue model evaluate run -n 5000 --json"), seeded=True)
def evaluate(
    out: Output,
    run: RunFolder,
    n: Annotated[int, typer.Option("-n", help="Number of samples to judge.", min=2)] = 1000,
    device: Device = "auto",
) -> None:
    """Measure how near the samples of a model are to the images held apart for test, and its likelihood."""
    from kexue.generative import evaluate_run, open_run

    with out.progress("training the classifier that judges") as progress:
        record = dataclasses.asdict(evaluate_run(open_run(run, device=device), n, seed=out.seed, progress=progress))
    if not math.isfinite(record.get("nearest_train_ratio", 0.0)):
        record["nearest_train_ratio"] = None  # JSON has no infinity
    out.emit(record, lambda: _render_quality(record))


@verb(
    app,
    "interpolate",
    examples=(
        "kexue model interpolate run --out walk.gif -n 16",
        "kexue model interpolate run --from three.png --to eight.png --out row.png",
    ),
    seeded=True,
)
def interpolate(
    out: Output,
    run: RunFolder,
    file: Annotated[str, typer.Option("--out", "-o", help="File: .png (a row), .gif, or .txt for texts.")],
    start: Annotated[
        str | None, typer.Option("--from", help="Image file, or sentence, to start from; default: a sample.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="Image file, or sentence, to end at; default: a sample.")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Number of items, both ends included.", min=2)] = 8,
    device: Device = "auto",
) -> None:
    """Show what lies between two images or sentences, on the way between their latents."""
    from kexue.generative import open_run, walk_run

    walk_run(open_run(run, device=device), file, start=start, end=end, n=n, seed=out.seed)
    out.emit({"out": file, "n": n}, lambda: f"{n} items in {file}")


@verb(app, "encode", examples=("kexue model encode run digits --out latents.npy",))
def encode(
    out: Output,
    run: RunFolder,
    items: Items,
    file: Annotated[str, typer.Option("--out", "-o", help="File .npy of the latents.")],
    device: Device = "auto",
) -> None:
    """Turn images or sentences into the latents of a model, and measure what decoding gives back."""
    from kexue.generative import encode_run, open_run

    n, residual = encode_run(open_run(run, device=device), items, file)
    out.emit(
        {"out": file, "n": n, "residual": residual},
        lambda: f"{n} latents in {file}; decoded they differ by {residual:.4g} from what was encoded",
    )


@verb(app, "decode", examples=("kexue model decode run latents.npy --out sheet.png",))
def decode(
    out: Output,
    run: RunFolder,
    latents: Annotated[str, typer.Argument(help="File .npy of latents.", metavar="LATENTS")],
    file: OutFile,
    device: Device = "auto",
) -> None:
    """Turn latents into images or sentences."""
    from kexue.generative import decode_run, open_run

    n = decode_run(open_run(run, device=device), latents, file)
    out.emit({"out": file, "n": n}, lambda: f"{n} items in {file}")


@verb(app, "score", examples=("kexue model score run digits", "kexue model score run photos/ --json"))
def score(out: Output, run: RunFolder, items: Items, device: Device = "auto") -> None:
    """Measure how likely a model finds images or sentences: log p, or a bound or an energy where it has no more."""
    from kexue.generative import open_run, score_run

    with out.progress("scoring") as progress:
        record = dataclasses.asdict(score_run(open_run(run, device=device), items, progress=progress))
    out.emit(record, lambda: _render_score(record))


def _render_quality(record: dict[str, Any]) -> str:
    """Return the quality of a model as text for a person."""
    if "tokens_right" in record:
        return "\n".join(
            [
                f"{record['model']}, {record['parameters']:,} weights, {record['n']} sentences held apart",
                f"tokens right        {record['tokens_right']:.2%} of what decoding the latents gives back",
                f"sentences right     {record['sentences_right']:.2%}",
                f"nats of a sentence  at most {record['nats']:.2f}, of which the latents cost {record['kl']:.2f}",
                f"active units        {record['active_units']}",
            ]
        )
    names = {
        "test": "test images",
        "noisy_test": "with noise",
        "gaussian": "Gaussian pixels",
        "uniform": "uniform pixels",
    }
    beside = ", ".join(f"{names.get(name, name)} {value:.3g}" for name, value in record["reference"].items())
    near = record["nearest_train_ratio"]
    bits, at_most = record["bits_per_dim"], "at most " * (record["bits_per_dim_kind"] == "bound")
    rows = [
        ("Fréchet distance", f"{record['frechet_distance']:.3g} (beside it: {beside})"),
        ("precision, recall", f"{record['precision']:.3f}, {record['recall']:.3f}"),
        ("density, coverage", f"{record['density']:.3f}, {record['coverage']:.3f}"),
        ("sliced Wasserstein", f"{record['sliced_wasserstein']:.4f}"),
        (
            "nearest, to training",
            "test images are training images" if near is None else f"{near:.3f} (below 0.7: copies)",
        ),
        ("bits per dimension", "none: no likelihood" if bits is None else f"{at_most}{bits:.3f}"),
    ]
    head = f"{record['model']}, {record['parameters']:,} weights, {record['n']} samples; classifier of "
    head += record["features"]
    return "\n".join([head, *(f"{name:20}  {value}" for name, value in rows)])


def _render_score(record: dict[str, Any]) -> str:
    """Return a likelihood as text for a person."""
    what = {"exact": "log p", "bound": "log p is at least", "energy": "energy, low for what is like the data:"}
    error = "" if record["stderr"] is None else f" +- {record['stderr']:.2g}"
    error += " (an estimate)" * (record["kind"] == "bound")
    bits = "" if record["bits_per_dim"] is None else f"; {record['bits_per_dim']:.3f} bits per dimension"
    unit = record["unit"] and f" {record['unit']}"
    return f"{what[record['kind']]} {record['mean']:.4f}{error}{unit}, mean over {record['n']}{bits}"
