"""Training of a sentence model, one stage at a time: data, network, optimizer, and the model folder at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from kexue._progress import Progress
from kexue.similarity.evaluation import evaluate_pairs
from kexue.similarity.pairs import load_pairs
from kexue.text.roformer_sim.characters import choose_characters, write_tokenizer
from kexue.text.roformer_sim.model import RoFormerSimConfig
from kexue.text.roformer_sim.sentences import RoFormerSim
from kexue.text.tokenizer import TextTokenizer
from kexue.text.training.config import SentenceConfig
from kexue.text.training.rows import DistillRows, LengthBatches
from kexue.text.training.sources import split_columns
from kexue.text.training.tasks import DistillTask
from kexue.text.training.teacher import reduce_targets, teach
from kexue.train import TrainConfig, Trainer, TrainResult, load_checkpoint

_WARM = 20  # the learning rate rises over a twentieth of the steps


def train_sentences(config: SentenceConfig, *, progress: Progress | None = None) -> TrainResult:
    """Train a `RoFormerSim` by one stage; the model is in the folder ``model`` of the run.

    A run that was interrupted continues where it was, with the same bits at the end.
    """
    out = Path(config.out)
    texts, rows = split_columns(config.data)
    model = _open_student(config, texts)
    model.tokenizer.set_max_length(config.max_length)
    targets = reduce_targets(
        teach(texts, os.fspath(config.teacher or ""), out, device=config.device, progress=progress),
        model.config.hidden_size,
    )
    first, second = np.array(rows, dtype=np.int64).T
    data = DistillRows(
        model.tokenizer.encode(texts), targets, first, second if (second >= 0).any() else None, model.tokenizer.pad_id
    )
    task = DistillTask(model)
    optimizer = build_optimizer(task, config.lr)
    trainer = Trainer(
        task,
        optimizer,
        TrainConfig(
            out,
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
        ),
        schedulers=warm_then_fall(optimizer, config.steps),
    )
    batches = LengthBatches(data.lengths, config.batch_size, config.seed)
    loader = DataLoader(data, batch_sampler=batches, collate_fn=_as_is)
    result = trainer.fit(loader, evaluate=_evaluation(model, config))
    keep_best(task, result, averaged=config.ema is not None)
    model.save_pretrained(out / "model")
    return result


def build_optimizer(task: nn.Module, lr: float) -> torch.optim.AdamW:
    """Return AdamW with a decay of 0.01 for matrices, and none for biases and norms."""
    matrices = [one for one in task.parameters() if one.dim() > 1]
    vectors = [one for one in task.parameters() if one.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def warm_then_fall(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the schedule of the learning rate: up over a twentieth of the steps, then linearly down to 0."""
    warm = max(1, steps // _WARM)

    def factor(step: int) -> float:
        return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def keep_best(task: nn.Module, result: TrainResult, *, averaged: bool) -> None:
    """Put the weights of the kept checkpoint of a run into its task."""
    checkpoint = load_checkpoint(result.checkpoint)
    task.load_state_dict(checkpoint["ema" if averaged else "model"])


def _open_student(config: SentenceConfig, texts: list[str]) -> RoFormerSim:
    """Return the model to train, on the CPU: that of `init`, or a new one with the vocabulary of the texts."""
    if config.init is not None:
        model = RoFormerSim.from_pretrained(config.init)
        model.set_dropout(config.dropout)
        return model
    with tempfile.TemporaryDirectory() as folder:
        size = write_tokenizer(Path(folder), choose_characters(texts), max_length=512)
        tokenizer = TextTokenizer(Path(folder))
    shape = RoFormerSimConfig(
        size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        dropout=config.dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return RoFormerSim(shape, tokenizer)


def _evaluation(model: RoFormerSim, config: SentenceConfig) -> Callable[[nn.Module], dict[str, float]] | None:
    """Return the function that scores the model on the validation pairs; None without any."""
    if config.validation is None:
        return None
    pairs = load_pairs(config.validation)

    def score(_task: nn.Module) -> dict[str, float]:
        [row] = evaluate_pairs(model, pairs, bootstrap=0).rows
        return {"spearman": row.spearman}

    return score


def _as_is(batch: Any) -> Any:
    return batch
