"""Models trained on Fashion-MNIST, where it is present: 28 x 28 pictures of clothes, by name as in `kexue model`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kexue import generative
from kexue.experiments._training import train_by_name
from kexue.experiments.report import Figure


def measure_fashion(
    steps: Mapping[str, int], seed: int, data: Path | None
) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """Return Fréchet distance and bits per dimension of each model, one seed, and the data; nothing without them.

    Args:
        steps: steps of the training by the model's name, such as ``{"vae": 8000}``.
        seed: of the training and of the samples.
        data: the data folder.
    """
    source = None if data is None else data / "images" / "fashion_mnist"
    if not steps or source is None or not source.is_dir():
        return {}, []
    figures, n = {}, 0
    for name, count in steps.items():
        with tempfile.TemporaryDirectory() as folder:
            train_by_name(generative.ModelConfig(name, source, folder, steps=count, seed=seed))
            quality = generative.evaluate_run(generative.open_run(folder), seed=seed)
        assert isinstance(quality, generative.ModelQuality)
        figures[f"fashion_{name}_fd"] = Figure(quality.frechet_distance, n=quality.n)
        if quality.bits_per_dim is not None:
            figures[f"fashion_{name}_bits"] = Figure(quality.bits_per_dim, unit="bits/dim", n=quality.n)
        figures["fashion_test_fd"], n = Figure(quality.reference["test"], n=quality.n), quality.n
    return figures, [{"name": "fashion_mnist", "split": "test", "n": n}]
