"""Shuffling: exact, the same whatever the memory, whole whatever dies on the way."""

from __future__ import annotations

import bz2
import collections
import errno
import gzip
import itertools
import json
import lzma
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from kexue.corpus import (
    multiset_digest,
    permutation_keys,
    plan_shuffle,
    shuffle_dataset,
    shuffle_files,
    verify_shuffle,
)
from kexue.corpus.open import codec_of
from kexue.corpus.shuffle import journal, keys as keys_module, output, plan, run, tables, verify
from kexue.corpus.shuffle.digest import PAD, Digest, hash_records
from kexue.corpus.shuffle.keys import KeyRange, rowwise_keys, tie_keys
from kexue.errors import DataError, DiskFullError, KexueError

pa = pytest.importorskip("pyarrow")


def split(content: bytes, separator: bytes = b"\n") -> list[bytes]:
    """The oracle: records of a file, each with its separator."""
    parts = content.split(separator)
    return [part + separator for part in (parts[:-1] if parts[-1] == b"" else parts)]


def expected(lines: list[bytes], seed: int) -> bytes:
    """The oracle: sort by key, in memory."""
    keys = permutation_keys(seed, 0, len(lines))
    return b"".join(lines[i] for i in np.argsort(keys, kind="stable"))


@pytest.fixture
def small(monkeypatch):
    """Small buffers, so that few lines make many chunks, buckets, passes and giant records."""
    monkeypatch.setattr(plan, "_OVERHEAD", 0)
    monkeypatch.setattr(plan, "_CACHED", 1 << 14)
    monkeypatch.setattr(plan, "_FRAME", 1 << 10)
    monkeypatch.setattr(plan, "_CHUNK", 1 << 13)


