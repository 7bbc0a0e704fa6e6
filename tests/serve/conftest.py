"""Two small indexes of the tiny encoder, and servers of them: in this process, or on a port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from kexue.search import Index
from kexue.serve import Settings, create_app
from kexue.similarity import Whitening
from kexue.text import Encoder

WORDS = ("dog", "cat", "man", "woman", "boy", "girl", "child")
ACTS = ("eats", "runs", "plays", "sleeps", "reads")
TEXTS = [f"the {size} {who} {act} in the park" for size in ("big", "small", "old") for who in WORDS for act in ACTS]


@pytest.fixture(autouse=True, scope="session")
def in_float32() -> Iterator[None]:
    """Half precision depends on what a text is batched with, in the third digit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kexue.text.network.has_native_bfloat16", lambda device: False)
        yield


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """What both indexes hold."""
    return TEXTS


@pytest.fixture(scope="session")
def encoder(tiny_model: Path, in_float32: None) -> Encoder:
    return Encoder(tiny_model, device="cpu")


@pytest.fixture
def indexes(tmp_path: Path, encoder: Encoder) -> list[Path]:
    """`plain.kx`, calibrated; and `small.kx`, whitened to 8 dimensions and without hubs."""
    with Index.create(tmp_path / "plain.kx", encoder) as index:
        ids = [f"t{i}" for i in range(len(TEXTS))]
        index.add(TEXTS, ids=ids, metadata=[{"size": text.split()[1], "n": i} for i, text in enumerate(TEXTS)])
        index.calibrate(n=2000)
    with Index.create(tmp_path / "small.kx", encoder, whitening=Whitening.preset("pca", 8), dehub="csls") as index:
        index.add(TEXTS)
    return [tmp_path / "plain.kx", tmp_path / "small.kx"]


@pytest.fixture
def client(indexes: list[Path], extractor_folder: Path) -> Iterator[TestClient]:
    """The application in this process."""
    settings = Settings(indexes=indexes, runs=[extractor_folder], api_keys={})
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def listen(start_server: Callable[..., SimpleNamespace]) -> Iterator[Callable[..., SimpleNamespace]]:
    """Serve settings on a free port of this machine, over real sockets; see `start_server`."""
    running: list[SimpleNamespace] = []

    def start(**options: object) -> SimpleNamespace:
        running.append(start_server(**options))
        return running[-1]

    yield start
    for server in running:
        server.stop()
