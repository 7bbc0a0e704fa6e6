"""Scores as the benchmark computes them, and the assignment of idioms to blanks; numpy and scipy suffice.

Source: kexue.fm/archives/8739; the scorers in CLUEbenchmark/CLUE.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kexue._arrays import as_matrix, host
from kexue.clue.catalogue import ENTITY_TYPES
from kexue.clue.examples import Mentions
from kexue.clue.words import split_words

# What CMRC2018 deletes. Its list also names the two-character "……", which is no single character and is never deleted;
# the ASCII comma, period and quotes, and the left quote ‘, are not in it.
PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CHINESE = re.compile("[\u4e00-\u9fa5]")


def accuracy(predictions: Sequence[Any], golds: Sequence[Any]) -> float:
    """Return the share of predictions that equal their gold answer, in [0, 1].

    Args:
        predictions: labels or indices.
        golds: as many answers, of the same type.

    Raises:
        ValueError: the lengths differ, or there is nothing to score. TypeError: a prediction and its answer are a text
            and a number, which are never equal.
    """
    check_lengths(predictions, golds)
    for number, (prediction, gold) in enumerate(zip(predictions, golds, strict=True)):
        if isinstance(prediction, str) != isinstance(gold, str):
            raise TypeError(
                f"prediction {number} is {prediction!r}, its answer {gold!r}: give texts or numbers for both"
            )
    return sum(bool(p == g) for p, g in zip(predictions, golds, strict=True)) / len(golds)


def cmrc_scores(predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return exact match and F1 of answers, as the scorer of CMRC2018 computes them.

    Both sides are first put in small letters, stripped, and freed of `PUNCTUATION`. Exact match: the prediction equals
    one of the gold answers. F1: tokens are Chinese characters, and the words of what is between them; with L the length
    of the longest run of tokens that both have in one piece, precision is L / tokens of the prediction and recall
    L / tokens of the gold answer; the best gold answer counts. Two empty answers match exactly and have F1 0.

    Args:
        predictions: question id -> text; a question without one scores 0.
        golds: question id -> gold answers, at least one.

    Returns:
        ``em`` and ``f1``, means over the questions of `golds`, in [0, 1], and ``n``, their number.

    Raises:
        ValueError: no questions, or a question without a gold answer. TypeError: a prediction or answer is no text.
    """
    if not golds:
        raise ValueError("there are no gold answers to score against")
    em = f1 = 0.0
    for id_, answers in golds.items():
        if isinstance(answers, str) or not answers:
            raise ValueError(f"question {id_!r} needs a list of one gold answer or more, got {answers!r}")
        if id_ not in predictions:
            continue
        texts = [predictions[id_], *answers]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"answers must be texts; question {id_!r} has {texts!r:.80}")
        prediction, *cleaned = map(_clean, texts)
        em += prediction in cleaned
        f1 += max(_overlap(prediction, answer) for answer in cleaned)
    return {"em": em / len(golds), "f1": f1 / len(golds), "n": len(golds)}


def _clean(text: str) -> str:
    """Return a text in small letters, stripped, without the deleted punctuation."""
    return "".join(char for char in text.lower().strip() if char not in PUNCTUATION)


def _tokens(text: str) -> list[str]:
    """Return the Chinese characters of a text and the words between them."""
    tokens: list[str] = []
    between = 0
    for match in _CHINESE.finditer(text):
        tokens += [*split_words(text[between : match.start()]), match[0]]
        between = match.end()
    return tokens + split_words(text[between:])


def _overlap(prediction: str, gold: str) -> float:
    """Return the F1 of two cleaned texts."""
    a, b = _tokens(prediction), _tokens(gold)
    shared = SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size
    return 2.0 * shared / (len(a) + len(b)) if shared else 0.0  # 2PR / (P + R) with P = L/|a|, R = L/|b|


def cluener_scores(predictions: Sequence[Mentions], golds: Sequence[Mentions]) -> dict[str, Any]:
    """Return the F1 of named entities; one is right if its type, start and end are.

    Args:
        predictions: one {type: {mention: [[start, end inclusive], ...]}} for each text. A span named twice counts once.
        golds: the same of the gold entities.

    Returns:
        ``macro_f1``, the number of the leaderboard: the mean over the ten types, where a type without a right entity
        has 0; ``micro_f1``, over all entities; ``per_type``: type -> precision, recall, f1, n_pred and n_gold.

    Raises:
        ValueError: the lengths differ, there is nothing to score, or a type is none of the ten. TypeError: entities in
            another form.
    """
    counts = count_entities(predictions, golds).sum(0)
    per_type = {type_: _rates(*row) for type_, row in zip(ENTITY_TYPES, counts.tolist(), strict=True)}
    return {"macro_f1": float(macro_f1(counts)), "micro_f1": float(micro_f1(counts)), "per_type": per_type}


