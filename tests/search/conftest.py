"""A small encoder that needs no model, and the shapes tests build from it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kexue.search import Index


class GramEncoder:
    """Counts of character trigrams, hashed into `dim` cells with signs; another seed is another space."""

    def __init__(self, dim: int = 24, seed: int = 0, model_id: str = "grams") -> None:
        self.dim = dim
        self.seed = seed
        self.model_id = model_id
        self.fingerprint = f"{zlib.crc32(f'{dim} {seed}'.encode()):08x}"
        self.encoded: list[str] = []
        self.truncated_ = 0

    def encode(self, texts: list[str]) -> np.ndarray:
        self.encoded += texts
        self.truncated_ = sum(len(text) > 1000 for text in texts)
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            padded = f"  {text} ".encode()
            for i in range(len(padded) - 2):
                code = zlib.crc32(padded[i : i + 3], self.seed)
                row[code % self.dim] += 1 - 2 * (code >> 31)
        return vectors


@pytest.fixture
def encoder() -> GramEncoder:
    return GramEncoder()


@pytest.fixture
def make_index(tmp_path: Path) -> Iterator[Callable[..., Index]]:
    """Create indexes that are closed at the end; the name decides the file."""
    made: list[Index] = []

    def make(name: str = "test.kx", **options: object) -> Index:
        options.setdefault("encoder", GramEncoder())
        made.append(Index.create(tmp_path / name, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for index in made:
        index.close()


def cosines(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Brute force in float64; 0 where a vector has no direction."""

    def unit(x: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        return np.divide(x, lengths, out=np.zeros(x.shape), where=lengths > 0)

    return unit(queries) @ unit(vectors).T


@pytest.fixture
def brute() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return cosines


@pytest.fixture
def gram_encoder() -> type[GramEncoder]:
    return GramEncoder
