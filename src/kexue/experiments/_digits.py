"""scikit-learn's handwritten digits, where it is installed; and how well vectors of one class find one another."""

from __future__ import annotations

from typing import Any

import numpy as np

from kexue._optional import import_optional

Array = np.ndarray[Any, np.dtype[Any]]


def digits_split(seed: int, *, train: int = 1200) -> tuple[Array, Array, Array, Array]:
    """The 1,797 digits of scikit-learn, 64 pixels in [0, 1], in an order drawn from `seed`: X, y, X_test, y_test.

    Raises:
        MissingDependencyError: scikit-learn, which carries the images, is not installed.
    """
    images, classes = import_optional("sklearn.datasets", extra="bench").load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    X, y = (images[order] / 16).astype(np.float32), classes[order].astype(np.int64)
    return X[:train], y[:train], X[train:], y[train:]


def load_digits(seed: int) -> tuple[Any, Any]:
    """All of them, images (1797, 64) and labels (1797,), as torch tensors in an order drawn from `seed`."""
    torch = import_optional("torch", extra="train")
    X, y, _, _ = digits_split(seed, train=1797)
    return torch.from_numpy(X), torch.from_numpy(y)


def retrieval(embeddings: Array, classes: Array) -> tuple[float, float]:
    """Mean average precision and recall at 1 when each row looks for the others of its class by cosine."""
    unit = embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :-1]  # the row itself comes last
    hits = classes[order] == classes[:, None]
    precision = hits.cumsum(axis=1) / np.arange(1, len(classes))
    average = (precision * hits).sum(axis=1) / hits.sum(axis=1)
    return float(average.mean()), float(hits[:, 0].mean())
