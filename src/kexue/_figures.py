"""Pictures in one style, drawn without matplotlib's global state."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from kexue._files import replacing
from kexue._optional import import_optional

_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "WenQuanYi Zen Hei")  # the latter two draw Chinese


def save_picture(draw: Callable[[Any], None], path: str | os.PathLike[str]) -> None:
    """Let `draw` paint on an empty matplotlib figure in the house style, and write it to `path` as PNG."""
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
