"""Pictures and animations: their pixels, frames and files."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kexue.generative import (
    GenerativeModel,
    NotSupported,
    density_figure,
    eight_gaussians,
    grid_figure,
    interpolate,
    latent_walk,
    trajectory_figure,
)
from kexue.generative.diffusion import Trajectory

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


class Painter(GenerativeModel):
    """Decodes a latent of 3 numbers into an image of one colour."""

    event_shape = (3, 4, 4)

    def decode(self, z: Tensor, **options: object) -> Tensor:
        return z[:, :, None, None].expand(-1, 3, 4, 4)


def read(path: Path) -> list[np.ndarray]:
    """All frames of a picture as arrays (height, width, 3)."""
    with Image.open(path) as file:
        frames = []
        for i in range(getattr(file, "n_frames", 1)):
            file.seek(i)
            frames.append(np.asarray(file.convert("RGB")).astype(int))
        return frames


def middle(sheet: np.ndarray, row: int, column: int, size: int = 48) -> list[int]:
    """Colour in the middle of one image of a sheet."""
    step = size + 2
    return sheet[2 + row * step + size // 2, 2 + column * step + size // 2].tolist()


def test_grid_has_every_image_at_its_place(tmp_path: Path) -> None:
    colours = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    grid_figure(colours[:, :, None, None].expand(-1, 3, 8, 8), tmp_path / "new" / "grid.png", columns=2)
    (sheet,) = read(tmp_path / "new" / "grid.png")
    assert sheet.shape == (3 * 50 + 2, 2 * 50 + 2, 3)
    for i, colour in enumerate(colours):
        assert middle(sheet, i // 2, i % 2) == ((colour + 1) * 127.5).round().int().tolist()
    assert middle(sheet, 2, 1) == [255] * 3  # an empty place
    assert (sheet[:2] == 255).all()


def test_a_sheet_is_not_wider_than_its_images(tmp_path: Path) -> None:
    grid_figure(torch.zeros(3, 1, 8, 8), tmp_path / "grid.png", columns=10)
    assert read(tmp_path / "grid.png")[0].shape == (52, 152, 3)


def test_pixels_become_squares_and_values_outside_are_cut_off(tmp_path: Path) -> None:
    x = torch.tensor([[-5.0, -1.0], [1.0, 5.0]])[None, None]
    grid_figure(x, tmp_path / "grid.png")
    (sheet,) = read(tmp_path / "grid.png")
    assert sheet.shape == (52, 52, 3)
    inside = sheet[2:50, 2:50]
    assert (inside[:24] == 0).all()
    assert (inside[24:] == 255).all()


def test_walk_decodes_the_points_between(tmp_path: Path) -> None:
    latents = torch.rand(3, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latent_walk(Painter(), tmp_path / "walk.png", latents=latents, steps=4)
    (sheet,) = read(tmp_path / "walk.png")
    for row in range(2):
        for column, z in enumerate(interpolate(latents[row], latents[row + 1], 4)):
            wanted = ((z.clamp(-1, 1) + 1) * 127.5).round().int().tolist()
            assert middle(sheet, row, column) == wanted
    latent_walk(Painter(), tmp_path / "walk.webp", latents=latents, steps=4)
    frames = read(tmp_path / "walk.webp")
    assert len(frames) == 9  # three ways of three new pictures, back to the first
    for i, latent in enumerate(latents):
        assert middle(frames[3 * i], 0, 0) == ((latent + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_animation_of_images_has_every_step(tmp_path: Path, ending: str) -> None:
    steps = torch.linspace(-1, 1, 6)[:, None, None, None, None].expand(6, 4, 1, 8, 8)
    trajectory_figure(steps, tmp_path / f"steps.{ending}")
    frames = read(tmp_path / f"steps.{ending}")
    assert len(frames) == 6
    for frame, value in zip(frames, torch.linspace(0, 255, 6), strict=True):
        assert frame.shape == (102, 102, 3)
        assert abs(middle(frame, 1, 1)[0] - float(value)) <= 1
    with Image.open(tmp_path / f"steps.{ending}") as file:
        assert file.info["loop"] == 0


def test_picture_of_images_has_a_row_for_each_item(tmp_path: Path) -> None:
    steps = torch.linspace(-1, 1, 11)[:, None, None, None, None].expand(11, 2, 1, 8, 8).clone()
    steps[:, 1] *= -1
    trajectory_figure(steps, tmp_path / "steps.png", frames=3)
    (sheet,) = read(tmp_path / "steps.png")
    assert sheet.shape == (102, 152, 3)
    assert [middle(sheet, 0, i)[0] for i in range(3)] == [0, 128, 255]
    assert [middle(sheet, 1, i)[0] for i in range(3)] == [255, 128, 0]


def test_points_as_paths_and_as_frames(tmp_path: Path) -> None:
    start = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    path = torch.stack([start * scale for scale in (1.0, 0.6, 0.2)])
    trajectory_figure(path, tmp_path / "points.png")
    assert (read(tmp_path / "points.png")[0] < 200).any()
    trajectory_figure(path, tmp_path / "points.gif")
    trajectory_figure(Trajectory(path[-1], torch.arange(len(path)), path, 0), tmp_path / "again.gif")
    assert (tmp_path / "again.gif").read_bytes() == (tmp_path / "points.gif").read_bytes()
    frames = read(tmp_path / "points.gif")
    assert len(frames) == 3
    # the dots, blue on white, draw together
    spread = [np.argwhere(frame[..., 2] - frame[..., 0] > 80).std(0).mean() for frame in frames]
    assert spread[0] > 1.4 * spread[1] > 2 * spread[2]


def test_density_map_has_its_mass_and_its_orientation(tmp_path: Path) -> None:
    assert density_figure(eight_gaussians().log_prob, tmp_path / "ring.png") == pytest.approx(1, abs=1e-4)
    centres = []
    for place in ([3.0, -3.0], [-3.0, 3.0]):
        corner = torch.distributions.Normal(torch.tensor(place), 0.3)
        points = torch.tensor([place])
        mass = density_figure(lambda x, p=corner: p.log_prob(x).sum(-1), tmp_path / "corner.png", points=points)
        assert mass == pytest.approx(1, abs=2e-3)
        (picture,) = read(tmp_path / "corner.png")
        centres.append(np.argwhere(picture[..., 2] - picture[..., 0] > 90).mean(0))  # of what is blue
    down, right = centres[0] - centres[1]
    assert down > 30
    assert right > 30
    half = density_figure(lambda x: corner.log_prob(x).sum(-1) - math.log(2), tmp_path / "half.png")
    assert half == pytest.approx(0.5, abs=1e-3)


def test_a_density_of_zero_is_white_and_dots_are_seen_on_the_darkest(tmp_path: Path) -> None:
    def draw(level: float, points: torch.Tensor | None = None) -> np.ndarray:
        density_figure(lambda x: torch.full((len(x),), level), tmp_path / "flat.png", points=points)
        (picture,) = read(tmp_path / "flat.png")
        return picture[100:450, 150:450]  # inside the axes

    assert (draw(-math.inf) > 230).all()
    assert (draw(0.0)[..., 0] < 50).all()
    dots = draw(0.0, points=torch.tensor([[0.0, 0.0], [-1.0, -1.0]]))
    assert (dots[..., 0] > 200).sum() > 50  # orange on blue


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for name in ("a.png", "b.png"):
        grid_figure(x, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_bad_input_is_refused_and_the_old_file_kept(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    grid_figure(torch.zeros(1, 1, 2, 2), path)
    old = path.read_bytes()
    for images in (torch.zeros(1, 2, 4, 4), torch.zeros(0, 1, 4, 4), torch.zeros(1, 4, 4), torch.zeros(1, 1, 2, 2) / 0):
        with pytest.raises(ValueError, match="images"):
            grid_figure(images, path)
    with pytest.raises(ValueError, match="columns"):
        grid_figure(torch.zeros(1, 1, 2, 2), path, columns=0)
    assert path.read_bytes() == old
    for name in ("grid.jpg", "grid.gif", "grid"):
        with pytest.raises(ValueError, match=r"\.png"):
            grid_figure(torch.zeros(1, 1, 2, 2), tmp_path / name)
    with pytest.raises(ValueError, match=r"floats in \[-1, 1\], got torch\.uint8"):
        grid_figure(torch.full((1, 1, 2, 2), 200, dtype=torch.uint8), path)
    with pytest.raises(ValueError, match="nothing lies between codes"):
        latent_walk(Painter(), path, latents=torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="steps must be a whole number >= 2, got 1"):
        latent_walk(Painter(), path, latents=torch.zeros(2, 3), steps=1)
    for shape in ((3, 0, 2), (3, 0, 1, 4, 4), (3, 4, 3)):
        with pytest.raises(ValueError, match="n >= 1"):
            trajectory_figure(torch.zeros(shape), path)
    for log_prob in (lambda x: x[:, 0] / 0 * 0, lambda x: x[:, 0] * 0 + 1000, lambda x: x):
        with pytest.raises(ValueError, match="must return finite numbers"):
            density_figure(log_prob, path)
    with pytest.raises(ValueError, match=r"points must be \(n, 2\), got \(5,\)"):
        density_figure(eight_gaussians().log_prob, path, points=torch.zeros(5))
    for bound in (math.nan, math.inf):
        with pytest.raises(ValueError, match="bound must be > 0 and finite"):
            density_figure(eight_gaussians().log_prob, path, bound=bound)
    with pytest.raises(ValueError, match="at least 2 latents"):
        latent_walk(Painter(), path, latents=torch.zeros(1, 3))
    with pytest.raises(NotSupported, match="decode"):
        latent_walk(GenerativeModel(), path, latents=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="T >= 2"):
        trajectory_figure(torch.zeros(1, 3, 2), path)
    with pytest.raises(ValueError, match=r"\.gif or \.webp"):
        trajectory_figure(torch.zeros(2, 3, 2), path, animate=True)
    with pytest.raises(ValueError, match="NaN"):
        trajectory_figure(torch.full((2, 3, 2), math.nan), path)
    with pytest.raises(ValueError, match="frames"):
        trajectory_figure(torch.zeros(3, 1, 1, 4, 4), path, frames=1)
    with pytest.raises(ValueError, match="bound"):
        density_figure(eight_gaussians().log_prob, path, bound=0)
