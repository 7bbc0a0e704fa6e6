"""`kexue generate`: sentences that mean about the same as a text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue.cli._verb import Output, verb
from kexue.errors import CheckpointError

if TYPE_CHECKING:
    from kexue.text import RoFormerSim

_EXAMPLES = (
    "kexue generate 怎么退货 -n 10",
    "kexue generate 怎么退货 --mask 2,3 --min-score 0.5 --max-score 0.9",
    "kexue generate 怎么退货 多久到账 --samples 200 --json",
    "kexue generate 怎么退货 --model roformer-sim/ --top-k 5 --temperature 0.8 --seed 1",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "generate", examples=_EXAMPLES, seeded=True)(generate)


def generate(
    out: Output,
    texts: Annotated[list[str], typer.Argument(help="Sentences; - reads one per line from stdin.", metavar="TEXT...")],
    n: Annotated[int, typer.Option("-n", help="Largest number of results for each text.", min=1)] = 10,
    samples: Annotated[int, typer.Option(help="Number of sentences to write for each text.", min=1)] = 100,
    top_p: Annotated[
        float,
        typer.Option(help="Probability that the tokens to draw from have in all, likeliest first; above 0, to 1."),
    ] = 0.95,
    top_k: Annotated[int | None, typer.Option(help="Number of tokens to draw from; default: no limit.", min=1)] = None,
    temperature: Annotated[
        float, typer.Option(help="Below 1: likelier tokens, less variety; 0: the likeliest only; above 1: more.", min=0)
    ] = 1.0,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Places of characters to hide from the model, from 0 on, separated by commas; spaces do not count.",
            metavar="I,J",
        ),
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Least cosine to the text.", min=-1, max=1)] = None,
    max_score: Annotated[float | None, typer.Option(help="Largest cosine to the text.", min=-1, max=1)] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Folder of a RoFormer-Sim or SimBERT; default: the model that is a part of kexue."
        ),
    ] = None,
) -> None:
    """Write sentences that mean about the same as a text, ordered by the cosine of their vectors.

    The text itself is never among the results, nor are two that differ in punctuation, case, width or spaces only.
    The results for a text depend on it, the options and the seed, not on other texts. Needs no network.
    """
    from kexue.text import find_model
    from kexue.text.models import TINY_CHINESE, model_id_of

    if min_score is not None and max_score is not None and min_score > max_score:
        raise typer.BadParameter(f"--min-score {min_score} is above --max-score {max_score}")
    places = _parse_places(mask)
    sentences = _read(texts)
    folder = find_model(TINY_CHINESE if model is None else model)
    writer = _open(folder)
    how = {"top_p": top_p, "top_k": top_k, "temperature": temperature, "mask_positions": places}
    bounds = {"n": samples, "k": n, "min_score": min_score, "max_score": max_score}
    _check(writer, sentences, places)
    # the answers show the progress where they go to a terminal
    bar = nullcontext(lambda done, total: None) if sys.stdout.isatty() else out.progress("writing")
    with bar as progress:
        for done, text in enumerate(sentences, start=1):
            _tell_what_is_not_read(out, writer, text)
            record = {**_write(writer, text, out.seed, **how, **bounds), "model": model_id_of(folder)}
            out.emit(record, partial(_render, record))
            progress(done, len(sentences))


def _open(folder: Path) -> RoFormerSim:
    """Return the model of a folder; CheckpointError that says which models can write where this one cannot."""
    from kexue.text import RoFormerSim
    from kexue.text.models import TINY_CHINESE

    try:
        return RoFormerSim.from_pretrained(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"this model cannot write sentences. {error.message}",
            remedy="Models that can are folders of RoFormer-Sim and SimBERT with pooler and language model head, "
            f"such as {TINY_CHINESE}.",
        ) from error


def _check(writer: RoFormerSim, texts: Sequence[str], places: Sequence[int]) -> None:
    """Raise ValueError, before anything is written, for the first text that cannot be read, and name it."""
    from kexue.text.roformer_sim.generation import read_text

    assert writer.tokenizer is not None
    for text in texts:
        try:
            read_text(writer.tokenizer, text, places)
        except ValueError as error:
            raise ValueError(f"{text!r:.40}: {error}") from None


def _write(writer: RoFormerSim, text: str, seed: int, **options: Any) -> dict[str, Any]:
    """Return the record of one text."""
    from kexue.text.roformer_sim.sentences import write_similar

    ranked = write_similar(writer, text, generator=seed, **options)
    return {
        "text": text,
        "results": [result._asdict() for result in ranked.results],
        "samples": ranked.samples,
        "duplicates": ranked.duplicates,
        "seed": seed,
    }


def _read(texts: Sequence[str]) -> list[str]:
    """Return the texts of the command line and of standard input, whose blank lines are skipped."""
    from kexue.corpus.decoding import read_lines

    sentences: list[str] = []
    for i, text in enumerate(texts, start=1):
        if text == "-":
            sentences += [line for line in read_lines("-") if line.strip()]
        elif not text.strip():
            raise typer.BadParameter(f"text {i} is blank: {text!r}; give a sentence, or - to read lines from stdin")
        else:
            sentences.append(text)
    if not sentences:
        raise typer.BadParameter("no text: stdin holds none")
    return sentences


def _parse_places(given: str | None) -> list[int]:
    """Return the places of `--mask`."""
    try:
        return [int(place) for place in given.split(",")] if given is not None else []
    except ValueError:
        raise typer.BadParameter(
            f"--mask takes whole numbers separated by commas, such as 2,3; got {given!r}"
        ) from None


def _tell_what_is_not_read(out: Output, writer: RoFormerSim, text: str) -> None:
    """Print on stderr which characters the model does not know, and whether it does not read the end of a text."""
    tokenizer = writer.tokenizer
    assert tokenizer is not None
    [record] = tokenizer.encode_with_offsets([text])
    unknown = [text[slice(*place)] for one, place in zip(record.ids, record.offsets, strict=True)
               if one == tokenizer.unknown_id]  # fmt: skip
    if unknown:
        named = ", ".join(dict.fromkeys(unknown))
        out.remark(f"kexue: warning: {text:.20}: the model does not know {named}; it reads [UNK] there")
    if record.overflowing:
        out.remark(f"kexue: warning: {text:.20}: the text was cut: at most {tokenizer.max_length} tokens are read")


def _render(record: dict[str, Any]) -> str:
    """Return the record as lines."""
    results = record["results"]
    head = f"{record['text']}: {len(results)} of {record['samples']} sentences"
    head += f" ({record['duplicates']} repeat the text or another one)" if record["duplicates"] else ""
    return "\n".join([head, *(f"{result['score']:6.3f}  {result['text']}" for result in results)])
