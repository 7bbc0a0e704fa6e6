"""The shuffle on a cluster: the bytes of one machine, whoever dies on the way."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from kexue import corpus
from kexue.cli import main
from kexue.cluster import shuffle as shuffle_module, shuffle_files
from kexue.errors import DataError, KexueError

pytest.importorskip("ray")
pytest.importorskip("pyarrow")


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle_module, "_PIECE", 20_000)
    monkeypatch.setattr(shuffle_module, "_BUCKET", 30_000)
    draw = random.Random(0)
    lines = [b"%d %s" % (i, b"\xff\0\r"[: i % 4] * draw.randrange(20)) for i in range(4000)]
    paths = [tmp_path / name for name in ("a", "b", "empty")]
    paths[0].write_bytes(b"\n".join(lines[:3000]) + b"\n" + b"y" * 70_000 + b"\n\n\n")
    paths[1].write_bytes(b"\n".join(lines[3000:]))  # no final newline
    paths[2].write_bytes(b"")
    return paths


def test_the_bytes_are_those_of_one_machine(ray, tmp_path, inputs):
    seen = []
    one = corpus.shuffle_files(inputs, tmp_path / "one", seed=5)
    many = shuffle_files(inputs, tmp_path / "many", seed=5, progress=lambda *now: seen.append(now))
    assert (tmp_path / "many").read_bytes() == (tmp_path / "one").read_bytes()
    assert (many.records, many.bytes, many.digest, many.seed) == (one.records, one.bytes, one.digest, one.seed)
    assert many.shards > 3
    assert many.buckets > 3
    assert (many.retried, many.resumed) == (0, False)
    assert seen[-1] == (2 * many.shards + many.buckets,) * 2
    parts = [f([*inputs], tmp_path / name, seed=5, shards=3) for f, name in
             ((corpus.shuffle_files, "x"), (shuffle_files, "y"))]  # fmt: skip
    assert [os.path.basename(p) for p in parts[0].outputs] == [os.path.basename(p) for p in parts[1].outputs]
    for mine, theirs in zip(parts[1].outputs, parts[0].outputs, strict=True):
        assert Path(mine).read_bytes() == Path(theirs).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "empty", "many", "one", "x", "y"]


def test_ties_too(tmp_path, inputs, monkeypatch):
    """In this process: the workers' functions, with keys of eight values."""
    import numpy as np

    from kexue.corpus.shuffle import keys as keys_module

    def few(seed, start, stop):
        return corpus.permutation_keys(seed, start, stop) & np.uint64(7 << 61)

    monkeypatch.setitem(keys_module.ALGORITHMS, "keyed", few)
    monkeypatch.setattr(shuffle_module, "permutation_keys", few)

    monkeypatch.setattr(shuffle_module, "Pool", Here)
    corpus.shuffle_files(inputs, tmp_path / "one", seed=5)
    shuffle_files(inputs, tmp_path / "many", seed=5)
    assert (tmp_path / "many").read_bytes() == (tmp_path / "one").read_bytes()


class Here:
    """A pool that works in this process."""

    retried = 0

    def __init__(self, session, make):
        self.function = make()

    def map(self, jobs, most):
        yield from ((number, self.function(item)) for number, item in jobs)


def test_a_damaged_output_is_noticed_and_removed(ray, tmp_path, inputs, monkeypatch):
    from kexue.corpus.shuffle import verify

    monkeypatch.setattr(shuffle_module, "Pool", Here)
    monkeypatch.setattr(verify, "digest_of", lambda *_: "0" * 32)
    with pytest.raises(KexueError, match="does not hold the lines"):
        shuffle_files(inputs, tmp_path / "many", seed=5)
    assert not (tmp_path / "many").exists()
    assert not list(tmp_path.glob("*.partial"))
    shuffle_files(inputs, tmp_path / "many", seed=5, verify=False)
    assert (tmp_path / "many").exists()


def test_an_interrupted_job_goes_on(ray, tmp_path, inputs):
    class StopError(Exception):
        pass

    for limit in (3, 11, 14):

        def stop(done, total, limit=limit):
            if done >= limit:
                raise StopError

        with pytest.raises(StopError):
            shuffle_files(inputs, tmp_path / "many", seed=5, progress=stop)
    assert not (tmp_path / "many").exists()
    assert shuffle_files(inputs, tmp_path / "many", seed=5).resumed
    corpus.shuffle_files(inputs, tmp_path / "one", seed=5)
    assert (tmp_path / "many").read_bytes() == (tmp_path / "one").read_bytes()


def test_what_is_refused(tmp_path, inputs):
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00")
    with pytest.raises(DataError, match="compressed"):
        shuffle_files([tmp_path / "packed"], tmp_path / "out", seed=1)
    with pytest.raises(ValueError, match="one of the inputs"):
        shuffle_files(inputs, inputs[0], seed=1)
    with pytest.raises(ValueError, match="a file or a folder"):
        shuffle_files(inputs, "-", seed=1)
    with pytest.raises(ValueError, match="seed"):
        shuffle_files(inputs, tmp_path / "out", seed=-1)


def test_the_command_line(ray, tmp_path, inputs, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["cluster", "shuffle", "a", "b", "--out", "many", "--seed", "3", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert main(["shuffle", "a", "b", "-o", "one", "--seed", "3", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert set(record) == {*alone, "shards", "retried"}
    assert record["digest"] == alone["digest"]
    assert (tmp_path / "many").read_bytes() == (tmp_path / "one").read_bytes()
    assert main(["cluster", "shuffle", "a", "--out", "parts", "--shards", "2"]) == 0
    assert "lines" in capsys.readouterr().out
