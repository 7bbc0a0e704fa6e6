"""A real server on small indexes of the tiny encoder, and a browser that reports whatever it should not do."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

pytest.importorskip("fastapi")

import httpx

from kexue.generative import ModelConfig, train_model
from kexue.search import Index
from kexue.text import Encoder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
KEY = "reader-key"

HOSTILE = """<img src=x onerror="window.pwned=1"><script>window.pwned=1</script> & the "bad" dog's book"""
_SIZES = ("big", "small", "old", "new", "fast")
_WHO = ("dog", "cat", "man", "woman", "boy", "girl", "child")
_ACTS = ("eats in the park", "runs on the street", "plays music in the house")
TEXTS = [f"the {size} {who} {act} at this time" for size in _SIZES for who in _WHO for act in _ACTS]
CHINESE = ["怎么办理信用卡", "退货款多久到账户", "苹果好吃"]


@dataclass
class Server:
    """Where it listens, and what it answers to a plain client: the oracle of the page."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        method = "POST" if body else "GET"
        answer = httpx.request(method, f"{self.url}/{path}", json=body, headers=self.headers, timeout=60)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="session")
def index_files(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> list[Path]:
    """`faq`: calibrated with labels, one text hostile; `few`: three documents, nothing measured."""
    folder = tmp_path_factory.mktemp("indexes")
    encoder = Encoder(tiny_model, device="cpu", dtype="float32")
    texts = [*TEXTS, *CHINESE, HOSTILE]
    metadata: list[dict[str, Any]] = [{"size": text.split()[1], "n": i} for i, text in enumerate(TEXTS)]
    metadata += [{"lang": "zh"} for _ in CHINESE] + [{"<b>note</b>": HOSTILE}]
    with Index.create(folder / "faq.kx", encoder) as index:
        index.add(texts, ids=[f"t{i}" for i in range(len(texts))], metadata=metadata)
        pairs = [(TEXTS[i], TEXTS[j]) for i in range(0, 60, 3) for j in (i + 1, 104 - i)]
        index.calibrate(pairs=pairs, labels=[1, 0] * 20, n=2000)
    with Index.create(folder / "few.kx", encoder) as index:
        index.add(TEXTS[:3])
    return [folder / "faq.kx", folder / "few.kx"]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusion of digits after two steps of training."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train_model(ModelConfig("diffusion", "digits", folder, steps=2, batch_size=32, device="cpu"))
    return folder


@pytest.fixture(scope="module")
def server(
    index_files: list[Path], run_folder: Path, extractor_folder: Path, start_server: Callable[..., Any]
) -> Iterator[Server]:
    """Both indexes, a diffusion, an extraction and a language model, open to everyone on this machine."""
    running = start_server(indexes=index_files, runs=[run_folder, extractor_folder, "ngram-zh"])
    yield Server(running.url)
    running.stop()


@pytest.fixture
def guarded(index_files: list[Path], start_server: Callable[..., Any]) -> Iterator[Server]:
    """The same behind a key."""
    running = start_server(indexes=index_files, api_keys={KEY: "read"})
    yield Server(running.url, {"Authorization": f"Bearer {KEY}"})
    running.stop()


@pytest.fixture(scope="module")  # no longer: while it runs, asyncio.run() is impossible in this thread
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra `dev`)")
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@dataclass
class Visit:
    """An open page, and what went wrong on it."""

    page: Any
    server: Server
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    asked: set[Any] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Listen to all that happens."""
        page = self.page
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._asks)
        page.on("requestfinished", self._answered)
        page.on("requestfailed", self._answered)

    def _asks(self, request: Any) -> None:
        self.asked.add(request)
        if not request.url.startswith((self.server.url, "data:")):
            self.foreign.append(request.url)

    def _answered(self, request: Any) -> None:
        self.asked.discard(request)

    def go(self, panel: str, **state: object) -> None:
        """Follow an address as a link would."""
        self.page.goto(address(self.server, panel, **state))
        self.settle()

    def settle(self, quiet: int = 350) -> None:
        """Wait until nothing is asked any more; `quiet` ms are longer than the page waits for typing to stop."""
        self.page.wait_for_timeout(quiet)
        deadline = time.monotonic() + 30
        while self.asked:
            assert time.monotonic() < deadline, f"no answer to {[request.url for request in self.asked]}"
            self.page.wait_for_timeout(30)
        self.page.wait_for_timeout(60)  # for what follows from the answers, and a frame

    @property
    def state(self) -> dict[str, str]:
        """What the address says."""
        found: dict[str, str] = self.page.evaluate(
            "Object.fromEntries(new URLSearchParams(location.hash.split('?').slice(1).join('?')))"
        )
        return found

    def expect_complaint(self, words: str) -> None:
        """One failed request belongs to the test."""
        left = [one for one in self.complaints if words not in one]
        assert len(left) < len(self.complaints), f"nothing complained of {words}: {self.complaints}"
        self.complaints[:] = left


def address(server: Server, panel: str, **state: object) -> str:
    return f"{server.url}/#{panel}" + (f"?{urlencode(state, quote_via=quote)}" if state else "")


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Callable[..., Visit]]:
    """Open a panel in a fresh browser; at the end nothing may have been logged, or asked of another origin."""
    opened: list[Visit] = []

    def start(
        panel: str = "search",
        *,
        at: Server = server,
        width: int = 1180,
        dark: bool = False,
        zh: bool = False,
        **state: Any,
    ) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            locale="zh-CN" if zh else "en-US",
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.set_default_timeout(15_000)
        here = Visit(page, at)
        opened.append(here)
        here.go(panel, **state)
        return here

    yield start
    for one in opened:
        one.page.context.close()
        assert one.complaints == []
        assert one.foreign == []


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Where pictures of the page are kept."""
    folder = Path(os.environ.get("KEXUE_ARTEFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
