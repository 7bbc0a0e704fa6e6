"""Panels that several figures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def draw_runs(panel: Any, runs: Mapping[str, Any]) -> None:
    """Draw the runs of each category, by label, as dots, and their mean as a line with its value."""
    for at, values in enumerate(runs.values()):
        mean = float(np.mean(values))
        panel.plot(at + np.linspace(-0.1, 0.1, len(values)), values, "o", alpha=0.5, color=f"C{at}")
        panel.plot([at - 0.2, at + 0.2], [mean, mean], color=f"C{at}", linewidth=3)
        panel.annotate(f"{mean:.3f}", (at + 0.22, mean), va="center")
    panel.set_xticks(range(len(runs)), list(runs))
    panel.set_xlim(-0.5, len(runs) - 0.2)


def draw_bars(panel: Any, heights: Mapping[str, float], *, form: str = "%.1f", color: Any = "C0") -> None:
    """Draw one bar for each label, with its height written above in a printf format."""
    bars = panel.bar(list(heights), list(heights.values()), color=color)
    panel.bar_label(bars, fmt=form)
    panel.margins(y=0.1)


def draw_tiles(panel: Any, images: Any, labels: Sequence[str]) -> None:
    """Draw rows of images (rows, columns, 1, H, W) in [-1, 1], each row with its label."""
    tiles = np.pad(images[:, :, 0].numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    rows, columns, height, width = tiles.shape
    picture = tiles.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    panel.imshow(picture, cmap="gray_r", vmin=-1, vmax=1)
    panel.set_xticks([])
    panel.set_yticks([height * i + (height - 1) / 2 for i in range(rows)], labels)
    panel.grid(visible=False)


def label_ticks(panel: Any, places: Sequence[int]) -> None:
    """Name these places of a logarithmic axis of numbers, and no others."""
    panel.set_xticks(places, [str(place) for place in places])
    panel.set_xticks([], minor=True)
