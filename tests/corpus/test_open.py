"""One opener for compressed files: every reader gives the records of the plain file, whatever the name says."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kexue.corpus import multiset_digest, read_records, shuffle_files
from kexue.corpus.decoding import read_lines
from kexue.corpus.open import HEAD, codec_of, open_bytes
from kexue.errors import DataError
from kexue.similarity import load_pairs

pytest.importorskip("pyarrow")

ENDINGS = [".gz", ".bz2", ".xz", ".zst", ".lz4"]


def of_records(path: Path) -> object:
    return [(record.id, record.text, record.line) for record in read_records(path)]


def of_folder(path: Path) -> object:
    folder = path.with_name("folder")
    folder.mkdir(exist_ok=True)
    path.replace(folder / path.name)
    return [record.text for record in read_records(folder, format="txt")]


def of_pairs(path: Path) -> object:
    pairs = load_pairs(path)
    return pairs.texts_a, pairs.texts_b, pairs.labels.tolist()


def of_shuffle(path: Path) -> object:
    shuffle_files(path, path.with_name("shuffled"), seed=1)
    return path.with_name("shuffled").read_bytes()


# of each reader: the ending of its format, a plain file, how it is read
READERS: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
    "lines": (".txt", b"one\ntwo \xe4\xbd\xa0\nthree\n", of_records),
    "csv": (".csv", b"text,b\none,1\ntwo,2\n", of_records),
    "tsv": (".tsv", b"text\tb\none\t1\ntwo\t2\n", of_records),
    "jsonl": (".jsonl", b'{"text": "one"}\n{"text": "two"}\n', of_records),
    "folder": (".txt", b"one\ntwo\n", of_folder),
    "pairs tsv": (".tsv", b"a\tb\t1\nc\td\t0\n", of_pairs),
    "pairs txt": (".txt", b"a\tb\t1\nc\td\t0\n", of_pairs),
    "pairs csv": (".csv", b"text_a,text_b,label\na,b,1\nc,d,0\n", of_pairs),
    "pairs jsonl": (".jsonl", b'{"text_a": "a", "text_b": "b", "label": 1}\n', of_pairs),
    "side file": (".txt", b"one\ntwo\n", read_lines),
    "shuffle": (".txt", b"one\ntwo\nthree\nfour\n", of_shuffle),
    "digest": (".txt", b"one\ntwo\nthree\nfour\n", multiset_digest),
}


@pytest.mark.parametrize("named", ["", *ENDINGS])
@pytest.mark.parametrize("packing", ["", *ENDINGS])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_reads_every_compression_under_every_ending(tmp_path, compress, reader, packing, named):
    ending, content, read = READERS[reader]
    (tmp_path / "plain").mkdir()
    (tmp_path / "packed").mkdir()
    (tmp_path / "plain" / f"a{ending}").write_bytes(content)
    (tmp_path / "packed" / f"a{ending}{named}").write_bytes(compress(content, packing))
    assert read(tmp_path / "packed" / f"a{ending}{named}") == read(tmp_path / "plain" / f"a{ending}")


@pytest.mark.parametrize("packing", ENDINGS)
@pytest.mark.parametrize("reader", [name for name in READERS if name != "folder"])
def test_every_reader_names_a_file_cut_short(tmp_path, compress, reader, packing):
    ending, content, read = READERS[reader]
    rows = content.splitlines(keepends=True)
    content = b"".join([rows[0], *rows[1:] * 2000] if len(rows) > 1 else rows * 2000)
    for name in (f"a{ending}", f"a{ending}{packing}"):
        path = tmp_path / name
        packed = compress(content, packing)
        path.write_bytes(packed[:-9])
        with pytest.raises(DataError, match="damaged or cut short") as caught:
            read(path)
        assert caught.value.path == str(path)
        assert caught.value.remedy
    for length in (2, 3):  # within the bytes that name the compression: the ending tells
        path.write_bytes(packed[:length])
        with pytest.raises(DataError, match="damaged or cut short"):
            read(path)


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("packing", ["", *ENDINGS])
def test_standard_input_is_decompressed(tmp_path, compress, monkeypatch, packing, seekable):
    content = b"one\ntwo\nthree\n"

    class Slow(io.RawIOBase):
        """A pipe that gives three bytes at a time."""

        def __init__(self) -> None:
            self._left = compress(content, packing)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:
            n = min(3, len(buffer), len(self._left))
            buffer[:n], self._left = self._left[:n], self._left[n:]
            return n

    def stdin() -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO(compress(content, packing)) if seekable else io.BufferedReader(Slow()))

    monkeypatch.setattr(sys, "stdin", stdin())
    assert [record.text for record in read_records("-")] == ["one", "two", "three"]
    monkeypatch.setattr(sys, "stdin", stdin())
    assert read_lines("-") == ["one", "two", "three"]
    (tmp_path / "plain").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", stdin())
    shuffle_files("-", tmp_path / "out", seed=4)
    shuffle_files(tmp_path / "plain", tmp_path / "expected", seed=4)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize("packing", ["", *ENDINGS])
def test_a_named_pipe_is_decompressed(tmp_path, compress, packing):
    content = b"".join(b"line %d\n" % i for i in range(20_000))
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(compress(content, packing)), daemon=True)
    writer.start()
    with open_bytes(str(tmp_path / "pipe")) as stream:
        assert stream.read() == content
    writer.join()


@pytest.mark.parametrize(("packing", "frame"), [(".zst", 0x50), (".lz4", 0x5F)])
def test_a_frame_without_data_is_told_apart_by_the_ending(tmp_path, compress, packing, frame):
    skipped = bytes([frame]) + b"\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"abcde"
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(skipped + compress(b"one\ntwo\n", packing))
    assert [record.text for record in read_records(path)] == ["one", "two"]


@pytest.mark.parametrize("packing", ENDINGS)
def test_the_codec_is_that_of_the_first_bytes(compress, packing):
    codec = {".gz": "gzip", ".zst": "zstd"}.get(packing, packing[1:])
    for data in (b"", b"some text"):
        head = compress(data, packing)[:HEAD]
        assert {codec_of(head, ending) for ending in ("", *ENDINGS)} == {codec}
    for head in (b"", b"BZ", b"BZhou is", b"some text", b"\xff\xfe"):
        assert codec_of(head) is None
        assert codec_of(b"plain text", packing) is None
