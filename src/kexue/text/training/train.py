"""Training of a sentence model, one stage at a time: data, network, optimizer, and the model folder at the end."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from kexue._progress import Progress
from kexue._text import say_count
from kexue.similarity.evaluation import evaluate_pairs
from kexue.similarity.pairs import PairDataset, load_pairs
from kexue.text.roformer_sim.characters import choose_characters, write_tokenizer
from kexue.text.roformer_sim.folders import remove_written
from kexue.text.roformer_sim.model import RoFormerSimConfig
from kexue.text.roformer_sim.sentences import RoFormerSim
from kexue.text.tokenizer import TextTokenizer
from kexue.text.training.config import FROM_TEACHER, SentenceConfig
from kexue.text.training.corpus import Corpus, read_corpus
from kexue.text.training.stages import Phases, prepare_distill, prepare_pretrain, prepare_supervise
from kexue.text.training.start import start_from_teacher
from kexue.text.training.tasks import SentenceTask
from kexue.train.checkpoint import load_checkpoint
from kexue.train.config import TrainConfig, TrainResult
from kexue.train.loop import Trainer, reporting
from kexue.train.schedules import build_optimizer, warm_then_fall
from kexue.train.settings import check_settings, write_settings

_LOG = logging.getLogger(__name__)
_FREE = ("out", "data", "device", "limit", "resume")  # settings that may change when a run continues
_PREPARE = {"pretrain": prepare_pretrain, "distill": prepare_distill, "supervise": prepare_supervise}


def train_sentences(config: SentenceConfig, *, progress: Phases | None = None) -> TrainResult:
    """Train a `RoFormerSim` by one stage; the model is in the folder ``model`` of the run.

    A run that was interrupted (SIGTERM, SIGINT, a crash) continues where it was when it is called again with the same
    settings and data, with the same bits at the end.

    Args:
        config: the stage, its data and settings.
        progress: opens the progress of a phase, as ``with progress("training") as report: report(done, total)``.

    Returns:
        `TrainResult`; its value is the Spearman correlation x100 where there are validation pairs, else the loss.

    Raises:
        DataError: data that cannot be read or do not suit the stage. ModelNotFoundError: no such `init` or `teacher`.
        CheckpointError: the run in `out` has other settings or data. NonFiniteLossError: the training diverged.

    Example:
        >>> result = train_sentences(SentenceConfig("pretrain", ["pairs.tsv"], "run", steps=2000))  # doctest: +SKIP
        >>> RoFormerSim.from_pretrained("run/model").encode(["怎么退货"]).shape  # doctest: +SKIP
        (1, 256)
    """
    phases = progress or _silent
    folder = Path(config.out) / "model"
    if config.init not in (None, FROM_TEACHER) and Path(config.init).resolve() == folder.resolve():
        raise ValueError(f"init is {folder}, which this training would replace; copy it, or choose another out")
    validation = _load_validation(config)
    corpus = read_corpus(config.data)
    _warn_of_leaks(validation, corpus)
    settings = _settings(config, corpus)
    check_settings(config.out, settings, resume=config.resume)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _open_student(config, corpus.texts)
        stage = _PREPARE[config.stage](config, corpus, model, phases)

    def start(trainer: Trainer) -> None:
        check_settings(config.out, settings, resume=config.resume)  # another trainer may have been here since
        if trainer.place.step == 0:  # what an earlier run has made is not of this one
            remove_written(folder)
        write_settings(config.out, {**settings, "facts": stage.facts})

    task = SentenceTask(model, stage.objective, chunk_size=config.chunk_size)
    optimizer = build_optimizer(task, config.lr)
    with phases("training") as report:
        trainer = Trainer(
            task,
            optimizer,
            _trainer_config(config),
            schedulers=warm_then_fall(optimizer, config.steps),
            callbacks=[reporting(report)],
        )
        loader = DataLoader(stage.rows, batch_sampler=stage.batches, collate_fn=_as_is)
        result = trainer.fit(
            loader, evaluate=None if validation is None else _evaluation(model, validation), start=start
        )
    checkpoint = load_checkpoint(result.checkpoint)
    task.load_state_dict(checkpoint["model" if config.ema is None else "ema"])
    model.save_pretrained(folder)
    return result


@contextmanager
def _silent(_label: str) -> Iterator[Progress]:
    yield lambda _done, _total: None


def _trainer_config(config: SentenceConfig) -> TrainConfig:
    return TrainConfig(
        config.out,
        steps=config.steps,
        precision=config.precision,
        clip=1.0,
        ema=config.ema,
        eval_every=config.eval_every,
        monitor=None if config.validation is None else "spearman",
        seed=config.seed,
        device=config.device,
        limit=config.limit,
        resume=config.resume,
    )


def _open_student(config: SentenceConfig, texts: list[str]) -> RoFormerSim:
    """Return the model to train, on the CPU: that of `init`, or a new one with the characters of the texts."""
    if config.init is not None and config.init != FROM_TEACHER:
        model = RoFormerSim.from_pretrained(config.init)
    else:
        model = _new_student(config, texts)
    model = _adapt(model, config.dropout, config.vector_size or model.config.width)
    longest = 2 * config.max_length  # two texts in a row
    if longest > model.config.max_length:
        raise ValueError(
            f"max_length={config.max_length} is too long: a row of two texts may have {longest} tokens, the model "
            f"reads {model.config.max_length}; use max_length={model.config.max_length // 2} at most"
        )
    return model


def _new_student(config: SentenceConfig, texts: list[str]) -> RoFormerSim:
    """Return a model with the characters of the texts, and random weights or those of a part of the teacher."""
    with tempfile.TemporaryDirectory() as folder:
        size = write_tokenizer(Path(folder), choose_characters(texts), max_length=512)
        tokenizer = TextTokenizer(Path(folder))
    if config.init == FROM_TEACHER:
        return start_from_teacher(os.fspath(config.teacher or ""), tokenizer, num_layers=config.num_layers)
    shape = RoFormerSimConfig(
        size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
    )
    return RoFormerSim(shape, tokenizer)


def _adapt(model: RoFormerSim, dropout: float, width: int) -> RoFormerSim:
    """Return a model of the same weights with another dropout, and with the first dimensions of its vectors."""
    if width > model.config.width:
        raise ValueError(
            f"vector_size must be at most {model.config.width}, that of the model to start from, got {width}"
        )
    other = RoFormerSim(dataclasses.replace(model.config, dropout=dropout, vector_size=width), model.tokenizer)
    state = model.state_dict()
    other.load_state_dict(
        {name: value[:width] if name.startswith("pooler.") else value for name, value in state.items()}
    )
    return other


def _load_validation(config: SentenceConfig) -> PairDataset | None:
    """Return the validation pairs: a file, or the split "valid" of a named set, never its test split."""
    if config.validation is None:
        return None
    split = None if Path(config.validation).is_file() else "valid"
    return load_pairs(config.validation, split)


def _warn_of_leaks(validation: PairDataset | None, corpus: Corpus) -> None:
    """Warn of validation pairs that are trained on."""
    if validation is None:
        return
    if shared := corpus.count_pairs(zip(validation.texts_a, validation.texts_b, strict=True)):
        _LOG.warning(
            "%d of %s are in the training data, so the score is too good: leave them out of the training data",
            shared, say_count(len(validation), "validation pair"),
        )  # fmt: skip


def _evaluation(model: RoFormerSim, pairs: PairDataset) -> Callable[[nn.Module], dict[str, float]]:
    """Return the function that scores the model, in place, on the validation pairs."""

    def score(_task: nn.Module) -> dict[str, float]:
        [row] = evaluate_pairs(model, pairs, bootstrap=0).rows
        return {"spearman": row.spearman}

    return score


def _settings(config: SentenceConfig, corpus: Corpus) -> dict[str, Any]:
    """Return the settings that decide the result of a run, JSON-ready."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    kept = {name: value for name, value in values.items() if name not in _FREE}
    plain = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in kept.items()}
    return {**plain, "texts": corpus.digest()}


def _as_is(batch: Any) -> Any:
    return batch
