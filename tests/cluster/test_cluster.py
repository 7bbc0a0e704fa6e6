"""Jobs on a cluster: what one machine gives, to the bit, whoever dies on the way."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kexue import search
from kexue.cli import main
from kexue.cluster import build_index, embed as embed_module, embed_files, encode_table, list_shards, whitening_moments
from kexue.cluster.session import RaySession
from kexue.cluster.shards import layout, read_shard, shard_path, write_shard
from kexue.cluster.statistics import _merge_tree
from kexue.errors import DataError, RetryError, SpaceMismatchError
from kexue.similarity import Whitening, moments

pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
pytest.importorskip("faiss")

READING: dict[str, Any] = {"id": "id", "metadata": ["topic"]}


def vectors_of(folder: Path) -> np.ndarray:
    return np.concatenate([read_shard(path)[1] for path in list_shards(folder)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def done(ray, tmp_path_factory, documents, make_encoder):
    """The documents encoded once, undisturbed: (folder, report, what progress was told)."""
    folder, seen = tmp_path_factory.mktemp("done"), []
    (folder / "faq.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    report = embed_files(
        folder / "faq.jsonl", folder / "out", encoder=make_encoder(), progress=lambda *now: seen.append(now), **READING
    )
    return folder / "out", report, seen


@pytest.fixture
def out(done, tmp_path):
    """A copy of it, to do harm to."""
    return Path(shutil.copytree(done[0], tmp_path / "out"))


# ---- embedding -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_shards_hold_what_one_process_makes_of_the_input(ray, done, documents, encoder):
    folder, report, seen = done
    texts = [one["text"] for one in documents]
    tables = [pa.parquet.read_table(path) for path in list_shards(folder)]
    rows = [row for table in tables for row in table.select(["id", "text", "metadata"]).to_pylist()]
    assert [(row["id"], row["text"], json.loads(row["metadata"])) for row in rows] == [
        (one["id"], one["text"], {"topic": one["topic"]}) for one in documents
    ]
    assert np.array_equal(vectors_of(folder), encoder.encode(texts, prompt_name="document"))
    assert not np.array_equal(vectors_of(folder), encoder.encode(texts))  # the prompt matters
    assert (report.n, report.dims, report.shards, report.resumed, report.retried) == (1500, 24, 3, 0, 0)
    assert report.truncated == sum(len(text) > 40 for text in texts) > 0
    assert report.model == {"id": "grams", "fingerprint": "grams-1"}
    assert [count for count, _ in seen] == sorted(count for count, _ in seen)
    assert seen[-1] == (1500, 1500)
    assert ray.is_initialized()  # the caller's, left running


def test_a_model_is_opened_by_the_workers(ray, tiny_model, tmp_path):
    from kexue.text import Encoder

    (tmp_path / "words.txt").write_text("".join(f"order {i} of the bank\n" for i in range(700)))
    encoder = Encoder(tiny_model, pooling="cls", max_length=6, normalize=False)
    report = embed_files(tmp_path / "words.txt", tmp_path / "out", encoder=encoder)
    texts = (tmp_path / "words.txt").read_text().splitlines()
    expected = np.concatenate([encoder.encode(texts[:512], prompt_name="document"), encoder.encode(texts[512:])])
    assert np.array_equal(vectors_of(tmp_path / "out"), expected)
    assert report.truncated == 700
    assert report.model["fingerprint"] == encoder.fingerprint


def test_encoding_and_delimiter_can_be_named(ray, tmp_path, encoder):
    (tmp_path / "a.csv").write_bytes("編號;問題\n1;退款, 要多久?\n".encode("big5"))
    how = {"text": "問題", "id": "編號", "encoding": "big5", "delimiter": ";"}
    assert embed_files(tmp_path / "a.csv", tmp_path / "out", encoder=encoder, **how).n == 1
    with pytest.raises(DataError, match="--encoding"):
        embed_files(tmp_path / "a.csv", tmp_path / "out", encoder=encoder, text="問題")
    build_index(tmp_path / "a.csv", tmp_path / "a.kx", encoder=encoder, **how)
    with search.Index.open(tmp_path / "a.kx") as index:
        assert index.get("1")[0].text == "退款, 要多久?"


def test_a_worker_that_finds_another_model_is_refused(tiny_model, other_tiny_model):
    from kexue.text import Encoder

    promised = dataclasses.replace(Encoder(tiny_model).identity, reference=str(other_tiny_model))
    with pytest.raises(SpaceMismatchError, match="fingerprint"):
        embed_module._open_encoder(promised, {})


@pytest.mark.parametrize("n", [1, 7, 100, 512, 513, 5000, 300_000])
@pytest.mark.parametrize("shards", [None, 1, 4, 90])
def test_layout_covers_every_row_once(n, shards):
    rows, batches = layout(n, shards)
    assert (sum(batches) - 1) * rows < n <= sum(batches) * rows
    assert min(batches) >= 1
    assert len(batches) <= (shards or n)
    if shards is None or n >= 512 * shards:
        assert rows == 512  # the batches of one machine
        assert len(batches) == (shards or len(batches))
    if shards is None:
        assert max(batches) <= 16
        assert len(batches) <= 16 or min(batches) >= 15


def test_a_table_keeps_its_columns(encoder):
    table = encode_table(pa.table({"n": [1, 2], "text": ["one", "two"]}), encoder)
    assert table.column_names == ["n", "text", "vector"]
    assert table.column("vector").to_pylist() == encoder.encode(["one", "two"], "document").tolist()
    assert encode_table(pa.table({"text": pa.array([], pa.string())}), encoder).num_rows == 0


def test_an_encoder_that_loses_texts_is_told_on():
    class Short:
        def encode(self, texts):
            return np.ones((len(texts) - 1, 2))

    with pytest.raises(ValueError, match="made 1 vectors of 2 texts"):
        encode_table(pa.table({"text": ["one", "two"]}), Short())


# ---- restarts --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_restart_redoes_what_is_missing_and_gives_the_same_bytes(ray, done, out, source, encoder):
    first = list_shards(out)[0]
    (out / "part-00001-of-00003.parquet").unlink()
    damaged = out / "part-00002-of-00003.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (out / ".part-00001-of-00003.parquet.x.tmp").write_bytes(b"half")
    untouched = first.stat().st_mtime_ns
    report = embed_files(source, out, encoder=encoder, **READING)
    assert (report.shards, report.resumed, report.warnings) == (3, 1, [])
    assert dataclasses.replace(report, out="", resumed=0, seconds=0) == dataclasses.replace(done[1], out="", seconds=0)
    assert contents(out) == contents(done[0])
    assert first.stat().st_mtime_ns == untouched


def test_a_finished_job_needs_no_cluster(out, source, encoder, monkeypatch):
    monkeypatch.setattr(RaySession, "start", lambda *_: pytest.fail("started"))
    assert embed_files(source, out, encoder=encoder, **READING).resumed == 3


def test_what_changed_is_encoded_anew(ray, out, source, make_encoder):
    source.write_text(source.read_text().replace("question 700", "question 7000"))
    report = embed_files(source, out, encoder=make_encoder(), **READING)
    assert report.resumed == 2
    assert report.warnings == [
        "part-00001-of-00003.parquet is encoded again: it holds other texts or another encoder's vectors."
    ]
    assert any("question 7000" in text for text in read_shard(list_shards(out)[1])[0])


def test_another_encoder_number_of_shards_or_resume_false_start_anew(ray, tmp_path, make_encoder):
    (tmp_path / "words.txt").write_text("one\ntwo\nthree\n")

    def resumed(model: str, **options: Any) -> int:
        return embed_files(tmp_path / "words.txt", tmp_path / "out", encoder=make_encoder(model), **options).resumed

    assert [resumed("a"), resumed("a"), resumed("b")] == [0, 1, 0]
    assert resumed("b", resume=False) == 0
    (tmp_path / "out" / "mine.txt").touch()
    assert resumed("b", shards=2) == 0
    assert sorted(contents(tmp_path / "out")) == [
        "mine.txt", "part-00000-of-00002.parquet", "part-00001-of-00002.parquet"
    ]  # fmt: skip


def test_a_worker_that_dies_costs_its_shard_only(ray, done, out, source, tmp_path, make_encoder):
    for number in (0, 1):
        next(out.glob(f"part-0000{number}*")).unlink()
    poisoned = make_encoder(accident=tmp_path / "happened", on="question 800")
    report = embed_files(source, out, encoder=poisoned, **READING)
    assert (tmp_path / "happened").exists()
    assert (report.resumed, report.retried) == (1, 1)
    assert contents(out) == contents(done[0])


def test_a_shard_that_kills_every_worker_stops_the_job_and_keeps_the_others(
    ray, out, source, tmp_path, make_encoder
):  # fmt: skip
    (out / "part-00002-of-00003.parquet").unlink()
    poisoned = make_encoder(accident=tmp_path / "happened", on="question 1400", always=True)
    with pytest.raises(RetryError, match="shard 2: the worker died 3 times") as caught:
        embed_files(source, out, encoder=poisoned, **READING)
    assert caught.value.tries == len(caught.value.exceptions) == 3
    with pytest.raises(DataError, match="2 of 3 shards"):
        whitening_moments(out)


_KILLED = """
import sys, time, numpy as np
from kexue.cluster import embed_files
from kexue.cluster.session import RaySession
class Slow:
    model_id = "slow"
    def encode(self, texts):
        time.sleep(0.0 if "line 0 " in texts[0] else 60.0)
        return np.array([[len(text), 1.0] for text in texts])
