"""The contract of a store, for every backend; and what the embedded one promises beyond it."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kexue.errors import DiskFullError, IndexFormatError, KexueError, NotSupported, SpaceMismatchError
from kexue.search import IndexBusyError, IndexExistsError, IndexMissingError, IndexReadOnlyError, Row, Store, open_store
from kexue.search.postings import Postings
from kexue.search.store import EmbeddedStore, create_store
from kexue.search.store.sqlite import database, following
from kexue.search.store.sqlite.following import EngineFollower

pytest.importorskip("faiss")

DIMS = 4


def in_milvus_lite(folder: Path) -> Store:
    for name in ("pymilvus", "milvus_lite"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'kexue[milvus]'")
    return create_store(f"milvus://{folder}/s.db#contract", {})


BACKENDS: dict[str, Callable[[Path], Store]] = {
    "embedded": lambda folder: EmbeddedStore.create(folder / "s.kx", {}),
    "milvus": in_milvus_lite,
}


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = BACKENDS[request.param](tmp_path)
    yield made
    made.close()


def vector(seed: int, dims: int = DIMS) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal(dims).astype(np.float32)
    return found / np.linalg.norm(found)


def row(number: int, **metadata: object) -> Row:
    return Row(f"id{number}", f"text {number}", metadata, vector(number))


# The contract


def test_upsert_adds_and_replaces(store: Store) -> None:
    assert store.upsert([row(1), row(2, a=1)]) == (2, 0)
    assert store.upsert([row(3), Row("id1", "new text", {"b": [1, None]}, vector(9))]) == (1, 1)
    assert store.count() == 3
    [found] = store.get(["id1"], vectors=True)
    assert found[:3] == ("id1", "new text", {"b": [1, None]})
    assert found.vector is not None
    assert (found.vector == vector(9)).all()


def test_get_keeps_the_order_asked_for_and_passes_over_strangers(store: Store) -> None:
    store.upsert([row(i) for i in range(5)])
    assert [r.id for r in store.get(["id3", "no", "id0", "id3"])] == ["id3", "id0", "id3"]
    assert all(r.vector is None for r in store.get(["id3"]))


def test_delete_by_id_and_by_filter(store: Store) -> None:
    store.upsert([row(i, even=i % 2 == 0) for i in range(6)])
    assert store.delete(["id0", "id0", "no"]) == 1
    assert store.delete(filter={"even": True}) == 2
    assert store.delete([]) == 0
    assert sorted(r.id for batch in store.iterate() for r in batch) == ["id1", "id3", "id5"]
    for wrong in ({}, {"ids": [], "filter": {}}):
        with pytest.raises(ValueError, match="either"):
            store.delete(**wrong)  # type: ignore[arg-type]


def test_iterate_gives_everything_once_oldest_first(store: Store) -> None:
    store.upsert([row(i) for i in range(10)])
    batches = list(store.iterate(batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [r.id for batch in batches for r in batch] == [f"id{i}" for i in range(10)]
    assert all(np.array_equal(r.vector, vector(i)) for i, r in enumerate(r for batch in batches for r in batch))


def test_pages_are_the_documents_in_the_order_of_their_ids(store: Store) -> None:
    ids = ["b", "a", "10", "9", "é", "😀", "\uffff", "B", "a b"]
    store.upsert([Row(one, "t", {"odd": i % 2}, vector(i)) for i, one in enumerate(ids)])
    for wanted in (None, {"odd": 1}):
        expected = sorted(one for i, one in enumerate(ids) if wanted is None or i % 2)
        found: list[str] = []
        while page := store.page(2, after=found[-1] if found else None, filter=wanted):
            found += [row.id for row in page]
        assert found == expected
    assert [row.id for row in store.page(99, after="a")] == sorted(one for one in ids if one > "a")
    assert store.page(1)[0] == Row("10", "t", {"odd": 0}, None)


def test_pages_stay_whole_while_others_write(store: Store) -> None:
    store.upsert([Row(f"{i:02}", "old", {}, vector(i)) for i in range(20)])
    seen, after = [], None
    for step in range(100):
        page = store.page(3, after=after)
        if not page:
            break
        seen += [row.id for row in page]
        after = page[-1].id
        store.delete([after])  # the place that the next page begins at
        store.upsert([Row("00", f"new {step}", {}, vector(50)), Row(f"{step + 10:02}", "new", {}, vector(60 + step))])
    assert seen == [f"{i:02}" for i in range(20)]


def test_search_is_brute_force(store: Store) -> None:
    store.upsert([row(i, third=i % 3) for i in range(40)])
    queries = np.stack([vector(100), vector(101)])
    vectors = np.stack([vector(i) for i in range(40)])
    for k, keep in ((5, range(40)), (99, range(40)), (3, range(0, 40, 3))):
        wanted = None if len(keep) == 40 else {"third": 0}
        answers = store.search(queries, k, filter=wanted)
        for query, hits in zip(queries, answers, strict=True):
            order = sorted(keep, key=lambda i: -float(vectors[i] @ query))[:k]
            assert [hit.id for hit in hits] == [f"id{i}" for i in order]
            assert np.allclose([hit.score for hit in hits], [vectors[i] @ query for i in order], atol=1e-6)
            assert [(hit.text, hit.metadata) for hit in hits] == [(f"text {i}", {"third": i % 3}) for i in order]


def test_search_in_nothing_finds_nothing(store: Store) -> None:
    assert store.search(np.stack([vector(0)] * 2), 3) == [[], []]
    store.upsert([row(1)])
    assert store.search(np.stack([vector(0)]), 3, filter={"a": 1}) == [[]]
    store.delete(["id1"])
    assert store.search(np.stack([vector(0)]), 3) == [[]]


def test_a_wrong_dimension_changes_nothing(store: Store) -> None:
    store.upsert([row(1)])
    with pytest.raises(SpaceMismatchError) as caught:
        store.upsert([row(2), Row("id3", "x", {}, vector(3, 5))], metadata={"note": "new"})
    assert (caught.value.expected, caught.value.received) == (DIMS, 5)
    assert store.count() == 1
    assert "note" not in store.metadata()
    with pytest.raises(SpaceMismatchError):
        store.search(np.stack([vector(3, 5)]), 1)


def test_metadata_are_written_with_the_rows_or_not_at_all(store: Store) -> None:
    store.upsert([row(1)], metadata={"a": "1", "b": b"\0\1"})
    assert (store.metadata()["a"], store.metadata()["b"]) == ("1", b"\0\1")
    store.upsert([row(2)], metadata={"a": "2"}, expect={"a": "1", "c": None})
    with pytest.raises(SpaceMismatchError, match=r"the a of .* was changed"):
        store.upsert([row(3)], metadata={"a": "3"}, expect={"a": "1"})
    assert store.metadata()["a"] == "2"
    assert store.count() == 2


def test_compact_keeps_the_documents_and_gives_room_back(store: Store) -> None:
    store.upsert([Row(f"id{i}", "long text " * 200, {}, vector(i)) for i in range(200)])
    store.search(np.stack([vector(0)]), 1)
    store.delete([f"id{i}" for i in range(20, 200)])
    before = store.search(np.stack([vector(0)]), 50)
    report = store.compact()
    assert report.bytes_after < report.bytes_before / 2
    assert report.bytes_after == store.size()
    assert store.search(np.stack([vector(0)]), 50) == before
    assert store.upsert([row(500)]) == (1, 0)
    assert len(store.search(np.stack([vector(0)]), 50)[0]) == 21


def test_closing_twice_is_closing_once(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(KexueError, match="closed"):
        store.count()


class Model(RuleBasedStateMachine):
    """Any sequence of writes, seen through two connections and after reopening, equals a dictionary."""

    folder: Path

    @initialize()
    def start(self) -> None:
        self.path = Path(self.folder, f"{np.random.default_rng().integers(1 << 62)}.kx")
        self.store = EmbeddedStore.create(self.path, {})
        self.other = EmbeddedStore.open(self.path, readonly=True)
        self.model: dict[str, Row] = {}
        self.stamp = 0

    @rule(numbers=st.lists(st.integers(0, 12), min_size=1, max_size=5, unique=True))
    def upsert(self, numbers: list[int]) -> None:
        self.stamp += 1
        rows = [Row(f"id{n}", f"{n} at {self.stamp}", {"n": n}, vector(100 * self.stamp + n)) for n in numbers]
        there = sum(r.id in self.model for r in rows)
        assert self.store.upsert(rows) == (len(rows) - there, there)
        for r in rows:
            self.model.pop(r.id, None)  # a replaced document is the youngest
            self.model[r.id] = r

    @rule(numbers=st.lists(st.integers(0, 12), max_size=4))
    def delete(self, numbers: list[int]) -> None:
        names = {f"id{n}" for n in numbers}
        assert self.store.delete([f"id{n}" for n in numbers]) == len(names & self.model.keys())
        self.model = {name: r for name, r in self.model.items() if name not in names}

    @rule(limit=st.integers(0, 12))
    def delete_by_filter(self, limit: int) -> None:
        gone = {name for name, r in self.model.items() if r.metadata["n"] > limit}
        assert self.store.delete(filter={"n": {"gt": limit}}) == len(gone)
        self.model = {name: r for name, r in self.model.items() if name not in gone}

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule()
    def snapshot(self) -> None:
        self.store.save_snapshot()

    @rule(snapshot=st.booleans())
    def reopen(self, snapshot: bool) -> None:
        self.store.close(snapshot=snapshot)
        self.store = EmbeddedStore.open(self.path)

    @rule()
    def reopen_reader(self) -> None:
        self.other.close()
        self.other = EmbeddedStore.open(self.path, readonly=True)

    @rule(seed=st.integers(0, 99), k=st.integers(1, 15), low=st.none() | st.integers(0, 12))
    def search(self, seed: int, k: int, low: int | None) -> None:
        query = vector(seed)
        kept = [r for r in self.model.values() if low is None or r.metadata["n"] >= low]
        expected = sorted(kept, key=lambda r: -float(np.dot(r.vector, query)))[:k]
        for store in (self.store, self.other):
            [hits] = store.search(query[None], k, filter=None if low is None else {"n": {"ge": low}})
            assert [(h.id, h.text) for h in hits] == [(r.id, r.text) for r in expected]

    @rule(number=st.integers(0, 12), k=st.integers(1, 15), low=st.none() | st.integers(0, 12))
    def search_words(self, number: int, k: int, low: int | None) -> None:
        kept = [r for r in self.model.values() if low is None or r.metadata["n"] >= low]
        query, wanted = f"{number} at {self.stamp}", None if low is None else {"n": {"ge": low}}
        every = Postings()
        keys = np.arange(len(self.model))
        every.add(keys, keys, [r.text for r in self.model.values()])
        scored = every.score(query, 15)
        rows = {r.id: i for i, r in enumerate(self.model.values())}
        for store in (self.store, self.other):
            [hits] = store.search_words([query], k, filter=wanted)
            expected = [(i, score) for i, score in zip(scored.keys.tolist(), scored.scores.tolist(), strict=True)]
            expected = [(i, score) for i, score in expected if list(self.model.values())[i] in kept]
            assert [(rows[h.id], h.score) for h in hits] == expected[:k]

    @invariant()
    def same(self) -> None:
        if hasattr(self, "model"):
            for store in (self.store, self.other):
                assert [r[:3] for batch in store.iterate() for r in batch] == [r[:3] for r in self.model.values()]

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.other.close()


def test_the_embedded_store_is_a_dictionary(tmp_path: Path) -> None:
    Model.folder = tmp_path
    Model.TestCase.settings = settings(
        max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    Model.TestCase("runTest").runTest()


# The embedded store


def create(path: Path, n: int = 3) -> Path:
    store = EmbeddedStore.create(path, {"approx": "auto"})
    store.upsert([row(i) for i in range(n)])
    store.close()
    return path


def test_foreign_and_damaged_files_are_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "x.kx"
    with pytest.raises(IndexMissingError, match=r"no index at .*x\.kx") as caught:
        open_store(path)
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.remedy
    for content, words in {b"": "not a kexue index", b"text" * 100: "not a kexue index"}.items():
        path.write_bytes(content)
        with pytest.raises(IndexFormatError, match=words):
            open_store(path)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (a)")
    connection.close()
    with pytest.raises(IndexFormatError, match="not a kexue index"):
        open_store(path)
    with pytest.raises(IndexFormatError, match="folder"):
        open_store(tmp_path)
    with pytest.raises(NotSupported, match="qdrant://host"):
        open_store("qdrant://host:6333/name")


def test_a_newer_format_says_upgrade(tmp_path: Path) -> None:
    path = create(tmp_path / "x.kx")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 4")
    connection.close()
    with pytest.raises(IndexFormatError, match=r"format 4.*Upgrade"):
        open_store(path)


def test_the_format_without_checksums_says_build_again(tmp_path: Path) -> None:
    path = create(tmp_path / "x.kx")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    with pytest.raises(IndexFormatError, match=r"format 1.*kexue index build"):
        open_store(path)
    store = EmbeddedStore.create(path, {}, overwrite=True)  # the remedy works
    assert store.count() == 0
    store.close()


def test_a_file_cut_short_is_refused_at_once(tmp_path: Path) -> None:
    path = create(tmp_path / "x.kx", 100)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(IndexFormatError, match="cut short"):
        open_store(path)


def test_a_file_whose_end_is_still_in_the_log_is_whole(tmp_path: Path) -> None:
    """A disk that fills up while the log is merged leaves the new length in the file, and the pages in the log."""
    store = EmbeddedStore.create(tmp_path / "x.kx", {})
    store.upsert([row(i)._replace(text="long " * 400) for i in range(300)])
    data = bytearray((tmp_path / "x.kx").read_bytes())
    pages = store.transactions.connection.execute("PRAGMA page_count").fetchone()[0]
    assert pages * 16_384 > len(data)
    data[28:32] = pages.to_bytes(4, "big")
    (tmp_path / "y.kx").write_bytes(data)
    (tmp_path / "y.kx-wal").write_bytes((tmp_path / "x.kx-wal").read_bytes())
    store.close()
    copy = EmbeddedStore.open(tmp_path / "y.kx")
    assert copy.count() == 300
    copy.close()


def test_damage_in_the_middle_is_told_when_it_is_met(tmp_path: Path) -> None:
    path = create(tmp_path / "x.kx", 400)
    Path(f"{path}-snapshot").unlink()
    data = bytearray(path.read_bytes())
    data[16_384 * 2 :] = b"\xff" * (len(data) - 16_384 * 2)
    path.write_bytes(data)
    with pytest.raises(IndexFormatError, match="damaged"):  # noqa: PT012
        store = EmbeddedStore.open(path, readonly=True)
        try:
            store.search(np.stack([vector(0)]), 1)
        finally:
            store.close()


def test_what_exists_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    path = create(tmp_path / "x.kx")
    with pytest.raises(IndexExistsError, match="overwrite=True") as caught:
        EmbeddedStore.create(path, {})
    assert isinstance(caught.value, FileExistsError)
    store = EmbeddedStore.create(path, {}, overwrite=True)
    assert store.count() == 0
    with pytest.raises(IndexBusyError):  # it is open
        EmbeddedStore.create(path, {}, overwrite=True)
    store.close()
    path.write_text("a letter")
    with pytest.raises(IndexFormatError):
        EmbeddedStore.create(path, {}, overwrite=True)
    assert path.read_text() == "a letter"


def test_a_reader_refuses_to_write(tmp_path: Path) -> None:
    store = EmbeddedStore.open(create(tmp_path / "x.kx"), readonly=True)
    for write in (lambda: store.upsert([row(9)]), lambda: store.delete(["id1"]), store.compact):
        with pytest.raises(IndexReadOnlyError, match="readonly"):
            write()
    assert store.count() == 3
    store.close()


def test_an_index_that_cannot_be_written_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create(tmp_path / "x.kx")
    monkeypatch.setattr(database.os, "access", lambda *_: False)  # root may write everywhere
    store = EmbeddedStore.open(path, readonly=True)
    assert store.search(np.stack([vector(1)]), 1)[0][0].id == "id1"
    store.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.kx", "x.kx-snapshot", "x.kx-words"]
    with pytest.raises(KexueError, match="cannot be written"):
        EmbeddedStore.open(path)


def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = create(tmp_path / "x.kx")
    store = EmbeddedStore.open(path)
    store.transactions.connection.execute("PRAGMA max_page_count = 20")  # SQLite then fails as it does on ENOSPC
    with pytest.raises(DiskFullError) as caught:
        store.upsert([Row(f"n{i}", "x" * 10_000, {}, vector(i)) for i in range(100)], metadata={"note": "new"})
    assert caught.value.needed > 100 * 10_000
    assert caught.value.free > 0
    assert store.count() == 3
    assert "note" not in store.metadata()
    store.transactions.connection.execute("PRAGMA max_page_count = 100000")
    assert store.upsert([row(7)]) == (1, 0)
    store.close()


def test_two_writers_take_turns_or_say_who_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create(tmp_path / "x.kx")
    monkeypatch.setattr(EmbeddedStore, "busy_timeout", 0.1)
    one, two = EmbeddedStore.open(path), EmbeddedStore.open(path)
    one.transactions.connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(IndexBusyError, match=r"another process holds .*waited 0\.1 seconds"):
        two.upsert([row(8)])
    one.transactions.connection.execute("ROLLBACK")
    assert two.upsert([row(8)]) == (1, 0)
    one.close()
    two.close()


def test_a_reader_follows_a_writer_in_another_process(tmp_path: Path) -> None:
    path = create(tmp_path / "x.kx")
    reader = EmbeddedStore.open(path, readonly=True)
    script = f"""
