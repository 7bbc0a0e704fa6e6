"""Pictures of samples, walks, densities and paths: PNG, and animations as GIF or WebP, by the ending of the name."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kexue._arrays import Array
from kexue._counts import check_counts
from kexue._figures import save_figure
from kexue._files import replacing
from kexue._optional import import_optional
from kexue._tensors import evaluating
from kexue.generative.diffusion.solver import Trajectory
from kexue.generative.interpolation import interpolate
from kexue.generative.model import GenerativeModel

_ANIMATED = {".gif": "GIF", ".webp": "WEBP"}
_SMALLEST = 48  # pixels of the shorter side of an image in a figure, at least
_FRAME, _LAST_FRAME = 100, 1500  # milliseconds


def grid_figure(images: Tensor, path: str | os.PathLike[str], *, columns: int | None = None) -> None:
    """Write images side by side into a PNG; a contact sheet.

    Small images are enlarged by a whole factor, every pixel a square.

    Args:
        images: (n >= 1, C, H, W) in [-1, 1], C = 1 or 3; values outside are cut off.
        path: a name that ends in ``.png``.
        columns: images in a row, >= 1; None: about as many as rows.

    Raises:
        ValueError: another shape, whole numbers, NaN, another ending.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     grid_figure(torch.rand(9, 1, 8, 8), f"{folder}/sheet.png")
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"one picture is written as .png, got {os.fspath(path)!r}")
    _save_frames([_tile(images, columns)], path)


def draw_grid(images: Tensor) -> bytes:
    """Return the picture of `grid_figure` as a PNG in memory."""
    buffer = io.BytesIO()
    import_optional("PIL.Image", extra="generative").fromarray(_tile(images, None)).save(buffer, format="PNG")
    return buffer.getvalue()


def latent_walk(
    model: GenerativeModel,
    path: str | os.PathLike[str],
    *,
    latents: Tensor,
    steps: int = 8,
) -> None:
    """Write what a model decodes on the way from latent to latent.

    A PNG has a row of pictures from each latent to the next. A GIF or WebP moves through all of them and back to the
    first. Points between are those of `interpolate`, circular.

    Args:
        model: with `decode` to images.
        path: a name that ends in ``.png``, ``.gif`` or ``.webp``.
        latents: (m >= 2, *shape), floats, such as latents of given images.
        steps: pictures from one latent to the next, both included, >= 2.

    Raises:
        ValueError: fewer than 2 latents or steps, another ending.
        NotSupported: the model cannot decode.
    """
    if len(latents) < 2:
        raise ValueError(f"at least 2 latents are expected, got {len(latents)}")
    if not latents.is_floating_point():
        raise ValueError(f"latents must be floats, got {latents.dtype}: nothing lies between codes")
    check_counts(2, steps=steps)
    animated = _is_animation(path)
    ends = torch.cat([latents, latents[:1]]) if animated else latents
    ways = [interpolate(ends[i], ends[i + 1], steps) for i in range(len(ends) - 1)]
    with torch.no_grad(), evaluating(model):
        if animated:
            images = model.decode(torch.cat([way[:-1] for way in ways]))
            _save_frames([_tile(one[None], 1) for one in images], path, last=_FRAME)
        else:
            _save_frames([_tile(model.decode(torch.cat(ways)), steps)], path)