with RaySession("local") as session:
    print(session.start(2)._private.worker._global_node.get_temp_dir_path(), flush=True)
    embed_files(sys.argv[1], sys.argv[2], encoder=Slow())
"""


@pytest.mark.slow
def test_a_driver_killed_midway_leaves_whole_shards_to_go_on_from(ray, tmp_path):
    class Slow:  # in another process the same, but for the delay
        model_id = "slow"

        def encode(self, texts):
            return np.array([[len(text), 1.0] for text in texts])

    Slow.__module__ = "__main__"
    source, out = tmp_path / "lines.txt", tmp_path / "out"
    source.write_text("".join(f"line {i} {'x' * (i % 7)}\n" for i in range(1500)))
    command = [sys.executable, "-c", _KILLED, source, out]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        folder = driver.stdout.readline().strip()
        deadline = time.monotonic() + 60
        while not list(out.glob("part-*.parquet")) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert driver.poll() is None
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        driver.stdout.close()
        _remove(folder)  # a killed process cannot
    [first] = out.glob("part-*")
    before = first.read_bytes()
    assert embed_files(source, out, encoder=Slow()).resumed == 1
    assert first.read_bytes() == before
    assert np.array_equal(vectors_of(out), Slow().encode(source.read_text().splitlines()))


def _remove(folder: str) -> None:
    """Also while the last processes still write their logs there."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            return
        time.sleep(0.05)


