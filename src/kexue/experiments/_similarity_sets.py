"""Pairs with labels for the experiments on whitening: made up, digits, and sentences where the data folder has them."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kexue._optional import import_optional
from kexue.errors import KexueError, MissingDependencyError
from kexue.experiments.registry import Budget
from kexue.similarity import PairDataset, load_pairs

Array = np.ndarray[Any, np.dtype[Any]]

ENGLISH = ("stsb_en", "sick", "sts12", "sts13", "sts14", "sts15", "sts16")
CHINESE = ("atec", "bq", "lcqmc", "pawsx_zh", "stsb_zh")  # the five sets of archives/8321
SENTENCES = (*ENGLISH, *CHINESE, "tencent_char_200d")
_MOST = {"smoke": 1000, "small": 3000, "full": 10**9}  # pairs of a set
_MODEL = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class RowPairs:
    """Labelled pairs of rows of a table; also an encoder, of row numbers, so that evaluations of texts apply."""

    name: str
    table: Array
    left: Array
    right: Array
    labels: Array

    @property
    def pairs(self) -> PairDataset:
        """The same with row numbers as texts."""
        return PairDataset(self.name, "", [str(i) for i in self.left], [str(i) for i in self.right], self.labels)

    def encode(self, texts: Sequence[str]) -> Array:
        """The rows by number."""
        rows: Array = self.table[[int(text) for text in texts]]
        return rows


def made_up(generator: np.random.Generator, pairs: int = 2000, d: int = 64) -> RowPairs:
    """Isotropic latents of known similarity t, seen through a stretch of three directions and a shift.

    v = sqrt(t) u + sqrt(1 - t) w, t uniform; embedding = latent diag(12, 12, 12, 1, ...) Q + c, Q a random rotation, c
    a constant vector of length 8.
    """
    u, w = generator.normal(size=(2, pairs, d))
    t = generator.random(pairs)
    v = np.sqrt(t)[:, None] * u + np.sqrt(1 - t)[:, None] * w
    turn, _ = np.linalg.qr(generator.normal(size=(d, d)))
    stretch = np.where(np.arange(d) < 3, 12.0, 1.0)
    table = np.vstack([u, v]) * stretch @ turn + 8 / np.sqrt(d)
    return RowPairs("made up", table, np.arange(pairs), np.arange(pairs, 2 * pairs), t)


def digits(generator: np.random.Generator, pairs: int = 20_000) -> RowPairs:
    """Random pairs of scikit-learn's 8 x 8 digits as plain pixels; label 1 where both show the same digit.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    images, classes = import_optional("sklearn.datasets", extra="bench").load_digits(return_X_y=True)
    left, right = generator.integers(0, len(images), (2, pairs))
    return RowPairs("digits", images, left, right, (classes[left] == classes[right]).astype(float))


def sentence_sets(
    names: Sequence[str], data: Path | None, budget: Budget, generator: np.random.Generator, split: str | None = None
) -> tuple[list[PairDataset], list[str]]:
    """The named sets that are there, cut to the budget by a fixed draw, and the names of those that are not.

    At budget "smoke" the English sets, which a transformer has to encode, are the first one only.
    """
    found, absent = [], []
    for name in names[:1] if budget == "smoke" and names[0] in ENGLISH else names:
        folder = next(iter(sorted(data.glob(f"pairs_*/{name}"))), None) if data is not None else None
        if folder is None:
            absent.append(name)
            continue
        pairs = load_pairs(folder, split)
        if len(pairs) > _MOST[budget]:
            kept = np.sort(generator.choice(len(pairs), _MOST[budget], replace=False))
            a, b = ([side[i] for i in kept] for side in (pairs.texts_a, pairs.texts_b))
            pairs = PairDataset(pairs.name, pairs.split, a, b, pairs.labels[kept])
        found.append(pairs)
    return found, absent


def sentence_encoder() -> Any:
    """MiniLM in float32 on the CPU, remembering what it has encoded.

    Raises:
        KexueError: it is not installed, or no model is found.
    """
    from kexue.text import Encoder

    return Remembering(Encoder(_MODEL, device="cpu", dtype="float32"))


class Remembering:
    """An encoder that encodes each text once in its life."""

    def __init__(self, encoder: Any) -> None:
        self._encoder, self._known = encoder, dict[str, Array]()
        self.model_id, self.pooling = encoder.model_id, getattr(encoder, "pooling", None)

    def encode(self, texts: Sequence[str]) -> Array:
        """(n, d) vectors."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._encoder.encode(new), strict=True))
        return np.stack([self._known[text] for text in texts])


class CharacterVectors:
    """Mean of the word2vec vectors of a text's characters: a Chinese encoder without supervision, 200 dimensions."""

    model_id = "mean of character vectors (tencent, 200d)"

    def __init__(self, path: Path) -> None:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            self._dim = int(file.readline().split()[1])
            rows = (line.rstrip("\n").split(" ") for line in file)
            self._vectors = {character: np.array(values, dtype=np.float64) for character, *values in rows}

    def encode(self, texts: Sequence[str]) -> Array:
        """(n, 200); a text without a known character is 0."""
        none = [np.zeros(self._dim)]
        return np.stack([np.mean([self._vectors[c] for c in t if c in self._vectors] or none, axis=0) for t in texts])


def chinese_encoder(data: Path | None) -> CharacterVectors | None:
    """Character vectors from the data folder, or None."""
    path = None if data is None else data / "vectors_zh" / "tencent_char_200d.txt.gz"
    return CharacterVectors(path) if path is not None and path.is_file() else None


def attempt(make: Callable[[], Any], what: str, notes: list[str]) -> Any:
    """make(), or None and a note where a package, a model or data are missing."""
    try:
        return make()
    except (MissingDependencyError, KexueError) as error:
        notes.append(f"left out: {what} ({error})")
        return None


def used(pairs: Sequence[PairDataset]) -> tuple[dict[str, Any], ...]:
    """The `data` field of a report."""
    return tuple({"name": p.name, "split": p.split, "n": len(p)} for p in pairs)
