"""`kexue sample`: sentences around words, paraphrases and shorter texts by Markov chains; models of n-grams."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kexue._text import visible
from kexue.cli import _options as opt
from kexue.cli._verb import Output, verb

if TYPE_CHECKING:
    from kexue.sampling.text import Writing
    from kexue.sampling.text.laws import LanguageModel
    from kexue.sampling.text.writing import Moment, Watch

app = typer.Typer(help="Write sentences by sampling: around words, in other words, shorter.", no_args_is_help=True)

_LM = Annotated[
    str,
    typer.Option("--lm", help="Language model: ngram-zh, ngram:FOLDER of lm-train, or hf:NAME, a neural one, slower."),
]
_Steps = Annotated[int, typer.Option(help="States of each chain that are kept; as many are made before.", min=1)]
_Chains = Annotated[int, typer.Option(help="Number of chains; each gives one sentence at most.", min=1)]
_Power = Annotated[
    float | None,
    typer.Option("--gamma", help="Power of the model's probability; default: 2 for n-grams, otherwise 0.8."),
]
_Run = Annotated[Path | None, typer.Option("--out", help="Folder for all states, for `kexue sample diagnose`.")]
_Encoder = Annotated[str, typer.Option("--encoder", help="Encoder that tells what a text means.")]
_TINY = "roformer-sim-tiny-zh"


@verb(
    app,
    "keywords",
    seeded=True,
    examples=(
        "kexue sample keywords --words 广州 美食",
        "kexue sample keywords --words 孩子 故宫 --steps 2000 --chains 20 --seed 1 --out run",
        "kexue sample keywords --words 广州 美食 --lm hf:roformer-sim-tiny-zh --steps 100",
    ),
)
def keywords(
    out: Output,
    more: Annotated[list[str] | None, typer.Argument(help="More words.", metavar="WORD...", show_default=False)] = None,
    words: Annotated[list[str] | None, typer.Option("--words", help="Words that each sentence contains.")] = None,
    lm: _LM = "ngram-zh",
    steps: _Steps = 500,
    chains: _Chains = 8,
    gamma: _Power = None,
    min_length: Annotated[int | None, typer.Option(help="Fewest tokens; default: the words' and 6.", min=0)] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens; default: the words' and 16.", min=1)] = None,
    run: _Run = None,
) -> None:
    """Write sentences that contain all given words, likeliest first. Needs no network.

    The sentences are states of Markov chains whose law is a language model's, restricted to sentences with the words.
    They are as good as the model: read them before you use them.
    """
    from kexue.sampling.text import load_lm, write_keywords
    from kexue.sampling.text.runs import judge_chains

    given = [*(words or ()), *(more or ())]
    if not given:
        raise typer.BadParameter("no word: give some, such as --words 广州 美食")
    model = load_lm(lm, prompt="".join(given))
    with _watching(out, model) as watch:
        written = write_keywords(given, model, steps=steps, chains=chains, gamma=gamma, min_length=min_length,
                                 max_length=max_length, generator=out.seed, watch=watch)  # fmt: skip
    satisfied = sum(all(word in text for word in given) for text in written.sentences)
    record = {
        "words": given,
        "sentences": [
            {"text": text, "log_rho": score} for text, score in zip(written.sentences, written.log_rho, strict=True)
        ],
        **judge_chains(written.result, model.decode, given),
        "satisfied": satisfied / max(1, len(written.sentences)),
    }
    _emit(out, record, written, model, run)


@verb(
    app,
    "paraphrase",
    seeded=True,
    examples=("kexue sample paraphrase 故宫的门票多少钱", "kexue sample paraphrase 我想去看电影 --steps 1000 --json"),
)
def paraphrase(
    out: Output,
    text: Annotated[str, typer.Argument(help="A sentence.")],
    lm: _LM = "ngram-zh",
    encoder: _Encoder = _TINY,
    steps: _Steps = 500,
    chains: _Chains = 8,
    gamma: _Power = None,
    difference: Annotated[float, typer.Option(help="Reward for other words.", min=0)] = 1.0,
    run: _Run = None,
) -> None:
    """Write sentences that mean about what a text means, in other words."""
    from kexue.sampling.text import load_lm, paraphrase as write

    model, judge = load_lm(lm, prompt=text), opt.load_encoder(encoder, "auto", "auto", 8192)
    with _watching(out, model) as watch:
        written = write(text, lm=model, encoder=judge, steps=steps, chains=chains, gamma=gamma, difference=difference,
                        generator=out.seed, watch=watch)  # fmt: skip
    _emit(out, _rewritten(text, written, model, judge), written, model, run)


@verb(
    app, "shorten", seeded=True, examples=("kexue sample shorten 周末我想和朋友一起去看一部很好看的电影 --length 10",)
)
def shorten(
    out: Output,
    text: Annotated[str, typer.Argument(help="A sentence.")],
    length: Annotated[int | None, typer.Option(help="Most tokens; default: half of the text's.", min=1)] = None,
    lm: _LM = "ngram-zh",
    encoder: _Encoder = _TINY,
    steps: _Steps = 500,
    chains: _Chains = 8,
    gamma: _Power = None,
    run: _Run = None,
) -> None:
    """Write shorter sentences that mean about what a text means."""
    from kexue.sampling.text import load_lm, shorten as write

    model, judge = load_lm(lm, prompt=text), opt.load_encoder(encoder, "auto", "auto", 8192)
    most = max(1, len(model.encode(text)) // 2) if length is None else length
    with _watching(out, model) as watch:
        written = write(text, lm=model, encoder=judge, target_length=most, steps=steps, chains=chains, gamma=gamma,
                        generator=out.seed, watch=watch)  # fmt: skip
    _emit(out, _rewritten(text, written, model, judge), written, model, run)


@verb(
    app,
    "lm-train",
    examples=(
        "kexue sample lm-train corpus.txt --out my-lm",
        "kexue sample lm-train faq.jsonl --text question --min-count 2 --out my-lm",
    ),
)
def lm_train(
    out: Output,
    corpus: opt.Inputs,
    target: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    order: Annotated[int, typer.Option(help="Tokens of the longest n-gram.", min=1, max=5)] = 5,
    level: Annotated[
        Literal["char", "word"], typer.Option(help="Tokens: characters, or what spaces separate.")
    ] = "char",
    min_count: Annotated[
        int, typer.Option(help="Leave out n-grams of three tokens and more that occur fewer times.", min=1)
    ] = 1,
    text: opt.TextColumn = None,
) -> None:
    """Count the n-grams of a corpus, each record a text by itself. Needs memory for the whole corpus.

    The perplexity is that of every fiftieth text under a model of the others; the model that is written has read all.
    """
    from kexue.corpus import read_records
    from kexue.sampling.text import NGramLM

    start = time.perf_counter()
    texts = [record.text for record in read_records(corpus, text=text) if record.text.strip()]
    held_out = texts[::50] if len(texts) > 1 else []
    perplexity = None
    if held_out:
        rest = [one for i, one in enumerate(texts) if i % 50]
        perplexity = NGramLM(order, level=level, min_count=min_count).fit(rest).perplexity(held_out)
    lm = NGramLM(order, level=level, min_count=min_count).fit(texts)
    lm.save(target)
    record = {
        "out": str(target),
        "texts": len(texts),
        "tokens": lm.tokens_,
        "types": len(lm.vocabulary.tokens),
        "ngrams": len(lm),
        "perplexity": perplexity,
        "seconds": time.perf_counter() - start,
    }
    lines = [
        f"{lm.tokens_:,} tokens of {len(texts):,} texts, {len(lm.vocabulary.tokens):,} different, {len(lm):,} n-grams",
        *([] if perplexity is None else [f"perplexity of held-out texts {perplexity:.1f}"]),
        str(target),
    ]
    out.emit(record, lambda: "\n".join(lines))


@verb(app, "diagnose", examples=("kexue sample keywords --words 广州 美食 --out run", "kexue sample diagnose run"))
def diagnose(out: Output, run: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")]) -> None:
    """Judge the chains of a run: whether they have the same law, and how many independent states they are worth."""
    from kexue.sampling import diagnose as judge
    from kexue.sampling.text.runs import measures_of, read_run

    result, record = read_run(run)
    measures = measures_of(record.get("words", ()))
    out.emit(judge(result, *measures).record(), lambda: result.summary(*measures))


@contextmanager
def _watching(out: Output, lm: LanguageModel) -> Iterator[Watch | None]:
    """Yield a function that shows the sentences of all chains on a terminal as they change."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    console = Console(stderr=True)
    if out.quiet or not console.is_terminal:
        yield None
        return
    bar = Progress(TextColumn("writing"), BarColumn(), MofNCompleteColumn(), console=console)
    task = bar.add_task("writing", total=None)
    with Live(console=console, transient=True, auto_refresh=False) as live:
        shown = 0.0

        def watch(now: Moment) -> None:
            nonlocal shown
            if time.monotonic() - shown >= 0.1:
                shown = time.monotonic()
                bar.update(task, completed=now.done, total=now.steps)
                lines = [
                    Text(_on_one_line(lm.decode(state)), no_wrap=True, overflow="ellipsis") for state in now.states[:12]
                ]
                live.update(Group(bar, *lines), refresh=True)

        yield watch


