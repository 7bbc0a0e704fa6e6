"""Data of the experiments: digits, labelled pairs, sentences and character vectors, in an order drawn from the seed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.corpus.open import open_bytes
from kexue.errors import MissingDependencyError, ModelNotFoundError
from kexue.experiments.registry import Budget
from kexue.similarity import PairDataset, load_pairs

ENGLISH = ("stsb_en", "sick", "sts12", "sts13", "sts14", "sts15", "sts16")
CHINESE = ("atec", "bq", "lcqmc", "pawsx_zh", "stsb_zh")  # the five sets of archives/8321
CHARACTERS = "tencent_char_200d"
_LARGEST = {"smoke": 1000, "small": 3000, "full": 10**9}  # pairs of a set
_MODEL = "all-MiniLM-L6-v2"


def attempt(load: Callable[[], Any], what: str, notes: list[str]) -> Any:
    """Return load(), or None with a note that `what` is left out where a package or a model is missing."""
    try:
        return load()
    except (MissingDependencyError, ModelNotFoundError) as error:
        notes.append(f"left out: {what} ({error})")
        return None


# ---- digits --------------------------------------------------------------------------------------------------------


def split_digits(seed: int, *, train: int = 1200) -> tuple[Array, Array, Array, Array]:
    """The 1,797 digits of scikit-learn, 64 pixels in [0, 1], in an order drawn from `seed`: X, y, X_test, y_test.

    Raises:
        MissingDependencyError: scikit-learn, which carries the images, is not installed.
    """
    images, classes = import_optional("sklearn.datasets", extra="bench").load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    X, y = (images[order] / 16).astype(np.float32), classes[order].astype(np.int64)
    return X[:train], y[:train], X[train:], y[train:]


def load_digits(seed: int) -> tuple[Any, Any]:
    """All digits: images (1797, 64) and labels (1797,), as torch tensors in an order drawn from `seed`."""
    torch = import_optional("torch", extra="train")
    X, y, _, _ = split_digits(seed, train=1797)
    return torch.from_numpy(X), torch.from_numpy(y)


# ---- labelled pairs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowPairs:
    """Labelled pairs of rows of a table, and an encoder of row numbers, so that evaluations of texts accept them."""

    name: str
    table: Array
    left: Array
    right: Array
    labels: Array

    @property
    def pairs(self) -> PairDataset:
        """The pairs with row numbers as texts."""
        return PairDataset(self.name, "", [str(i) for i in self.left], [str(i) for i in self.right], self.labels)

    def encode(self, texts: Sequence[str]) -> Array:
        """Rows by number."""
        rows: Array = self.table[[int(text) for text in texts]]
        return rows


def draw_planted_pairs(generator: np.random.Generator, pairs: int = 2000, d: int = 64) -> RowPairs:
    """Isotropic latents of known similarity t, stretched in three directions, rotated and shifted.

    v = sqrt(t) u + sqrt(1 - t) w, t uniform; embedding = latent diag(12, 12, 12, 1, ...) Q + c, Q a random rotation, c
    a constant vector of length 8.
    """
    u, w = generator.normal(size=(2, pairs, d))
    t = generator.random(pairs)
    v = np.sqrt(t)[:, None] * u + np.sqrt(1 - t)[:, None] * w
    rotation, _ = np.linalg.qr(generator.normal(size=(d, d)))
    stretch = np.where(np.arange(d) < 3, 12.0, 1.0)
    table = np.vstack([u, v]) * stretch @ rotation + 8 / np.sqrt(d)
    return RowPairs("made up", table, np.arange(pairs), np.arange(pairs, 2 * pairs), t)


def draw_digit_pairs(generator: np.random.Generator, pairs: int = 20_000) -> RowPairs:
    """Random pairs of scikit-learn's 8 x 8 digits as plain pixels; label 1 where both show the same digit.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    images, classes = import_optional("sklearn.datasets", extra="bench").load_digits(return_X_y=True)
    left, right = generator.integers(0, len(images), (2, pairs))
    return RowPairs("digits", images, left, right, (classes[left] == classes[right]).astype(float))


def load_sentence_pairs(
    names: Sequence[str], data: Path | None, budget: Budget, generator: np.random.Generator, split: str | None = None
) -> tuple[list[PairDataset], list[str]]:
    """The named sets that the data folder has, each a random sample of the budget's size; and the names it lacks.

    At budget "smoke" the English sets, which a transformer has to encode, are the first one only.
    """
    present, absent = [], []
    for name in names[:1] if budget == "smoke" and names[0] in ENGLISH else names:
        folder = next(iter(sorted(data.glob(f"pairs_*/{name}"))), None) if data is not None else None
        if folder is None:
            absent.append(name)
            continue
        pairs = load_pairs(folder, split)
        if len(pairs) > _LARGEST[budget]:
            sample = np.sort(generator.choice(len(pairs), _LARGEST[budget], replace=False))
            a, b = ([side[i] for i in sample] for side in (pairs.texts_a, pairs.texts_b))
            pairs = PairDataset(pairs.name, pairs.split, a, b, pairs.labels[sample])
        present.append(pairs)
    return present, absent


