"""`kexue compare`: similarity of two texts, and its explanation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kexue.cli import _options as opt
from kexue.cli._answers import explanation_lines, format_percentile
from kexue.cli._verb import Output, verb

if TYPE_CHECKING:
    from kexue.similarity import Explanation

_EXAMPLES = (
    'kexue compare "how long does a refund take" "when do I get my money back"',
    'kexue compare "a cat sleeps" "a dog runs" --explain --figure plan.png',
    'kexue compare "refund" "money back" --index faq.kx --json',
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "compare", examples=_EXAMPLES)(compare)


def compare(
    out: Output,
    a: Annotated[str, typer.Argument(help="A text.")],
    b: Annotated[str, typer.Argument(help="Another text.")],
    explain: Annotated[bool, typer.Option("--explain", help="Show which word of A matched which of B.")] = False,
    kind: Annotated[Literal["wrd", "wmd"], typer.Option(help="Distance between words.")] = "wrd",
    index: Annotated[
        str | None, typer.Option(help="Index whose encoder, vector space and calibration are used.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Figure of the transport between words to write (needs the figures extra).")
    ] = None,
    model: opt.Model = "auto",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_tokens: opt.BatchTokens = 8192,
) -> None:
    """Compare two texts: cosine of their vectors, distance between their words, and how the words match."""
    from kexue.search import Index
    from kexue.search.records import compare_texts, comparison_record
    from kexue.text.roles import choose_prompt

    for name, given in (("A", a), ("B", b)):
        if not given.strip():
            raise typer.BadParameter(f"text {name} is blank")
    drawn = 0
    if index is None:
        encoder: Any = opt.load_encoder(model, device, dtype, batch_tokens)
        compared = compare_texts(a, b, encoder, kind=kind)
    else:
        with Index.open(index, readonly=True) as opened:
            encoder = opened.load_encoder(device=device, dtype=dtype)
            compared = compare_texts(a, b, encoder, kind=kind, index=opened)
            if (calibrator := opened.calibrator) is not None and calibrator.null_ is not None:
                drawn = len(calibrator.null_)
    prompt = choose_prompt(encoder, "pair" if index is None else "document")
    if encoder.tokenize([a, b], prompt_name=prompt).truncated:
        out.remark(f"kexue: warning: a text was cut: at most {encoder.max_length} tokens are read")
    transport = compared.explanation
    if figure is not None and transport is not None:
        _draw(transport, figure)
    record = comparison_record(compared, explain=explain, figure=None if figure is None else str(figure))

    def text() -> str:
        percentile = compared.percentile
        rank = "" if percentile is None else f", percentile {format_percentile(percentile)}"
        rank += "" if percentile is None else f" among {drawn:,} random pairs of {index}"
        lines = [f"cosine {compared.cosine:.3f}{rank}; {kind.upper()} similarity {compared.similarity:.3f}"]
        return "\n".join([*lines, explanation_lines(transport)] if explain and transport is not None else lines)

    out.emit(record, text)


def _draw(explanation: Explanation, path: Path) -> None:
    """Draw the words of both texts by weight, joined by lines as wide as the mass moved."""
    from kexue._figures import save_figure

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        left = list(dict.fromkeys(pair.source for pair in explanation.pairs))
        right = list(dict.fromkeys(pair.target for pair in explanation.pairs))
        heaviest = max(pair.mass for pair in explanation.pairs)
        for pair in explanation.pairs:
            axes.plot(
                [0, 1],
                [-left.index(pair.source), -right.index(pair.target)],
                linewidth=8 * pair.mass / heaviest,
                color=str(min(0.9, pair.cost)),
                solid_capstyle="round",
            )
        for words, x, align in ((left, -0.02, "right"), (right, 1.02, "left")):
            for row, word in enumerate(words):
                axes.text(x, -row, word, ha=align, va="center")
        axes.set_xlim(-0.4, 1.4)
        axes.axis("off")
        axes.set_title(
            f"{explanation.kind.upper()} {explanation.distance:.3f}; width: mass, darkness: nearness", fontsize=10
        )

    save_figure(draw, path)
