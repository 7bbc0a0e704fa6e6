"""The tasks of CLUE: what each one asks, its labels, its sizes, and the training settings of the article.

Source: kexue.fm/archives/8739 (settings), the README of CLUEbenchmark/CLUE (sizes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Framing = Literal["text", "choice", "idiom", "span", "entity"]

NLI = ("entailment", "neutral", "contradiction")
# 105 and 111 are no classes of TNEWS.
TNEWS = tuple(str(n) for n in range(100, 117) if n not in (105, 111))
ENTITY_TYPES = (
    "address", "book", "company", "game", "government", "movie", "name", "organization", "position", "scene",
)  # fmt: skip


@dataclass(frozen=True)
class TaskInfo:
    """What is known of a task without its files.

    Attributes:
        name: such as ``"afqmc"``.
        title: what is asked, in a few words.
        framing: how the task is put to an encoder, and the type of its examples.
        metric: name of the number of the leaderboard, a key of what `Task.metric` returns.
        train, dev, test: number of examples of the published files; None where it is not published.
            CLUEWSC2020: of test set 1.1. ChID: of passages; CMRC2018 and C3: of questions.
        labels: classes in the order of the head's outputs; for CLUENER the types of entities; else empty.
        max_length: tokens of a row.
        batch_size: examples of a step.
        accumulate: steps whose gradients are added up before an update.
        epochs: passes over the training file.
        submissions: names of the files that the site accepts: one for each version of the test set.
    """

    name: str
    title: str
    framing: Framing
    metric: str
    train: int
    dev: int
    test: int | None
    labels: tuple[str, ...]
    submissions: tuple[str, ...]
    max_length: int = 128
    batch_size: int = 32
    accumulate: int = 1
    epochs: int = 10

    def say_labels(self) -> str:
        """Return the labels in words, for errors."""
        return ", ".join(self.labels) if len(self.labels) < 20 else f"{self.labels[0]} to {self.labels[-1]}"


_INFOS = (
    TaskInfo("afqmc", "Do two questions to a bank mean the same?", "text", "accuracy", 34_334, 4_316, 3_861,
             ("0", "1"), ("afqmc_predict.json",)),
    TaskInfo("tnews", "Which of 15 topics has a headline?", "text", "accuracy", 53_360, 10_000, 10_000,
             TNEWS, ("tnews10_predict.json", "tnews11_predict.json")),
    TaskInfo("iflytek", "Which of 119 kinds is an app?", "text", "accuracy", 12_133, 2_599, 2_600,
             tuple(map(str, range(119))), ("iflytek_predict.json",)),
    TaskInfo("cmnli", "Does a sentence follow from another? (translated)", "text", "accuracy", 391_782, 12_426, 13_880,
             NLI, ("cmnli_predict.json",)),
    TaskInfo("ocnli", "Does a sentence follow from another?", "text", "accuracy", 50_000, 3_000, 3_000,
             NLI, ("ocnli_50k_predict.json",)),
    TaskInfo("cluewsc2020", "Does a pronoun mean this noun?", "text", "accuracy", 1_244, 304, 2_574,
             ("false", "true"), ("cluewsc10_predict.json", "cluewsc11_predict.json"), epochs=30),
    TaskInfo("csl", "Are all keywords those of an abstract?", "text", "accuracy", 20_000, 3_000, 3_000,
             ("0", "1"), ("csl_predict.json",)),
    TaskInfo("cmrc2018", "Which span of a text answers a question?", "span", "em", 10_142, 3_219, None,
             (), ("cmrc2018_predict.json",), max_length=512, batch_size=16, accumulate=2),
    TaskInfo("c3", "Which option answers a question about a text?", "choice", "accuracy", 11_869, 3_816, 3_892,
             (), ("c310_predict.json", "c311_predict.json"), max_length=512, batch_size=4, accumulate=4),
    TaskInfo("chid", "Which idiom fills a blank?", "idiom", "accuracy", 84_709, 3_218, 3_231,
             (), ("chid10_predict.json", "chid11_predict.json"), max_length=64, batch_size=12, accumulate=2, epochs=5),
    TaskInfo("cluener", "Which spans of a text are names, and of what?", "entity", "macro_f1", 10_748, 1_343, 1_345,
             ENTITY_TYPES, ("cluener_predict.json",), max_length=256),
)  # fmt: skip
TASKS = {info.name: info for info in _INFOS}


def list_tasks() -> list[TaskInfo]:
    """Return what is known of every task, in the order of the article."""
    return list(_INFOS)