def text(count: int, longest: int = 60, seed: int = 0) -> bytes:
    draw = random.Random(seed)
    return b"".join(b"%d %s\n" % (i, b"x" * draw.randrange(longest)) for i in range(count))


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_keys_are_the_words_of_philox_and_the_same_for_any_range():
    words = np.random.Philox(key=5).random_raw(1000)
    assert np.array_equal(permutation_keys(5, 0, 1000), words)
    for start, stop in [(0, 0), (0, 1), (3, 4), (4, 8), (5, 999), (998, 1000)]:
        assert np.array_equal(permutation_keys(5, start, stop), words[start:stop])
    far = permutation_keys(2**64 - 1, 10**12, 10**12 + 3)
    assert np.array_equal(far, np.random.Philox(key=2**64 - 1, counter=10**12 // 4).random_raw(3))
    assert not np.array_equal(tie_keys(5, 0, 8), words[:8])
    for bad in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            permutation_keys(bad, 0, 1)
    with pytest.raises(TypeError, match="seed"):
        permutation_keys(1.5, 0, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start 3 and stop 2"):
        permutation_keys(1, 3, 2)


@given(st.integers(0, 2**64 - 2), st.integers(1, 2**64), st.integers(1, 300), st.lists(st.integers(0, 2**64 - 1)))
def test_parts_of_a_range_of_keys_are_its_ranges(lo, width, parts, some):
    hi = min(lo + width, 2**64)
    parts = min(parts, hi - lo)
    cuts = KeyRange(lo, hi, parts)
    ranges = list(cuts)
    assert ranges[0][0] == lo
    assert ranges[-1][1] == hi
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    edges = [lo, hi - 1, *(x for low, high in ranges for x in (low, high - 1)), *(lo + x % (hi - lo) for x in some)]
    inside = np.array([x for x in edges if lo <= x < hi], np.uint64)
    for key, part in zip(inside.tolist(), cuts.part(inside).tolist(), strict=True):
        assert ranges[part][0] <= key < ranges[part][1]


def chi_square(counts: collections.Counter, orders: int, total: int) -> float:
    each = total / orders
    return sum((counts[o] - each) ** 2 / each for o in itertools.permutations(range(_n(orders))))


def _n(orders: int) -> int:
    return next(n for n in range(9) if math.factorial(n) == orders)


def test_all_orders_of_four_lines_are_equally_likely_and_not_so_rowwise():
    total = 6000
    keyed = collections.Counter(tuple(np.argsort(permutation_keys(s, 0, 4)).tolist()) for s in range(total))
    rowwise = collections.Counter(tuple(np.argsort(rowwise_keys(s, 0, 4, rows=2)).tolist()) for s in range(total))
    assert chi_square(keyed, 24, total) < 71.0  # the 1e-6 tail of 23 degrees of freedom
    # 16 of 24 orders, equally likely: 8 cells miss 250 each, 16 have 125 too many: chi-square = total / 2
    assert len(rowwise) == 16
    assert abs(chi_square(rowwise, 24, total) - total / 2) < 150
    assert all({o[0] // 2, o[1] // 2} == {0, 1} for o in rowwise)  # a round has one line of each block


def test_rowwise_rounds_hold_a_line_of_every_block():
    order = np.argsort(rowwise_keys(3, 0, 60, rows=10))
    for round_ in (order // 10).reshape(10, 6):
        assert sorted(round_.tolist()) == list(range(6))
    assert np.array_equal(rowwise_keys(3, 0, 60, rows=10)[13:47], rowwise_keys(3, 13, 47, rows=10))


# ---- the digest ------------------------------------------------------------------------------------------------------


def plain_hash(record: bytes) -> tuple[int, int]:
    """The oracle: the formula, word by word, in whole numbers."""
    mod = 2**64
    factors = np.random.Philox(key=0x6B65787565).random_raw(4 * len(record) + 8) | np.uint64(1)
    padded = record + bytes(-len(record) % 8)
    total = 0
    for t in range(len(padded) // 8):
        w = int.from_bytes(padded[8 * t : 8 * t + 8], "little")
        total += (w ^ (w >> 32)) * int(factors[t])
    out = []
    for first, second in (
        (0xBF58476D1CE4E5B9, 0x94D049BB133111EB),
        (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53),
    ):
        x = (total + len(record) * first + second) % mod
        x = (x ^ (x >> 30)) * first % mod
        x = (x ^ (x >> 27)) * second % mod
        out.append(x ^ (x >> 31))
    return out[0], out[1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=300) | st.integers(1000, 9000).map(lambda n: b"ab\xff" * n), max_size=12))
def test_hashes_are_their_formula(records):
    data = np.frombuffer(b"".join(records) + b"!" * PAD, np.uint8)
    lengths = np.array([len(r) for r in records], np.int64)
    found = hash_records(data, np.cumsum(lengths) - lengths, lengths)
    assert [tuple(row) for row in found.tolist()] == [plain_hash(r) for r in records]


def test_the_digest_sees_what_was_lost_doubled_or_damaged_and_not_the_order(tmp_path):
    lines = [b"alpha", b"", b"a line of more than eight bytes", b"x" * 200, b"alpha"]

    def digest(some: list[bytes], end: bytes = b"\n") -> str:
        (tmp_path / "f").write_bytes(b"\n".join(some) + end)
        return multiset_digest(tmp_path / "f")

    whole = digest(lines)
    assert whole == digest(lines[::-1]) == digest(lines, b"") != "0" * 32
    damaged = [*lines[:3], b"x" * 150 + b"y" + b"x" * 49, lines[4]]
    glued = [lines[0] + lines[1], *lines[2:]]
    swapped = [*lines[:2], b"a line of more than bytes eight", *lines[3:]]
    different = [digest(some) for some in (lines[1:], [*lines, b""], damaged, glued, swapped, [*lines, b"alpha"])]
    assert len({whole, *different}) == 7
    (tmp_path / "empty").touch()
    assert multiset_digest([tmp_path / "empty"]) == "0" * 32 == str(Digest())
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"alpha\n") + gzip.compress(b"\nalpha"))
    assert multiset_digest(tmp_path / "packed.gz") == digest([b"alpha", b"", b"alpha"])
    assert verify_shuffle([tmp_path / "packed.gz", tmp_path / "empty"], tmp_path / "f")
    with pytest.raises(ValueError, match="one byte"):
        multiset_digest(tmp_path / "f", separator=b"")


# ---- the same bytes, whatever the means ------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory", "workers"), [("1M", 1), ("1M", 3), ("2M", 2), ("64M", 2)])
def test_the_order_is_that_of_the_keys_whatever_memory_and_workers(tmp_path, small, memory, workers):
    content = text(30_000)
    (tmp_path / "in").write_bytes(content)
    seen = []
    report = shuffle_files(
        tmp_path / "in",
        tmp_path / "out",
        seed=7,
        memory=memory,
        workers=workers,
        progress=lambda *now: seen.append(now),
    )
    assert (tmp_path / "out").read_bytes() == expected(split(content), 7)
    assert (report.records, report.bytes, report.seed) == (30_000, len(content), 7)
    assert report.digest == multiset_digest(tmp_path / "in")
    assert (report.passes > 1) == (memory != "64M") == (report.buckets > 1)
    assert report.outputs == [str(tmp_path / "out")]
    assert not report.resumed
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (2 * len(content), 2 * len(content))
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]  # nothing left behind


def hard(name: str) -> bytes:
    return {
        "nothing": b"",
        "one line": b"alone\n",
        "one line without end": b"alone",
        "no final newline": b"a\nb\nc",
        "crlf": b"a\r\nb\r\n\r\nc\r\n" * 50,
        "empty lines": b"\n" * 5000,
        "nul": b"a\0b\nc\0\0\n\0\n" * 300,
        "0xff": b"\xff\n\xff\xff\na\xffb\n" * 300,
        "invalid utf-8": b"\x80\xc3\n\xed\xa0\x80\n" * 300,
        "odd separators of unicode": "a\u2028b\u2029\x0b\x0c\x1c\x85\n".encode() * 300,
        "long lines": b"".join(b"%d" % i * 20_000 + b"\n" for i in range(30)),
        "one giant": text(2000) + b"y" * 1_000_000 + b"\n" + text(2000),
        "giant without end": text(100) + b"z" * 300_000,
    }[name]


@pytest.mark.parametrize(
    "name",
    ["nothing", "one line", "one line without end", "no final newline", "crlf", "empty lines", "nul", "0xff",
     "invalid utf-8", "odd separators of unicode", "long lines", "one giant", "giant without end"],
)  # fmt: skip
@pytest.mark.parametrize("passes", [1, 2])
def test_no_record_is_lost_or_invented(tmp_path, small, monkeypatch, name, passes):
    if passes == 2:  # also where it would fit
        really = plan.make_plan

        def many(*arguments):
            made = really(*arguments)
            return made if made.passes > 1 else plan.ShufflePlan(None, None, 16, 2, made.memory, None, None)

        monkeypatch.setattr(run, "make_plan", many)
    content = hard(name)
    (tmp_path / "in").write_bytes(content)
    report = shuffle_files(tmp_path / "in", tmp_path / "out", seed=1, memory="1M", verify=True)
    lines = split(content)
    assert (tmp_path / "out").read_bytes() == expected(lines, 1)
    assert report.records == len(lines)
    assert report.digest == multiset_digest(tmp_path / "in")


@settings(max_examples=25, deadline=None)
@given(
    files=st.lists(st.lists(st.binary(max_size=30), max_size=8), min_size=1, max_size=4),
    end=st.booleans(),
    separator=st.sampled_from([b"\n", b"\0", b";"]),
    header=st.integers(0, 2),
    seed=st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_many_files_headers_and_separators(tmp_path_factory, files, end, separator, header, seed):
    folder = tmp_path_factory.mktemp("many")
    paths, tops, lines = [], [], []
    for number, rows in enumerate(files):
        content = separator.join(row.replace(separator, b"") for row in rows) + (separator if end and rows else b"")
        assume(codec_of(content) is None)
        paths.append(folder / f"{number}")
        paths[-1].write_bytes(content)
        records = split(content, separator)
        tops.append(records[:header])
        lines += records[header:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # which would take most of the time
        shuffle_files(paths, folder / "out", seed=seed, header=header, separator=separator, verify=True)
    assert (folder / "out").read_bytes() == b"".join(tops[0]) + expected(lines, seed)


def test_records_of_several_lines_stay_together(tmp_path, small):
    lines = split(text(8000))
    (tmp_path / "a").write_bytes(b"".join(lines[:4400]))
    (tmp_path / "b").write_bytes(b"".join(lines[4400:])[:-1])
    report = shuffle_files([tmp_path / "a", tmp_path / "b"], tmp_path / "out", seed=2, memory="1M", lines_per_record=4)
    records = [b"".join(lines[i : i + 4]) for i in range(0, 8000, 4)]
    assert (tmp_path / "out").read_bytes() == expected(records, 2)
    assert (report.records, report.digest) == (2000, multiset_digest([tmp_path / "a", tmp_path / "b"]))
    with pytest.raises(DataError, match="no multiple of 3") as caught:
        shuffle_files([tmp_path / "a", tmp_path / "b"], tmp_path / "bad", memory="1M", lines_per_record=3)
    assert caught.value.path == str(tmp_path / "a")
    (tmp_path / "c").write_bytes(b"x" * 100_000 + b"\ny\n" + b"z\n" * 2)
    shuffle_files(tmp_path / "c", tmp_path / "out", seed=2, memory="1M", lines_per_record=2)
    assert (tmp_path / "out").read_bytes() == expected([b"x" * 100_000 + b"\ny\n", b"z\nz\n"], 2)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "out"]


def test_ties_are_decided_by_the_second_key_then_by_index(tmp_path, small, monkeypatch):
    """Real ties are too rare to wait for: here one key in eight values is all there is."""

    def few(seed: int, start: int, stop: int) -> np.ndarray:
        return permutation_keys(seed, start, stop) & np.uint64(7 << 61)

    monkeypatch.setitem(keys_module.ALGORITHMS, "keyed", few)
    lines = split(text(20_000))
    (tmp_path / "in").write_bytes(b"".join(lines))
    shuffle_files(tmp_path / "in", tmp_path / "out", seed=4, memory="1M", workers=2)
    order = np.lexsort((np.arange(20_000), tie_keys(4, 0, 20_000), few(4, 0, 20_000)))
    assert (tmp_path / "out").read_bytes() == b"".join(lines[i] for i in order)


@pytest.mark.parametrize("memory", ["1M", "64M"])
def test_rowwise_is_the_same_whatever_the_memory(tmp_path, small, monkeypatch, memory):
    monkeypatch.setattr(keys_module.rowwise_keys, "__kwdefaults__", {"rows": 1000})
    lines = split(text(20_500))
    (tmp_path / "in").write_bytes(b"".join(lines))
    shuffle_files(tmp_path / "in", tmp_path / "out", seed=4, memory=memory, algorithm="rowwise", verify=True)
    order = np.argsort(rowwise_keys(4, 0, 20_500, rows=1000))
    assert (tmp_path / "out").read_bytes() == b"".join(lines[i] for i in order)


def test_a_bucket_that_is_too_large_is_cut_again(tmp_path, small):
    """Where the size of the input is not known, that of its buckets is not either."""
    (tmp_path / "in.gz").write_bytes(gzip.compress(text(40_000, 200), 1))
    lines = split(gzip.decompress((tmp_path / "in.gz").read_bytes()))
    budget = {"memory": 1 << 20, "workers": 2}
    expects = plan_shuffle(tmp_path / "in.gz", tmp_path / "out", **budget)
    assert (expects.records, expects.bytes, expects.buckets, expects.disk_tmp) == (None, None, 256, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "UNKNOWN_BUCKETS", 4)
        report = shuffle_files(tmp_path / "in.gz", tmp_path / "out", seed=6, **budget)
    assert report.passes == 3
    assert (tmp_path / "out").read_bytes() == expected(lines, 6)


# ---- inputs and outputs ----------------------------------------------------------------------------------------------


def pack(ending: str, content: bytes) -> bytes:
    def arrow(codec: str) -> bytes:
        half = len(content) // 2  # in two frames
        return b"".join(pa.compress(part, codec=codec, asbytes=True) for part in (content[:half], content[half:]))

    return {
        ".gz": lambda: gzip.compress(content[:77]) + gzip.compress(content[77:]),
        ".bz2": lambda: bz2.compress(content[:77]) + bz2.compress(content[77:]),
        ".xz": lambda: lzma.compress(content[:77]) + lzma.compress(content[77:]),
        ".zst": lambda: arrow("zstd"),
        ".lz4": lambda: arrow("lz4"),
    }[ending]()


def unpack(path: Path) -> bytes:
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix)
    if opener is not None:
        with opener(path) as file:
            return file.read()
    codec = {".zst": "zstd", ".lz4": "lz4"}[path.suffix]
    with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, codec) as file:
        return file.read()


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst", ".lz4"])
def test_compressed_files_are_told_by_their_content_and_written_by_their_name(tmp_path, small, monkeypatch, ending):
    monkeypatch.setattr(output, "_BLOCK", 50_000)
    content = text(4000)
    (tmp_path / "in.txt").write_bytes(pack(ending, content))
    (tmp_path / "plain").write_bytes(content)
    for name, memory in (("a", "1M"), ("b", "64M")):
        shuffle_files([tmp_path / "in.txt"], tmp_path / (name + ending), seed=3, memory=memory, verify=True)
    assert unpack(tmp_path / ("a" + ending)) == expected(split(content), 3)
    shuffle_files(tmp_path / "plain", tmp_path / ("c" + ending), seed=3, memory="1M", workers=1)
    packed = [(tmp_path / (name + ending)).read_bytes() for name in "abc"]
    assert packed[0] == packed[1] == packed[2]  # compressed in blocks of their own: also independent of the memory
    (tmp_path / "cut").write_bytes(pack(ending, content)[:-20])
    with pytest.raises(DataError, match=r"damaged or cut short|cannot be read") as caught:
        shuffle_files(tmp_path / "cut", tmp_path / "out", memory="1M")
    assert caught.value.path == str(tmp_path / "cut")
    assert not (tmp_path / "out").exists()


def test_shards_are_slices_of_the_one_order(tmp_path, small):
    lines = split(text(10_000))
    (tmp_path / "in.jsonl").write_bytes(b"head\n" + b"".join(lines))
    whole = split(expected(lines, 5))

    def parts(output: str, **options):
        report = shuffle_files(tmp_path / "in.jsonl", tmp_path / output, seed=5, memory="1M", header=1, **options)
        found = [split(Path(path).read_bytes()) for path in report.outputs]
        assert all(part[0] == b"head\n" for part in found)
        assert [line for part in found for line in part[1:]] == whole
        return [Path(path).name for path in report.outputs], [part[1:] for part in found]

    names, found = parts("parts", shards=3)
    assert names == ["part-00000.jsonl", "part-00001.jsonl", "part-00002.jsonl"]
    assert [len(part) for part in found] == [3333, 3333, 3334]
    names, found = parts("cut.txt", shard_lines=4000)
    assert names == ["cut-00000.txt", "cut-00001.txt", "cut-00002.txt"]
    assert [len(part) for part in found] == [4000, 4000, 2000]
    _, found = parts("cut.txt", shard_bytes=100_000)
    assert len(found) > 3
    for part, following in itertools.pairwise(found):
        assert len(b"".join(part)) <= 100_000 < len(b"".join(part) + following[0])
    names, _ = parts("cut.txt", shard_lines=9000)
    assert sorted(p.name for p in tmp_path.glob("cut*")) == names  # shards of the earlier run are gone
    assert len(parts("parts", shards=1)[1]) == 1
    (tmp_path / "few").write_bytes(b"a\n")
    report = shuffle_files(tmp_path / "few", tmp_path / "few.gz", shards=3)
    assert sorted(unpack(Path(path)) for path in report.outputs) == [b"", b"", b"a\n"]


def test_aligned_files_stay_aligned(tmp_path, small):
    for name, width in (("a.src", 5), ("b.tgt", 90)):
        (tmp_path / name).write_bytes(b"".join(b"%d %s\n" % (i, b"." * (i % width)) for i in range(9000)))
    inputs = [tmp_path / "a.src", tmp_path / "b.tgt"]
    report = shuffle_files(inputs, tmp_path / "out", aligned=True, memory="1M", verify=True)
    numbers = [[int(line.split()[0]) for line in split(Path(path).read_bytes())] for path in report.outputs]
    assert numbers[0] == numbers[1] == np.argsort(permutation_keys(report.seed, 0, 9000)).tolist()
    assert [Path(path).name for path in report.outputs] == ["a.src", "b.tgt"]
    assert (report.records, report.digest) == (9000, multiset_digest(inputs))
    (tmp_path / "c").write_bytes(b"x\n" * 8999)
    with pytest.raises(DataError, match=r"8,999 records, but .*a.src has 9,000"):
        shuffle_files([tmp_path / "a.src", tmp_path / "c"], tmp_path / "no", aligned=True, memory="1M")
    assert not list((tmp_path / "no").iterdir())
    for bad in ({"inputs": [inputs[0], inputs[0]]}, {"shards": 2}, {"output": tmp_path / "a.src"}):
        with pytest.raises(ValueError, match="aligned"):
            shuffle_files(**{"inputs": inputs, "output": tmp_path / "no", "aligned": True, **bad})


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_output_of_aligned_files_that_is_another_input_is_refused(tmp_path, link):
    inputs = [tmp_path / "a" / "x", tmp_path / "b" / "y"]
    for path in inputs:
        path.parent.mkdir()
        path.write_bytes(b"%s\n2\n3\n" % path.name.encode())
    (tmp_path / "out").mkdir()
    link(inputs[1], tmp_path / "out" / "x")
    with pytest.raises(ValueError, match=r"out/x is one of the inputs"):
        shuffle_files(inputs, tmp_path / "out", aligned=True)
    assert inputs[1].read_bytes() == b"y\n2\n3\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]


@pytest.mark.parametrize("memory", ["1M", "64M"])
@pytest.mark.parametrize("sample", [0, 1, 700, 10**6])
def test_a_sample_is_the_beginning_of_the_whole_order(tmp_path, small, memory, sample):
    lines = split(text(20_000))
    (tmp_path / "in").write_bytes(b"".join(lines))
    report = shuffle_files(tmp_path / "in", tmp_path / "out", seed=8, memory=memory, sample=sample, verify=True)
    assert (tmp_path / "out").read_bytes() == b"".join(split(expected(lines, 8))[:sample])
    assert (report.records, report.bytes) == (min(sample, 20_000), (tmp_path / "out").stat().st_size)
    assert report.digest == multiset_digest(tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sample", [8192, 8193, 19_999, 20_000, 10**6])
def test_a_sample_of_more_records_than_are_moved_at_a_time(tmp_path, sample, workers):
    lines = split(text(20_000))
    (tmp_path / "in").write_bytes(b"".join(lines))
    shuffle_files(tmp_path / "in", tmp_path / "out", seed=8, memory="64M", sample=sample, workers=workers)
    assert (tmp_path / "out").read_bytes() == b"".join(split(expected(lines, 8))[:sample])


def test_a_sample_of_giants_and_of_records_of_several_lines(tmp_path, small):
    lines = [b"%d" % (i % 10) * (50_000 if i % 3 else 5) + b"\n" for i in range(60)]
    (tmp_path / "in").write_bytes(b"".join(lines))
    for k in (1, 2):
        report = shuffle_files(
            tmp_path / "in", tmp_path / "out", seed=8, memory="1M", sample=12, lines_per_record=k, verify=True
        )
        records = [b"".join(lines[i : i + k]) for i in range(0, 60, k)]
        order = np.argsort(permutation_keys(8, 0, len(records)))[:12]
        assert (tmp_path / "out").read_bytes() == b"".join(records[i] for i in order)
        assert report.bytes == (tmp_path / "out").stat().st_size


def test_a_mark_of_byte_order_is_kept_or_dropped(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"\xef\xbb\xbfhead\n" + name.encode() + b"\n")
    inputs = [tmp_path / "a", tmp_path / "b"]
    shuffle_files(inputs, tmp_path / "out", seed=0, header=1, strip_bom=True, verify=True)
    assert (tmp_path / "out").read_bytes() == b"head\n" + expected([b"a\n", b"b\n"], 0)
    shuffle_files(inputs, tmp_path / "out", seed=0, strip_bom=True)
    assert b"\xef\xbb\xbf" not in (tmp_path / "out").read_bytes()
    shuffle_files(inputs, tmp_path / "out", seed=0)
    assert (tmp_path / "out").read_bytes().count(b"\xef\xbb\xbf") == 2


def test_a_pipe_and_a_device_are_written_to_and_not_replaced(tmp_path):
    (tmp_path / "in").write_bytes(text(1000))
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        report = shuffle_files(tmp_path / "in", tmp_path / "pipe", seed=1)
        assert reader.stdout is not None
        assert reader.stdout.read() == expected(split(text(1000)), 1)
    assert (tmp_path / "pipe").is_fifo()
    assert report.outputs == [str(tmp_path / "pipe")]
    with pytest.raises(DiskFullError):
        shuffle_files(tmp_path / "in", "/dev/full", tmp=tmp_path)
    assert Path("/dev/full").is_char_device()


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_mistakes_are_named(tmp_path):
    (tmp_path / "in").write_bytes(b"a\n")
    for options, message in [
        ({"inputs": []}, "at least one"),
        ({"inputs": ["-", "-"]}, "only once"),
        ({"output": tmp_path / "in"}, "one of the inputs"),
        ({"memory": "lots"}, "such as|such"),
        ({"memory": 1000}, "1M at least"),
        ({"workers": 0}, "workers must be a whole number >= 1, got 0"),
        ({"separator": b"\r\n"}, "one byte"),
        ({"separator": "\n"}, "one byte"),
        ({"header": -1}, "header must be"),
        ({"lines_per_record": 0}, "lines_per_record must be"),
        (
            {"shards": 2, "shard_lines": 3},
            "give only one of shards, shard_lines and shard_bytes, got shards and shard_lines",
        ),
        ({"sample": -1}, "sample must be"),
        ({"algorithm": "sort"}, "keyed, rowwise"),
        ({"seed": -1}, "seed"),
    ]:
        with pytest.raises(ValueError, match=message):
            shuffle_files(**{"inputs": tmp_path / "in", "output": tmp_path / "out", **options})
    for path, message in [(tmp_path / "absent", "no such file"), (tmp_path, "expected a file, got a folder")]:
        with pytest.raises(DataError, match=message):
            shuffle_files(path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["in"]


def test_a_plan_tells_what_it_takes_and_touches_nothing(tmp_path):
    lines = [b"x" * 99 + b"\n"] * 300_000
    (tmp_path / "in").write_bytes(b"".join(lines))
    small, large = (plan_shuffle(tmp_path / "in", tmp_path / "out", memory=m) for m in ("32M", "1G"))
    assert small.records == pytest.approx(300_000, rel=1e-4)  # counted in the first half
    assert small.bytes == small.disk_out == 30_000_000
    assert small.disk_tmp == 30_000_000 + 12 * small.records
    assert small.passes == 2
    assert small.memory == 32 << 20
    assert (large.buckets, large.passes, large.disk_tmp) == (1, 1, 0)
    both = plan_shuffle([tmp_path / "in"], tmp_path / "out", memory="32M", aligned=True)
    assert both == small
    assert plan_shuffle(tmp_path / "in", tmp_path / "out", memory="32M", sample=3000).disk_out == pytest.approx(
        300_000, rel=1e-4
    )
    assert os.listdir(tmp_path) == ["in"]


def test_too_little_disk_is_told_before_anything_is_written(tmp_path, small, monkeypatch):
    (tmp_path / "in").write_bytes(text(30_000))
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: usage(10**9, 0, 1000))
    with pytest.raises(DiskFullError, match="1,000 are free") as caught:
        shuffle_files(tmp_path / "in", tmp_path / "out", memory="1M")
    assert caught.value.free == 1000
    assert caught.value.needed > 1_000_000
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("after", [1, 40, 90])
def test_a_disk_that_fills_up_stops_the_work_which_goes_on_later(tmp_path, small, monkeypatch, after):
    (tmp_path / "in").write_bytes(text(30_000))
    really, calls = (os.writev, os.write), itertools.count()

    def full(which):
        def write(fd, data):
            if next(calls) >= after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return really[which](fd, data)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full(0))
        patch.setattr(os, "write", full(1))
        with pytest.raises(DiskFullError, match="run the same again"):
            shuffle_files(tmp_path / "in", tmp_path / "out", memory="1M")
    assert not (tmp_path / "out").exists()
    report = shuffle_files(tmp_path / "in", tmp_path / "out", memory="2M")
    assert report.resumed == (after > 1)  # nothing was there to go on with
    assert (tmp_path / "out").read_bytes() == expected(split(text(30_000)), report.seed)
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_short_writes_are_completed(tmp_path, small, monkeypatch):
    (tmp_path / "in").write_bytes(text(5000))
    write, writev = os.write, os.writev
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, memoryview(data)[:999]))
    monkeypatch.setattr(os, "writev", lambda fd, data: writev(fd, data[:1]))
    shuffle_files(tmp_path / "in", tmp_path / "out", seed=1, memory="1M")
    assert (tmp_path / "out").read_bytes() == expected(split(text(5000)), 1)


