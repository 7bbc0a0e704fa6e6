"""kexue.fm/archives/8475: one Transformer reads a sentence into latents of several blocks and writes it from them.

Measures: what the writer knows of a sentence besides its latents; the divergence of directions; 48 sentences of a topic
and a template each, with one latent exchanged; sentences of a small grammar that were not trained on, their
reconstruction, a path between two of them and the direction of a question; short sentences of corpora where present.

Sizes, rates and the end of training are set on validation sentences; what is reported is of test sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kexue._optional import import_optional
from kexue.experiments._panels import draw_runs
from kexue.experiments._sentence_models import Setting, build, every_hundred, share_of_tokens, train
from kexue.experiments._short_sentences import ENDS, TEMPLATES, TOPICS, read_short, write_grammar
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_GRAMMAR_LENGTH, _CORPUS_LENGTH = 13, 8  # tokens of a row, start and end included
_EXACT, _TOKENS = 0.9, 0.95  # shares that reconstruction must reach
_ENOUGH = 0.97  # of the tokens of validation sentences: training ends


_TOY = Setting(64, 4, 2, 8, 32.0, 48, 3e-3, "pre")
_SHORT = Setting(96, 3, 2, 32, 200.0, 32, 3e-3, "post")


@experiment(
    "univae",
    claim="One Transformer is encoder and decoder of sentences; its latents in several blocks hold different things.",
    effect=(
        "tokens of new short sentences of corpora reconstructed {corpus_tokens} at a divergence of {corpus_kl}; "
        "of a grammar {grammar_tokens}, {grammar_active} numbers active; topic kept with the early latent exchanged "
        "{topic_kept_early}, with the last {topic_kept_last}"
    ),
    data=("corpus_zh", "parallel_en_zh"),
    minutes=8,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Train on sentences of topics and templates, on a grammar and, at budget full, on corpora."""
    import_optional("torch", extra="train")
    toy_steps, grammar_steps, count = {"smoke": (20, 20, 1), "small": (1500, 2500, 3), "full": (3000, 6000, 3)}[budget]
    seeds = tuple(range(seed, seed + count))
    toys = [_measure_toy(s, toy_steps) for s in seeds]
    grammars = [_measure_grammar(s, grammar_steps) for s in seeds]
    figures = {name: Figure.over_runs(toy[name] for toy in toys) for name in toys[0]}
    kinds = {"grammar_kl": "nats", "grammar_bound": "nats"}
    numbers = [one for one, _ in grammars]
    figures |= {name: Figure.over_runs((one[name] for one in numbers), kinds.get(name, "")) for name in numbers[0]}
    figures |= _vmf_figures()
    notes = [note for _, lines in grammars[:1] for note in lines]
    used: list[Mapping[str, Any]] = []
    texts = read_short(data, _CORPUS_LENGTH - 2, 300) if budget == "full" and data is not None else []
    if texts:
        corpus, lines, used = _measure_corpus(texts, seed, steps=6000)
        figures |= corpus
        notes += lines
    else:
        notes.append("left out: short sentences of corpora, which need the data folder and the budget full")
    claims = [*_exact_claims(figures), *_toy_claims(toys), *_reconstruction_claims(figures)]
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        seeds=seeds,
        data=({"name": "grammar", "split": "test", "n": 1000}, *used),
        draw=lambda figure: _draw(figure, toys, numbers),
    )


# ---- topics and templates ------------------------------------------------------------------------------------------