def describe_pairs(pairs: Sequence[PairDataset]) -> tuple[dict[str, Any], ...]:
    """The `data` field of a report."""
    return tuple({"name": p.name, "split": p.split, "n": len(p)} for p in pairs)


# ---- texts and their encoders --------------------------------------------------------------------------------------


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a text, compressed or not, without their ends."""
    with open_bytes(str(path)) as file, io.TextIOWrapper(file, encoding="utf-8") as text:
        for line in text:
            yield line.rstrip("\n")


def load_sentence_encoder() -> CachedEncoder:
    """MiniLM in float32 on the CPU, with a cache.

    Raises:
        MissingDependencyError, ModelNotFoundError: transformers is not installed, or no model is found.
    """
    from kexue.text import Encoder

    return CachedEncoder(Encoder(_MODEL, device="cpu", dtype="float32"))


class CachedEncoder:
    """An encoder that keeps the vectors of every text it has encoded."""

    def __init__(self, encoder: Any) -> None:
        self._encoder, self._vectors = encoder, dict[str, Array]()
        self.model_id, self.pooling = encoder.model_id, getattr(encoder, "pooling", None)

    def encode(self, texts: Sequence[str]) -> Array:
        """(n, d) vectors."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, self._encoder.encode(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])


class CharacterVectors:
    """Word2vec vectors of characters and their mean as the vector of a text: an unsupervised Chinese encoder.

    Attributes:
        vectors: (200,) float64 by character.
    """

    model_id = "mean of character vectors (tencent, 200d)"

    def __init__(self, path: Path) -> None:
        lines = read_lines(path)
        self.dim = int(next(lines).split()[1])
        rows = (line.split(" ") for line in lines)
        self.vectors = {character: np.array(values, dtype=np.float64) for character, *values in rows}

    def split(self, text: str) -> list[str]:
        """The characters of a text that have a vector."""
        return [character for character in text if character in self.vectors]

    def stack(self, characters: Sequence[str]) -> Array:
        """(m, 200) vectors of characters."""
        return np.array([self.vectors[character] for character in characters]).reshape(-1, self.dim)

    def encode(self, texts: Sequence[str]) -> Array:
        """(n, 200); a text without a known character is 0."""
        zero = [np.zeros(self.dim)]
        return np.stack([np.mean([self.vectors[c] for c in self.split(text)] or zero, axis=0) for text in texts])


def load_character_vectors(data: Path | None) -> CharacterVectors | None:
    """Character vectors from the data folder, or None where it has none."""
    path = None if data is None else data / "vectors_zh" / f"{CHARACTERS}.txt.gz"
    return CharacterVectors(path) if path is not None and path.is_file() else None


# ---- everything together -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SimilarityData:
    """Labelled pairs of four kinds with their encoders; what is missing is None or empty, and named in `absent`."""

    planted: RowPairs
    digits: RowPairs | None
    english: list[PairDataset]
    sentences: CachedEncoder | None
    chinese: list[PairDataset]
    characters: CharacterVectors | None
    absent: list[str]

    def describe(self) -> tuple[dict[str, Any], ...]:
        """The `data` field of a report."""
        rows = [one.pairs for one in (self.planted, self.digits) if one is not None]
        return describe_pairs([*rows, *self.english, *self.chinese])


SENTENCES = (*ENGLISH, *CHINESE, CHARACTERS)  # names of the sets that `load_similarity_data` looks for


def load_similarity_data(seed: int, data: Path | None, budget: Budget, notes: list[str]) -> SimilarityData:
    """Planted pairs, digits, English and Chinese sentences, as far as they and their encoders are there."""
    generator = np.random.default_rng(seed)
    planted = draw_planted_pairs(generator)
    digits = attempt(lambda: draw_digit_pairs(generator), "digits", notes)
    english, absent = load_sentence_pairs(ENGLISH, data, budget, generator)
    sentences = attempt(load_sentence_encoder, "English sentences", notes) if english else None
    chinese, absent_zh = load_sentence_pairs(CHINESE, data, budget, generator)
    characters = load_character_vectors(data)
    absent = [*absent, *absent_zh, *([] if characters else [CHARACTERS])]
    return SimilarityData(planted, digits, english, sentences, chinese, characters, absent)