def test_a_failed_verification_leaves_no_output(tmp_path, small, monkeypatch):
    (tmp_path / "in").write_bytes(text(5000))
    monkeypatch.setattr(verify, "digest_of", lambda *_: "0" * 32)
    with pytest.raises(KexueError, match="does not hold the lines"):
        shuffle_files(tmp_path / "in", tmp_path / "out", memory="1M")
    assert os.listdir(tmp_path) == ["in"]


# ---- interruptions ---------------------------------------------------------------------------------------------------

_WORK = """
import sys, json
from kexue.corpus.shuffle import plan
plan._OVERHEAD, plan._CACHED, plan._FRAME, plan._CHUNK = 0, 1 << 18, 1 << 10, 1 << 16
from kexue.corpus import shuffle_files
inputs, output, options = json.loads(sys.argv[1])
print("begun", flush=True)
print(json.dumps(vars(shuffle_files(inputs, output, memory="1M", **options))))
"""


def start(inputs: list[Path], output: Path, **options) -> subprocess.Popen:
    arguments = json.dumps([[str(path) for path in inputs], str(output), options])
    return subprocess.Popen([sys.executable, "-c", _WORK, arguments], stdout=subprocess.PIPE)


def finish(inputs: list[Path], output: Path, **options) -> dict:
    with start(inputs, output, **options) as process:
        out, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def killed(inputs: list[Path], output: Path, wait: float, **options) -> bool:
    """Begin, and kill after `wait` seconds; whether it was still at work."""
    with start(inputs, output, **options) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
    return process.returncode != 0


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path):
    content = text(60_000, 200) + b"g" * 200_000 + b"\n"
    (tmp_path / "in").write_bytes(content)
    begun = time.monotonic()
    finish([tmp_path / "in"], tmp_path / "out.gz", seed=9, shard_lines=25_000)
    took = time.monotonic() - begun
    names = [f"out-0000{i}.gz" for i in range(3)]
    whole = [(tmp_path / name).read_bytes() for name in names]
    assert b"".join(map(gzip.decompress, whole)) == expected(split(content), 9)
    kills = resumed = 0
    draw = random.Random(1)
    for _ in range(3):
        for name in names:
            (tmp_path / name).unlink(missing_ok=True)
        for _ in range(2):
            kills += killed(
                [tmp_path / "in"], tmp_path / "out.gz", draw.uniform(0, 0.8 * took), seed=9, shard_lines=25_000
            )
        report = finish([tmp_path / "in"], tmp_path / "out.gz", seed=9, shard_lines=25_000)
        resumed += report["resumed"]
        assert [(tmp_path / name).read_bytes() for name in names] == whole
        assert sorted(os.listdir(tmp_path)) == ["in", *names]
    assert kills > 0


