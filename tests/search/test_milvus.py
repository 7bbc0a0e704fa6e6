"""What the store in Milvus promises beyond the contract: addresses, filters, ties, large values, errors, an index."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kexue.errors import DataError, IndexFormatError, KexueError, MissingDependencyError, NotSupported
from kexue.search import Index, IndexExistsError, IndexMissingError, IndexReadOnlyError, Row, build_index, open_store
from kexue.search.store import EmbeddedStore, MilvusStore, create_store
from kexue.search.store.milvus import connection as milvus_connection, store as milvus
from kexue.search.store.milvus.connection import Address, Connection
from kexue.search.store.milvus.expressions import literal, to_expression
from kexue.search.store.milvus.head import Heads
from kexue.search.store.sqlite.expressions import to_sql
from kexue.similarity import Whitening

# Without Milvus


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("milvus://host:19530/faq", ("http://host:19530", None, "faq")),
        ("milvus+https://h.cloud/faq_2", ("https://h.cloud", None, "faq_2")),
        ("milvus:///data/my%20faq.db#faq", (None, Path("/data/my faq.db"), "faq")),
    ],
)
def test_addresses(uri: str, expected: tuple[Any, ...]) -> None:
    assert Address.parse(uri)[1:] == expected


@pytest.mark.parametrize(
    "uri",
    ["milvus://host", "milvus://host/a-b", "milvus://host/a/b", "milvus:///x.db", "milvus:///x.kx#a", "milvus://h/a?b=1",
     "milvus+https:///x.db#a", "milvus://host/9a", "milvus://host/a#b"],
)  # fmt: skip
def test_other_addresses_say_how_one_is_written(uri: str) -> None:
    with pytest.raises(ValueError, match="milvus://host:19530/collection"):
        open_store(uri)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="KEXUE_MILVUS_TOKEN") as caught:
        open_store("milvus://me:secret@host:19530/faq")
    assert "secret" not in str(caught.value)


def test_without_pymilvus_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(MissingDependencyError, match=r"kexue\[milvus\]"):
        create_store("milvus://host:19530/faq", {})


def test_files_are_built_in_files(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="kexue index copy"):
        build_index([], f"milvus://{tmp_path}/x.db#faq")


@given(st.text())
def test_a_literal_holds_any_text_and_ends_where_it_ends(text: str) -> None:
    written = literal(text)
    assert not {"\n", "\r"} & set(written)
    back, escaped = [], False
    for character in written[1:-1]:
        if escaped:
            back.append({"n": "\n", "r": "\r"}.get(character, character))
        elif character != "\\":
            assert character != '"'
            back.append(character)
        escaped = not escaped and character == "\\"
    assert ("".join(back), escaped, written[0], written[-1]) == (text, False, '"', '"')


# With Milvus Lite


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with one file that is kept open, so that every test but has a collection to make."""
    for name in ("pymilvus", "milvus_lite"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'kexue[milvus]'")
    made = tmp_path_factory.mktemp("milvus")
    keeper = create_store(f"milvus://{made}/m.db#keeper", {})
    yield made
    keeper.close()
    assert not +milvus_connection._serving, "every server has ended"


@pytest.fixture
def uri(folder: Path, request: pytest.FixtureRequest) -> str:
    return f"milvus://{folder}/m.db#t{abs(hash(request.node.name))}"


@pytest.fixture
def store(uri: str) -> Iterator[MilvusStore]:
    made = MilvusStore.create(uri, {})
    yield made
    made.close()


def vector(seed: int, dims: int = 4) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal(dims).astype(np.float32)
    return found / np.linalg.norm(found)


NASTY = [
    'a"b',
    "back\\",
    'back\\\\"',
    "new\nline\r",
    "tab\t",
    "nul\0",
    "é😀",
    "q'u",
    '" or 1 == 1 or id == "',
    "{x}",
    "%",
    " ",
]


def test_ids_and_values_are_data_whatever_they_hold(store: MilvusStore) -> None:
    store.upsert([Row(x, x, {x: x, "all": x, "n": i}, vector(i)) for i, x in enumerate(NASTY)])
    for i, x in enumerate(NASTY):
        assert store.get([x]) == [Row(x, x, {x: x, "all": x, "n": i})]
        for wanted in (
            {x: x},
            {"all": x},
            {"all": {"in": [x, "other"]}},
            {"all": {"ge": x, "le": x}},
            {x: {"exists": True}},
        ):
            assert store.count(filter=wanted) == 1
            [[hit]] = store.search(vector(i)[None], 9, filter=wanted)
            assert hit.id == x
        assert store.count(filter={"all": {"ne": x}}) == len(NASTY) - 1
    assert store.delete(filter={"all": NASTY[8]}) == 1
    assert store.delete(NASTY[:4]) == 4
    assert [r.id for rows in store.iterate() for r in rows] == NASTY[4:8] + NASTY[9:]


VALUES: list[Any] = [
    None, True, False, 0, 1, -3, 2.5, 1.0, 2**53 + 1, -(2**62), 2**70, 1e-7, 1e300, "", "a", "b", "1", "é", "😀",
    "\uffff", [1], ["a"], {}, {"a": 1}, [],
]  # fmt: skip


def test_every_filter_matches_what_the_embedded_store_matches(store: MilvusStore) -> None:
    """All operators on all kinds of values, with SQLite as the oracle."""
    rows = [Row(str(i), "t", {"f": value}, vector(i)) for i, value in enumerate(VALUES)]
    rows += [Row("none", "t", {}, vector(90)), Row("other", "t", {"F": 1, "x.y z": 5}, vector(91))]
    store.upsert(rows)
    oracle = sqlite3.connect(":memory:")
    oracle.execute("CREATE TABLE d (id, metadata)")
    oracle.executemany("INSERT INTO d VALUES (?, ?)", [(row.id, json.dumps(row.metadata)) for row in rows])
    plain = [value for value in VALUES if not isinstance(value, list | dict | type(None))]
    filters: list[dict[str, Any]] = [
        {"f": {name: one}} for one in plain for name in ("eq", "ne", "lt", "le", "gt", "ge")
    ]
    filters += [{"f": {"exists": True}}, {"f": {"exists": False}}, {"f": None}, {"f": {"ne": None}}, {}, {"x.y z": 5}]
    filters += [
        {"f": {"in": [1, "a", 2.5]}},
        {"f": {"in": []}},
        {"f": [{"ge": 0}, {"ne": 1}], "x.y z": {"exists": False}},
    ]
    filters += [{"f": {"in": [*range(5, 3000), "é"]}}, {"f": {"nin": [1, "a", 2.5]}}, {"f": {"nin": []}}]
    filters += [{"not": one} for one in filters if one]
    filters += [
        {"or": [{"f": {"lt": 1}}, {"f": {"ge": "b"}}]},
        {"not": {"or": [{"f": {"lt": 1}}, {"f": "é"}], "F": {"ne": 1}}},
        {"and": [{"not": {"f": {"in": [0, "a"]}}}, {"or": [{"f": {"gt": 0}}, {"x.y z": 5}]}]},
        {"not": {"not": {"f": {"le": "b"}}}},
    ]
    told = 0
    for wanted in filters:
        where, parameters = to_sql(wanted)
        expected = {one for (one,) in oracle.execute(f"SELECT id FROM d WHERE {where}", parameters)}
        found = {
            row["id"] for rows in store._windows(store._heads.require(), ["id"], to_expression(wanted)) for row in rows
        }
        assert found == expected, wanted
        told += 0 < len(expected) < len(rows)
    oracle.close()
    assert told > 80


def test_ties_go_by_age_also_at_the_cut(store: MilvusStore) -> None:
    same = vector(0)
    store.upsert([Row(f"z{99 - i}", "t", {}, same) for i in range(40)])
    store.upsert([Row("best", "t", {}, 2 * same), Row("z80", "again", {}, same)])
    order = [f"z{99 - i}" for i in range(40) if i != 19] + ["z80"]
    for k in (1, 2, 7, 40, 41, 99):
        assert [hit.id for hit in store.search(same[None], k)[0]] == ["best", *order][:k]


def test_beyond_what_milvus_answers_the_vectors_are_compared_here(
    store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upsert([Row(str(i), "t", {"odd": i % 2}, vector(i // 2)) for i in range(60)])
    queries = np.stack([vector(200), vector(201)])
    plain = store.search(queries, 50, filter={"odd": 1}, with_vectors=True)
    monkeypatch.setattr(milvus, "_LIMIT", 8)
    monkeypatch.setattr(milvus, "BATCH", 16)
    again = store.search(queries, 50, filter={"odd": 1}, with_vectors=True)
    assert [len(hits) for hits in plain] == [30, 30]
    for ours, theirs in zip(again, plain, strict=True):
        assert [hit[:3] for hit in ours] == [hit[:3] for hit in theirs]
        assert np.allclose([hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-6)
        assert all(np.array_equal(a.vector, b.vector) for a, b in zip(ours, theirs, strict=True))
    assert [row.id for rows in store.iterate(batch_size=7) for row in rows] == [str(i) for i in range(60)]


def test_approximate_indexes_can_be_exact(uri: str) -> None:
    store = MilvusStore.create(uri, {"approx": "approx"})
    store.upsert([Row(str(i), "t", {}, vector(i)) for i in range(300)])
    vectors, query = np.stack([vector(i) for i in range(300)]), vector(999)
    order = [str(i) for i in np.argsort(-(vectors @ query), kind="stable")[:10]]
    assert [hit.id for hit in store.search(query[None], 10, exact=True)[0]] == order
    [hits] = store.search(query[None], 10, candidates=50)
    assert len({hit.id for hit in hits} & set(order)) >= 9
    assert np.allclose([hit.score for hit in hits], [vectors[int(hit.id)] @ query for hit in hits], atol=1e-6)
    store.close()


def test_large_values_come_back_and_leave_nothing_behind(store: MilvusStore, uri: str) -> None:
    blob = np.random.default_rng(0).bytes(300_000)
    store.upsert([], metadata={"blob": blob, "text": "é" * 40_000, "small": b"", "s": "x"})
    other = MilvusStore.open(uri, readonly=True)
    assert other.metadata()["blob"] == blob
    assert other.metadata()["text"] == "é" * 40_000
    assert (other.metadata()["small"], other.metadata()["s"]) == (b"", "x")
    first = other.metadata()["blob"]
    store.upsert([], metadata={"s": "y"}, expect={"blob": blob})
    assert other.metadata()["blob"] is first, "what has not changed is not fetched again"
    store.upsert([], metadata={"blob": b"new", "text": ""})
    assert (other.metadata()["blob"], other.metadata()["text"], other.metadata()["s"]) == (b"new", "", "y")
    held = store._connection.query(store.address.collection, 'name != ""', ["name"])
    assert len(held) == 2  # the head, and b"new"
    other.close()


def test_a_store_that_is_emptied_takes_other_vectors(store: MilvusStore) -> None:
    store.upsert([Row("a", "t", {}, vector(1, 4))])
    store.delete(["a"])
    assert store.search(vector(1, 6)[None], 3) == [[]]
    assert store.upsert([Row("b", "t", {}, vector(1, 6))]) == (1, 0)
    assert store.search(vector(1, 6)[None], 3)[0][0].id == "b"


def test_a_reader_follows_a_writer_through_everything(store: MilvusStore, uri: str) -> None:
    reader = MilvusStore.open(uri, readonly=True)
    assert reader.search(vector(1)[None], 3) == [[]]
    store.upsert([Row(str(i), "t", {}, vector(i)) for i in range(9)], metadata={"space": "one"})
    assert [hit.id for hit in reader.search(vector(1)[None], 1, expect={"space": "one"})[0]] == ["1"]
    store.delete(["1"])
    store.compact()
    assert reader.count() == 8
    assert "1" not in {hit.id for hit in reader.search(vector(1)[None], 99)[0]}
    for write in (lambda: reader.upsert([]), lambda: reader.delete(["2"]), reader.compact):
        with pytest.raises(IndexReadOnlyError, match="readonly"):
            write()
    MilvusStore.create(uri, {"space": "two"}, overwrite=True).close()
    assert (reader.count(), reader.metadata()["space"]) == (0, "two")
    reader.close()


def test_a_writer_who_comes_between_is_noticed(store: MilvusStore, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another head, written just after ours, is found before any document is written."""
    other, write_head = MilvusStore.open(uri), Heads.write

    def crossed(self: Heads, *arguments: Any) -> str:
        written = write_head(self, *arguments)
        monkeypatch.setattr(Heads, "write", write_head)
        other.upsert([], metadata={"space": "theirs"})
        return written

    monkeypatch.setattr(Heads, "write", crossed)
    with pytest.raises(KexueError, match="while the write was prepared"):
        store.upsert([Row("a", "t", {}, vector(1))], metadata={"space": "ours"}, expect={"space": None})
    assert (store.count(), store.metadata()["space"]) == (0, "theirs")
    other.close()


def test_a_write_cut_off_before_its_documents_can_be_repeated(
    store: MilvusStore, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row(str(i), "t", {}, vector(i)) for i in range(5)]
    call = Connection.call

    def broken(self: Connection, name: str, *arguments: Any, **options: Any) -> Any:
        if name == "upsert" and "_documents_" in arguments[0]:
            raise KeyboardInterrupt
        return call(self, name, *arguments, **options)

    monkeypatch.setattr(Connection, "call", broken)
    with pytest.raises(KeyboardInterrupt):
        store.upsert(rows, metadata={"space": "s"}, expect={"space": None})
    monkeypatch.undo()
    assert (store.metadata()["space"], store.count()) == ("s", 0)
    assert store.search(vector(1)[None], 3, expect={"space": "s"}) == [[]]
    assert store.upsert(rows, expect={"space": "s"}) == (5, 0)


def test_what_is_too_long_for_milvus_is_refused_before_anything_is_written(store: MilvusStore) -> None:
    for row in (
        Row("a", "é" * 33_000, {}, vector(1)),
        Row("a" * 65_536, "t", {}, vector(1)),
        Row("a", "t", {"x": "y" * 65_536}, vector(1)),
    ):
        with pytest.raises(DataError, match="65535"):
            store.upsert([Row("good", "t", {}, vector(2)), row], metadata={"note": "new"})
    assert store.count() == 0
    assert "note" not in store.metadata()
    assert store.upsert([Row("a", "x" * 65_535, {}, vector(1))]) == (1, 0)


def test_what_exists_is_not_overwritten_by_accident(store: MilvusStore, uri: str) -> None:
    store.upsert([Row("a", "t", {}, vector(1))])
    with pytest.raises(IndexExistsError, match="overwrite=True"):
        create_store(uri, {})
    assert store.count() == 1
    with pytest.raises(IndexMissingError, match="no index at"):
        open_store(uri + "_other")
    store._connection.make("foreign_documents_x", {"id": 100}, 4)
    for refuse in (open_store, lambda name: create_store(name, {}, overwrite=True)):
        with pytest.raises(IndexFormatError, match="not a kexue index"):
            refuse(uri.partition("#")[0] + "#foreign_documents_x")


def test_a_newer_format_says_upgrade(store: MilvusStore, uri: str) -> None:
    row = {"name": "head", "value": json.dumps({"format": 3}) + " 0", "vector": [0.0, 0.0]}
    store._connection.write(store.address.collection, [row])
    with pytest.raises(IndexFormatError, match=r"format 3.*Upgrade"):
        open_store(uri)


@pytest.mark.parametrize("harm", ["flipped", "cut", "before", "deep", "empty"])
def test_a_head_that_is_not_what_was_written_is_damage(store: MilvusStore, uri: str, harm: str) -> None:
    store.upsert([Row("a", "text", {}, vector(1))])
    raw = store._heads.require().raw
    bad = {
        "flipped": raw.replace('"next": 2', '"next": 3'),
        "cut": raw[:-20],
        "before": json.dumps({"format": 1, "next": 1, "documents": None, "dims": None, "values": {}}),
        "deep": "[" * 20_000,
        "empty": "{}",
    }[harm]
    store._connection.write(store.address.collection, [{"name": "head", "value": bad, "vector": [0.0, 0.0]}])
    with pytest.raises(IndexFormatError, match=r"header of .* is damaged"):
        open_store(uri)
    create_store(uri, {"note": "new"}, overwrite=True).close()
    with contextlib.closing(open_store(uri)) as new:
        assert new.metadata()["note"] == "new"


def test_a_file_that_is_not_there_is_not_made_by_opening_it(folder: Path) -> None:
    with pytest.raises(IndexMissingError, match="no index"):
        open_store(f"milvus://{folder}/no.db#faq")
    assert not (folder / "no.db").exists()
    with pytest.raises(KexueError, match="no folder"):
        create_store(f"milvus://{folder}/no/no.db#faq", {})


def test_a_server_that_does_not_answer_is_named_and_the_token_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KEXUE_MILVUS_TOKEN", "me:secret")
    monkeypatch.setattr(milvus_connection, "_TIMEOUT", 2.0)
    with pytest.raises(KexueError, match=r"milvus://127\.0\.0\.1:9/faq cannot be opened.*Is Milvus running") as caught:
        open_store("milvus://127.0.0.1:9/faq")
    assert "secret" not in f"{caught.value} {caught.value.__cause__!r} {caplog.text}"


def test_the_server_of_a_file_ends_with_its_last_store(folder: Path) -> None:
    """And what was acknowledged is there when another process, killed after it, had written it."""
    uri = f"milvus://{folder}/ends.db#faq"
    script = f"""
import os, numpy as np
from kexue.search.store import create_store
from kexue.search.store.base import Row
store = create_store({uri!r}, {{"a": "b"}})
store.upsert([Row(str(i), "t", {{}}, np.eye(4, dtype=np.float32)[i]) for i in range(4)])
store.delete(["2"])
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    one, two = open_store(uri), open_store(uri)
    assert [row.id for rows in one.iterate() for row in rows] == ["0", "1", "3"]
    one.close()
    assert (two.count(), two.metadata()["a"]) == (3, "b")
    two.close()
    from milvus_lite.server_manager import server_manager_instance

    assert str(folder / "ends.db") not in server_manager_instance._servers


def test_an_index_in_milvus_answers_as_one_in_a_file(
    folder: Path, uri: str, gram_encoder: Callable[..., Any], tmp_path: Path
) -> None:
    texts = [
        f"{colour} {thing} {i}" for i in range(9) for colour in ("red", "green", "blue") for thing in ("car", "sky")
    ]
    answers = []
    for place in (tmp_path / "x.kx", uri):
        index = Index.create(place, gram_encoder(), whitening=Whitening(8, beta=1.0, gamma=0.5), dehub="csls")
        index.add(texts, ids=[f"d{i}" for i in range(54)], metadata=[{"n": i} for i in range(54)])
        index.calibrate(n=500)
        assert index.delete(["d3", "no"]) == 1
        assert index.add(["a green car"], ids=["new"]).added == 1
        index.compact()
        index.close()
        with Index.open(place, encoder=gram_encoder()) as index:
            assert len(index) == 54
            assert index.add(texts[:3], ids=["d0", "d1", "d2"], metadata=[{"n": i} for i in range(3)]).skipped == 3
            found = index.search(["red car", "sky blue 5"], k=5, mode="dense")
            found += index.search("green sky", k=5, mode="dense", filter={"n": {"lt": 20}}, dehub="none")
            answers.append(found)
            info = index.info()
            assert (info.index, info.documents, info.dims, info.dehub) == (str(place), 54, 8, "csls")
            assert info.bytes > 0
    for ours, theirs in zip(*answers, strict=True):
        assert [hit.id for hit in ours] == [hit.id for hit in theirs]
        assert np.allclose([hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-5)
        assert [hit.percentile for hit in ours] == pytest.approx([hit.percentile for hit in theirs], abs=0.5)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_sequence_of_writes_is_what_the_embedded_store_makes_of_it(folder: Path, data: st.DataObject) -> None:
    uri = f"milvus://{folder}/m.db#model"
    stores = [
        MilvusStore.create(uri, {}, overwrite=True),
        EmbeddedStore.create(folder / "model.kx", {}, overwrite=True),
    ]
    try:
        for stamp in range(data.draw(st.integers(1, 6))):
            numbers = data.draw(st.lists(st.integers(0, 8), max_size=5, unique=True))
            what = data.draw(st.sampled_from(["upsert", "upsert", "delete", "filter", "compact"]))
            rows = [Row(f"id{n}", f"{n} at {stamp}", {"n": n}, vector(100 * stamp + n)) for n in numbers]
            done = []
            for store in stores:
                if what == "upsert":
                    done.append(store.upsert(rows))
                elif what == "delete":
                    done.append(store.delete([row.id for row in rows]))
                elif what == "filter":
                    done.append(store.delete(filter={"n": {"in": numbers}}))
                else:
                    done.append(store.compact() and None)
            assert done[0] == done[1]
            both = [
                [(r[:3], r.vector.tolist()) for rows in store.iterate(batch_size=3) for r in rows] for store in stores
            ]
            assert both[0] == both[1]
            hits = [store.search(np.stack([vector(7), vector(8)]), 4) for store in stores]
            assert [[h[:3] for h in row] for row in hits[0]] == [[h[:3] for h in row] for row in hits[1]]
    finally:
        for store in stores:
            store.close()


def test_the_example_of_the_documentation_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = Path(__file__).parents[2] / "docs" / "howto" / "milvus.md"
    [code] = re.findall(r"^```\{code-block\} python\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(folder)
    exec(compile(code, str(page), "exec"), {})
    assert capsys.readouterr().out == "red\n"
