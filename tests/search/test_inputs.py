"""What callers hand in: numpy's types, any order in memory, iterables that are read once, JSON that is no Python."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import itertools
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kexue._text import same_json
from kexue.errors import DataError, IndexFormatError, KexueError, SpaceMismatchError
from kexue.search import Index, copy_index
from kexue.search.documents import DEPTH
from kexue.search.engine import InvertedEngine
from kexue.search.filters import MAX_CONDITIONS, conditions, plain_filter
from kexue.search.store.milvus.expressions import to_expression
from kexue.search.store.sqlite.errors import explain_errors
from kexue.search.store.sqlite.expressions import to_sql
from kexue.similarity import Whitening
from kexue.text import ModelIdentity

VECTORS = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
QUERY = VECTORS[:1]
with contextlib.closing(sqlite3.connect(":memory:")) as connection:
    NUL_IS_READ = connection.execute(
        "SELECT atom = 'a' || char(0) || 'b' FROM json_each('[\"a\\u0000b\"]')"
    ).fetchone() == (1,)


@pytest.fixture
def index(tmp_path: Path) -> Any:
    with Index.create(tmp_path / "x.kx", encoder=None) as made:
        metadata = [{"n": i, "half": i / 2, "even": i % 2 == 0, "name": f"name {i}"} for i in range(6)]
        made.add([f"text {i}" for i in range(6)], ids=map(str, range(6)), metadata=metadata, vectors=VECTORS)
        yield made


def names(index: Index, filter: Any) -> set[str]:
    return {hit.id for hit in index.search(QUERY, 6, filter=filter)[0]}


# ---- filters ---------------------------------------------------------------------------------------------------------

SAME: dict[str, tuple[Callable[[], Any], Any]] = {
    "int64": (lambda: {"n": np.int64(3)}, {"n": 3}),
    "uint8": (lambda: {"n": {"ge": np.uint8(4)}}, {"n": {"ge": 4}}),
    "float32": (lambda: {"half": np.float32(1.5)}, {"half": 1.5}),
    "long double": (lambda: {"half": np.longdouble(1.5)}, {"half": 1.5}),
    "float64": (lambda: {"half": {"lt": np.float64(1.5)}}, {"half": {"lt": 1.5}}),
    "bool": (lambda: {"even": np.bool_(True)}, {"even": True}),
    "exists": (lambda: {"n": {"exists": np.bool_(True)}}, {"n": {"exists": True}}),
    "str": (lambda: {"name": np.str_("name 2")}, {"name": "name 2"}),
    "0-d": (lambda: {"n": np.array(3)}, {"n": 3}),
    "array": (lambda: {"n": np.array([3])}, {"n": [3]}),
    "in array": (lambda: {"n": {"in": np.array([1, 4])}}, {"n": {"in": [1, 4]}}),
    "in array of strings": (lambda: {"name": {"in": np.array(["name 1"])}}, {"name": {"in": ["name 1"]}}),
    "in scalars": (lambda: {"n": {"in": [np.int8(1), np.uint64(4)]}}, {"n": {"in": [1, 4]}}),
    "in map": (lambda: {"n": {"in": map(int, "14")}}, {"n": {"in": [1, 4]}}),
    "in generator": (lambda: {"n": {"in": (i for i in (1, 4))}}, {"n": {"in": [1, 4]}}),
    "in set": (lambda: {"n": {"in": {1, 4}}}, {"n": {"in": [1, 4]}}),
    "in tuple": (lambda: {"n": {"in": (1, 4)}}, {"n": {"in": [1, 4]}}),
    "in range": (lambda: {"n": {"in": range(1, 5, 3)}}, {"n": {"in": [1, 4]}}),
    "in keys": (lambda: {"n": {"in": dict.fromkeys((1, 4)).keys()}}, {"n": {"in": [1, 4]}}),
    "tuple of clauses": (lambda: {"n": ({"ge": 1}, {"lt": 3})}, {"n": [{"ge": 1}, {"lt": 3}]}),
    "beyond 64 bits": (lambda: {"n": {"lt": 10**40}}, {"n": {"lt": 1e40}}),
}


@pytest.mark.parametrize("what", SAME)
def test_a_filter_means_the_same_in_any_type(index: Index, what: str) -> None:
    make, plain = SAME[what]
    expected = names(index, plain)
    assert expected
    assert names(index, make()) == expected
    assert plain_filter(make()) == plain_filter(plain)
    assert to_expression(make()) == to_expression(plain)
    assert index.store.count(filter=make()) == len(expected)
    assert index.delete(filter=make()) == len(expected)


def test_a_filter_is_read_once_however_often_it_is_needed(index: Index, tiny_model: Path, tmp_path: Path) -> None:
    with Index.create(tmp_path / "t.kx", tiny_model) as texts:
        texts.add(["a dog", "a cat"], metadata=[{"n": 1}, {"n": 2}])
        [hits] = texts.search("dog", filter={"n": {"in": map(int, "2")}}, rerank="wrd", explain=True)
    assert [hit.text for hit in hits] == ["a cat"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": decimal.Decimal(1)},
        {"n": datetime.date(2024, 1, 1)},
        {"n": {"in": [datetime.datetime(2024, 1, 1)]}},
        {"n": {1, 2}},
        {"n": b"1"},
        {"n": np.complex64(1)},
        {"n": np.array([[1, 2]])},
        {"n": np.array([])},
        {"n": ()},
        {"n": float("nan")},
        {"n": np.float32("inf")},
        {"n": 10**400},
        {"n": "half \ud800"},
        {"half \ud800": 1},
        {"n": {"in": 3}},
        {"n": [{"ne": i} for i in range(MAX_CONDITIONS + 1)]},
    ],
    ids=lambda wrong: str(wrong)[:40].encode("ascii", "replace").decode(),
)
def test_what_is_no_filter_is_refused_as_a_filter(index: Index, wrong: Any) -> None:
    for act in (lambda: index.search(QUERY, filter=wrong), lambda: index.delete(filter=wrong)):
        with pytest.raises(ValueError, match="filter"):
            act()
    assert len(index) == 6


@pytest.mark.parametrize("name", ["plain", "with \0 inside"])
@pytest.mark.parametrize("value", ["plain", "with \0 inside"])
def test_nul_in_a_filter_is_compared_or_refused_never_cut_off(index: Index, name: str, value: str) -> None:
    index.add(["a", "b"], ids=["a", "b"], metadata=[{name: value}, {name[:5]: value[:5]}], vectors=VECTORS[:2])
    for filter in ({name: value}, {name: {"in": [value]}}, {name: {"le": value, "ge": value}}):
        if "\0" not in name + value or NUL_IS_READ:
            assert names(index, filter) == ({"a", "b"} if name == value == "plain" else {"a"})
        else:
            with pytest.raises(ValueError, match="NUL"):
                names(index, filter)


@pytest.mark.parametrize("n", [1100, MAX_CONDITIONS])
@pytest.mark.parametrize("spread", [False, True])
def test_a_filter_of_many_conditions_is_answered(index: Index, n: int, spread: bool) -> None:
    many = {f"f{i}": {"exists": False} for i in range(n - 1)} if spread else {"n": [{"ne": i} for i in range(3, n + 2)]}
    assert names(index, {**many, "half": {"lt": 9}}) == set("012345" if spread else "012")
    assert to_expression(many).count("(") < 10 * n


def test_a_filter_with_very_many_values_is_answered(index: Index) -> None:
    assert names(index, {"n": {"in": range(4, 300_000)}}) == {"4", "5"}
    assert len(index.get(str(i) for i in range(100_000))) == 6
    assert index.delete(str(i) for i in range(3, 100_000)) == 3


def test_conditions_of_a_plain_filter_are_those_of_the_filter() -> None:
    filter = {"a": None, "b": {"ne": None}, "c": [{"ge": 1}, {"ge": 2}], "d": {"in": [1, "x"]}}
    assert conditions(plain_filter(filter)) == conditions(filter)
    assert to_sql(plain_filter(filter)) == to_sql(filter)


# ---- vectors and ids -------------------------------------------------------------------------------------------------


def tensor(array: np.ndarray, **options: Any) -> Any:
    torch = pytest.importorskip("torch")
    return torch.tensor(array, **options)


ORDERS: dict[str, Callable[[np.ndarray], Any]] = {
    "fortran": np.asfortranarray,
    "flipped rows": lambda v: v[::-1].copy()[::-1],
    "flipped columns": lambda v: v[:, ::-1].copy()[:, ::-1],
    "strided": lambda v: np.repeat(v, 3, axis=0)[::3],
    "float64": lambda v: v.astype(np.float64),
    "long double": lambda v: v.astype(np.longdouble),
    "big endian": lambda v: v.astype(">f4"),
    "read only": lambda v: (v.setflags(write=False), v)[1],
    "list": lambda v: v.tolist(),
    "list of rows": list,
    "tensor": tensor,
    "tensor with gradient": lambda v: tensor(v, requires_grad=True),
    "tensor, flipped": lambda v: tensor(v).flip(0).flip(0).t().contiguous().t(),
}


@pytest.mark.parametrize("approx", ["exact", "approx"])
@pytest.mark.parametrize("order", ORDERS)
def test_vectors_are_the_same_in_any_order_and_type(tmp_path: Path, order: str, approx: str) -> None:
    pytest.importorskip("faiss")
    n = 1200 if approx == "approx" else 50
    vectors = np.random.default_rng(1).standard_normal((n, 8)).astype(np.float32)
    answers = []
    for name, change in (("plain", np.copy), ("other", ORDERS[order])):
        with Index.create(tmp_path / f"{name}.kx", encoder=None, approx=approx) as index:
            index.add([f"t{i}" for i in range(n)], ids=range(n), vectors=change(vectors.copy()))
            answers.append(index.search(change(vectors[:5].copy()), 7, filter=None))
    assert answers[0] == answers[1]


def test_half_precision_is_what_it_says(index: Index) -> None:
    torch = pytest.importorskip("torch")
    for half in (VECTORS.astype(np.float16), torch.tensor(VECTORS).half(), torch.tensor(VECTORS).bfloat16()):
        plain = half.float().numpy() if hasattr(half, "float") else half.astype(np.float32)
        assert index.search(half) == index.search(plain)


@pytest.mark.parametrize(
    "wrong", [VECTORS + 0j, VECTORS.astype(str), np.ma.masked_less(VECTORS, 0), VECTORS[0], VECTORS[None]]
)
def test_what_is_no_matrix_of_numbers_is_refused(index: Index, wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="vectors"):
        index.search(wrong)


@pytest.mark.parametrize(
    "ids",
    [
        lambda: np.array(["a", "b", "c"]),
        lambda: (one for one in "abc"),
        lambda: dict.fromkeys("abc").keys(),
        lambda: iter(("a", "b", "c")),
    ],
    ids=["array", "generator", "keys", "iterator"],
)
def test_ids_are_any_iterable(tmp_path: Path, ids: Callable[[], Any]) -> None:
    with Index.create(tmp_path / "x.kx", encoder=None) as index:
        assert index.add(["one", "two", "three"], ids=ids(), vectors=VECTORS[:3]).added == 3
        got = index.get(ids())
        assert [document.id for document in got] == ["a", "b", "c"]
        assert all(type(document.id) is str for document in got)
        assert index.delete(ids()) == 3


def test_numbers_of_numpy_are_ids_and_bytes_are_none(index: Index) -> None:
    assert [document.id for document in index.get(np.array([3, 5]))] == ["3", "5"]
    for act in (lambda: index.get(b"12"), lambda: index.delete(b"12")):  # type: ignore[arg-type,return-value]
        with pytest.raises(TypeError, match="bytes"):
            act()
    assert index.delete(np.arange(2)) == 2


def test_judged_pairs_are_read_once(tiny_model: Path, tmp_path: Path) -> None:
    texts = ["a dog", "the dog", "a cat", "the house", "red house", "a tree"]
    with Index.create(tmp_path / "x.kx", tiny_model) as index:
        index.add([*texts, *(f"house {i}" for i in range(50))])
        pairs, labels = list(itertools.combinations(texts, 2)), [i % 2 for i in range(15)]
        once = index.calibrate(pairs=zip(*zip(*pairs, strict=True), strict=True), labels=iter(labels), n=200)
        again = index.calibrate(pairs=pairs, labels=np.array(labels), n=200)
    assert once.probability([0.5]) == again.probability([0.5]) or np.allclose(
        np.array(once.probability([0.5])), np.array(again.probability([0.5]))
    )


# ---- metadata --------------------------------------------------------------------------------------------------------

VALUES = [1, True, 1.0, "1", 0, False, 0.0, "", None, [1], [True], [1.0], {"a": 1}, {"a": True}, {"a": [1.0]}, {}]


@pytest.mark.parametrize("old", VALUES, ids=json.dumps)
def test_metadata_change_when_their_json_does(tmp_path: Path, old: Any) -> None:
    with Index.create(tmp_path / "x.kx", encoder=None) as index:
        for new in VALUES:
            index.add(["t"], ids=["t"], metadata=[{"v": old}], vectors=QUERY)
            report = index.add(["t"], ids=["t"], metadata=[{"v": new}], vectors=QUERY)
            assert report.skipped == (json.dumps(old) == json.dumps(new))
            assert json.dumps(index.get("t")[0].metadata) == json.dumps({"v": new})
    copy_index(tmp_path / "x.kx", tmp_path / "y.kx")
    with Index.open(tmp_path / "y.kx") as copy:
        assert json.dumps(copy.get("t")[0].metadata) == json.dumps({"v": VALUES[-1]})


def test_the_order_of_keys_is_no_change() -> None:
    assert same_json({"a": 1, "b": [{"c": 2, "d": 3}]}, {"b": [{"d": 3, "c": 2}], "a": 1})


def test_metadata_of_numpy_become_those_of_json(index: Index) -> None:
    given = {"i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(False), "a": np.arange(3), "s": np.str_("x")}
    given["l"] = np.longdouble(0.5)
    index.add(["new"], ids=["new"], metadata=[given], vectors=QUERY)
    assert index.get("new")[0].metadata == {"i": 3, "f": 0.5, "b": False, "a": [0, 1, 2], "s": "x", "l": 0.5}
    for wrong in ({"x": np.complex64(1)}, {"x": decimal.Decimal(1)}, {"x": np.float32("nan")}, {"x": {1}}):
        with pytest.raises(DataError, match="position 0"):
            index.add(["t"], metadata=[wrong], vectors=QUERY)


@pytest.mark.parametrize("depth", [DEPTH, DEPTH + 1, 950, 100_000])
@pytest.mark.parametrize("kind", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["list", "dict"])
def test_metadata_are_as_deep_as_every_reader_goes(index: Index, depth: int, kind: Callable[[Any], Any]) -> None:
    deep: Any = 1
    for _ in range(depth - 1):
        deep = kind(deep)
    if depth > DEPTH:
        with pytest.raises(DataError, match=f"at most {DEPTH} levels"):
            index.add(["deep"], metadata=[{"a": deep}], vectors=QUERY)
    else:
        index.add(["deep"], ids=["deep"], metadata=[{"a": deep}], vectors=QUERY)
        assert names(index, {"a": {"exists": True}}) == {"deep"}


# ---- the space -------------------------------------------------------------------------------------------------------


def test_without_a_fingerprint_the_name_decides() -> None:
    known, silent = ModelIdentity("a", "x", 3), ModelIdentity("a", dim=3)
    other = ModelIdentity("b", dim=3)
    known.check(silent)
    silent.check(known)
    known.check(ModelIdentity("elsewhere", "x", 3))
    for one, two in ((known, other), (other, known), (silent, other)):
        with pytest.raises(SpaceMismatchError, match="id"):
            one.check(two)


@pytest.mark.parametrize("key", ["model", "whitening", "unfitted", "calibration"])
def test_what_an_index_says_of_itself_and_cannot_be_read_is_damage(tmp_path: Path, key: str) -> None:
    with Index.create(tmp_path / "x.kx", encoder=None, whitening=Whitening.preset("pca", 2).fit(VECTORS)) as index:
        index.add([f"text {i}" for i in range(60)], vectors=np.resize(VECTORS, (60, 8)))
        index.calibrate(n=10)
        index.store.upsert([], metadata={key: b"no" if key in ("whitening", "calibration") else "[" * 5000})
    with pytest.raises(IndexFormatError, match=r"x\.kx is damaged"), Index.open(tmp_path / "x.kx") as index:
        index.search(QUERY)


def test_reading_a_whitening_needs_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("the system has no files in memory")
    with Index.create(tmp_path / "x.kx", encoder=None, whitening=Whitening.preset("pca", 2).fit(VECTORS)) as index:
        index.add([f"text {i}" for i in range(60)], vectors=np.resize(VECTORS, (60, 8)))
        index.calibrate(n=10)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with Index.open(tmp_path / "x.kx", readonly=True) as index:
        assert index.search(QUERY)[0][0].percentile is not None


def test_an_inverted_file_opens_more_cells_the_rarer_what_is_allowed() -> None:
    pytest.importorskip("faiss")
    vectors = np.random.default_rng(2).standard_normal((6000, 16)).astype(np.float32)
    engine = InvertedEngine.train(lambda size: vectors[:size], n=len(vectors), dims=16)
    engine.add(np.arange(6000), vectors)
    assert engine._index.nprobe * 6 < engine._index.nlist, "a plain search opens few"
    allowed = np.random.default_rng(3).permutation(6000)[:20]
    _, keys = engine.search(vectors[:9], 20, np.sort(allowed))
    assert (np.sort(keys, axis=1) == np.sort(allowed)).all(), "all 20, wherever they lie"


def test_a_request_sqlite_cannot_take_is_not_called_damage(index: Index) -> None:
    live = index.store.transactions.connection  # type: ignore[attr-defined]
    with pytest.raises(KexueError) as caught, explain_errors(Path("x.kx")):
        live.execute("SELECT " + "+".join(["1"] * 2000))
    assert not isinstance(caught.value, IndexFormatError)