def _measure_toy(seed: int, steps: int) -> dict[str, float]:
    """Train on 48 sentences until they are reconstructed; exchange one latent between pairs of them."""
    torch = import_optional("torch", extra="train")
    texts = [template.format(topic) for topic in TOPICS for template in TEMPLATES]
    length = max(map(len, texts)) + 2
    model, vocabulary = build(texts, _TOY, length, seed, latent="gaussian", beta=0.1, beta_warmup=max(1, steps // 2))
    rows = vocabulary.encode(texts, length)

    def exact() -> float:
        return float((model.reconstruct(rows) == rows).all(1).double().mean())

    taken = train(model, rows, _TOY, seed, steps, until=every_hundred(lambda: exact() >= _EXACT))
    z = model.encode(rows)
    topic, template = torch.arange(48) // 6, torch.arange(48) % 6
    own, other = ((topic[:, None] != topic) & (template[:, None] != template)).nonzero().unbind(1)
    samples = vocabulary.decode(model.sample(200, generator=seed))
    result = {
        "toy_steps": float(taken),
        "toy_exact": exact(),
        "toy_kl": float(model.kl(rows, generator=seed).sum(1).mean()),
        "toy_valid_samples": float(np.mean([text in texts for text in samples])),
        "writer_change": _change_of_writer(model, rows, z),
    }
    for name, layer in (("early", 0), ("last", 1)):
        written = vocabulary.decode(model.decode(model.edit(z[own], layer, z[other, layer])))
        result[f"valid_{name}"] = float(np.mean([text in texts for text in written]))
        result[f"topic_kept_{name}"] = float(
            np.mean([TOPICS[i // 6] in text for i, text in zip(own.tolist(), written, strict=True)])
        )
        kept = [_fits(text, TEMPLATES[i % 6]) for i, text in zip(own.tolist(), written, strict=True)]
        result[f"template_kept_{name}"] = float(np.mean(kept))
    return result


def _fits(text: str, template: str) -> bool:
    """Whether a text is the template with something in its gap."""
    before, after = template.split("{}")
    return len(text) > len(before) + len(after) and text.startswith(before) and text.endswith(after)


def _change_of_writer(model: Any, rows: Any, z: Any) -> float:
    """Largest change of a score where the latents stay and another sentence is read."""
    torch = import_optional("torch", extra="train")
    with torch.no_grad():
        scores = [
            model.network.score_tokens(model.network(torch.cat([read, rows], 1), lambda i, _: z[:, i]))
            for read in (rows, rows.roll(7, 0))
        ]
    return float((scores[0] - scores[1]).abs().max())


# ---- sentences of a grammar ----------------------------------------------------------------------------------------


def _measure_grammar(seed: int, steps: int) -> tuple[dict[str, float], list[str]]:
    """Reconstruction of sentences that were not trained on, a path, and the direction of a question."""
    every = write_grammar()
    test, validation, others = every[:1000], every[1000:1300], every[1300:]
    model, vocabulary = build(others, _SHORT, _GRAMMAR_LENGTH, seed)
    rows, known = vocabulary.encode(test, _GRAMMAR_LENGTH), vocabulary.encode(others, _GRAMMAR_LENGTH)
    checked = vocabulary.encode(validation, _GRAMMAR_LENGTH)
    until = every_hundred(lambda: share_of_tokens(model, checked) >= _ENOUGH)
    taken = train(model, known, _SHORT, seed, steps, until=until)
    asks, tells = ([i for i, text in enumerate(others[:1000]) if text.endswith(end)] for end in (ENDS[1], ENDS[0]))
    question = model.attribute(known[asks], known[tells])
    told = [i for i, text in enumerate(test) if text.endswith(ENDS[0])]
    shifted = vocabulary.decode(model.decode(model.shift(model.encode(rows[told]), question)))
    asked = [text.removesuffix(ENDS[1]) == test[i].removesuffix(ENDS[0]) for i, text in zip(told, shifted, strict=True)]
    samples = vocabulary.decode(model.sample(500, generator=seed))
    grammatical = set(every)
    first, last = model.encode(rows[:2])
    path = vocabulary.decode(model.decode(model.interpolate(first, last, 7)))
    numbers = {
        "grammar_steps": float(taken),
        "grammar_tokens": share_of_tokens(model, rows),
        "grammar_exact": float((model.reconstruct(rows) == rows).all(1).double().mean()),
        "grammar_kl": float(model.kl(rows[:1]).sum()),
        "grammar_bound": float(model.log_prob_bound(rows, generator=seed).mean()),
        "grammar_active": float(model.active_units(rows)),
        "grammar_valid_samples": float(np.mean([text in grammatical for text in samples])),
        "question_only": float(np.mean(asked)),
        "question_any": float(np.mean([text.endswith(ENDS[1]) for text in shifted])),
    }
    return numbers, ["a path between two sentences: " + " → ".join(path), "samples: " + " ".join(samples[:6])]


# ---- corpora -------------------------------------------------------------------------------------------------------


def _measure_corpus(
    texts: Sequence[str], seed: int, steps: int
) -> tuple[dict[str, Figure], list[str], list[Mapping[str, Any]]]:
    """Reconstruction of short sentences of corpora that were not trained on."""
    torch = import_optional("torch", extra="train")
    test, validation, others = texts[:1000], texts[1000:1500], texts[1500:]
    model, vocabulary = build(others, _SHORT, _CORPUS_LENGTH, seed)
    rows = vocabulary.encode(test, _CORPUS_LENGTH)
    checked = vocabulary.encode(validation, _CORPUS_LENGTH)
    until = every_hundred(lambda: share_of_tokens(model, checked) >= _ENOUGH)
    train(model, vocabulary.encode(others, _CORPUS_LENGTH), _SHORT, seed, steps, until=until)
    kept = rows != model.special.pad
    kept[:, 0] = False
    right, tokens = ((model.reconstruct(rows) == rows) & kept).sum(1).double(), kept.sum(1)
    draws = torch.randint(len(right), (1000, len(right)), generator=torch.Generator().manual_seed(seed))
    low, high = np.quantile(right[draws].sum(1) / tokens[draws].sum(1), (0.025, 0.975))
    figures = {
        "corpus_tokens": Figure(float(right.sum() / tokens.sum()), low=float(low), high=float(high), n=len(test)),
        "corpus_kl": Figure(float(model.kl(rows[:1]).sum()), "nats"),
        "corpus_active": Figure(float(model.active_units(rows))),
    }
    first, last = model.encode(rows[:2])
    path = vocabulary.decode(model.decode(model.interpolate(first, last, 7)))
    return (
        figures,
        [f"a path of the corpora, from {test[0]} to {test[1]}: " + " → ".join(path)],
        [{"name": "short sentences of tatoeba, oppo_xiaobu, dialogues", "split": "test", "n": len(test)}],
    )


# ---- figures, claims, draw -----------------------------------------------------------------------------------------


def _vmf_figures() -> dict[str, Figure]:
    """Divergence and mean cosine of directions in the article's setting."""
    from kexue.generative import VonMisesFisher

    sphere = VonMisesFisher(16, 32.0)
    return {
        "vmf_kl": Figure(sphere.kl, "nats", expected=7.5821, source="computed"),
        "vmf_cosine": Figure(sphere.mean_cosine, expected=0.7899, source="computed"),
    }


def _exact_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    kl = figures["vmf_kl"]
    return [
        Claim.check(
            "What is written depends on what was read through the latents alone.",
            figures["writer_change"].value == 0,
            rule="with the latents given, another sentence read changes no score at all",
            figures=["writer_change"],
        ),
        Claim.check(
            "With directions of a fixed concentration the divergence is a constant.",
            abs(kl.value - 7.5821) < 1e-4,
            rule="7.5821 nats for 16 numbers at kappa 32",
            figures=["vmf_kl", "vmf_cosine"],
        ),
    ]


def _toy_claims(toys: Sequence[Mapping[str, float]]) -> list[Claim]:
    """The split between early and last latents: positive on 2 of 3 seeds with valid sentences, by a rule set before."""
    trained = all(toy["toy_exact"] >= _EXACT for toy in toys)
    positive = [
        toy["topic_kept_early"] > toy["topic_kept_last"] and min(toy["valid_early"], toy["valid_last"]) >= _EXACT
        for toy in toys
    ]
    names = [f"{what}_{where}" for what in ("topic_kept", "template_kept", "valid") for where in ("early", "last")]
    return [
        Claim.check(
            "The early latent can be exchanged and the topic stays; exchanging the last one changes the topic.",
            trained and sum(positive) >= 2 * len(toys) / 3,
            rule="48 sentences, reconstruction at least 0.9: on two of three seeds the topic is kept more often with "
            "the early latent exchanged than with the last, and 0.9 of the sentences are of the 48",
            figures=["toy_exact", *names],
        )
    ]


def _reconstruction_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    value = {name: figure.value for name, figure in figures.items()}
    claims = [
        Claim.check(
            "New sentences of a grammar are reconstructed.",
            value["grammar_tokens"] >= _TOKENS,
            rule="0.95 of the tokens of 1,000 sentences that were not trained on, from the middle latents",
            figures=["grammar_tokens", "grammar_exact", "grammar_kl", "grammar_active"],
        ),
        Claim.check(
            "Sentences of random latents are readable.",
            value["grammar_valid_samples"] >= _EXACT,
            rule="0.9 of the sentences drawn are of the grammar",
            figures=["grammar_valid_samples"],
        ),
        Claim.check(
            "A mean difference of latents turns a statement into a question and leaves the rest.",
            value["question_only"] >= 0.5,
            rule="half of the test statements become the same sentence as a question",
            figures=["question_only", "question_any"],
        ),
    ]
    if "corpus_tokens" in figures:
        claims.append(
            Claim.check(
                "New short sentences of corpora are reconstructed.",
                value["corpus_tokens"] >= _TOKENS,
                rule="0.95 of the tokens of 1,000 sentences that were not trained on",
                figures=["corpus_tokens", "corpus_kl", "corpus_active"],
            )
        )
    return claims


def _draw(figure: Any, toys: Sequence[Mapping[str, float]], grammars: Sequence[Mapping[str, float]]) -> None:
    figure.set_size_inches(13, 4.5)
    left, right = figure.subplots(1, 2)
    kept = {
        f"{what},\n{where} exchanged": [toy[f"{what}_kept_{where}"] for toy in toys]
        for what in ("topic", "template")
        for where in ("early", "last")
    }
    draw_runs(left, kept)
    left.set(title="48 sentences: what stays when one latent is exchanged", ylabel="share of pairs", ylim=(-0.03, 1.05))
    names = {
        "grammar_tokens": "tokens\nreconstructed",
        "grammar_exact": "sentences\nreconstructed",
        "grammar_valid_samples": "samples in\nthe grammar",
        "question_any": "became\na question",
        "question_only": "and nothing\nelse changed",
    }
    draw_runs(right, {label: [one[name] for one in grammars] for name, label in names.items()})
    right.set(title="grammar: sentences not trained on", ylabel="share", ylim=(-0.03, 1.05))
    for panel in (left, right):
        panel.set_xlabel("one dot for each seed")
