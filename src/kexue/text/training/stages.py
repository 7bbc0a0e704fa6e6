"""What each stage trains on: its rows, the order of the batches, and its objective."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch.utils.data import Dataset

from kexue._progress import Progress
from kexue._text import say_count
from kexue.text.roformer_sim.sentences import RoFormerSim
from kexue.text.tokenizer import TextTokenizer
from kexue.text.training.batches import Groups, LengthBatches, TextRows
from kexue.text.training.config import SentenceConfig
from kexue.text.training.corpus import Corpus, ragged
from kexue.text.training.rows import RowMaker, encode_texts
from kexue.text.training.tasks import Objective, distill
from kexue.text.training.teacher import reduce_targets, teach
from kexue.text.training.words import choose_splitter

Phases = Callable[[str], AbstractContextManager[Progress]]  # opens the progress of a phase of the work by its name
_UNKNOWN = 0.01  # share of unknown tokens from which a warning is due
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
    rows = TextRows(maker, groups, reduce_targets(vectors, model.config.hidden_size), config.seed)
    return Stage(rows, LengthBatches(rows, config.batch_size, config.seed), distill, facts)


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