_LOCAL = """
import numpy as np
from kexue.cluster import whitening_moments
from kexue.cluster.session import RaySession
with RaySession("local") as session:
    ray = session.start(1)
    print(ray._private.worker._global_node.get_temp_dir_path(), ray.get_runtime_context().gcs_address)
    print(whitening_moments(np.eye(3)).n, ray.is_initialized())
print(ray.is_initialized())
"""


@pytest.mark.slow
def test_a_local_ray_leaves_nothing_behind():
    done = subprocess.run([sys.executable, "-c", _LOCAL], capture_output=True, text=True, check=True)
    folder, address, n, inside, after = done.stdout.split()
    assert address.startswith("127.0.0.1:")
    assert (n, inside, after) == ("3", "True", "False")
    assert not Path(folder).exists()
    deadline = time.monotonic() + 10  # processes that were stopped may still be ending
    while (left := _processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def _processes(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found


# ---- moments ---------------------------------------------------------------------------------------------------------


def assert_same(found: Any, expected: Any) -> None:
    """1e-12 of the largest number: the sums are the same up to their order."""
    assert found.n == expected.n
    for mine, theirs in ((found.mean, expected.mean), (found.scatter, expected.scatter)):
        assert mine.dtype == np.float64
        assert np.abs(mine - theirs).max() <= 1e-12 * np.abs(theirs).max()


def test_moments_are_those_of_one_process(ray, done, tmp_path):
    assert_same(whitening_moments(done[0]), moments(vectors_of(done[0])))
    # Far from the origin, where the shortcut E[x'x] - mu'mu cancels.
    x = (3000 + np.random.default_rng(0).normal(size=(50_000, 6))).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    found = whitening_moments(tmp_path / "x.npy")
    assert_same(found, moments(x))
    exact = x.astype(np.float64)
    assert_same(found, SimpleNamespace(n=len(x), mean=exact.mean(0), scatter=np.cov(exact.T, ddof=0) * len(x)))
    assert_same(whitening_moments(x[:9]), moments(x[:9]))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_the_order_of_arrival_leaves_no_trace(count):
    rng = np.random.default_rng(count)
    x = rng.normal(5, 2, size=(count, 20, 3))
    parts = [(i, moments(rows)) for i, rows in enumerate(x)]
    expected = _merge_tree(parts, count)
    assert_same(expected, moments(x.reshape(-1, 3)))
    for _ in range(5):
        found = _merge_tree([parts[i] for i in rng.permutation(count)], count)
        assert np.array_equal(found.mean, expected.mean)
        assert np.array_equal(found.scatter, expected.scatter)


# ---- index -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whitening", "dehub"),
    [(None, None), (Whitening(8), None), (Whitening(12, gamma=0.5), "csls"), (None, "center")],
    ids=["plain", "whitened", "whitened-csls", "center"],
)
def test_an_index_answers_as_that_of_one_machine(ray, done, documents, source, tmp_path, encoder, whitening, dehub):
    shutil.copytree(done[0], tmp_path / "many.kx.shards")
    options: dict[str, Any] = {"encoder": encoder, "whitening": whitening, "dehub": dehub, **READING}
    alone = search.build_index(source, tmp_path / "alone.kx", **options)
    report = build_index(source, tmp_path / "many.kx", **options)
    assert sorted(path.name for path in tmp_path.glob("many*")) == ["many.kx", "many.kx-snapshot", "many.kx-words"]
    assert (report.shards, report.retried) == (3, 0)
    different = {"index", "seconds", "bytes", "shards", "retried"}
    assert {k: v for k, v in dataclasses.asdict(report).items() if k not in different} == {
        k: v for k, v in dataclasses.asdict(alone).items() if k not in different
    }
    queries = [one["text"] for one in documents[::40]]
    answers, infos = [], []
    for name in ("alone.kx", "many.kx"):
        with search.Index.open(tmp_path / name, readonly=True, encoder=encoder) as index:
            answers.append(index.search(queries, k=10))
            infos.append(dataclasses.replace(index.info(), index="", bytes=0, created="", updated=""))
    assert infos[1].passages is None  # nothing is split on a cluster
    assert dataclasses.replace(infos[0], passages=None) == infos[1]
    for mine, theirs in zip(answers[1], answers[0], strict=True):
        assert [(hit.id, hit.text, hit.metadata) for hit in mine] == [
            (hit.id, hit.text, hit.metadata) for hit in theirs
        ]
        assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in theirs], abs=1e-6)