def _emit(out: Output, record: dict[str, Any], written: Writing, lm: LanguageModel, run: Path | None) -> None:
    """Write the run where one is wanted, and print the record."""
    from kexue.sampling.text.runs import write_run

    record["run"] = None if run is None else str(run)
    if run is not None:
        write_run(run, written.result, lm, record)
    for flag in record["flags"]:
        out.remark(f"Doubt: {flag}.")
    out.emit(record, lambda: _render(record))


def _render(record: Mapping[str, Any]) -> str:
    """Return sentences as lines, each with its scores."""
    lines = []
    for one in record["sentences"]:
        scores = [f"{one.get('log_rho', one.get('score')):8.1f}"]
        scores += [f"{one['similarity']:6.3f}"] if "similarity" in one else []
        lines.append("  ".join([*scores, _on_one_line(one["text"])]))
    return "\n".join(lines or ["no sentence was written: give more steps"])


def _on_one_line(text: str) -> str:
    """Return a sentence with visible control characters, since a model may have read any."""
    return visible(text).replace("\n", "␊").replace("\t", "␉")


def _rewritten(text: str, written: Writing, lm: LanguageModel, encoder: Any) -> dict[str, Any]:
    """Return the record of sentences that mean about what a text means."""
    import numpy as np

    from kexue.sampling.text.runs import judge_chains

    vectors = np.asarray(encoder.encode([text, *written.sentences]), dtype=np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = zip(written.sentences, written.log_rho, (vectors[1:] @ vectors[0]).tolist(), strict=True)
    sentences = [{"text": one, "score": score, "similarity": cosine} for one, score, cosine in rows]
    return {"text": text, "sentences": sentences, **judge_chains(written.result, lm.decode)}
