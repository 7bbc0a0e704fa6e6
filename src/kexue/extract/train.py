"""Training of an extractor in two stages: data, model, trainer, and the model folder at the end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from kexue._files import hash_file, refuse_foreign, remove_folder
from kexue._progress import Progress
from kexue._text import say_count
from kexue.errors import DataError
from kexue.extract.config import DGCNNConfig, ExtractConfig, Source
from kexue.extract.dgcnn import DGCNNExtractor
from kexue.extract.extractor import Extractor
from kexue.extract.folder import MODEL, list_foreign
from kexue.extract.gplinker import GPLinkerExtractor
from kexue.extract.reader import TextReader
from kexue.extract.reading import read_triples
from kexue.extract.rows import Augmentation, TripleRows, is_located
from kexue.extract.supervision import DistantSupervision
from kexue.extract.token_rows import TokenRows, count_split
from kexue.extract.triples import TripleExample, TripleSchema, annotate, require_triples
from kexue.extract.tuning import score_extractor
from kexue.extract.words import choose_segmenter, read_word_vectors
from kexue.text.training.batches import LengthBatches
from kexue.train.checkpoint import load_checkpoint
from kexue.train.config import TrainConfig, TrainResult
from kexue.train.loop import Trainer, reporting
from kexue.train.settings import check_settings, write_settings

Phases = Callable[[str], AbstractContextManager[Progress]]
_FREE = ("train", "dev", "schema", "word_vectors", "out", "device", "limit", "resume")  # compared by what they hold
_RATES = {"dgcnn": 1e-3, "gplinker": 5e-5}
_FINE = 0.1  # of the learning rate, in the second stage


class _Data(NamedTuple):
    train: list[TripleExample]
    dev: list[TripleExample]
    schema: TripleSchema


def train_extractor(config: ExtractConfig, *, progress: Phases | None = None) -> TrainResult:
    """Train a model that finds triples; it is in the folder ``model`` of the run, `open_extractor` opens it.

    The first stage raises the learning rate over the first epoch and ends when the F1 on `dev` no longer rises; the
    second continues from its best step with a tenth of the rate, and new moments and averages. A run that was
    interrupted (SIGTERM, SIGINT, a crash) continues where it was when it is called again with the same settings and
    data, with the same bits at the end.

    Args:
        config: data, kind of model and settings.
        progress: opens the progress of a phase, as ``with progress("training") as report: report(done, total)``.

    Returns:
        `TrainResult`; its value is the best F1 on `dev`, in [0, 1].

    Warns:
        UserWarning: texts of `dev` that are in `train`; texts that are longer than the model reads; of ``"gplinker"``
            subjects and objects that begin or end inside a token.

    Raises:
        DataError: data that cannot be read, a predicate that is not in the schema, no triple that can be learned, or
            that `dev` has.
        CheckpointError: the run in `out` has other settings or data. NonFiniteLossError: the training diverged.

    Example:
        >>> result = train_extractor(ExtractConfig("train.jsonl", "dev.jsonl", "run"))  # doctest: +SKIP
        >>> open_extractor("run").extract(["《战狼2》的主演是吴京"])[0][0].object  # doctest: +SKIP
        '吴京'
    """
    data = _load(config)
    settings = _settings(config, data)
    check_settings(Path(config.out) / "first", settings, resume=config.resume)
    folder = Path(config.out) / MODEL
    if folder.exists():
        refuse_foreign(folder, list_foreign)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model, rows = build(config, data.train, data.schema)
    _warn_of_limits(model, data)
    phases = progress or _silent
    first = _fit(model, rows, data, config, settings, phases, fine=False)
    result = first
    if not first.interrupted and config.fine_epochs and config.limit is None:
        model.load_state_dict(load_checkpoint(first.checkpoint)["ema"])
        second = _fit(model, rows, data, config, settings, phases, fine=True)
        better = second if (second.value or 0.0) > (first.value or 0.0) else first
        result = dataclasses.replace(
            better,
            run=os.fspath(config.out),
            steps=first.steps + second.steps,
            best_step=(better.best_step or 0) + (first.steps if better is second else 0),
            seconds=first.seconds + second.seconds,
            interrupted=second.interrupted,
        )
    model.load_state_dict(load_checkpoint(result.checkpoint)["ema"])
    model.save_pretrained(folder)
    return dataclasses.replace(result, run=os.fspath(config.out))


def build(
    config: ExtractConfig, examples: Sequence[TripleExample], schema: TripleSchema
) -> tuple[DGCNNExtractor | GPLinkerExtractor, TripleRows | TokenRows]:
    """Return a new model and the rows that it learns from."""
    augmentation = Augmentation(examples, config.augmentation) if config.augmentation else None
    if config.model_type == "gplinker":
        linker = GPLinkerExtractor(config.encoder, schema, max_length=config.max_length)
        return linker, TokenRows(examples, linker.tokenizer, schema, augmentation=augmentation, seed=config.seed)
    words = None if config.word_vectors is None else read_word_vectors(config.word_vectors)
    segmenter = "characters" if words is None else config.segmenter or choose_segmenter(words.words)
    reader = TextReader.of((example.text for example in examples), words, segmenter)
    shape = DGCNNConfig(
        dim=config.dim,
        num_layers=config.num_layers,
        max_length=config.max_length or 512,
        num_predicates=len(schema.predicates),
        num_characters=reader.num_characters,
        num_words=0 if words is None else len(words.words),
        word_dim=0 if words is None else words.vectors.shape[1],
        subject_sampling=config.subject_sampling,
        prior=config.prior,
    )
    known = DistantSupervision([example.triples for example in examples], schema) if config.prior else None
    model = DGCNNExtractor(shape, schema=schema, reader=reader, supervision=known)
    if words is not None:
        model.words[1:] = torch.from_numpy(words.vectors)
    rows = TripleRows(examples, reader, schema, shape, supervision=known, augmentation=augmentation, seed=config.seed)
    return model, rows


def _load(config: ExtractConfig) -> _Data:
    """Return the data of a run; triples that are not in their text are left out of what is learned."""
    schema = None if config.schema is None else TripleSchema.load(config.schema)
    train, dev = (_read(source, schema) for source in (config.train, config.dev))
    require_triples(dev, "dev")
    schema = schema or TripleSchema.of([*train, *dev])
    for example in (*train, *dev):
        for triple in example.triples:
            schema.number(triple.predicate)
    located = [TripleExample(one.text, tuple(filter(is_located, one.triples))) for one in train]
    if not any(example.triples for example in located):
        raise DataError(
            "no triple can be learned: no subject and object is in its text.",
            remedy="Subject and object must be parts of the text.",
        )
    if shared := len({example.text for example in train} & {example.text for example in dev}):
        warnings.warn(
            f"{shared} of the {len(dev)} texts of dev are in train, so the F1 is too good: leave them out of train.",
            stacklevel=3,
        )
    return _Data(located, dev, schema)


def _read(source: Source, schema: TripleSchema | None) -> list[TripleExample]:
    examples = read_triples(source, schema=schema) if isinstance(source, str | os.PathLike) else list(source)
    if not examples or any(not example.text.strip() for example in examples):
        raise DataError("expected texts that are not blank, at least one.", remedy="Leave blank texts out.")
    return [_locate(example) for example in examples]


def _locate(example: TripleExample) -> TripleExample:
    """Return an example with a span for each subject and object that is in the text."""
    located = (t if is_located(t) else annotate(example.text, *t[:3]) for t in example.triples)
    return TripleExample(example.text, tuple(located))


def _warn_of_limits(model: DGCNNExtractor | GPLinkerExtractor, data: _Data) -> None:
    """Warn of what the model cannot learn or find, and which still counts in the F1."""
    examples = [*data.train, *data.dev]
    notes = [*model.describe_limits(model.count_long([example.text for example in examples]))]
    if isinstance(model, GPLinkerExtractor) and (split := count_split(model.tokenizer, examples)):
        notes.append(f"{say_count(split, 'name')} with an end inside a token, which can be found with all of it only.")
    for note in notes:
        warnings.warn(f"train and dev: {note}", stacklevel=3)


def _settings(config: ExtractConfig, data: _Data) -> dict[str, Any]:
    """Return the settings that decide the result of a run, JSON-ready."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    kept = {name: value for name, value in values.items() if name not in _FREE}
    plain = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in kept.items()}
    vectors = None if config.word_vectors is None else hash_file(config.word_vectors)
    digest = hashlib.sha256(json.dumps(data, ensure_ascii=False, default=dataclasses.asdict).encode()).hexdigest()
    return {**plain, "word_vectors": vectors, "data": digest}