def density_figure(
    log_prob: Callable[[Tensor], Tensor],
    path: str | os.PathLike[str],
    *,
    points: Tensor | None = None,
    bound: float = 4.0,
    resolution: int = 200,
) -> float:
    """Write a map of a density of two variables into a PNG, and return its mass inside.

    The mass is a sum over the cells of the map; it is 1 where the density is normalised, lies inside, and is smooth at
    the size of a cell.

    Args:
        log_prob: log density (N,) of points (N, 2) float32, in nats.
        path: a name that ends in ``.png``.
        points: (n, 2) drawn as dots, such as data; None: no dots.
        bound: the map reaches from -bound to bound in both directions, > 0.
        resolution: cells in each direction, >= 2.

    Raises:
        ValueError: a number out of range, points or densities of another shape, a density of NaN or infinity,
            another ending.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> from kexue.generative import eight_gaussians
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mass = density_figure(eight_gaussians().log_prob, f"{folder}/ring.png")
        >>> round(mass, 3)
        1.0
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"one picture is written as .png, got {os.fspath(path)!r}")
    if not 0 < bound < math.inf:
        raise ValueError(f"bound must be > 0 and finite, got {bound}")
    check_counts(2, resolution=resolution)
    if points is not None and (points.ndim != 2 or points.shape[1] != 2):
        raise ValueError(f"points must be (n, 2), got {_shape(points)}")
    cell = 2 * bound / resolution
    centres = torch.arange(resolution) * cell + (cell / 2 - bound)
    with torch.no_grad():
        values = log_prob(torch.cartesian_prod(centres, centres)).double().exp().cpu()
    if values.shape != (resolution**2,) or not bool(values.isfinite().all()):
        raise ValueError(
            f"log_prob must return finite numbers (N,) of points (N, 2), or -inf, got {_shape(values)}, "
            f"{int((~values.isfinite()).sum())} of them with a density of NaN or infinity"
        )
    density = values.reshape(resolution, resolution).T.numpy()  # rows are the second variable

    def draw(figure: Any) -> None:
        figure.set_size_inches(6, 5)
        axes = figure.subplots()
        shades = {"cmap": "Blues", "vmin": 0, "vmax": float(density.max()) or 1.0}
        picture = axes.imshow(density, origin="lower", extent=(-bound, bound, -bound, bound), **shades)
        figure.colorbar(picture, label="density")
        axes.grid(visible=False)
        if points is not None:
            x = points.detach().cpu().numpy()
            axes.plot(x[:, 0], x[:, 1], ".", color="tab:orange", markersize=_choose_size(len(x)))
            axes.set(xlim=(-bound, bound), ylim=(-bound, bound))
        axes.set(xlabel="$x_1$", ylabel="$x_2$")

    save_figure(draw, path)
    return float(values.sum() * cell**2)


def trajectory_figure(
    trajectory: Tensor | Trajectory, path: str | os.PathLike[str], *, animate: bool = False, frames: int = 8
) -> None:
    """Write how items change from step to step, such as from noise to samples.

    Images: a PNG has a row for each item with `frames` of the steps; a GIF or WebP shows all items at each step.
    Points of two variables: a PNG shows their paths, start and end; a GIF or WebP the moving points.

    Args:
        trajectory: (T >= 2, n, C, H, W) images in [-1, 1], or (T >= 2, n, 2) points; or the `Trajectory` of a sampling.
        path: a name that ends in ``.png``, ``.gif`` or ``.webp``, which decides.
        animate: insist on an animation: a PNG is refused.
        frames: steps in a row of a PNG of images, evenly chosen, >= 2.

    Raises:
        ValueError: another shape or ending; a PNG with `animate`.
        MissingDependencyError: Pillow, or matplotlib for points, is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trajectory_figure(torch.rand(20, 4, 1, 8, 8), f"{folder}/steps.gif")
    """
    if isinstance(trajectory, Trajectory):
        trajectory = trajectory.xs
    animated = _is_animation(path)
    if animate and not animated:
        raise ValueError(f"an animation is a file .gif or .webp, got {os.fspath(path)}")
    steps = len(trajectory)
    points = trajectory.ndim == 3 and trajectory.shape[2] == 2
    if steps < 2 or not (points or trajectory.ndim == 5) or not trajectory.numel():
        raise ValueError(
            f"images (T >= 2, n >= 1, C, H, W) or points (T >= 2, n >= 1, 2) are expected, got {_shape(trajectory)}"
        )
    if points:
        _draw_points(trajectory.detach().cpu().double().numpy(), path, animated)
    elif animated:
        _save_frames([_tile(step, None) for step in trajectory], path)
    else:
        check_counts(2, frames=frames)
        chosen = torch.linspace(0, steps - 1, min(frames, steps)).round().long()
        _save_frames([_tile(trajectory[chosen].transpose(0, 1).flatten(0, 1), len(chosen))], path)


def _choose_size(n: int) -> float:
    """Return the size of each of n dots, in points: few are large enough to be seen, many do not cover each other."""
    return min(max(60 / math.sqrt(max(n, 1)), 2.0), 10.0)


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def _is_animation(path: str | os.PathLike[str]) -> bool:
    """Return whether a name is that of an animation; ValueError for an ending that is not known."""
    ending = Path(path).suffix.lower()
    if ending != ".png" and ending not in _ANIMATED:
        raise ValueError(f"a name that ends in .png, .gif or .webp is expected, got {os.fspath(path)!r}")
    return ending in _ANIMATED


def _tile(images: Tensor, columns: int | None) -> Array:
    """Return images (n, C, H, W) in [-1, 1] as one picture (height, width, 3) of uint8, white between them."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(f"images must be (n >= 1, 1 or 3, H, W), got {_shape(images)}")
    if not images.is_floating_point():  # cut off at 1, bytes would be white
        raise ValueError(f"images must be floats in [-1, 1], got {images.dtype}; a byte u is 2 u / 255 - 1")
    if columns is not None:
        check_counts(columns=columns)
    x = images.detach().float().cpu()
    if bool(x.isnan().any()):
        raise ValueError("images have NaN")
    n, _, height, width = x.shape
    across = math.ceil(math.sqrt(n)) if columns is None else min(columns, n)
    down = math.ceil(n / across)
    factor = max(1, math.ceil(_SMALLEST / min(height, width)))
    gap = 2
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(n, 3, height, width)
    pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    high, wide = height * factor + gap, width * factor + gap
    sheet = np.full((down * high + gap, across * wide + gap, 3), 255, np.uint8)
    for i, one in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        top, left = i // across * high + gap, i % across * wide + gap
        sheet[top : top + high - gap, left : left + wide - gap] = one
    return sheet


