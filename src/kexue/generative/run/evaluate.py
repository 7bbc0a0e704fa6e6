"""How good a trained model is: its samples beside real images, its likelihood on items held apart for test."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kexue._counts import check_count
from kexue._progress import Progress
from kexue._tensors import as_generator
from kexue.errors import DataError, NotSupported
from kexue.generative.data import load_images
from kexue.generative.features import feature_extractor
from kexue.generative.quality import LEAST, SampleQuality, measure_samples
from kexue.generative.run.folder import Run
from kexue.generative.run.images import split_images
from kexue.generative.run.medium import Parts
from kexue.generative.run.texts import Texts
from kexue.generative.run.use import apply, find_bits, find_measure
from kexue.generative.univae.model import UniVAE


@dataclass(frozen=True, kw_only=True)
class ModelQuality(SampleQuality):
    """Quality of a model of images: of its samples, and of what it says about images held apart for test.

    Attributes:
        model: its name.
        bits_per_dim: bits that a pixel of the test images costs; None for a model without likelihood. Uniform pixels
            cost log2 of the number of levels: 8, or 4.09 for the 17 levels of scikit-learn's digits.
        bits_per_dim_kind: ``"exact"``, or ``"bound"``: the true number is at most this.
        parameters: number of weights.

    The other attributes are those of `SampleQuality`.
    """

    model: str
    bits_per_dim: float | None
    bits_per_dim_kind: str | None
    parameters: int


@dataclass(frozen=True)
class TextQuality:
    """Quality of a model of sentences, on sentences held apart for test.

    Attributes:
        model: its name.
        n: sentences measured.
        tokens_right: share of the characters, and of the ends, that decode(encode(sentence)) has in their places. A
            character that the model does not know is never right.
        sentences_right: share of the sentences that come back whole.
        nats: bound of minus log p of a sentence: its mean is at most this.
        kl: nats of this that the latents cost.
        active_units: latent numbers that differ between sentences.
        parameters: number of weights.
    """

    model: str
    n: int
    tokens_right: float
    sentences_right: float
    nats: float
    kl: float
    active_units: int
    parameters: int


def evaluate_run(
    run: Run, n: int = 1000, *, seed: int = 0, progress: Progress | None = None
) -> ModelQuality | TextQuality:
    """Measure a model against the data it was trained on.

    Args:
        run: the model.
        n: samples and test items to use, as far as there are so many; of images >= 6.
        seed: of the samples.
        progress: called as ``progress(done, total)`` while the classifier of a set of images is trained, which is kept.

    Returns:
        `ModelQuality` of a model of images, `TextQuality` of a model of sentences.

    Raises:
        ValueError: n is too small.
        DataError: the data of the training are no longer there, or have changed: other items would be held apart for
            test, among them some that the model has learnt from; fewer than 6 images for test.
    """
    if isinstance(run.medium, Texts):
        return _evaluate_texts(run, check_count(n, "n", 1))
    data = load_images(run.source, image_size=run.medium.image_size)
    _check_unchanged(run, split_images(data))
    check_count(n, "n", LEAST)
    if len(data.test) < LEAST:
        raise DataError(
            f"holds {len(data.test)} images for test, expected at least {LEAST}.",
            path=run.source,
            remedy="Train on more images, a tenth of which is held apart, or on folders train and test.",
        )
    extractor = feature_extractor(data, progress=progress)
    samples = run.model.sample(min(n, len(data.test)), generator=seed, batch_size=256).cpu()
    quality = measure_samples(samples, data, extractor=extractor)
    order = torch.randperm(len(data.test), generator=as_generator(0))
    bits, kind = _measure_bits(run, data.test[order[:n]])
    return ModelQuality(
        model=run.name,
        bits_per_dim=bits,
        bits_per_dim_kind=kind,
        parameters=_count_parameters(run),
        **vars(quality),
    )


def _evaluate_texts(run: Run, n: int) -> TextQuality:
    """Return the quality of a model of sentences."""
    model = run.model
    assert isinstance(model, UniVAE)
    assert isinstance(run.medium, Texts)
    parts = Texts.load(run.source, None)[1]
    _check_unchanged(run, parts)
    test = parts.test[:n]
    again = apply(model.reconstruct, test, model)
    counted, right = run.medium.compare(test, again)
    seeds = itertools.count()  # a batch each
    return TextQuality(
        run.name,
        len(test),
        tokens_right=float(right[counted].double().mean()),
        sentences_right=float((right == counted).all(1).double().mean()),
        nats=-float(apply(find_measure(run)[1], test, model).double().mean()),
        kl=float(apply(lambda x: model.kl(x, generator=next(seeds)).sum(1), test, model).double().mean()),
        active_units=model.active_units(test.to(model.device)),
        parameters=_count_parameters(run),
    )


def _check_unchanged(run: Run, parts: Parts) -> None:
    """Raise a DataError unless these are the data that the model was trained on."""
    if (parts if run.recipe.classes else parts.without_classes()).hash() != run.data:
        raise DataError(
            "the data have changed since the training, so that items held apart for test may be among those learnt.",
            path=run.source,
            remedy="Train again into another folder, or put back the data as they were.",
        )


def _count_parameters(run: Run) -> int:
    return sum(one.numel() for one in run.model.parameters())


def _measure_bits(run: Run, test: Tensor) -> tuple[float | None, str | None]:
    """Return the bits per dimension of images, and what kind of statement this is."""
    measure: Callable[[Tensor], Tensor]
    try:
        kind, measure = find_measure(run)
    except NotSupported:
        return None, None
    if kind == "energy":
        return None, None
    return find_bits(apply(measure, test, run.model), test, kind), kind
