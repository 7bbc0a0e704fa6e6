"""A task of CLUE as one object: reads its files, puts them to an encoder, scores predictions, writes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kexue._optional import import_optional
from kexue.clue import metrics
from kexue.clue.catalogue import TASKS, TaskInfo
from kexue.clue.examples import EntityExample, Example, SpanExample, TextExample
from kexue.clue.readers.choices import read_choices
from kexue.clue.readers.entities import read_entities
from kexue.clue.readers.guess import guess_tasks
from kexue.clue.readers.idioms import read_idioms
from kexue.clue.readers.records import Record, read_records
from kexue.clue.readers.spans import read_spans
from kexue.clue.readers.texts import read_texts
from kexue.clue.submission import write_submission
from kexue.similarity.bootstrap import totals_interval

if TYPE_CHECKING:
    from torch import nn

    from kexue.clue.framings import Framing
    from kexue.clue.framings.rows import RowTokenizer
    from kexue.clue.framings.units import Unit

_READERS: dict[str, Callable[[Sequence[Record], TaskInfo], Sequence[Example]]] = {
    "text": read_texts,
    "choice": read_choices,
    "idiom": read_idioms,
    "span": read_spans,
    "entity": read_entities,
}
_SAMPLES = Path(__file__).parent / "samples"


class Task:
    """A task of CLUE.

    Attributes:
        info: its labels, sizes and settings.
    """

    def __init__(self, info: TaskInfo) -> None:
        self.info = info

    def __repr__(self) -> str:
        return f"Task({self.info.name!r})"

    def read(self, path: str | os.PathLike[str]) -> list[Example]:
        """Return the examples of a file of CLUE or FewCLUE, also compressed; without answers where it has none.

        Raises:
            DataError: the file is of another task, which the error names; or a record is wrong, with its line.
        """
        records = read_records(path)
        likely = guess_tasks(records[0].value)
        if likely and self.info.name not in likely:
            raise records[0].error(
                f"this is a record of {' or '.join(likely)}, not of {self.info.name}.", "Name the task or the file."
            )
        return list(_READERS[self.info.framing](records, self.info))

    def metric(self, predictions: Sequence[Any] | Mapping[str, Any], golds: Any) -> dict[str, Any]:
        """Return the scores of predictions: ``accuracy``; ``em, f1, n`` of CMRC2018; those of `cluener_scores`.

        Args:
            predictions: labels, indices, texts or entities, in the order of the gold answers or by id. A question of
                CMRC2018 may have None: no prediction.
            golds: examples that have answers, or the answers themselves, in order or by id; of CMRC2018 those are lists
                of texts.

        Raises:
            ValueError: the lengths differ, there is nothing to score, an example has no answer, or no prediction.
            TypeError: a prediction is not of the type of its answer.
        """
        given, answers = self._align(predictions, golds)
        if self.info.framing == "entity":
            return metrics.cluener_scores(given, answers)
        if self.info.framing != "span":
            return {"accuracy": metrics.accuracy(given, answers)}
        texts = {str(number): text for number, text in enumerate(given) if text is not None}
        return metrics.cmrc_scores(texts, {str(number): answer for number, answer in enumerate(answers)})

    def intervals(self, predictions: Sequence[Any] | Mapping[str, Any], golds: Any) -> dict[str, tuple[float, float]]:
        """Return the 95 % bootstrap interval, over examples, of each score of `metric`: name -> (low, high).

        It tells how much a score would differ on other examples of the same kind, with the same model.

        Args:
            predictions, golds: as of `metric`.
        """
        given, answers = self._align(predictions, golds)
        if self.info.framing == "entity":
            counts = metrics.count_entities(given, answers)
            functions = {"macro_f1": metrics.macro_f1, "micro_f1": metrics.micro_f1}
            return {name: totals_interval(counts, function) for name, function in functions.items()}
        singles = [self.metric([one], [answer]) for one, answer in zip(given, answers, strict=True)]
        values = {name: np.array([one[name] for one in singles]) for name in singles[0] if name != "n"}
        return {name: totals_interval(one, lambda totals: totals / len(given)) for name, one in values.items()}

    def _align(self, predictions: Sequence[Any] | Mapping[str, Any], golds: Any) -> tuple[list[Any], list[Any]]:
        """Return predictions and answers in the order of the answers; ValueError where one is missing."""
        ids: list[Any] = list(golds) if isinstance(golds, Mapping) else [getattr(gold, "id", None) for gold in golds]
        answers = list(map(_answer_of, golds.values() if isinstance(golds, Mapping) else golds))
        given: list[Any] = [predictions.get(i) for i in ids] if isinstance(predictions, Mapping) else [*predictions]
        metrics.check_lengths(given, answers)
        missing = [number for number, one in enumerate(given) if one is None]
        if missing and self.info.framing != "span":
            raise ValueError(f"no prediction for example {missing[0]} (id {ids[missing[0]]!r}); give one for each")
        return given, answers

    @cached_property
    def framing(self) -> Framing:
        """How the task is put to an encoder."""
        import_optional("torch", extra="clue")
        from kexue.clue.framings import build_framing

        return build_framing(self.info)

    def encode(self, example: Example, tokenizer: RowTokenizer, max_length: int | None = None) -> list[Unit]:
        """Return an example as rows of tokens: the windows of a long text, else one unit.

        Args:
            example: of this task.
            tokenizer: of the encoder, ``RowTokenizer(model)``.
            max_length: most tokens of a row; None: as the task has it.

        Raises:
            DataError: an empty text, a label or type that the task does not have.
        """
        return self.framing.encode(example, tokenizer, self.info.max_length if max_length is None else max_length)

    def collate(self, units: Sequence[Unit], pad_id: int = 0) -> dict[str, Any]:
        """Return a batch of tensors: ``token_ids`` and ``mask`` (rows, T), and what the loss needs."""
        return self.framing.collate(units, pad_id)

    def head(self, width: int) -> nn.Module:
        """Return a new head for states of this width."""
        return self.framing.build_head(width)

    def decode(self, outputs: Sequence[Sequence[Any]], examples: Sequence[Example]) -> list[Any]:
        """Return the predictions of examples from what ``framing.read_scores`` says of the units of each."""
        return self.framing.decode(outputs, examples)

    def write_submission(
        self,
        predictions: Sequence[Any] | Mapping[str, Any],
        path: str | os.PathLike[str],
        examples: Sequence[Example] | None = None,
    ) -> None:
        """Write predictions as the site accepts them; see `kexue.clue.submission.write_submission`."""
        write_submission(self.info, predictions, path, examples)

    def sample(self) -> list[Example]:
        """Return about twenty examples with answers, written for this package, to try things without the data."""
        return self.read(_SAMPLES / f"{self.info.name}.json")


def get_task(name: str) -> Task:
    """Return a task by its name, such as ``"afqmc"``; `kexue.clue.list_tasks` has all.

    Raises:
        ValueError: no task has this name.
    """
    if name not in TASKS:
        raise ValueError(f"no task is called {name!r}; they are {', '.join(TASKS)}")
    return Task(TASKS[name])


def _answer_of(gold: Any) -> Any:
    """Return the answer of an example, as predictions are given; what is no example is an answer itself."""
    if not isinstance(gold, Example):
        return gold
    if isinstance(gold, TextExample):
        answer: Any = gold.label
    elif isinstance(gold, SpanExample):
        answer = None if gold.answers is None else [one.text for one in gold.answers]
    else:
        answer = gold.mentions if isinstance(gold, EntityExample) else gold.answer
    if answer is None:
        raise ValueError(f"the example {gold.id!r} has no gold answer: score a file that has labels, such as dev.json")
    return answer
