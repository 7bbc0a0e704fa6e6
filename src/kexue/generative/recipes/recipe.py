"""What a recipe is: how a model is built for the items of a data set, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kexue.generative.model import GenerativeModel
from kexue.generative.networks import mlp
from kexue.generative.run.medium import Medium
from kexue.train.schedules import build_optimizer

Facts = Mapping[str, Any]  # of images: event_shape, levels, classes, class_shares, encoder
Sizes = Mapping[str, Any]  # JSON-ready; the arguments of the functions that build a model


@dataclass(frozen=True)
class Course:
    """How a model is trained.

    Attributes:
        steps, batch_size, lr: as of `ModelConfig`.
        ema: decay of the average of the weights; 0: none.
        eval_every: steps between two looks at the validation part.
        patience: looks without a better validation loss after which the training ends, and the best step is kept. None,
            where the loss does not tell how good a model is, as in an adversarial training: no looks, the last step is
            kept.
        weight_decay: of matrices and filters.
        betas: decays of AdamW's averages of the gradient and of its square.
        clip: largest norm of the gradient, against rare outliers.
    """

    steps: int
    batch_size: int = 128
    lr: float = 1e-3
    ema: float = 0.99
    eval_every: int = 100
    patience: int | None = 10
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 100.0


def train_all(model: nn.Module, course: Course, *, rate: float = 1.0) -> list[Optimizer]:
    """Return AdamW for all weights of a model, or of a part of it at a multiple of the learning rate of the course."""
    return [build_optimizer(model, rate * course.lr, weight_decay=course.weight_decay, betas=course.betas)]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the model of a name is made.

    Attributes:
        medium: what it makes.
        choose_sizes: returns the sizes of a model for items of this kind.
        build: returns a new model of these sizes.
        choose_course: returns how it is trained on items of this kind.
        optimizers: returns what trains the new model, in the order of the `optimizer_index` of its `training_step`.
        multiple: returns of what height and width of images must be multiples.
        start: called with the new model and some hundreds of items to train on, before the first step.
        finish: called with the model and items to train on before it makes samples.
        bound: options with which `log_prob_bound` measures a trained model.
        tempered: options of `sample` that go with a temperature.
        classes: whether it learns the classes of the items, where they have some.
    """

    medium: type[Medium]
    choose_sizes: Callable[[Facts], Sizes]
    build: Callable[[Facts, Sizes], GenerativeModel]
    choose_course: Callable[[Facts], Course]
    optimizers: Callable[[Any, Course], list[Optimizer]] = train_all
    multiple: Callable[[Facts], int] = lambda _facts: 1
    start: Callable[[Any, Tensor], object] = lambda _model, _items: None
    finish: Callable[[Any, Tensor], object] = lambda _model, _items: None
    bound: Mapping[str, Any] = field(default_factory=dict)
    tempered: Mapping[str, Any] = field(default_factory=dict)
    classes: bool = False


def is_small(facts: Facts) -> bool:
    """Return whether the images are small."""
    return mlp.is_small(facts["event_shape"])


def count_halvings(shape: Sequence[int], most: int) -> int:
    """Return how often height and width can be halved, `most` times at most; once at least, which a flow refuses."""
    return next((times for times in range(most, 1, -1) if all(size % 2**times == 0 for size in shape[1:])), 1)


def to_batches(items: Tensor, device: torch.device, size: int = 256) -> Iterable[Tensor]:
    """Yield items in batches on a device."""
    return (part.to(device) for part in torch.split(items, size))