def _save_frames(pictures: Sequence[Array], path: str | os.PathLike[str], *, last: int = _LAST_FRAME) -> None:
    """Write one picture, or an animation that repeats; its last frame stays for `last` milliseconds."""
    pillow = import_optional("PIL.Image", extra="generative")
    frames = [pillow.fromarray(picture) for picture in pictures]
    kind = _ANIMATED.get(Path(path).suffix.lower())
    with replacing(path) as temporary:
        if kind is None:
            frames[0].save(temporary, format="PNG")
        else:
            durations = [*[_FRAME] * (len(frames) - 1), last]
            options = {"lossless": True} if kind == "WEBP" else {"disposal": 1}
            frames[0].save(
                temporary, format=kind, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options
            )


def _draw_points(trajectory: Array, path: str | os.PathLike[str], animated: bool) -> None:
    """Draw paths of points (T, n, 2): all in one picture, or a frame for each step."""
    if not np.isfinite(trajectory).all():
        raise ValueError("trajectory has NaN or infinity")
    bound = 1.05 * max(float(np.abs(trajectory).max()), 1e-6)

    size = _choose_size(trajectory.shape[1])

    def prepare(figure: Any) -> Any:
        axes = figure.subplots()
        axes.set(xlim=(-bound, bound), ylim=(-bound, bound), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
        return axes

    def draw(figure: Any) -> None:
        figure.set_size_inches(5, 5)
        axes = prepare(figure)
        axes.plot(trajectory[..., 0], trajectory[..., 1], color="0.7", linewidth=0.5)
        for step, label in ((0, "start"), (-1, "end")):
            axes.plot(trajectory[step, :, 0], trajectory[step, :, 1], ".", markersize=size, label=label)
        axes.legend(loc="upper right")

    if not animated:
        save_figure(draw, path)
        return
    figure_module = import_optional("matplotlib.figure")
    canvas_module = import_optional("matplotlib.backends.backend_agg")
    figure = figure_module.Figure(figsize=(4, 4), dpi=100, layout="constrained")
    canvas = canvas_module.FigureCanvasAgg(figure)
    dots = prepare(figure).plot([], [], ".", markersize=size)[0]
    pictures = []
    for points in trajectory:
        dots.set_data(points[:, 0], points[:, 1])
        canvas.draw()
        pictures.append(np.array(canvas.buffer_rgba())[..., :3])
    _save_frames(pictures, path)
