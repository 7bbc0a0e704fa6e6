"""Several vectors a document in the embedded store: search by its best passage, format 2, damage, killed writers."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kexue.errors import IndexFormatError, KexueError, NotSupported
from kexue.search import Row, Store
from kexue.search.grouping import group_rows, search_documents
from kexue.search.products import largest_products
from kexue.search.store import EmbeddedStore, create_store
from kexue.search.store.sqlite import copying, tables

pytest.importorskip("faiss")

DIMS = 4


def vectors(seed: int, m: int | None = None) -> np.ndarray:
    """(m, d) of length 1, or (d,)."""
    found = np.random.default_rng(seed).standard_normal((m or 1, DIMS)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found if m else found[0]


def problems(path: Path) -> list[str]:
    return copying.check(path)[1]


def row(number: int, passages: int = 1, *, stamp: int = 0, **metadata: object) -> Row:
    text = f"{number} at {stamp}: " + "word " * 2 * passages
    if passages == 1:
        return Row(f"id{number}", text, metadata, vectors(1000 * stamp + number))
    edges = np.linspace(0, len(text), passages + 1).astype(int).tolist()
    spans = tuple((max(0, start - 2), end) for start, end in itertools.pairwise(edges))
    return Row(f"id{number}", text, metadata, vectors(1000 * stamp + number, passages), spans)


def brute(rows: list[Row], query: np.ndarray, k: int) -> list[tuple[str, float, tuple[int, int] | None]]:
    """Documents in the order of their best passage, oldest first among equals: (id, score, span)."""
    found = []
    for one in rows:
        assert one.vector is not None
        scores = np.atleast_2d(one.vector) @ query
        found.append((one.id, float(scores.max()), one.spans[int(scores.argmax())] if one.spans else None))
    return sorted(found, key=lambda hit: -hit[1])[:k]


def check_search(store: Store, rows: list[Row], query: np.ndarray, k: int, **options: object) -> None:
    [hits] = store.search(query[None], k, with_vectors=True, **options)  # type: ignore[arg-type]
    expected = brute(rows, query, k)
    assert [(hit.id, hit.span) for hit in hits] == [(name, span) for name, _, span in expected]
    assert np.allclose([hit.score for hit in hits], [score for _, score, _ in expected], atol=1e-6)
    assert np.allclose([hit.vector @ query for hit in hits], [hit.score for hit in hits], atol=1e-6)


class Model(RuleBasedStateMachine):
    """Any sequence of writes of short and long documents, seen by two connections, equals brute force over passages."""

    folder: Path

    @initialize()
    def start(self) -> None:
        self.path = Path(self.folder, f"{np.random.default_rng().integers(1 << 62)}.kx")
        self.store = EmbeddedStore.create(self.path, {})
        self.other = EmbeddedStore.open(self.path, readonly=True)
        self.model: dict[str, Row] = {}
        self.stamp = 0

    @rule(sizes=st.dictionaries(st.integers(0, 9), st.integers(1, 5), min_size=1, max_size=5))
    def upsert(self, sizes: dict[int, int]) -> None:
        self.stamp += 1
        rows = [row(number, m, stamp=self.stamp, n=number) for number, m in sizes.items()]
        self.store.upsert(rows)
        for one in rows:
            self.model.pop(one.id, None)
            self.model[one.id] = one

    @rule(numbers=st.lists(st.integers(0, 9), max_size=4))
    def delete(self, numbers: list[int]) -> None:
        names = {f"id{n}" for n in numbers}
        assert self.store.delete(sorted(names)) == len(names & self.model.keys())
        self.model = {name: one for name, one in self.model.items() if name not in names}

    @rule(limit=st.integers(0, 9))
    def delete_by_filter(self, limit: int) -> None:
        gone = {name for name, one in self.model.items() if one.metadata["n"] > limit}
        assert self.store.delete(filter={"n": {"gt": limit}}) == len(gone)
        self.model = {name: one for name, one in self.model.items() if name not in gone}

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule(snapshot=st.booleans())
    def reopen(self, snapshot: bool) -> None:
        if snapshot:
            self.store.save_snapshot()
        self.store.close(snapshot=False)
        self.store = EmbeddedStore.open(self.path)

    @rule()
    def reopen_reader(self) -> None:
        self.other.close()
        self.other = EmbeddedStore.open(self.path, readonly=True)

    @rule(seed=st.integers(0, 99), k=st.integers(1, 12), low=st.none() | st.integers(0, 9))
    def search(self, seed: int, k: int, low: int | None) -> None:
        kept = [one for one in self.model.values() if low is None or one.metadata["n"] >= low]
        for store in (self.store, self.other):
            check_search(store, kept, vectors(seed), k, filter=None if low is None else {"n": {"ge": low}})

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "model"):
            return
        expected = list(self.model.values())
        for store in (self.store, self.other):
            found = [one for batch in store.iterate(batch_size=3) for one in batch]
            assert [(*one[:3], one.spans) for one in found] == [(*one[:3], one.spans) for one in expected]
            assert all(np.array_equal(a.vector, b.vector) for a, b in zip(found, expected, strict=True))
            sizes = [max(1, len(one.spans)) for one in expected]
            assert store.count() == len(expected)
            assert store.count_passages() == (sum(m > 1 for m in sizes), sum(sizes))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.other.close()
            assert problems(self.path) == []


def test_any_sequence_of_writes_is_brute_force_over_passages(tmp_path: Path) -> None:
    Model.folder = tmp_path
    Model.TestCase.settings = settings(
        max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
    )
    Model.TestCase("runTest").runTest()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(1, 15), st.integers(0, 99), st.data())
def test_grouped_search_is_brute_force(sizes: list[int], k: int, seed: int, data: st.DataObject) -> None:
    owners = np.repeat(np.cumsum(sizes) - sizes, sizes)
    matrix = vectors(seed, len(owners))
    documents = np.unique(owners)
    allowed = data.draw(st.none() | st.lists(st.sampled_from(documents.tolist()), min_size=1, unique=True))
    kept = documents if allowed is None else np.array(sorted(allowed))
    queries = vectors(seed + 1, 3)
    groups = group_rows(np.array(sizes))
    assert groups.documents(np.arange(len(owners))).tolist() == owners.tolist()

    def search(some: np.ndarray, wanted: int, keys: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        keys = np.arange(len(owners)) if keys is None else keys
        return largest_products(some, [(keys, matrix[keys])], wanted)

    k = min(k, len(kept))
    scores, found = search_documents(search, groups, queries, k, None if allowed is None else kept, total=len(owners))
    for query, best, keys in zip(queries, scores, found, strict=True):
        products = [float((matrix[owners == document] @ query).max()) for document in kept]
        order = np.argsort(-np.array(products), kind="stable")[:k]
        assert keys.tolist() == kept[order].tolist()
        assert np.allclose(best, np.array(products)[order], atol=1e-6)


def test_equal_scores_keep_the_order_of_entry_and_the_first_passage(tmp_path: Path) -> None:
    same = np.tile(vectors(0), (3, 1))
    rows = [Row(f"id{i}", "abcdef", {}, same, ((0, 2), (2, 4), (4, 6))) for i in range(5)]
    with contextlib.closing(EmbeddedStore.create(tmp_path / "x.kx", {})) as store:
        store.upsert(rows)
        [hits] = store.search(vectors(0)[None], 4)
        assert [(hit.id, hit.span) for hit in hits] == [(f"id{i}", (0, 2)) for i in range(4)]


@pytest.mark.slow
def test_an_approximate_search_groups_by_document_too(tmp_path: Path) -> None:
    rows = [row(i, 1 + i % 4, half=i % 2) for i in range(1200)]
    with contextlib.closing(EmbeddedStore.create(tmp_path / "x.kx", {"approx": "approx"})) as store:
        store.upsert(rows)
        for seed in range(5):
            check_search(store, rows, vectors(90_000 + seed), 10, exact=True)
            check_search(store, rows[1::2], vectors(90_000 + seed), 7, exact=True, filter={"half": 1})
            [near] = store.search(vectors(90_000 + seed)[None], 10)
            expected = {name for name, *_ in brute(rows, vectors(90_000 + seed), 10)}
            assert len({hit.id for hit in near}) == 10
            assert len(expected & {hit.id for hit in near}) >= 8


@pytest.mark.parametrize(
    "wrong",
    [
        Row("a", "abcd", {}, vectors(0, 2)),
        Row("a", "abcd", {}, vectors(0, 3), ((0, 2), (2, 4))),
        Row("a", "abcd", {}, vectors(0), ((0, 2), (2, 4))),
        Row("a", "abcd", {}, vectors(0, 2), ((0, 2), (2, 5))),
        Row("a", "abcd", {}, vectors(0, 2), ((0, 2), (3, 3))),
        Row("a", "abcd", {}, vectors(0, 1), ((0, 4),)),
    ],
)
def test_passages_and_vectors_must_match(tmp_path: Path, wrong: Row) -> None:
    with contextlib.closing(EmbeddedStore.create(tmp_path / "x.kx", {})) as store:
        with pytest.raises(ValueError, match="'a'"):
            store.upsert([row(1), wrong])
        assert store.count() == 0


def test_milvus_says_that_it_keeps_one_vector(tmp_path: Path) -> None:
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    with contextlib.closing(create_store(f"milvus://{tmp_path}/s.db#passages", {})) as store:
        store.upsert([row(1)])
        with pytest.raises(NotSupported, match="one vector for each document") as caught:
            store.upsert([row(2, 3)])
        assert "passages none" in str(caught.value.remedy)
        assert store.count_passages() == (0, 1)


# Format 2


def format_2(path: Path, rows: list[Row]) -> Path:
    """A file as it was written before documents had passages."""
    with contextlib.closing(EmbeddedStore.create(path, {"approx": "auto"})) as store:
        store.upsert(rows)
    Path(f"{path}-snapshot").unlink()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        state = tables.read_state(connection)
        state.extended = False
        connection.execute("DROP TABLE passages")
        connection.execute("PRAGMA user_version = 2")
        connection.execute("UPDATE state SET line = ?", (state.line(),))
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = DELETE")
    return path


def test_a_file_of_format_2_is_read_searched_and_written_until_compact_upgrades_it(tmp_path: Path) -> None:
    rows = [row(i) for i in range(20)]
    path = format_2(tmp_path / "x.kx", rows)
    with contextlib.closing(EmbeddedStore.open(path)) as store:
        assert store.format_version == 2
        check_search(store, rows, vectors(77), 5)
        store.upsert([row(30)])
        assert store.delete(["id3"]) == 1
        rows = [*rows[:3], *rows[4:], row(30)]
        check_search(store, rows, vectors(77), 20)
        with pytest.raises(NotSupported, match="format 2") as caught:
            store.upsert([row(40, 3)])
        assert "kexue index compact" in str(caught.value.remedy)
        assert store.count() == len(rows)
    assert problems(path) == []
    assert int.from_bytes(path.read_bytes()[60:64], "big") == 2
    with (
        contextlib.closing(EmbeddedStore.open(path, readonly=True)) as reader,
        contextlib.closing(EmbeddedStore.open(path)) as store,
    ):
        check_search(reader, rows, vectors(77), 20)
        store.compact()
        assert (store.format_version, reader.format_version) == (3, 3)
        store.upsert([row(40, 3)])
        check_search(reader, [*rows, row(40, 3)], vectors(78), 21)
    assert int.from_bytes(path.read_bytes()[60:64], "big") == 3
    assert problems(path) == []


def test_a_failed_upgrade_leaves_format_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(i) for i in range(5)]
    path = format_2(tmp_path / "x.kx", rows)
    with contextlib.closing(EmbeddedStore.open(path)) as store:
        with monkeypatch.context() as patch:
            patch.setattr(tables, "write_state", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                store.compact()
        assert store.format_version == 2
        check_search(store, rows, vectors(5), 5)
    with contextlib.closing(EmbeddedStore.open(path)) as store:
        assert store.format_version == 2
        check_search(store, rows, vectors(5), 5)


def test_documents_without_passages_take_the_room_that_they_took(tmp_path: Path) -> None:
    rows = [row(i) for i in range(500)]
    new = tmp_path / "new.kx"
    with contextlib.closing(EmbeddedStore.create(new, {"approx": "auto"})) as store:
        store.upsert(rows)
    old = format_2(tmp_path / "old.kx", rows)
    assert new.stat().st_size - old.stat().st_size <= 16_384  # the page of the empty table


# Damage


def make(path: Path) -> Path:
    with contextlib.closing(EmbeddedStore.create(path, {"approx": "auto"})) as store:
        store.upsert([row(i, 1 + i % 4) for i in range(40)])
    Path(f"{path}-snapshot").unlink()
    return path


def look(path: Path) -> object:
    with contextlib.closing(EmbeddedStore.open(path, readonly=True)) as store:
        return (
            [[(h.id, h.text, round(h.score, 6), h.span) for h in hits] for hits in store.search(vectors(3, 4), 50)],
            [(*one[:3], one.vector.tobytes(), one.spans) for some in store.iterate() for one in some],  # type: ignore[union-attr]
            [(one.id, one.spans) for one in store.get([f"id{i}" for i in range(40)], vectors=True)],
            store.count_passages(),
        )


def alone(path: Path) -> None:
    for ending in ("-wal", "-shm", "-snapshot"):
        Path(f"{path}{ending}").unlink(missing_ok=True)


# keys: id0 1, id1 2-3, id2 4-6, id3 7-10
@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE passages SET spans = zeroblob(16) WHERE key = 2",
        "UPDATE passages SET spans = 'text' WHERE key = 2",
        "UPDATE passages SET spans = substr(spans, 1, 8) WHERE key = 2",
        "UPDATE passages SET checksum = checksum + 1 WHERE key = 2",
        "UPDATE passages SET key = 1 WHERE key = 2",
        "DELETE FROM passages WHERE key = 2",
        "DELETE FROM passages",
        "DELETE FROM vectors WHERE key = 3",
        "UPDATE vectors SET vector = (SELECT vector FROM vectors WHERE key = 8) WHERE key = 3",
        "UPDATE vectors SET key = 1000 WHERE key = 3",
        "DELETE FROM documents WHERE key = 2",
        "INSERT INTO passages SELECT 1, checksum, spans FROM passages WHERE key = 2",
    ],
)
def test_damage_to_passages_is_told(tmp_path: Path, harm: str) -> None:
    path = make(tmp_path / "x.kx")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(harm)
        connection.commit()
        connection.execute("PRAGMA journal_mode = DELETE")
    with pytest.raises(IndexFormatError, match=r"x\.kx is damaged"):
        look(path)
    assert problems(path)
    for read in (
        lambda store: store.search(vectors(3, 1), 40),
        lambda store: [list(some) for some in store.iterate()],
    ):
        with contextlib.closing(EmbeddedStore.open(path, readonly=True)) as store, pytest.raises(IndexFormatError):
            read(store)


@pytest.mark.slow
def test_no_flipped_bit_is_silently_wrong(tmp_path: Path) -> None:
    path = make(tmp_path / "x.kx")
    good, data = look(path), path.read_bytes()
    generator = np.random.default_rng(7)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        [(page,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'passages'")
    alone(path)
    places = generator.integers(0, len(data), 80).tolist()
    places += ((page - 1) * 16_384 + generator.integers(0, 16_384, 200)).tolist()
    told = 0
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        try:
            assert look(path) == good, f"byte {place}"
        except KexueError as error:
            told += "x.kx" in str(error)
        alone(path)
    assert told > 10


# Killed writers

WRITER = """
import sys
sys.path.insert(0, {folder!r})
from test_passages_store import row
from kexue.search.store import EmbeddedStore
store = EmbeddedStore.open({path!r})
stamp = {stamp}
while True:
    stamp += 1
    store.upsert([row(number, 1 + (number + stamp) % 4, stamp=stamp, n=number) for number in range(30)])
    print(stamp, flush=True)
    if stamp % 5 == 0:
        store.compact()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_writer_leaves_whole_documents(tmp_path: Path) -> None:
    path = tmp_path / "x.kx"
    EmbeddedStore.create(path, {}).close()
    stamp, generator = 0, np.random.default_rng(0)
    for _ in range(4):
        script = WRITER.format(folder=str(Path(__file__).parent), path=str(path), stamp=stamp)
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _, line in zip(range(int(generator.integers(2, 9))), writer.stdout, strict=False):
                stamp = int(line)
            writer.send_signal(signal.SIGKILL)
        with contextlib.closing(EmbeddedStore.open(path)) as store:
            rows = [one for some in store.iterate() for one in some]
            seen = {int(one.text.split(":")[0].split(" at ")[1]) for one in rows}
            assert len(rows) == 30
            assert len(seen) == 1, "an upsert is whole or not there"
            assert min(seen) >= stamp, "what was acknowledged is there"
            stamp = min(seen)
            check_search(store, [row(n, 1 + (n + stamp) % 4, stamp=stamp, n=n) for n in range(30)], vectors(9), 12)
        assert problems(path) == []
