"""Labels of pairs brought to two forms, and data sets taken in turn.

Source: kexue.fm/archives/8541.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from kexue.corpus.pairs import find_columns
from kexue.similarity.pairs import PairDataset
from kexue.text.training.sources import INFERENCE, Label

Kind = Literal["binary", "graded", "nli"]
GRADE = 2.5  # of grades from 0 to 5, those above are alike
T = TypeVar("T")
_ORDER = (0.0, 2.0, 1.0)  # of contradiction, entailment, neutral by similarity


class LabelledPair(NamedTuple):
    """A pair of texts with a class.

    Attributes:
        first, second: the texts.
        label: of the task ``"binary"`` 0 or 1 (similar); of ``"nli"`` 0 contradiction, 1 entailment, 2 neutral.
        task: ``"binary"`` or ``"nli"``, as `kexue.losses.MultiTaskPairLoss` names them.
    """

    first: str
    second: str
    label: int
    task: str


def harmonize_pairs(dataset: Any, kind: Kind, *, threshold: float = GRADE) -> list[LabelledPair]:
    """Return labelled pairs of any kind as one of two tasks, yes/no or inference.

    Args:
        dataset: a `kexue.similarity.PairDataset`, rows (text, text, label), or mappings with the columns text_a, text_b
            and label, or sentence1, sentence2 and label or score.
        kind: ``"binary"``: labels 0 and 1; ``"graded"``: numbers, those above `threshold` are similar; ``"nli"``:
            the words contradiction, entailment and neutral. Inference pairs with another word are left out.
        threshold: of grades; 2.5 fits grades from 0 to 5.

    Raises:
        ValueError: an unknown kind, or a label that the kind does not have; the row is named.

    Example:
        >>> harmonize_pairs([("今天天气好", "天气不错", 4.2)], "graded")
        [LabelledPair(first='今天天气好', second='天气不错', label=1, task='binary')]
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    task = "nli" if kind == "nli" else "binary"
    pairs = []
    for number, (first, second, label) in enumerate(_rows(dataset)):
        try:
            wanted = to_class(label, kind, threshold)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
        if wanted is not None:
            pairs.append(LabelledPair(first, second, wanted, task))
    return pairs


def find_kind(labels: Iterable[Label]) -> Kind:
    """Return the kind of labels: words are of inference, 0 and 1 alone are yes/no, other numbers are grades."""
    different = set(labels)
    if any(isinstance(label, str) for label in different):
        return "nli"
    return "binary" if different <= {0, 1} else "graded"


def to_class(label: Any, kind: Kind, threshold: float = GRADE) -> int | None:
    """Return the class of a label, see `LabelledPair`; None for an inference pair without one."""
    if kind == "nli":
        if not isinstance(label, str):
            raise ValueError(
                f"an inference label is one of the words {', '.join(INFERENCE)}, got {label!r}: sets number them "
                "in different orders, so name them"
            )
        word = label.strip().lower()
        return INFERENCE.index(word) if word in INFERENCE else None
    value = float(label)
    if kind == "binary" and value not in (0, 1):
        raise ValueError(f"a yes/no label is 0 or 1, got {label!r}; grades are of the kind 'graded'")
    return int(value > (threshold if kind == "graded" else 0.5))


def to_number(label: Label, kind: Kind, threshold: float, loss: str) -> float | None:
    """Return the number that a loss compares with a pair's cosine; None for a pair that it does not use.

    ``"cosent"`` needs an order only: grades stay, and inference is contradiction 0, neutral 1, entailment 2.
    ``"classify"`` needs the class of `to_class`. ``"mse"`` and ``"hinge"`` need 0 or 1; they use no neutral pairs.
    """
    if loss == "cosent" and kind != "nli":
        return float(label)
    wanted = to_class(label, kind, threshold)
    if wanted is None or kind != "nli" or loss == "classify":
        return wanted
    return _ORDER[wanted] if loss == "cosent" else {0: 0.0, 1: 1.0}.get(wanted)


def interleave(a: Sequence[T], b: Sequence[T], ratio: int = 1) -> Iterator[T]:
    """Yield elements of a and b in turn, `ratio` of a for each of b, until both were seen completely.

    The one that ends first starts again, so that each has its share to the end.

    Args:
        a, b: anything that can be iterated over again, such as lists of pairs or of batches.
        ratio: elements of a in a row, >= 1.

    Raises:
        ValueError: `ratio` < 1.

    Example:
        >>> list(interleave("abc", "x"))
        ['a', 'x', 'b', 'x', 'c', 'x']
    """
    if ratio < 1:
        raise ValueError(f"ratio must be a whole number >= 1, got {ratio!r}")
    if not len(a) or not len(b):
        yield from (*a, *b)
        return
    rounds = max(-(-len(a) // ratio), len(b))
    left, right = _again(a), _again(b)
    for _ in range(rounds):
        yield from (next(left) for _ in range(ratio))
        yield next(right)


def _again(items: Iterable[T]) -> Iterator[T]:
    """Yield the items without end."""
    while True:
        yield from items


def _rows(dataset: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield (text, text, label) of each row of a data set."""
    if isinstance(dataset, PairDataset):
        yield from zip(dataset.texts_a, dataset.texts_b, dataset.labels.tolist(), strict=True)
        return
    for number, row in enumerate(dataset):
        if not isinstance(row, Mapping):
            first, second, label = row
            yield first, second, label
            continue
        if (names := find_columns(row)) is None:
            raise ValueError(f"row {number} has the columns {', '.join(row)}, expected text_a, text_b and label")
        yield row[names[0]], row[names[1]], row[names[2]]
