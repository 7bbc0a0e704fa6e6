"""Search for words in a store: every way a file can change, be copied, damaged, or opened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from kexue.errors import DiskFullError, IndexFormatError, NotSupported
from kexue.search import Index, Row, backup_index, check_index, copy_index, restore_index
from kexue.search.postings import Postings, load_postings
from kexue.search.store import EmbeddedStore, create_store
from kexue.search.store.base import Match, Words
from kexue.search.store.sqlite import database, words as module
from kexue.search.store.sqlite.words import WordFollower

pytest.importorskip("faiss")

TEXTS = ["order AB-1234 was sent", "订单 CD-77 已发货", "a red apple", "a green apple and a pear", "退货要多久"]


def create(path: Path, approx: str = "auto") -> EmbeddedStore:
    return cast(EmbeddedStore, Index.create(path, encoder=None, approx=approx).store)


def unit(*values: float) -> np.ndarray:
    found = np.array(values, np.float32)
    return found / np.linalg.norm(found)


def rows(texts: list[str], first: int = 0) -> list[Row]:
    generator = np.random.default_rng(first)
    return [
        Row(f"id{i}", text, {"n": i}, unit(*generator.standard_normal(3))) for i, text in enumerate(texts, start=first)
    ]


def ids(matches: list[Match]) -> list[str]:
    return [match.id for match in matches]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    made = create(tmp_path / "s.kx")
    made.upsert(rows(TEXTS))
    yield made
    made.close()


def found(store: EmbeddedStore, *queries: str) -> list[list[str]]:
    return [ids(matches) for matches in store.search_words(list(queries), 9)]


def test_words_codes_and_characters_are_found(store: EmbeddedStore) -> None:
    answers = found(store, "ab1234", "apple", "发货", "货", "CD 77", "strawberry", "( ) OR *")
    assert answers == [["id0"], ["id2", "id3"], ["id1"], ["id4", "id1"], ["id1"], [], []]
    [[best, other]] = store.search_words(["apple"], 9)
    assert best.score > other.score > 0
    assert (best.text, best.metadata) == ("a red apple", {"n": 2})


def test_a_filter_and_k_limit_the_answers(store: EmbeddedStore) -> None:
    assert ids(store.search_words(["apple"], 1)[0]) == ["id2"]
    assert ids(store.search_words(["apple"], 9, filter={"n": {"ge": 3}})[0]) == ["id3"]
    assert store.search_words(["apple"], 9, filter={"n": 99}) == [[]]
    assert store.search_words([], 9) == []


def test_updates_and_deletions_are_seen_at_once_also_by_readers(store: EmbeddedStore, tmp_path: Path) -> None:
    reader = EmbeddedStore.open(tmp_path / "s.kx", readonly=True)
    assert found(reader, "apple") == [["id2", "id3"]]
    store.upsert([Row("id2", "a red cherry", {}, unit(1, 2, 3))])
    store.delete(["id0"])
    for one in (store, reader):
        assert found(one, "apple", "cherry", "ab1234") == [["id3"], ["id2"], []]
    store.compact()
    for one in (store, reader):
        assert found(one, "apple", "cherry", "ab1234") == [["id3"], ["id2"], []]
    reader.close()


def test_a_step_that_fails_leaves_the_words_as_they_were(store: EmbeddedStore) -> None:
    assert found(store, "apple") == [["id2", "id3"]]
    store.transactions.connection.execute("PRAGMA max_page_count = 20")
    with pytest.raises(DiskFullError):
        store.upsert([Row(f"n{i}", "apple " * 3000, {}, unit(1, 1, 1)) for i in range(100)])
    assert found(store, "apple") == [["id2", "id3"]]


def test_a_killed_writer_leaves_the_words_of_its_last_commit(tmp_path: Path) -> None:
    path = tmp_path / "s.kx"
    create(path).close()
    script = f"""