class Stop(BaseException):
    """As Ctrl-C."""


def interrupt(tmp_path, after: int, **options) -> None:
    def progress(done, total):
        if done >= after:
            raise Stop

    with pytest.raises(Stop):
        shuffle_files(tmp_path / "in", tmp_path / "out", memory="1M", workers=1, progress=progress, **options)


@pytest.mark.parametrize("share", [0.3, 0.9, 1.2, 1.7, 2.0])
def test_an_interrupted_run_is_gone_on_with_and_its_seed_kept(tmp_path, small, share):
    content = text(30_000)
    (tmp_path / "in").write_bytes(content)
    interrupt(tmp_path, int(share * len(content)))
    assert not (tmp_path / "out").exists()
    report = shuffle_files(tmp_path / "in", tmp_path / "out", memory="1M", workers=2)
    assert report.resumed
    assert (tmp_path / "out").read_bytes() == expected(split(content), report.seed)
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_what_has_changed_is_begun_anew(tmp_path, small, monkeypatch):
    content = text(30_000)
    (tmp_path / "in").write_bytes(content)
    interrupt(tmp_path, len(content), seed=1)
    assert not shuffle_files(tmp_path / "in", tmp_path / "out", memory="1M", seed=1, resume=False).resumed
    interrupt(tmp_path, len(content), seed=1)
    assert not shuffle_files(tmp_path / "in", tmp_path / "out", memory="1M", seed=2).resumed  # another shuffle
    changed = content[:-5] + b"....\n"
    (tmp_path / "in").write_bytes(changed)
    report = shuffle_files(tmp_path / "in", tmp_path / "out", memory="1M", seed=1)
    assert not report.resumed
    assert (tmp_path / "out").read_bytes() == expected(split(changed), 1)
    interrupt(tmp_path, len(content), seed=1)
    monkeypatch.setattr(journal, "_boot_id", lambda: "another start of the machine")
    assert not shuffle_files(tmp_path / "in", tmp_path / "out", memory="1M", seed=1).resumed
    assert (tmp_path / "out").read_bytes() == expected(split(changed), 1)


