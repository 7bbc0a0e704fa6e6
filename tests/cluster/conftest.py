"""An encoder that workers can run, texts enough for several shards, and one Ray for all tests of the room."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def _make_encoder(model_id: str = "grams", accident: Path | None = None, on: str = "", always: bool = False) -> Any:
    # Local classes travel to workers by value: no test module needs to be importable there.
    import os
    import zlib

    import numpy as np

    class Grams:
        """Character trigrams hashed into 24 cells, with signs."""

        dim = 24
        prompts = {"query": "", "document": "> "}  # noqa: RUF012 - read only

        def __init__(self) -> None:
            self.model_id = model_id
            self.fingerprint = f"{model_id}-1"
            self.truncated_ = 0

        def encode(self, texts: list[str], prompt_name: str | None = None) -> Any:
            if accident is not None and any(on in text for text in texts) and (always or not accident.exists()):
                accident.touch()
                os._exit(1)  # as the kernel does to a process that takes too much memory
            self.truncated_ = sum(len(text) > 40 for text in texts)
            prompt = self.prompts[prompt_name] if prompt_name else ""
            vectors = np.zeros((len(texts), self.dim), np.float32)
            for row, text in zip(vectors, texts, strict=True):
                padded = f"{prompt} {text} ".encode()
                for i in range(len(padded) - 2):
                    code = zlib.crc32(padded[i : i + 3])
                    row[code % self.dim] += 1 - 2 * (code >> 31)
            return vectors

    return Grams()


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., Any]:
    return _make_encoder


@pytest.fixture
def encoder() -> Any:
    return _make_encoder()


WORDS = ["order", "refund", "bank", "delivery", "password", "account", "week", "card"]


@pytest.fixture(scope="session")
def documents() -> list[dict[str, str]]:
    """1,500 documents of all lengths, which are three batches; the last has the text of the first."""
    found = []
    for i in [*range(1499), 0]:
        text = f"{WORDS[i % 8]} {WORDS[i // 8 % 8]} " * (1 + i % 3) + f"question {i}"
        found.append({"id": f"d{len(found)}", "text": text, "topic": WORDS[i % 8]})
    return found


@pytest.fixture
def source(tmp_path: Path, documents: list[dict[str, str]]) -> Path:
    """The documents as a file."""
    path = tmp_path / "faq.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in documents))
    return path


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """Ray with two workers, as a caller would have it running already."""
    pytest.importorskip("ray")
    from kexue.cluster.session import RaySession

    with RaySession("local") as session:
        yield session.start(2)