import numpy as np
from kexue.search.store import EmbeddedStore
from kexue.search.store.base import Row
store = EmbeddedStore.open({str(path)!r})
for i in range(10_000):
    store.upsert([Row(f"id{{i}}", f"code-{{i}} apple", {{}}, np.ones(3, np.float32))])
    store.search_words(["apple"], 3)
    print(i, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        last = next(int(line) for line in writer.stdout if int(line) >= 12)
        os.kill(writer.pid, signal.SIGKILL)
    store = EmbeddedStore.open(path)
    n = store.count()
    assert n > last
    assert ids(store.search_words(["apple"], 99_999)[0]) == [f"id{i}" for i in range(n)]
    assert found(store, f"code{last}") == [[f"id{last}"]]
    store.close()
    assert check_index(path).ok


def test_opening_reads_the_snapshot_and_only_what_came_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.kx"
    store = create(path)
    store.upsert(rows(TEXTS * 10))
    store.close()
    assert load_postings(f"{path}-words") is not None
    read: list[int] = []
    plain = module._read_texts

    def counted(connection: object, after: int) -> Iterator[object]:
        read.append(after)
        return plain(connection, after)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_read_texts", counted)
    store = EmbeddedStore.open(path)
    store.upsert([Row("new", "a strawberry", {}, unit(1, 0, 0))])
    store.delete(["id2"])
    assert found(store, "strawberry", "cherry") == [["new"], []]
    assert "id2" not in found(store, "red apple")[0]
    store.close()
    assert read == [50]


@pytest.mark.parametrize("harm", ["damaged", "foreign", "old", "gone", "other tokenizer"])
def test_a_snapshot_that_does_not_fit_is_replaced(
    tmp_path: Path, store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    snapshot = tmp_path / "s.kx-words"
    store.save_snapshot()
    if harm == "damaged":
        data = bytearray(snapshot.read_bytes())
        data[-3] ^= 1
        snapshot.write_bytes(data)
    elif harm == "foreign":
        other = create(tmp_path / "t.kx")
        other.upsert(rows(["other words"] * 5))
        other.close()
        (tmp_path / "t.kx-words").replace(snapshot)
    elif harm == "old":
        kept = snapshot.read_bytes()
        store.delete(["id0"])
        store.compact()
        snapshot.write_bytes(kept)
        store.upsert(rows(TEXTS[:1]))
    elif harm == "gone":
        snapshot.unlink()
    else:
        monkeypatch.setattr("kexue.search.postings.TOKENIZER", 99)
    store.words.postings = None
    reader = EmbeddedStore.open(tmp_path / "s.kx")
    assert found(reader, "ab1234", "apple", "other") == [["id0"], ["id2", "id3"], []]
    reader.close()
    monkeypatch.undo()
    assert check_index(tmp_path / "s.kx").ok


def test_check_finds_a_snapshot_with_other_words(tmp_path: Path, store: EmbeddedStore) -> None:
    store.save_snapshot()
    forged = Postings()
    right = load_postings(tmp_path / "s.kx-words")
    assert right is not None
    forged.add(right._keys, right._checksums, ["other words"] * len(right))
    forged.position = right.position
    forged.save(tmp_path / "s.kx-words")
    report = check_index(tmp_path / "s.kx")
    assert report.problems == ["s.kx-words does not hold the words of the documents: delete it, it is written again"]
    (tmp_path / "s.kx-words").unlink()
    assert check_index(tmp_path / "s.kx").ok


def test_a_damaged_text_is_told_and_not_searched(tmp_path: Path, store: EmbeddedStore) -> None:
    store.close()
    (tmp_path / "s.kx-words").unlink()
    path = tmp_path / "s.kx"
    path.write_bytes(path.read_bytes().replace(b"a red apple", b"a red bread"))
    damaged = EmbeddedStore.open(path, readonly=True)
    with pytest.raises(IndexFormatError, match="id2"):
        damaged.search_words(["apple"], 3)
    damaged.close()


def test_backup_restore_and_copy_hold_the_words(tmp_path: Path, store: EmbeddedStore) -> None:
    path = tmp_path / "s.kx"
    backup_index(path, tmp_path / "b.kx")
    store.upsert([Row("id9", "a late plum", {}, unit(1, 0, 0))])
    copy_index(path, tmp_path / "c.kx")
    store.close()
    restore_index(tmp_path / "b.kx", path, overwrite=True)
    assert not (tmp_path / "s.kx-words").exists()
    for name, late in (("b.kx", []), ("c.kx", ["id9"]), ("s.kx", [])):
        opened = EmbeddedStore.open(tmp_path / name, readonly=True)
        assert found(opened, "ab1234", "plum") == [["id0"], late]
        opened.close()


def test_an_index_that_cannot_be_written_is_searched(
    tmp_path: Path, store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    shutil.rmtree(tmp_path / "s.kx-words", ignore_errors=True)
    monkeypatch.setattr(database.os, "access", lambda *_: False)
    reader = EmbeddedStore.open(tmp_path / "s.kx", readonly=True)
    assert found(reader, "ab1234") == [["id0"]]
    reader.close()


def test_a_snapshot_that_cannot_be_written_is_no_failure(
    tmp_path: Path, store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Postings, "save", full)
    store.close()
    assert "the first search will take longer" in caplog.text
    assert not (tmp_path / "s.kx-words").exists()


def test_an_index_made_before_words_were_searched_needs_nothing(tmp_path: Path, store: EmbeddedStore) -> None:
    """Its file holds the texts, and only the snapshot of the postings is missing."""
    store.close()
    (tmp_path / "s.kx-words").unlink()
    old = EmbeddedStore.open(tmp_path / "s.kx")
    assert found(old, "ab1234") == [["id0"]]
    old.close()
    assert (tmp_path / "s.kx-words").exists()


# Words and vectors together


@pytest.mark.parametrize("approx", ["exact", "approx"])
def test_both_sides_propose_and_all_proposals_are_scored_on_both(tmp_path: Path, approx: str) -> None:
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((3000, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [" ".join(generator.choice([f"w{j}" for j in range(300)], 12)) for _ in range(3000)]
    store = create(tmp_path / "x.kx", approx)
    store.upsert([Row(str(i), t, {"odd": i % 2}, v) for i, (t, v) in enumerate(zip(texts, vectors, strict=True))])
    postings = Postings()
    keys = np.arange(3000)
    postings.add(keys, keys, texts)
    queries, words = vectors[[5, 77]] + 0.01, ["w3 w4 nothing", "w200"]
    for k, filter, able in ((5, None, keys), (150, None, keys), (7, {"odd": 1}, keys[1::2])):
        answers = store.search(queries, k, filter=filter, exact=True, words=Words(words, 0.6))
        for query, text, matches in zip(queries, words, answers, strict=True):
            products, scored = vectors @ query, postings.score(text, 1)
            proposed = able[np.argsort(-products[able], kind="stable")[: max(k, 100)]]
            nearest = products[proposed]
            worded = postings.search(text, max(k, 100), able)[1]
            union = np.union1d(proposed, worded)
            excess = np.mean(nearest[:100].astype(float) - nearest[:100][-1])
            fused = 0.4 * np.logaddexp(0, (products[union] - nearest[:100][-1]) / excess)
            fused += 0.6 * scored.coverage(union) * np.sqrt(10 * scored.at(union))
            answered = np.searchsorted(union, [int(one) for one in ids(matches)])
            assert len(set(answered)) == k
            # Equal evidence may be ordered either way: products of other versions of NumPy differ in their last bits.
            assert np.allclose(fused[answered], np.sort(fused)[::-1][:k], atol=1e-4)
            assert np.allclose([match.score for match in matches], products[union[answered]], atol=1e-6)
    store.close()


def test_the_weight_leads_from_meaning_to_words(store: EmbeddedStore) -> None:
    query = np.stack([row.vector for row in rows(TEXTS)])[2][None]
    plain = store.search(query, 5)[0]
    assert ids(store.search(query, 5, words=Words(["AB-1234"], 0.0))[0]) == ids(plain)
    by_words = store.search(query, 5, words=Words(["AB-1234"], 1.0))[0]
    assert ids(by_words)[0] == "id0"
    assert {match.id: match.score for match in by_words} == pytest.approx({match.id: match.score for match in plain})
    assert ids(store.search(query, 5, words=Words(["unknown"], 0.7))[0]) == ids(plain)


def test_an_empty_store_answers_with_nothing(tmp_path: Path) -> None:
    store = create(tmp_path / "e.kx")
    assert store.search_words(["a"], 3) == [[]]
    assert store.search(unit(1, 0)[None], 3, words=Words(["a"], 0.5)) == [[]]
    store.close()


def test_milvus_says_what_to_do(tmp_path: Path) -> None:
    for name in ("pymilvus", "milvus_lite"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'kexue[milvus]'")
    store = create_store(f"milvus://{tmp_path}/s.db#words", {})
    assert not store.searches_words
    for search in (
        lambda: store.search_words(["a"], 3),
        lambda: store.search(unit(1, 0)[None], 3, words=Words(["a"], 0.5)),
    ):
        with pytest.raises(NotSupported, match=r"mode='dense'.*kexue index copy"):
            search()
    store.close()


def test_a_follower_takes_up_another_process_s_changes_after_compaction(store: EmbeddedStore, tmp_path: Path) -> None:
    reader = EmbeddedStore.open(tmp_path / "s.kx", readonly=True)
    follower: WordFollower = reader.words
    assert found(reader, "pear") == [["id3"]]
    before = follower.postings
    store.delete(["id3"])
    store.compact()
    store.upsert(rows(["a pear tree"], first=20))
    assert found(reader, "pear") == [["id20"]]
    assert follower.postings is not before
    reader.close()


def test_an_interrupted_search_leaves_the_words_right(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(store, "apple") == [["id2", "id3"]]
    store.upsert(rows(["an apple pie", "apple juice"], first=9))
    plain = module._read_texts

    def interrupted(connection: object, after: int) -> Iterator[object]:
        yield from plain(connection, after)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_read_texts", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.search_words(["apple"], 9)
    with store.transactions.read() as connection:
        assert store.words.follow(connection).same(store.words.read(connection))


def test_long_texts_are_read_in_smaller_blocks(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.upsert(rows(["apple " * 10, "apple " * 20, "a", "b"], first=9))
    with store.transactions.read() as connection:
        [(keys, _, whole)] = module._read_texts(connection, 0)
        everything = store.words.read(connection)
        monkeypatch.setattr(module, "_LONGEST", 50)
        parts = list(module._read_texts(connection, 0))
        assert max(sum(map(len, texts[:-1])) for _, _, texts in parts) < 50
        assert [text for _, _, texts in parts for text in texts] == whole
        assert np.array_equal(np.concatenate([some for some, _, _ in parts]), keys)
        assert store.words.read(connection).same(everything)