import numpy as np
from kexue.search.store import EmbeddedStore
from kexue.search.store.base import Row
store = EmbeddedStore.open({str(path)!r})
for i in range(100, 160):
    v = np.random.default_rng(i).standard_normal(4).astype(np.float32)
    store.upsert([Row(f"id{{i}}", f"text {{i}}", {{}}, v / np.linalg.norm(v))])
    if i % 3 == 0:
        store.delete([f"id{{i - 1}}"])
    if i % 25 == 0:
        store.compact()
    print(i, flush=True)
store.close()
"""
    seen = 0
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            number = int(line)
            [hits] = reader.search(vector(number)[None], 200)  # what was acknowledged before is found now
            if (number + 1) % 3:  # the others may be deleted already: the writer does not wait for us
                assert hits[0].id == f"id{number}"
            assert len({hit.id for hit in hits}) == len(hits)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            seen += 1
    assert writer.returncode == 0
    assert seen == 60
    left = {f"id{i}" for i in range(100, 160) if (i + 1) % 3 != 0} | {"id0", "id1", "id2"}
    assert {hit.id for hit in reader.search(vector(0)[None], 200)[0]} == left
    reader.close()


# Snapshots


def opened_engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    counts = {"built": 0, "loaded": 0}
    build, load = EngineFollower._build, following.load_engine

    def counted_build(*arguments: object) -> object:
        counts["built"] += 1
        return build(*arguments)  # type: ignore[arg-type]

    def counted_load(path: Path) -> object:
        found = load(path)
        counts["loaded"] += found is not None
        return found

    monkeypatch.setattr(EngineFollower, "_build", counted_build)
    monkeypatch.setattr(following, "load_engine", counted_load)
    return counts


def test_opening_with_a_fresh_snapshot_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create(tmp_path / "x.kx", 50)
    counts = opened_engines(monkeypatch)
    store = EmbeddedStore.open(path)
    fresh = store.search(np.stack([vector(5)]), 50)
    store.upsert([row(70)])
    store.delete(["id5"])
    after = store.search(np.stack([vector(5)]), 51)
    store.close()
    assert counts == {"built": 0, "loaded": 1}
    assert len(fresh[0]) == len(after[0]) == 50
    stamp = Path(f"{path}-snapshot").stat().st_mtime_ns

    store = EmbeddedStore.open(path)  # two changes in 50: the old snapshot is caught up
    assert store.search(np.stack([vector(5)]), 51) == after
    store.close()
    assert counts == {"built": 0, "loaded": 2}
    assert Path(f"{path}-snapshot").stat().st_mtime_ns == stamp

    store = EmbeddedStore.open(path)
    store.upsert([row(i) for i in range(200, 220)])
    store.close()
    assert Path(f"{path}-snapshot").stat().st_mtime_ns != stamp, "20 changes in 50 are worth a new one"
    assert counts["built"] == 0


@pytest.mark.parametrize("harm", ["damaged", "foreign", "gone"])
def test_a_snapshot_that_does_not_fit_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    path = create(tmp_path / "x.kx", 30)
    snapshot = Path(f"{path}-snapshot")
    if harm == "damaged":
        data = bytearray(snapshot.read_bytes())
        data[-3] ^= 1
        snapshot.write_bytes(data)
    elif harm == "foreign":
        create(tmp_path / "y.kx", 30)
        Path(tmp_path / "y.kx-snapshot").replace(snapshot)
    else:
        snapshot.unlink()
    counts = opened_engines(monkeypatch)
    store = EmbeddedStore.open(path)
    assert store.search(np.stack([vector(4)]), 1)[0][0].id == "id4"
    store.close()
    assert counts["built"] == 1


def test_a_snapshot_that_cannot_be_written_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "x.kx"
    monkeypatch.setattr("kexue.search.engine.write_snapshot", full)
    create(path, 30)
    assert "the first search will take longer" in caplog.text
    store = EmbeddedStore.open(path, readonly=True)
    assert len(store.search(np.stack([vector(4)]), 99)[0]) == 30
    store.close()


def test_a_copy_of_the_file_alone_is_the_whole_index(tmp_path: Path) -> None:
    path = create(tmp_path / "x.kx", 30)
    (tmp_path / "copy.kx").write_bytes(path.read_bytes())
    store = EmbeddedStore.open(tmp_path / "copy.kx", readonly=True)
    assert len(store.search(np.stack([vector(4)]), 99)[0]) == 30
    store.close()


# Approximate search


@pytest.fixture(scope="module")
def clustered() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    centres = generator.standard_normal((80, 16))
    vectors = centres[generator.integers(0, 80, 20_000)] + 0.8 * generator.standard_normal((20_000, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return vectors, vectors[generator.integers(0, 20_000, 40)]


def test_approximate_search_scores_exactly_and_can_be_exact(
    tmp_path: Path, clustered: tuple[np.ndarray, np.ndarray]
) -> None:
    vectors, queries = clustered
    store = EmbeddedStore.create(tmp_path / "x.kx", {"approx": "approx"})
    rows = [Row(str(i), "t", {"p": i % 2, "rare": i % 1000}, v) for i, v in enumerate(vectors)]
    store.upsert(rows)
    scores = queries @ vectors.T
    for wanted, allowed in ((None, slice(None)), ({"p": 1}, slice(1, None, 2)), ({"rare": 7}, slice(7, None, 1000))):
        names = np.arange(20_000)[allowed]
        order = np.argsort(-scores[:, allowed], axis=1, kind="stable")[:, :10]
        best = np.take_along_axis(scores[:, allowed], order, 1)
        exact = store.search(queries, 10, filter=wanted, exact=True)
        assert [[hit.id for hit in hits] for hits in exact] == [[str(names[j]) for j in r] for r in order]
        assert np.allclose([[hit.score for hit in hits] for hits in exact], best, atol=1e-6)
        fast = store.search(queries, 10, filter=wanted)
        for i, hits in enumerate(fast):
            assert len(hits) == 10
            assert np.allclose([hit.score for hit in hits], [scores[i, int(hit.id)] for hit in hits], atol=1e-6)
            assert all(hit.score >= after.score for hit, after in pairwise(hits))
        same = [len({h.id for h in a} & {h.id for h in b}) / 10 for a, b in zip(fast, exact, strict=True)]
        assert np.mean(same) > 0.95  # about 0.99 measured
    assert len(store.search(queries[:1], 20_001)[0]) == 20_000, "k beyond what cells hold is answered in full"
    store.close()
    store = EmbeddedStore.open(tmp_path / "x.kx")
    assert store.search(queries, 10) == store.search(queries, 10)
    assert not store.follower.engine.exact  # type: ignore[union-attr]
    store.close()