def _fit(
    model: Extractor,
    rows: TripleRows | TokenRows,
    data: _Data,
    config: ExtractConfig,
    settings: dict[str, Any],
    phases: Phases,
    *,
    fine: bool,
) -> TrainResult:
    """Run one stage."""
    out = Path(config.out) / ("second" if fine else "first")
    batch_size = min(64, max(8, len(rows) // 160)) if config.batch_size is None else config.batch_size
    batches = LengthBatches(rows, batch_size, config.seed + fine)
    loader: DataLoader[Any] = DataLoader(rows, batch_sampler=batches, collate_fn=_as_is)
    lr = config.lr or _RATES[config.model_type]
    optimizer = Adam(model.parameters(), lr=lr * (_FINE if fine else 1.0))

    def evaluate(model: Extractor) -> dict[str, float]:
        with warnings.catch_warnings():  # of the limits that a model which has learned little meets
            warnings.simplefilter("ignore", UserWarning)
            score = score_extractor(model, data.dev)
        return {"f1": score.f1, "precision": score.precision, "recall": score.recall}

    def start(trainer: Trainer) -> None:
        check_settings(out, settings, resume=config.resume)  # another trainer may have been here since
        if trainer.place.step == 0 and not fine:  # what an earlier run has made is not of this one
            for name in (MODEL, "second"):
                remove_folder(Path(config.out) / name)
        write_settings(out, settings)

    with phases("fine tuning" if fine else "training") as report:
        trainer = Trainer(
            model,
            optimizer,
            TrainConfig(
                out,
                epochs=config.fine_epochs if fine else config.epochs,
                precision=config.precision,
                ema=config.ema,
                patience=None if fine else config.patience,
                monitor="f1",
                seed=config.seed + fine,
                device=config.device,
                limit=config.limit,
                resume=config.resume,
            ),
            schedulers=None if fine else _warm(optimizer, len(batches)),
            callbacks=[reporting(report), _wait_for_triple],
        )
        return trainer.fit(loader, evaluate=evaluate, start=start)


def _warm(optimizer: Optimizer, steps: int) -> LambdaLR:
    """Return the schedule of the first stage: up over these steps, then constant."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / steps))


def _wait_for_triple(trainer: Trainer, _record: Any) -> None:
    """Let the patience begin with the first right triple: of few texts the F1 is 0 for many epochs."""
    if trainer.place.best_value == 0:
        trainer.place.stale = -1  # so that the next evaluation without one leaves it at 0


def _as_is(batch: Any) -> Any:
    return batch


@contextmanager
def _silent(_label: str) -> Iterator[Progress]:
    yield lambda _done, _total: None
