"""Training of a bag of character n-grams on the labelled questions of ATEC, and its scores on further sets."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.experiments._training import fit, shuffled_rows, torch_seed
from kexue.similarity import PairDataset, load_pairs, spearman

SETS = ("atec", "bq", "lcqmc", "stsb_zh")  # the first one trains
_DIM = 64

BuildLoss = Callable[
    [str, int], tuple[Any, Callable[..., Any]]
]  # way, d -> module with its parameters, loss(u, v, labels)

Questions = dict[
    str, dict[str, Array]
]  # loss -> {set: (seeds,), "valid", "history": (seeds, epochs, 2) of Spearman and loss}


def load_questions(data: Path | None, largest: int, notes: list[str]) -> dict[str, PairDataset]:
    """The sets by name, and the training and validation pairs of the first; empty where one is missing.

    Training pairs that also occur in a set for validation or test are left out.
    """
    folders = {name: next(iter(sorted(data.glob(f"pairs_*/{name}"))), None) if data else None for name in SETS}
    if absent := [name for name, folder in folders.items() if folder is None]:
        notes.append(f"left out: questions, since the data are missing: {', '.join(absent)}")
        return {}
    sets = {name: load_pairs(folder) for name, folder in folders.items() if folder is not None}
    sets["valid"], train = (load_pairs(str(folders[SETS[0]]), split) for split in ("valid", "train"))
    used = {_name_pair(a, b) for pairs in sets.values() for a, b in zip(pairs.texts_a, pairs.texts_b, strict=True)}
    own = [i for i in range(len(train)) if _name_pair(train.texts_a[i], train.texts_b[i]) not in used]
    notes.append(f"{len(train) - len(own)} of {len(train)} training pairs occur in a set for evaluation: left out")
    return {name: _take(pairs, range(len(pairs))[:largest]) for name, pairs in sets.items()} | {
        "train": _take(train, own[:largest])
    }


def _name_pair(*texts: str) -> frozenset[str]:
    """The same for two pairs that differ in order, width, case and spaces only."""
    return frozenset("".join(unicodedata.normalize("NFKC", text).lower().split()) for text in texts)


def _take(pairs: PairDataset, rows: Sequence[int]) -> PairDataset:
    a, b = ([side[i] for i in rows] for side in (pairs.texts_a, pairs.texts_b))
    return PairDataset(pairs.name, pairs.split, a, b, pairs.labels[list(rows)])


def measure_questions(
    sets: Mapping[str, PairDataset], ways: Sequence[str], build_loss: BuildLoss, seeds: Sequence[int], epochs: int
) -> Questions:
    """Spearman x100 on each set of an encoder trained on the first, for every loss of `ways` and untrained.

    The encoder sums vectors of character 1- and 2-grams, weighted by TF-IDF; at random vectors, where it starts, its
    cosine is nearly that of TF-IDF.
    """
    text = import_optional("sklearn.feature_extraction.text", extra="bench")
    counter = text.TfidfVectorizer(analyzer="char", ngram_range=(1, 2), min_df=5, dtype=np.float32)
    counter.fit([*sets["train"].texts_a, *sets["train"].texts_b])
    bags = {name: (counter.transform(p.texts_a), counter.transform(p.texts_b)) for name, p in sets.items()}
    labels = {name: pairs.labels for name, pairs in sets.items()}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ("untrained", *ways)}
    for way, runs in found.items():
        trained = way != "untrained"
        build = partial(build_loss, way if trained else ways[0], _DIM)
        runs += [_train(build, bags, labels, s, epochs if trained else 0) for s in seeds]
    return {way: {name: np.array([one[name] for one in runs]) for name in runs[0]} for way, runs in found.items()}


def _train(
    build: Callable[[], Any], bags: Mapping[str, Any], labels: Mapping[str, Array], seed: int, epochs: int
) -> dict[str, Any]:
    """Train on bags of n-grams; scores of the epoch that is best on validation pairs, and the course of training."""
    torch = import_optional("torch", extra="train")
    with torch_seed(seed):
        encoder = torch.nn.EmbeddingBag(bags["train"][0].shape[1], _DIM, mode="sum")
        module, loss = build()

    def encode(bag: Any) -> Any:
        return encoder(
            torch.from_numpy(bag.indices),
            torch.from_numpy(bag.indptr[:-1]),
            per_sample_weights=torch.from_numpy(bag.data),
        )

    def score(name: str) -> float:
        with torch.no_grad():
            cosines = torch.cosine_similarity(*(encode(bag) for bag in bags[name]))
        return 100 * spearman(cosines.numpy(), labels[name])

    y, losses = torch.from_numpy(labels["train"]).float(), list[float]()

    def train(rows: Any) -> Any:
        value = loss(*(encode(bag[rows.numpy()]) for bag in bags["train"]), y[rows])
        losses.append(value.item())
        return value

    best, weights = score("valid"), encoder.weight.detach().clone()
    history: list[tuple[float, float]] = []

    def evaluate() -> None:
        nonlocal best, weights
        history.append((score("valid"), float(np.mean(losses))))
        losses.clear()
        if history[-1][0] > best:
            best, weights = history[-1][0], encoder.weight.detach().clone()

    batches = shuffled_rows(len(y), 256, epochs, np.random.default_rng(seed))
    optimizer = torch.optim.Adam([*encoder.parameters(), *module.parameters()], lr=2e-2)
    fit([encoder, module], train, batches, optimizer, evaluate=evaluate, every=max(1, len(batches) // max(1, epochs)))
    with torch.no_grad():
        encoder.weight.copy_(weights)
    return {name: score(name) for name in (*SETS, "valid")} | {"history": history[:epochs]}
