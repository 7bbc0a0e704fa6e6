"""What each stage trains on: its rows, the order of the batches, and its objective."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.utils.data import Dataset

from kexue._progress import Progress
from kexue._text import say_count
from kexue.errors import DataError
from kexue.text.roformer_sim.sentences import RoFormerSim
from kexue.text.tokenizer import TextTokenizer
from kexue.text.training.batches import (
    AlternatingBatches,
    DistinctBatches,
    Groups,
    LabelledRows,
    LengthBatches,
    PairRows,
    TextRows,
)
from kexue.text.training.config import SentenceConfig
from kexue.text.training.corpus import Corpus, ragged
from kexue.text.training.labels import to_number
from kexue.text.training.rows import RowMaker, encode_texts
from kexue.text.training.sources import INFERENCE
from kexue.text.training.tasks import Classify, Objective, contrast, distill, hinge, order, square
from kexue.text.training.teacher import reduce_targets, teach
from kexue.text.training.words import choose_splitter

Phases = Callable[[str], AbstractContextManager[Progress]]  # opens the progress of a phase of the work by its name
_UNKNOWN = 0.01  # share of unknown tokens from which a warning is due
_FEW = 0.5  # share of the pairs in an epoch below which a warning is due
_LOG = logging.getLogger(__name__)


class Stage(NamedTuple):
    """Rows, batches of their numbers, the objective, and what a record of the run says about them."""

    rows: Dataset[Any]
    batches: Iterable[list[int]]
    objective: Objective
    facts: dict[str, Any]


def prepare_distill(config: SentenceConfig, corpus: Corpus, model: RoFormerSim, phases: Phases) -> Stage:
    """Return rows of all texts with the vectors of the teacher."""
    groups = Groups(*ragged(list(corpus.alike())))
    with phases("encoding by the teacher") as progress:
        vectors = teach(
            corpus.texts,
            os.fspath(config.teacher or ""),
            Path(config.out),
            device=config.device,
            progress=progress,
        )
    maker, facts = _code(config, corpus, cast(TextTokenizer, model.tokenizer), written=bool((groups.sizes > 1).any()))
    rows = TextRows(maker, groups, reduce_targets(vectors, model.config.width), config.seed)
    return Stage(rows, LengthBatches(rows, config.batch_size, config.seed), distill, facts)


def prepare_pretrain(config: SentenceConfig, corpus: Corpus, model: RoFormerSim, _phases: Phases) -> Stage:
    """Return two rows for each group of texts that mean the same; DataError where there are fewer than two groups."""
    several = [group for group in corpus.alike() if len(group) > 1]
    if len(several) < 2:
        raise DataError(
            f"the stage 'pretrain' needs two or more pairs or groups of different texts that mean the same, got "
            f"{len(several)}.",
            remedy="Give pairs (columns text_a and text_b), or learn from single texts with the stage 'distill'.",
        )
    if len(several) < len(corpus.examples):
        _LOG.warning("%s of %s used: the others are single texts, or pairs that do not mean the same",
                     f"{len(several):,}", say_count(len(corpus.examples), "example"))  # fmt: skip
    groups = Groups(*ragged(several))
    maker, facts = _code(config, corpus, cast(TextTokenizer, model.tokenizer), written=True)
    rows = PairRows(maker, groups, config.seed)
    batches = DistinctBatches(rows, find_families(groups), config.batch_size // 2, config.seed)
    if batches.used < _FEW * len(several):
        _LOG.warning(
            "%s of %s are in the batches of an epoch: the others share texts with them, and would be wrong negatives",
            f"{batches.used:,}", f"{len(several):,} pairs or groups",
        )  # fmt: skip
    return Stage(rows, batches, contrast, facts)


def find_families(groups: Groups) -> np.ndarray:
    """Return the family of each group: groups that share a text are related, and so are those related to a third."""
    of = np.repeat(np.arange(len(groups.sizes)), groups.sizes)
    n = len(groups.sizes)
    edges = (np.ones(len(of)), (of, n + groups.members))  # a group and its texts
    size = n + int(groups.members.max()) + 1
    return np.asarray(connected_components(coo_array(edges, shape=(size, size)), directed=False)[1][:n])


def prepare_supervise(config: SentenceConfig, corpus: Corpus, model: RoFormerSim, _phases: Phases) -> Stage:
    """Return two rows for each labelled pair; batches of labels of one kind take turns."""
    kinds = corpus.kinds()
    if any(kind == "graded" and corpus.labels_of(source) == {0, 1, 2} for source, (kind, _) in kinds.items()):
        _LOG.warning("labels 0, 1 and 2 are read as grades; for inference use the words %s", ", ".join(INFERENCE))
    pairs, labels, tasks, pools = [], [], [], []
    for numbers, label, source in zip(corpus.examples, corpus.labels, corpus.sources, strict=True):
        if label is None:
            raise DataError(
                f"the stage 'supervise' needs a label for each pair, {corpus.texts[numbers[0]]!r:.40} has none.",
                remedy="Add a column label, or leave the file out.",
                path=str(config.data[source]) if isinstance(config.data[source], (str, os.PathLike)) else None,
            )
        kind, threshold = kinds[source]
        if (number := to_number(label, kind, threshold, config.loss)) is not None:
            pairs.append(numbers)
            labels.append(number)
            tasks.append(int(kind == "nli"))
            own = kind == "graded" and config.loss == "cosent"  # scales of grades differ
            pools.append(2 + source if own else tasks[-1])
    if len(set(labels)) < 2:
        raise DataError(
            f"the labels are all alike: {', '.join(map(str, set(labels))) or 'none can be used'}.",
            remedy="Give pairs of which some are similar and some are not.",
        )
    maker, facts = _code(config, corpus, cast(TextTokenizer, model.tokenizer), written=False)
    rows = LabelledRows(maker, np.array(pairs), np.array(labels), np.array(tasks))
    found = np.array(pools)
    batches = [
        LengthBatches(rows, config.batch_size // 2, config.seed, chosen=np.flatnonzero(found == pool))
        for pool in np.unique(found)
    ]
    if config.loss == "classify":
        return Stage(rows, AlternatingBatches(batches), Classify(model.config.width), facts)
    objectives: dict[str, Objective] = {"cosent": order, "mse": square, "hinge": hinge}
    return Stage(rows, AlternatingBatches(batches), objectives[config.loss], facts)


def _code(
    config: SentenceConfig, corpus: Corpus, tokenizer: TextTokenizer, *, written: bool
) -> tuple[RowMaker, dict[str, Any]]:
    """Return the maker of rows of the texts, and facts; warn of texts that are cut and of unknown characters."""
    name, splitter = choose_splitter(corpus.texts) if written and config.noise else ("none", None)
    coded = encode_texts(tokenizer, corpus.texts, config.max_length, splitter)
    if coded.cut:
        _LOG.warning(
            "%s longer than max_length=%d tokens: the rest is left out",
            say_count(coded.cut, "text"), config.max_length,
        )  # fmt: skip
    if coded.tokens.unknown > _UNKNOWN:
        _LOG.warning(
            "%.1f %% of the tokens are unknown to the model; a new model (without init) takes its characters from the "
            "data",
            100 * coded.tokens.unknown,
        )
    facts = {"texts": len(corpus.texts), "cut": coded.cut, "unknown": coded.tokens.unknown, "words": name}
    return RowMaker(coded, tokenizer, noise=config.noise), facts
