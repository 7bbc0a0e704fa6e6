"""Figures in one style, independent of matplotlib's global state."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from kexue._files import replacing
from kexue._optional import import_optional

_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "WenQuanYi Zen Hei")  # the last two have Chinese characters


def save_figure(draw: Callable[[Any], None], path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG.

    Args:
        draw: paints on the empty matplotlib figure that it is called with.
        path: the file; its folder is made where it is missing.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    matplotlib = import_optional("matplotlib")
    figure_module = import_optional("matplotlib.figure")
    installed = set(import_optional("matplotlib.font_manager").get_font_names())
    style = {
        "font.sans-serif": [name for name in _FONTS if name in installed],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "savefig.dpi": 120,
    }
    with matplotlib.rc_context(style), replacing(path) as temporary:
        figure = figure_module.Figure(figsize=(9, 5), layout="constrained")
        draw(figure)
        figure.savefig(temporary, format="png")
