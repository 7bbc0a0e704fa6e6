"""A small classifier of a set of images, whose last hidden layer is the space in which samples are measured."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from kexue._files import cache_folder, replacing
from kexue._optional import import_optional
from kexue._progress import Progress
from kexue._tensors import as_generator
from kexue.generative.data import ImageData, load_images

_RECIPE = "1"  # to be changed with everything that changes the weights
_STEPS, _BATCH, _NOISE = 1500, 64, 0.2  # of the training: steps of Adam, images of each, noise on pixels
_CLUSTERS = 10  # classes of images without labels
_BLOCK = 1024  # images of a forward pass


class FeatureExtractor(nn.Module):
    """A classifier of images; a call returns its last hidden layer, 32 features.

    Up to 16 x 16 pixels it has layers of 128 and 32 units; for larger images two convolutions of stride 2, pooled to
    7 x 7, come before them. ReLU after each.

    Args:
        event_shape: (C, H, W) of an image.
        num_classes: >= 2.

    Attributes:
        taught: what it has learnt, in words.
        accuracy: share of the test images that it classifies as they are labelled; NaN where they have no labels.
    """

    def __init__(self, event_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.event_shape, self.taught, self.accuracy = tuple(event_shape), "nothing yet", float("nan")
        channels, height, width = self.event_shape
        first: list[nn.Module] = [nn.Flatten()]
        size = channels * height * width
        if max(height, width) > 16:
            convolutions = [nn.Conv2d(channels, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
            first, size = [*convolutions, nn.AdaptiveAvgPool2d(7), nn.Flatten()], 32 * 7 * 7
        self.body = nn.Sequential(*first, nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
        self.head = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (n, 32) of images (n, C, H, W) in [-1, 1], without gradients.

        Raises:
            ValueError: images of another shape.
        """
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(f"images must be (n, {', '.join(map(str, self.event_shape))}), got {tuple(x.shape)}")
        weight = self.head.weight
        with torch.no_grad():
            blocks = [self.body(block.to(weight.device, weight.dtype)) for block in torch.split(x, _BLOCK)]
        return torch.cat(blocks) if blocks else weight.new_empty(0, 32)

    def classify(self, x: Tensor) -> Tensor:
        """Return scores (n, num_classes) of images: logarithms of the probabilities of classes, up to a constant."""
        features = self(x)
        with torch.no_grad():
            scores: Tensor = self.head(features)
        return scores


def feature_extractor(
    data: str | os.PathLike[str] | ImageData = "digits", *, progress: Progress | None = None
) -> FeatureExtractor:
    """Return the classifier in whose features samples of a set are measured.

    It is trained once, with noise of 0.2 on the pixels and a fixed seed, in seconds, and kept in the cache folder
    (`KEXUE_CACHE`). Numbers from different classifiers cannot be compared. Images without labels get the classes of
    k-means: 10 clusters of their pixels. The attribute `taught` says which of both it was.

    Args:
        data: what `load_images` accepts, or its result.
        progress: called as ``progress(done, total)`` with steps of the training.

    Raises:
        DataError: as `load_images`.

    Warns:
        UserWarning: the cache folder cannot be written to, so that the next call trains again.

    Example:
        >>> features = feature_extractor("digits")
        >>> features(load_images("digits").test).shape
        torch.Size([540, 32])
        >>> features.taught
        '10 classes of 1257 labelled images'
    """
    images = data if isinstance(data, ImageData) else load_images(data)
    path = cache_folder() / "features" / f"{_identify(images)}.safetensors"
    extractor = _read(path, images)
    if extractor is not None:
        return extractor
    extractor = _train(images, progress)
    state = {name: value.contiguous() for name, value in extractor.state_dict().items()}
    about = {"taught": extractor.taught, "accuracy": repr(extractor.accuracy)}
    about["num_classes"] = str(extractor.head.out_features)
    try:
        with replacing(path) as temporary:
            save_file(state, temporary, metadata=about)
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error}); the classifier is trained again.", stacklevel=2)
    return extractor


def _identify(images: ImageData) -> str:
    """Return a name that depends on the recipe and on every training image and label."""
    digest = hashlib.sha256(f"{_RECIPE} {tuple(images.event_shape)}".encode())
    for part in (images.train, images.train_labels, images.test, images.test_labels):
        digest.update(b"none" if part is None else part.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _read(path: Path, images: ImageData) -> FeatureExtractor | None:
    """Return the classifier in a file; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            extractor = FeatureExtractor(images.event_shape, int(about["num_classes"]))
            extractor.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            extractor.taught, extractor.accuracy = about["taught"], float(about["accuracy"])
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError):
        return None
    return extractor


def _train(images: ImageData, progress: Progress | None) -> FeatureExtractor:
    """Return a new classifier of the training images."""
    labels, test_labels, taught = images.train_labels, images.test_labels, "labelled images"
    if labels is None or _count(labels) < 2:
        labels, test_labels, taught = _cluster(images.train), None, "images, clusters of their pixels by k-means"
    classes = int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        extractor = FeatureExtractor(images.event_shape, max(classes, 2))
    draw = as_generator(0)
    optimizer = torch.optim.Adam(extractor.parameters(), 1e-3)
    for step in range(_STEPS):
        rows = torch.randint(len(images.train), (_BATCH,), generator=draw)
        x = images.train[rows]
        x = x + _NOISE * torch.randn(x.shape, generator=draw)
        loss = functional.cross_entropy(extractor.head(extractor.body(x)), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if progress is not None:
            progress(step + 1, _STEPS)
    extractor.requires_grad_(False)
    extractor.taught = f"{_count(labels)} classes of {len(images.train)} {taught}"
    if test_labels is not None:
        extractor.accuracy = float((extractor.classify(images.test).argmax(1) == test_labels).double().mean())
    return extractor


def _cluster(train: Tensor) -> Tensor:
    """Return the numbers (n,) of the clusters that k-means finds among pixels."""
    clusters = import_optional("sklearn.cluster", extra="generative")
    pixels = functional.adaptive_avg_pool2d(train, (min(train.shape[2], 16), min(train.shape[3], 16))).flatten(1)
    count = min(_CLUSTERS, len(np.unique(pixels.numpy(), axis=0)))
    found = clusters.MiniBatchKMeans(count, random_state=0, n_init=3).fit(pixels.double().numpy())
    return torch.from_numpy(found.labels_).long()


def _count(labels: Tensor) -> int:
    """Return the number of different labels."""
    return int((labels.bincount() > 0).sum())
