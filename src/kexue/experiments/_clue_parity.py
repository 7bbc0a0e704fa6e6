"""The scorers of CLUE against their definitions, written down once more, slowly and with other means."""

from __future__ import annotations

import random
from collections.abc import Callable

from kexue._optional import import_optional
from kexue.clue.metrics import assign_idioms, cmrc_scores
from kexue.errors import MissingDependencyError
from kexue.experiments.report import Figure

_DELETED = [*"-:_*^/\\~`+=，。：？！“”；’《》", "……", *"·、「」（）－～『』"]
_PIECES = [
    *"天地人山水中国年一二ab9",
    *_DELETED,
    *",.'\"‘…()%$;!?&#@<— ",
    "can't",
    "3.5%",
    "a, b",
    "U.S.",
    "12:30",
    "''",
]


def measure_parity(rng: random.Random, cases: int) -> dict[str, Figure]:
    """Share of random cases in which the scores are equal, to twelve digits: of answers, and of assignments.

    The words of what is not Chinese are those of NLTK where it is installed; without it answers are all Chinese.
    """
    try:
        split = import_optional("nltk.tokenize", extra="dev").NLTKWordTokenizer().tokenize
        pieces = _PIECES
    except MissingDependencyError:
        split, pieces = list, [*"天地人山水中国年一二", *_DELETED]
    equal = sum(_same_answer_scores(rng, pieces, split) for _ in range(cases))
    assigned = sum(_same_assignment(rng) for _ in range(cases // 10))
    return {
        "parity_answers": Figure(equal / cases, n=cases),
        "parity_assignments": Figure(assigned / (cases // 10), n=cases // 10),
    }


def _same_answer_scores(rng: random.Random, pieces: list[str], split: Callable[[str], list[str]]) -> bool:
    gold = "".join(rng.choice(pieces) for _ in range(rng.randrange(9)))
    cut = rng.randrange(len(gold) + 1)
    prediction = rng.choice([gold, gold[:cut], gold[cut:], gold[:cut] + rng.choice(pieces) + gold[cut:]])
    scores = cmrc_scores({"q": prediction}, {"q": [gold]})
    a, b = _tokens(prediction, split), _tokens(gold, split)
    run = max(
        (n for i in range(len(a)) for j in range(len(b)) for n in range(1, 40) if a[i : i + n] == b[j : j + n]
         and i + n <= len(a) and j + n <= len(b)),
        default=0,
    )  # fmt: skip
    f1 = 0.0 if run == 0 else 2 * (run / len(a)) * (run / len(b)) / (run / len(a) + run / len(b))
    return scores["em"] == (_clean(prediction) == _clean(gold)) and abs(scores["f1"] - f1) < 1e-12


def _clean(text: str) -> str:
    return "".join(char for char in text.lower().strip() if char not in _DELETED)


def _tokens(text: str, split: Callable[[str], list[str]]) -> list[str]:
    tokens: list[str] = []
    between = ""
    for char in _clean(text):
        if "\u4e00" <= char <= "\u9fa5":
            tokens += [*(split(between) if between else []), char]
            between = ""
        else:
            between += char
    return tokens + (split(between) if between else [])


def _same_assignment(rng: random.Random) -> bool:
    """Whether the assignment of at most 4 blanks to 5 idioms has the largest sum, by trying them all."""
    scores = [[rng.gauss(0, 1) for _ in range(5)] for _ in range(rng.randint(1, 4))]
    return tuple(assign_idioms(scores).tolist()) == _best_choice(scores, ())[1]


def _best_choice(scores: list[list[float]], taken: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
    """The largest sum that the blanks after those in `taken` allow, with all choices."""
    if len(taken) == len(scores):
        return 0.0, taken
    return max(
        (scores[len(taken)][one] + rest, choice)
        for one in range(5)
        if one not in taken
        for rest, choice in [_best_choice(scores, (*taken, one))]
    )
