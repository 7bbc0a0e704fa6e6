"""What samples are worth: all measures at once, with reference values beside them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from kexue._counts import check_count
from kexue._tensors import as_generator
from kexue.generative.data import ImageData, load_images
from kexue.generative.features import FeatureExtractor, feature_extractor
from kexue.generative.metrics import frechet_distance, nearest_train_ratio, precision_recall, sliced_wasserstein

LEAST = 6  # images of a set that can be measured: 5 neighbours and itself
_LARGEST = 10_000  # images of a set that are measured


@dataclass(frozen=True)
class SampleQuality:
    """Measures of samples against the training images of a set.

    Attributes:
        n: samples measured, and test images for the reference values.
        frechet_distance: of the samples, in the features of the set's classifier; what it means, `reference` tells.
        reference: Fréchet distances of sets that are no model; see `reference_values`.
        precision, recall, density, coverage: see `Manifold`; against n training images.
        sliced_wasserstein: of pixels, against n training images.
        nearest_train_ratio: below 0.7 the model repeats training images.
        features: what the classifier has learnt, in words.
    """

    n: int
    frechet_distance: float
    reference: dict[str, float]
    precision: float
    recall: float
    density: float
    coverage: float
    sliced_wasserstein: float
    nearest_train_ratio: float
    features: str


def reference_values(
    data: str | os.PathLike[str] | ImageData = "digits",
    *,
    n: int | None = None,
    extractor: FeatureExtractor | None = None,
) -> dict[str, float]:
    """Return Fréchet distances from the training images that say what a distance of samples means.

    - ``test``: test images: what a perfect model of this many samples reaches.
    - ``noisy_test``: test images with Gaussian noise of standard deviation 0.2: just visible.
    - ``gaussian``: samples of the Gaussian with the mean and the covariance of the training pixels: blurs.
    - ``uniform``: pixels uniform in [-1, 1]: no image at all.

    Args:
        data: what `load_images` accepts, or its result.
        n: images of each set, >= 2; None is all the test images. The distance depends on it.
        extractor: of the same set; None is `feature_extractor(data)`.

    Raises:
        ValueError: n is larger than the number of test images.

    Example:
        >>> values = reference_values("digits")
        >>> values["test"] < values["noisy_test"] < values["gaussian"] < values["uniform"]
        True
    """
    images = data if isinstance(data, ImageData) else load_images(data)
    features = extractor or feature_extractor(images)
    available = min(len(images.test), _LARGEST)
    n = available if n is None else n
    if not 2 <= check_count(n, "n") <= available:
        raise ValueError(f"n must be from 2 to the {available} test images, got {n}")
    train, test = _some(images.train, _LARGEST), _some(images.test, n)
    draw = as_generator(0)
    sets = {
        "test": test,
        "noisy_test": test + 0.2 * torch.randn(test.shape, generator=draw),
        "gaussian": _draw_gaussian(train, n, draw),
        "uniform": 2 * torch.rand(test.shape, generator=draw) - 1,
    }
    real = features(train)
    return {name: _measure_frechet(features(x), real) for name, x in sets.items()}


def measure_samples(
    samples: Tensor,
    data: str | os.PathLike[str] | ImageData = "digits",
    *,
    extractor: FeatureExtractor | None = None,
) -> SampleQuality:
    """Return all measures of samples of a set, with the reference values for the same number of images.

    As many samples are used as there are test images, and no more than 10,000.

    Args:
        samples: (n, *event_shape), n > 5.
        data: what `load_images` accepts, or its result.
        extractor: of the same set; None is `feature_extractor(data)`.

    Raises:
        ValueError: fewer than 6 samples or test images; samples of another shape, NaN or infinity.

    Example:
        >>> digits = load_images("digits")
        >>> quality = measure_samples(digits.test, digits)
        >>> quality.frechet_distance == quality.reference["test"], quality.nearest_train_ratio
        (True, 1.0)
    """
    images = data if isinstance(data, ImageData) else load_images(data)
    n = min(len(samples), len(images.test), len(images.train), _LARGEST)
    if n < LEAST:
        raise ValueError(
            f"at least {LEAST} samples, training and test images are needed to measure, got {len(samples)}, "
            f"{len(images.train)} and {len(images.test)}; draw more samples, or name a larger set"
        )
    features = extractor or feature_extractor(images)
    samples, train, test = samples[:n], _some(images.train, _LARGEST), _some(images.test, n)
    fake, real = features(samples), features(train)
    manifold = precision_recall(real[:n], fake)
    return SampleQuality(
        n=n,
        frechet_distance=_measure_frechet(fake, real),
        reference=reference_values(images, n=n, extractor=features),
        **manifold._asdict(),
        sliced_wasserstein=sliced_wasserstein(samples.cpu(), train[:n]),
        nearest_train_ratio=nearest_train_ratio(samples.cpu(), train, test),
        features=features.taught,
    )


def _measure_frechet(fake: Tensor, real: Tensor) -> float:
    """Return a Fréchet distance; the one place from which it warns of few images, so that Python shows this once."""
    return frechet_distance(fake, real)


def _some(x: Tensor, n: int) -> Tensor:
    """Return n images of a set, the same random ones every time, or all where there are no more."""
    if len(x) <= n:
        return x
    return x[torch.randperm(len(x), generator=as_generator(0))[:n]]


def _draw_gaussian(train: Tensor, n: int, draw: torch.Generator) -> Tensor:
    """Return n samples of the Gaussian with the mean and the covariance of the images, without that matrix."""
    centred = train.flatten(1) - train.flatten(1).mean(0)
    weights = torch.randn(n, len(train), generator=draw) / math.sqrt(max(len(train) - 1, 1))
    return (train.flatten(1).mean(0) + weights @ centred).reshape(n, *train.shape[1:])
