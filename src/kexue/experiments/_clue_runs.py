"""Trainings on tasks of CLUE, for experiments: each is made once, and its scores are kept in a folder of the cache.

Of the training file a part is held back to choose the epoch; scores are those of another file, which no choice has
seen: dev.json of CLUENER and C3, test_public.json of the few-shot TNEWS.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kexue._files import cache_folder, remove_folder, replacing
from kexue._optional import import_optional
from kexue._text import same_json
from kexue.clue import ClueConfig, Task, get_task
from kexue.errors import CheckpointError
from kexue.experiments.registry import Budget

Tune = Literal["full", "ladder", "linear"]
CHINESE, MULTILINGUAL = "kexue/roformer-sim-tiny-zh", "multilingual-e5-small"
ENCODERS = (CHINESE, MULTILINGUAL)
_FILE, _CHECKPOINTS = "measured.json", ("last", "previous", "best")


@dataclass(frozen=True)
class Course:
    """How a task is trained and scored here.

    Attributes:
        train, scored: files under ``clue/`` of the data folder.
        examples: number of training examples; None: all.
        held: share of them that chooses the epoch.
        epochs, batch_size, max_length: of the training.
    """

    train: tuple[str, ...]
    scored: tuple[str, ...]
    examples: int | None
    epochs: int
    batch_size: int
    max_length: int
    held: float = 0.1


@dataclass(frozen=True)
class ClueRun:
    """Result of one training.

    Attributes:
        scores: metrics on the scored file.
        steps: of the training.
        seconds: of the processor, over all threads, from the encoder to the last step; of the last call where the
            training was interrupted.
        train, scored: numbers of examples.
    """

    scores: dict[str, float]
    steps: int
    seconds: float
    train: int
    scored: int


# Constant rates of AdamW. That of CLUENER with the Chinese encoder was chosen on examples of the training file.
_RATES = {
    ("cluener", CHINESE): 1e-4,
    ("cluener", MULTILINGUAL): 5e-5,
    ("tnews", CHINESE): 1e-4,
    ("tnews", MULTILINGUAL): 5e-5,
    ("c3", CHINESE): 1e-4,
    ("c3", MULTILINGUAL): 5e-5,
}
_RATES_BESIDE = {"ladder": 1e-3, "linear": 2e-3}
_COURSES = {
    "cluener": Course(("cluener/train.jsonl.gz",), ("cluener/dev.jsonl.gz",), 2000, 3, 8, 128),
    "tnews": Course(
        ("fewclue_tnews/train_few_all.jsonl.gz",), ("fewclue_tnews/test_public.jsonl.gz",), None, 6, 16, 64
    ),
    "c3": Course(("c3/m-train.jsonl.gz", "c3/d-train.jsonl.gz"), ("c3/d-dev.jsonl.gz",), 800, 2, 4, 128),
}
_SMOKE = {"examples": 60, "epochs": 1}
_SCORED_SMOKE = 20


def find_course(task: str, budget: Budget) -> Course:
    """Return how a task is trained: in the smoke budget on few examples, in the full one on all."""
    values = asdict(_COURSES[task])
    if budget == "smoke":
        values |= _SMOKE
    if budget == "full":
        values["examples"] = None
    return Course(**values)


def has_data(task: str, data: Path | None) -> bool:
    """Return whether the files of a task are in the data folder."""
    course = _COURSES[task]
    return data is not None and all((data / "clue" / name).is_file() for name in (*course.train, *course.scored))


def read_examples(task: str, budget: Budget, data: Path) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the examples to train on, those that choose the epoch, and those that are scored."""
    course, chosen = find_course(task, budget), get_task(task)
    train, scored = (_read(chosen, names, data / "clue") for names in (course.train, course.scored))
    train, scored = train[: course.examples], scored[: _SCORED_SMOKE if budget == "smoke" else None]
    kept = len(train) - max(1, round(course.held * len(train)))
    return train[:kept], train[kept:], scored


