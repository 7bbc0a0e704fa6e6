"""Encoding a stream to a file: same bytes whatever happens on the way."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kexue.errors import DiskFullError
from kexue.text import Encoder, EncodeReport, streaming

WORDS = "the dog cat eats runs sleeps order refund bank time day week where how long does do red blue"


def make_texts(n: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS.split(), size=generator.integers(1, 12))) for _ in range(n)]


TEXTS = make_texts(95)


class Killed(BaseException):
    """Stands for a kill at a chosen moment."""


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(tiny_model)  # whatever arithmetic this machine takes: the bytes must agree in all of them


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_CHUNK", 10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vectors.npy"


@pytest.fixture(scope="module")
def expected(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_CHUNK", 10)
        path = tmp_path_factory.mktemp("whole") / "vectors.npy"
        encoder.encode_to(path, TEXTS)
        return path.read_bytes()


def stop_after(n: int, texts: list[str] = TEXTS) -> Iterator[str]:
    for i, text in enumerate(texts):
        if i == n:
            raise Killed
        yield text


def count_encoded(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    original = Encoder.encode

    def counting(self: Encoder, texts: list[str], **options: object) -> np.ndarray:
        sizes.append(len(texts))
        return original(self, texts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "encode", counting)
    return sizes


def test_the_file_holds_what_encode_returns(encoder: Encoder, path: Path) -> None:
    report = encoder.encode_to(path, iter(TEXTS))  # a stream without length
    vectors = np.load(path, mmap_mode="r")
    assert isinstance(vectors, np.memmap)
    assert (vectors.shape, vectors.dtype) == ((95, 32), np.float32)
    by_chunk = np.concatenate([encoder.encode(TEXTS[i : i + 10]) for i in range(0, 95, 10)])
    np.testing.assert_array_equal(vectors, by_chunk)
    np.testing.assert_allclose((vectors * encoder.encode(TEXTS)).sum(axis=1), 1, rtol=0, atol=1e-3)  # bfloat16
    assert report == EncodeReport(95, 32, 0, report.seconds)
    assert report.seconds > 0
    assert os.listdir(path.parent) == ["vectors.npy"]


@pytest.mark.parametrize("n", [0, 1, 10, 11])
def test_sizes_at_the_edge_of_a_chunk(encoder: Encoder, path: Path, n: int) -> None:
    assert encoder.encode_to(path, TEXTS[:n]).n == n
    assert np.load(path, mmap_mode="r" if n else None).shape == (n, 32)


@pytest.mark.parametrize("n", [0, 9, 10, 55, 94])
def test_resuming_gives_the_same_bytes_and_skips_what_is_done(
    encoder: Encoder, path: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    with pytest.raises(Killed):
        encoder.encode_to(path, stop_after(n))
    assert not path.exists()
    sizes = count_encoded(encoder, monkeypatch)
    assert encoder.encode_to(path, iter(TEXTS)).n == 95
    assert sum(sizes) == 95 - n // 10 * 10
    assert path.read_bytes() == expected
    assert os.listdir(path.parent) == ["vectors.npy"]


def test_not_resuming_starts_anew(
    encoder: Encoder, path: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        encoder.encode_to(path, stop_after(55))
    sizes = count_encoded(encoder, monkeypatch)
    encoder.encode_to(path, TEXTS, resume=False)
    assert sum(sizes) == 95
    assert path.read_bytes() == expected


def test_texts_that_changed_are_encoded_again_from_there(
    encoder: Encoder,
    path: Path,
    expected: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(Killed):
        encoder.encode_to(path, stop_after(60, [*TEXTS[:33], "another text", *TEXTS[34:]]))
    sizes = count_encoded(encoder, monkeypatch)
    with caplog.at_level(logging.WARNING, "kexue.text"):
        encoder.encode_to(path, iter(TEXTS))
    assert "the texts differ from text 30 on" in caplog.text
    assert sum(sizes) == 65  # 30 kept
    assert path.read_bytes() == expected


def test_fewer_texts_than_before(encoder: Encoder, path: Path) -> None:
    with pytest.raises(Killed):
        encoder.encode_to(path, stop_after(60))
    encoder.encode_to(path, TEXTS[:25])
    assert np.load(path).shape == (25, 32)
    assert path.stat().st_size == 128 + 25 * 32 * 4


def test_another_model_or_setting_starts_anew_with_a_warning(
    encoder: Encoder, other_tiny_model: Path, path: Path, expected: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for other, name in ((Encoder(other_tiny_model), "fingerprint"), (encoder.with_pooling("cls"), "fingerprint")):
        with pytest.raises(Killed):
            other.encode_to(path, stop_after(60))
        with caplog.at_level(logging.WARNING, "kexue.text"), pytest.raises(Killed):
            encoder.encode_to(path, stop_after(20))
        assert name in caplog.text
        assert "encoding from the start" in caplog.text
        caplog.clear()
    encoder.encode_to(path, TEXTS)
    assert path.read_bytes() == expected


def test_a_torn_journal_line_and_torn_vectors_do_not_count(encoder: Encoder, path: Path, expected: bytes) -> None:
    with pytest.raises(Killed):
        encoder.encode_to(path, stop_after(60))
    journal, data = Path(f"{path}.partial.jsonl"), Path(f"{path}.partial")
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 7
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    with open(data, "r+b") as file:  # the sixth chunk's line is torn; of the fifth only half the vectors are there
        file.truncate(128 + 45 * 32 * 4)
    encoder.encode_to(path, TEXTS)
    assert path.read_bytes() == expected


def test_truncated_texts_are_counted_over_the_interruption(encoder: Encoder, path: Path) -> None:
    texts = [*TEXTS[:5], "dog " * 100, *TEXTS[6:20], "cat " * 100, *TEXTS[21:30]]
    with pytest.raises(Killed):
        encoder.encode_to(path, stop_after(15, texts))
    assert encoder.encode_to(path, texts).truncated == 2
    assert encoder.truncated_ == 2


def test_progress_and_position_of_a_mistake(encoder: Encoder, path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    encoder.encode_to(path, TEXTS[:25], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(10, 25), (20, 25), (25, 25)]
    with pytest.raises(TypeError, match=r"texts\[23\] must be a string, got int"):
        encoder.encode_to(path, [*TEXTS[:23], 5])  # type: ignore[list-item]


def test_no_room_is_said_before_starting(encoder: Encoder, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    sizes = count_encoded(encoder, monkeypatch)
    with pytest.raises(DiskFullError, match=r"needs 12,288 more bytes, 1,000 are free") as caught:
        encoder.encode_to(path, TEXTS)
    assert (caught.value.needed, caught.value.free) == (128 + 95 * 32 * 4, 1000)
    assert sizes == []
    assert list(path.parent.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way(
    encoder: Encoder, path: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = streaming._sync
    calls = iter(range(1000))

    def failing(file: object) -> None:
        if next(calls) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(file)  # type: ignore[arg-type]

    monkeypatch.setattr(streaming, "_sync", failing)
    with pytest.raises(DiskFullError, match=r"filled up while writing .* run the same call again"):
        encoder.encode_to(path, iter(TEXTS))
    assert not path.exists()
    monkeypatch.setattr(streaming, "_sync", original)
    encoder.encode_to(path, iter(TEXTS))
    assert path.read_bytes() == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_real_full_device_gives_the_same_error(encoder: Encoder, path: Path) -> None:
    Path(f"{path}.partial").symlink_to("/dev/full")
    with pytest.raises(DiskFullError):
        encoder.encode_to(path, iter(TEXTS))


def test_killed_in_the_middle_and_resumed(tiny_model: Path, encoder: Encoder, path: Path, expected: bytes) -> None:
    """A real SIGKILL in another process, at three moments."""
    texts = path.with_name("texts.json")
    texts.write_text(json.dumps(TEXTS))
    code = f"""
import json, time
from kexue.text import Encoder, streaming
streaming._CHUNK = 10
def slowly():
    for text in json.load(open({str(texts)!r})):
        time.sleep(0.002)
        yield text
Encoder({str(tiny_model)!r}).encode_to({str(path)!r}, slowly())
"""
    journal = Path(f"{path}.partial.jsonl")
    for chunks in (1, 3, 6):
        process = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.read_bytes().count(b"\n") > chunks):
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not path.exists()
    encoder.encode_to(path, TEXTS)
    assert path.read_bytes() == expected