@pytest.mark.parametrize("share", [0.5, 1.5])
def test_what_was_synchronised_outlives_a_loss_of_power(tmp_path, small, monkeypatch, share):
    content = text(30_000)
    (tmp_path / "in").write_bytes(content)
    monkeypatch.setattr(journal, "_DURABLE_AFTER", 0.0)
    monkeypatch.setattr(plan, "_CHUNK", 1 << 16)
    interrupt(tmp_path, int(share * len(content)), seed=1)
    monkeypatch.setattr(journal, "_boot_id", lambda: "another start of the machine")
    report = shuffle_files(tmp_path / "in", tmp_path / "out", memory="1M", seed=1)
    assert report.resumed
    assert (tmp_path / "out").read_bytes() == expected(split(content), 1)


def test_two_processes_do_not_do_the_same_at_once(tmp_path, small):
    content = text(30_000)
    (tmp_path / "in").write_bytes(content)

    def again(done, total):
        with pytest.raises(DataError, match="another process"):
            shuffle_files(tmp_path / "in", tmp_path / "out", memory="1M", seed=1)

    shuffle_files(tmp_path / "in", tmp_path / "out", memory="1M", seed=1, progress=again)
    assert (tmp_path / "out").read_bytes() == expected(split(content), 1)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_memory_stays_within_its_limit(tmp_path, workers):
    """200 MB of lines in 128 MB: in a fresh process, whose peak is its own."""
    block = text(20_000, 180)
    with (tmp_path / "in").open("wb") as file:
        for _ in range(200_000_000 // len(block)):
            file.write(block)
    call = f"shuffle_files(*sys.argv[1:3], memory='128M', workers={workers}).peak_rss"
    code = f"import sys; from kexue.corpus import shuffle_files; print({call})"
    command = [sys.executable, "-c", code, tmp_path / "in", tmp_path / "out"]
    peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert peak <= (128 << 20) + 60_000_000


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["1M", "1G"])
def test_rows_of_a_dataset_take_the_order_of_lines(tmp_path, memory):
    parquet = pytest.importorskip("pyarrow.parquet")
    n = 70_000
    table = pa.table({"n": np.arange(n), "text": [f"row {i}" if i % 7 else None for i in range(n)]})
    order = np.argsort(permutation_keys(3, 0, n))
    parquet.write_table(table.slice(0, 30_000), tmp_path / "a.parquet")
    parquet.write_table(table.slice(30_000), tmp_path / "b.parquet")
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").rename(tmp_path / "in" / f"{name}.parquet")

    class Dataset:  # what of datasets.Dataset is used
        data = table

        def with_format(self, kind):
            assert kind == "arrow"
            return self

        def __getitem__(self, rows):
            return table[rows]

        def iter(self, batch_size):
            yield from (table.slice(i, batch_size) for i in range(0, n, batch_size))

    written = []
    for number, dataset in enumerate([tmp_path / "in", table, Dataset()]):
        folder = shuffle_dataset(dataset, tmp_path / f"out{number}", seed=3, memory=memory)
        assert parquet.read_table(folder / "part-00000.parquet").equals(table.take(order))
        assert [path.name for path in folder.iterdir()] == ["part-00000.parquet"]
        written.append((folder / "part-00000.parquet").read_bytes())
    assert written[0] == written[1] == written[2]
    with pytest.raises(DataError, match="holds shards already"):
        shuffle_dataset(table, tmp_path / "out0")
    with pytest.raises(DataError, match="no Parquet files"):
        shuffle_dataset(tmp_path / "out3", tmp_path / "out4") if (tmp_path / "out3").mkdir() is None else None
    with pytest.raises(DataError, match=r"absent.parquet: no such file") as caught:
        shuffle_dataset(tmp_path / "absent.parquet", tmp_path / "out4")
    assert caught.value.remedy
    with pytest.raises(TypeError, match="dataset must be"):
        shuffle_dataset(3, tmp_path / "out4")
    empty = shuffle_dataset(table.slice(0, 0), tmp_path / "empty")
    assert parquet.read_table(empty).num_rows == 0


def test_an_empty_bucket_after_full_row_groups_does_not_end_the_table(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(tables, "_GROUP", 10)
    monkeypatch.setattr(tables, "_SHARD", 40)
    whole = pa.table({"n": list(range(33))})
    parts = [whole.slice(start, stop - start) for start, stop in ((0, 20), (20, 20), (20, 33), (33, 33))]
    tables._write_shards(tmp_path, parts[0].schema, iter(parts))
    assert parquet.read_table(tmp_path)["n"].to_pylist() == list(range(33))


def test_a_real_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"n": list(range(100))}).select(range(10, 60))
    folder = shuffle_dataset(data, tmp_path / "out", seed=1)
    found = pa.parquet.read_table(folder).column("n").to_pylist()
    assert found == (np.argsort(permutation_keys(1, 0, 50)) + 10).tolist()