def _read(task: Task, names: Sequence[str], folder: Path) -> list[Any]:
    """Return the examples of files in a fixed random order: some files are sorted by label."""
    examples = [one for name in names for one in task.read(folder / name)]
    return [examples[number] for number in np.random.default_rng(0).permutation(len(examples))]


def measure_run(task: str, encoder: str, tune: Tune, seed: int, *, budget: Budget, data: Path) -> ClueRun:
    """Return the scores of one training, from the cache if it was made before.

    A training that was interrupted continues.

    Args:
        task: ``"cluener"``, ``"tnews"`` or ``"c3"``.
        encoder: one of `ENCODERS`.
        tune: what is trained.
        seed: of the head and of the order.
        budget: how many examples.
        data: folder of the data.
    """
    known = find_run(task, encoder, tune, seed, budget=budget)
    if known is not None:
        return known
    course, rate = find_course(task, budget), _rate(task, encoder, tune)
    folder = _folder(task, encoder, tune, seed, budget)
    run = _train(task, encoder, tune, seed, rate, course, folder, read_examples(task, budget, data))
    with replacing(folder / _FILE) as temporary:
        record = {"settings": {**asdict(course), "rate": rate}, "run": asdict(run)}
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return run


def find_run(task: str, encoder: str, tune: Tune, seed: int, *, budget: Budget) -> ClueRun | None:
    """Return the scores of a training that the cache holds; None where it holds none with the same settings."""
    file = _folder(task, encoder, tune, seed, budget) / _FILE
    if not file.is_file():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    settings = {**asdict(find_course(task, budget)), "rate": _rate(task, encoder, tune)}
    return ClueRun(**record["run"]) if same_json(record["settings"], settings) else None


def _rate(task: str, encoder: str, tune: Tune) -> float:
    return _RATES[task, encoder] if tune == "full" else _RATES_BESIDE[tune]


def _folder(task: str, encoder: str, tune: Tune, seed: int, budget: Budget) -> Path:
    return cache_folder() / "clue" / budget / f"{task}-{encoder.rpartition('/')[2]}-{tune}-{seed}"


def measure_saved(task: str, encoder: str, tune: Tune, *, budget: Budget, data: Path) -> float:
    """Return the bytes that autograd keeps for the backward pass of one batch, parameters left out."""
    import_optional("torch", extra="clue")
    from kexue.clue.folder import build_model
    from kexue.experiments._measures import count_saved

    course = find_course(task, budget)
    setup = build_model(task, encoder, tune, course.max_length)
    rows = setup.encode(read_examples(task, budget, data)[0][: course.batch_size])
    batch, model = rows.__getitems__(range(len(rows))), setup.model.train()
    return float(count_saved(model, lambda: model.training_step(batch).loss)[0])


def _train(
    task: str,
    encoder: str,
    tune: Tune,
    seed: int,
    rate: float,
    course: Course,
    folder: Path,
    examples: Sequence[list[Any]],
) -> ClueRun:
    """Return the scores of a training in a folder, without its checkpoints at the end."""
    import_optional("torch", extra="clue")
    from kexue.clue.folder import open_run
    from kexue.clue.run import train_on

    train, held, scored = examples
    chosen = get_task(task)
    config = ClueConfig(
        task,
        encoder,
        folder,
        folder,
        tune=tune,
        optimizer="adamw",
        lr=rate,
        epochs=course.epochs,
        batch_size=course.batch_size,
        max_length=course.max_length,
        seed=seed,
        device="cpu",
        precision="bf16",
    )
    started = time.process_time()
    try:
        result = train_on(config, train, held, chosen.metric)
    except CheckpointError:  # of other settings
        result = train_on(replace(config, resume=False), train, held, chosen.metric)
    seconds = time.process_time() - started
    if result.interrupted:
        raise KeyboardInterrupt
    setup = open_run(folder, device="cpu")
    metrics = chosen.metric(setup.encode(scored).read_outputs(setup.model), scored)
    scores = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
    for name in _CHECKPOINTS:
        remove_folder(folder / name)
    return ClueRun(scores, result.steps, seconds, len(train), len(scored))
