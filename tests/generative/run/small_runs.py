"""Small data and settings for the tests of trained models."""

import numpy as np

from kexue._optional import import_optional

SMALL = {"steps": 4, "batch_size": 16, "device": "cpu"}


def write_images(folder, n, *, shape=(8, 8), seed=0):
    """Write n random images, grey (H, W) or coloured (H, W, 3); return their bytes (n, *shape)."""
    image = import_optional("PIL.Image", extra="generative")
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)
    for i, one in enumerate(pixels):
        image.fromarray(one).save(folder / f"{i:02}.png")
    return pixels


def write_classes(folder, *, plain=False):
    """Write 40 grey images of 8 x 8 into the sub-folder cats, and 20 into dogs: random ones, or dark and bright."""
    image = import_optional("PIL.Image", extra="generative")
    draw = np.random.default_rng(0)
    for name, n, level in (("cats", 40, 40), ("dogs", 20, 215)):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = level + draw.integers(-9, 10, (8, 8)) if plain else draw.integers(0, 256, (8, 8))
            image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:02}.png")


def write_lines(path):
    """Write 36 sentences to a text file."""
    sentences = [f"{a}在{b}{c}" for a in "猫狗鸟" for b in "家里河边" for c in "吃睡跑"]
    path.write_text("".join(f"{one}\n" for one in sentences), encoding="utf-8")
    return path