def test_inputs_that_change_between_encoding_and_writing_are_found_out(done, source, tmp_path, encoder, monkeypatch):
    shutil.copytree(done[0], tmp_path / "faq.kx.shards")
    monkeypatch.setattr(RaySession, "start", lambda *_: pytest.fail("started"))
    really = search.build_index

    def late(*arguments: Any, **options: Any) -> Any:
        source.write_text(source.read_text().replace("question 700", "question 7000"))
        return really(*arguments, **options)

    monkeypatch.setattr(search, "build_index", late)
    with pytest.raises(DataError, match=r"'.* question 7000' is new"):
        build_index(source, tmp_path / "faq.kx", encoder=encoder, **READING)
    assert not (tmp_path / "faq.kx").exists()
    assert len(list_shards(tmp_path / "faq.kx.shards")) == 3  # nothing is lost
    source.write_text(source.read_text().replace("question 7000", "question 700"))
    monkeypatch.setattr(search, "build_index", really)
    assert build_index(source, tmp_path / "faq.kx", encoder=encoder, **READING).documents == 1500


def test_an_index_of_a_model_opens_it_again(ray, tiny_model, tmp_path):
    (tmp_path / "words.txt").write_text("order a book\nrefund the money\nlost parcel\nrefund the money\n")
    report = build_index(tmp_path / "words.txt", tmp_path / "words.kx", encoder=tiny_model)
    assert (report.documents, report.skipped) == (3, 1)
    with search.Index.open(tmp_path / "words.kx") as index:
        assert index.search("lost parcel", k=1)[0][0].text == "lost parcel"
        assert index.add(["new password"]).added == 1


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_bad_input_is_told_before_anything_starts(source, tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(RaySession, "start", lambda *_: pytest.fail("started"))
    out = tmp_path / "out"
    with pytest.raises(DataError, match="no such file"):
        embed_files(tmp_path / "absent.txt", out, encoder=encoder)
    (tmp_path / "twice.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n')
    with pytest.raises(DataError, match="'1' was given already"):
        embed_files(tmp_path / "twice.jsonl", out, encoder=encoder, id="id")
    with pytest.raises(ValueError, match="shards must be a whole number >= 1 or None, got 0"):
        embed_files(source, out, encoder=encoder, shards=0)
    with pytest.raises(ValueError, match="ray must be 'local' or the address of a cluster, got ''"):
        embed_files(source, out, encoder=encoder, ray="")
    with pytest.raises(TypeError, match="encoder must be"):
        embed_files(source, out, encoder=3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="expected a folder, got a file"):
        embed_files(source, source, encoder=encoder)
    assert not out.exists()
    (tmp_path / "there.kx").write_text("mine")
    with pytest.raises(search.IndexExistsError):
        build_index(source, tmp_path / "there.kx", encoder=encoder)
    with pytest.raises(ValueError, match="approx must be"):
        build_index(source, tmp_path / "new.kx", encoder=encoder, approx="fast")
    for vectors, message in (
        (tmp_path, "the folder has no shards"),
        (source, r"it is not a \.npy file.*Give a \.npy file"),
    ):
        with pytest.raises(DataError, match=message):
            whitening_moments(vectors)
    with pytest.raises(ValueError, match=r"matrix \(n, d\)"):
        whitening_moments(np.ones(3))


def test_what_an_encoder_raises_comes_out(ray, source, tmp_path):
    class Picky:
        def encode(self, texts):
            raise DataError("too long.", path="a.txt", line=7)

    with pytest.raises(DataError, match="too long") as caught:
        embed_files(source, tmp_path / "out", encoder=Picky())
    assert (caught.value.path, caught.value.line) == ("a.txt", 7)


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line(ray, tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.setenv("KEXUE_MODEL", str(tiny_model))
    monkeypatch.chdir(tmp_path)
    lines = "".join(f"{word} of the bank, day {i}\n" for i, word in enumerate(["order", "refund", "card"] * 10))
    Path("words.txt").write_text(lines)
    embed = ["cluster", "embed", "words.txt", "--out", "vectors", "--shards", "2"]
    assert main([*embed, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    facts = {"out": "vectors", "n": 30, "dims": 32, "shards": 2, "retried": 0}
    assert {name: record[name] for name in facts} == facts
    assert vectors_of(tmp_path / "vectors").shape == (30, 32)
    assert main(embed) == 0
    assert "30 vectors in vectors, 2 shards, resumed 2\n32 dimensions" in capsys.readouterr().out

    options = ["--whiten", "pca", "--dims", "8", "--json"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert main(["cluster", "index", "-", "--out", "many.kx", *options]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["documents"], record["dims"], record["shards"], record["retried"]) == (30, 8, 1, 0)
    assert record["whitening"]["k"] == 8
    assert not Path("many.kx.shards").exists()
    assert main(["index", "build", "words.txt", "--out", "alone.kx", *options]) == 0
    capsys.readouterr()
    answers = []
    for name in ("many.kx", "alone.kx"):
        assert main(["search", name, "card of the bank", "--json"]) == 0
        answers.append([hit["id"] for hit in json.loads(capsys.readouterr().out)["results"]])
    assert answers[0] == answers[1]

    assert main(["cluster", "index", "absent.txt", "--out", "new.kx", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "DataError"


def test_a_flipped_bit_in_the_rows_of_a_shard_is_told(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((200, 8)).astype(np.float32)

    class Drawn:
        def encode(self, texts: list[str]) -> np.ndarray:
            return vectors[: len(texts)]

    table = pa.table({"text": [f"text {i}" for i in range(200)]})
    path = shard_path(tmp_path, 0, 1)
    write_shard(path, encode_table(table, Drawn()))
    texts, found = read_shard(path)
    assert (len(texts), found.tobytes()) == (200, vectors.tobytes())
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for place in generator.integers(footer // 2, footer - 100, 40).tolist():
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(DataError, match="damaged"):
            read_shard(path)