def count_entities(predictions: Sequence[Mentions], golds: Sequence[Mentions]) -> NDArray[np.int64]:
    """Return the numbers (n, types, 3) of right, predicted and gold entities of each text, by type.

    Raises:
        ValueError, TypeError: as of `cluener_scores`.
    """
    check_lengths(predictions, golds)
    guessed, wanted = _entities(predictions), _entities(golds)
    places = {type_: place for place, type_ in enumerate(ENTITY_TYPES)}
    counts = np.zeros((len(golds), len(ENTITY_TYPES), 3), np.int64)
    for column, entities in enumerate((guessed & wanted, guessed, wanted)):
        for text, type_, _, _ in entities:
            counts[text, places[type_], column] += 1
    return counts


def macro_f1(counts: NDArray[Any]) -> NDArray[Any]:
    """Return the mean of the F1 of the types, of numbers (..., types, 3); 0 for a type without a right entity."""
    return np.asarray(_f1(counts).mean(-1))


def micro_f1(counts: NDArray[Any]) -> NDArray[Any]:
    """Return the F1 over the entities of all types, of numbers (..., types, 3)."""
    return _f1(counts.sum(-2))


def _entities(texts: Sequence[Mentions]) -> set[tuple[int, str, int, int]]:
    """Return all entities as (number of the text, type, start, end)."""
    for number, mentions in enumerate(texts):
        if not _is_mentions(mentions):
            raise TypeError(f"text {number} needs {{type: {{mention: [[start, end], ...]}}}}, got {mentions!r:.80}")
        if unknown := set(mentions) - set(ENTITY_TYPES):
            raise ValueError(f"{sorted(unknown)[0]!r} is no type of entity; they are {', '.join(ENTITY_TYPES)}")
    return {
        (number, type_, start, end)
        for number, mentions in enumerate(texts)
        for type_, spans_of in mentions.items()
        for spans in spans_of.values()
        for start, end in spans
    }


def _is_mentions(value: Any) -> bool:
    """Return whether a value has the form {type: {mention: [[start, end], ...]}}."""
    try:
        places = [
            place for of in value.values() for spans in of.values() for start, end in spans for place in (start, end)
        ]
    except (AttributeError, TypeError, ValueError):
        return False
    return all(isinstance(place, Integral) for place in places)


def _f1(counts: NDArray[Any]) -> NDArray[Any]:
    """Return the F1 of numbers (..., 3) of right, predicted and gold ones; 0 where nothing is right."""
    return np.asarray(2.0 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1))


def _rates(right: int, n_pred: int, n_gold: int) -> dict[str, float]:
    """Return precision, recall and F1, each 0 where nothing is right."""
    return {
        "precision": right / n_pred if right else 0.0,
        "recall": right / n_gold if right else 0.0,
        "f1": 2 * right / (n_pred + n_gold) if right else 0.0,
        "n_pred": n_pred,
        "n_gold": n_gold,
    }


def assign_idioms(scores: Any) -> NDArray[np.int64]:
    """Return for each blank an idiom, all different, so that the sum of their scores is the largest possible.

    Blanks that share candidates have different answers. The best idiom of each blank alone ignores that.

    Args:
        scores: (m, n) logits of n candidates, usually 10, for m <= n blanks.

    Returns:
        (m,) indices of candidates, no two the same.

    Raises:
        ValueError: `scores` is no such matrix, has more blanks than candidates, or holds a value that is not finite.
    """
    from scipy.optimize import linear_sum_assignment

    matrix = host(as_matrix(scores, "scores")).astype(np.float64)
    if matrix.shape[0] > matrix.shape[1]:
        raise ValueError(f"scores must be (blanks, candidates) with no more blanks than candidates, got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("scores must be finite; of a candidate that is excluded, give a very small score")
    return np.asarray(linear_sum_assignment(matrix, maximize=True)[1], np.int64)


def check_lengths(predictions: Sequence[Any], golds: Sequence[Any]) -> None:
    """Raise a ValueError unless there are as many predictions as gold answers, and one at least."""
    if len(predictions) != len(golds):
        raise ValueError(f"{len(predictions)} predictions for {len(golds)} gold answers; give one for each, in order")
    if not len(golds):
        raise ValueError("there is nothing to score: no predictions and no gold answers")
