"""Long documents: found by their best passage, counted once, through every way of writing and reading."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kexue.errors import DataError, NotSupported
from kexue.search import Index, Reranked, add_files, build_index, copy_index
from kexue.search.hubness import count_neighbours
from kexue.search.hubs import extend_queries, local_means, neighbour_scores
from kexue.search.sample import PassageVectors, stack_vectors
from kexue.search.splitting import Splitting
from kexue.similarity import Whitening
from kexue.text.passages import split_text

pytest.importorskip("faiss")

LIMIT = 12  # words that the encoder reads
DIM = 16


class WordEncoder:
    """Sums of a random vector for each word, of the first 12 words of a text."""

    dim, max_length, model_id, fingerprint = DIM, LIMIT, "words", "f"

    def __init__(self) -> None:
        self.truncated_ = 0
        self.encoded: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray:
        self.encoded += texts
        words = [re.findall(r"\w+", text) for text in texts]
        self.truncated_ = sum(len(some) > LIMIT for some in words)
        rows = [[np.random.default_rng(list(word.encode())).standard_normal(DIM) for word in w[:LIMIT]] for w in words]
        return np.array([np.sum(some, axis=0) for some in rows], np.float32)

    def split(
        self, texts: list[str], tokens: int | None = None, overlap: int = 0, *, prompt_name: str | None = None
    ) -> list[list[tuple[int, int]]]:
        if tokens is not None and tokens > LIMIT:
            raise ValueError(f"a passage must have between 1 and {LIMIT} tokens, got {tokens}.")
        places = [[match.span() for match in re.finditer(r"\w+", text)] for text in texts]
        return [split_text(*pair, tokens or LIMIT, overlap) for pair in zip(texts, places, strict=True)]


class BlindEncoder(WordEncoder):
    """The same, without a way to split."""

    split = None  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        if name == "split":
            raise AttributeError(name)
        return super().__getattribute__(name)


def text_of(number: int, words: int) -> str:
    generator = np.random.default_rng(number)
    return " ".join(f"w{generator.integers(60)}" for _ in range(words))


LENGTHS = [3, 40, 12, 13, 90, 7, 25, 30, 5, 61, 8, 9]
TEXTS = [text_of(i, n) for i, n in enumerate(LENGTHS)]
QUERIES = [text_of(100 + i, 4) for i in range(5)] + [" ".join(TEXTS[4].split()[60:66])]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def passages_of(texts: list[str], how: Splitting) -> list[list[tuple[int, int]]]:
    return how.split(WordEncoder(), texts)


def make(path: Path, **options: Any) -> Index:
    index = Index.create(path, WordEncoder(), **options)
    index.add(TEXTS, ids=range(len(TEXTS)), metadata=[{"n": i, "odd": i % 2} for i in range(len(TEXTS))])
    return index


def expected(texts: dict[str, str], query: str, how: Splitting) -> list[tuple[str, float, tuple[int, int] | None]]:
    """Brute force over the passages of every document."""
    found = []
    [asked] = unit(WordEncoder().encode([query]))
    for name, text in texts.items():
        [spans] = passages_of([text], how)
        scores = unit(WordEncoder().encode([text[a:b] for a, b in spans])) @ asked
        found.append((name, float(scores.max()), spans[int(scores.argmax())] if len(spans) > 1 else None))
    return sorted(found, key=lambda hit: -hit[1])


def check(index: Index, texts: dict[str, str], how: Splitting, **options: Any) -> None:
    for k in (1, 3, 7, 50):
        for query, hits in zip(QUERIES, index.search(QUERIES, k, mode="dense", **options), strict=True):
            wanted = expected(texts, query, how)[:k]
            assert [hit.id for hit in hits] == [name for name, *_ in wanted]
            assert np.allclose([hit.score for hit in hits], [score for _, score, _ in wanted], atol=1e-5)
            for hit, (_, _, span) in zip(hits, wanted, strict=True):
                assert (None if hit.passage is None else hit.passage[:2]) == span
                assert hit.passage is None or hit.passage.text == hit.text[slice(*hit.passage[:2])]


@pytest.mark.parametrize("passages", ["auto", "none", 6, "8:3"])
def test_search_is_brute_force_over_passages_after_every_change(tmp_path: Path, passages: Any) -> None:
    how = Splitting.parse(passages)
    texts = {str(i): text for i, text in enumerate(TEXTS)}
    with make(tmp_path / "x.kx", passages=passages) as index:
        check(index, texts, how)
        odd = {name: text for name, text in texts.items() if int(name) % 2}
        check(index, odd, how, filter={"odd": 1})
        assert index.delete(["4", "0"]) == 2
        assert index.delete(filter={"n": {"gt": 10}}) == 1
        texts = {name: text for name, text in texts.items() if name not in ("4", "0", "11")}
        changes = {"1": text_of(500, 2), "2": text_of(501, 70), "9": text_of(502, 20), "new": text_of(503, 33)}
        report = index.add(list(changes.values()), ids=list(changes))
        assert (report.added, report.updated, report.skipped) == (1, 3, 0)
        texts = {**{name: text for name, text in texts.items() if name not in changes}, **changes}
        assert len(index) == len(texts)
        check(index, texts, how)
        index.compact()
        check(index, texts, how)
        assert index.add(list(changes.values()), ids=list(changes)).skipped == 4
    with Index.open(tmp_path / "x.kx", encoder=WordEncoder(), readonly=True) as index:
        check(index, texts, how)
        assert {d.id: d.text for d in index.get(list(texts))} == texts


def test_other_processes_split_alike(tmp_path: Path) -> None:
    path = tmp_path / "x.kx"
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_long_documents import *
with Index.open({str(path)!r}, encoder=WordEncoder()) as index:
    index.add([text_of(700, 50), text_of(701, 3)], ids=["1", "late"])
"""
    with make(path, passages="8:3") as index:
        subprocess.run([sys.executable, "-c", script], check=True)
        texts = {str(i): text for i, text in enumerate(TEXTS) if i != 1}
        check(index, {**texts, "1": text_of(700, 50), "late": text_of(701, 3)}, Splitting.parse("8:3"))


def test_metadata_change_alone_keeps_the_passages_and_encodes_nothing(tmp_path: Path) -> None:
    with make(tmp_path / "x.kx") as index:
        encoder: Any = index.encoder.encoder
        encoder.encoded.clear()
        before = index.store.get(["4"], vectors=True)[0]
        assert index.add([TEXTS[4]], ids=["4"], metadata=[{"n": 99}]).updated == 1
        [after] = index.store.get(["4"], vectors=True)
        assert encoder.encoded == []
        assert after.spans == before.spans
        assert np.array_equal(after.vector, before.vector)


def test_a_text_that_is_split_is_not_truncated_and_one_that_is_not_is_counted(tmp_path: Path) -> None:
    long = sum(n > LIMIT for n in LENGTHS)
    for passages, encoder, cut in (
        ("auto", WordEncoder(), 0),
        ("none", WordEncoder(), long),
        ("auto", BlindEncoder(), long),
    ):
        with Index.create(tmp_path / "x.kx", encoder, passages=passages, overwrite=True) as index:
            assert index.add(TEXTS).truncated == cut
            assert (index.info().passages or {}).get("split", 0) == (0 if cut else long)


def test_auto_splits_what_is_longer_than_the_encoder_reads(tmp_path: Path) -> None:
    spans = passages_of(TEXTS, Splitting("auto"))
    assert [len(some) > 1 for some in spans] == [n > LIMIT for n in LENGTHS]
    words = [len(text[a:b].split()) for text, some in zip(TEXTS, spans, strict=True) for a, b in some]
    assert max(words) == LIMIT


def test_info_says_how_texts_are_split(tmp_path: Path) -> None:
    with make(tmp_path / "x.kx", passages="8:3") as index:
        vectors = sum(len(spans) for spans in passages_of(TEXTS, Splitting.parse("8:3")))
        split = sum(n > 8 for n in LENGTHS)
        record = {"mode": "tokens", "tokens": 8, "overlap": 3, "split": split, "vectors": vectors}
        assert index.info().passages == record
        assert index.info().documents == len(TEXTS)
    with make(tmp_path / "y.kx", passages="none") as index:
        assert index.info().passages is None


def test_what_cannot_be_split_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for wrong in ("", "0", "8:5", "-3", "auto:2", True, 2.5, "8:"):
        with pytest.raises(ValueError, match="passages"):
            Index.create(tmp_path / "x.kx", WordEncoder(), passages=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="between 1 and 12 tokens, got 13"):
        Index.create(tmp_path / "x.kx", WordEncoder(), passages=13)
    with pytest.raises(NotSupported, match="BlindEncoder"):
        Index.create(tmp_path / "x.kx", BlindEncoder(), passages=5)
    with pytest.raises(NotSupported, match="Milvus"):
        Index.create(f"milvus://{tmp_path}/x.db#a", WordEncoder(), passages=5)
    source = tmp_path / "a.txt"
    source.write_text("\n".join(TEXTS))
    with pytest.raises(NotSupported, match="BlindEncoder"):
        build_index(source, tmp_path / "x.kx", encoder=BlindEncoder(), passages=5)
    assert list(tmp_path.glob("x*")) == []


# Build and add


def rows(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()))
    return path


@pytest.mark.parametrize("options", [{}, {"whitening": Whitening(n_components=6)}], ids=["raw", "whitened"])
def test_a_build_splits_and_what_is_added_later_is_split_alike(tmp_path: Path, options: dict[str, Any]) -> None:
    texts = {str(i): text for i, text in enumerate(TEXTS)}
    source = rows(tmp_path / "a.jsonl", texts)
    report = build_index(source, tmp_path / "x.kx", encoder=WordEncoder(), id="id", passages="8:3", **options)
    assert (report.documents, report.truncated) == (len(TEXTS), 0)
    later = {"1": text_of(800, 55), "n": text_of(801, 30)}
    with Index.open(tmp_path / "x.kx", encoder=WordEncoder()) as index:
        done = add_files(index, rows(tmp_path / "b.jsonl", later))
        assert (done.added, done.updated) == (1, 1)
        how = Splitting.parse("8:3")
        for name, text in {**texts, **later}.items():
            [row] = index.store.get([name], vectors=True)
            [spans] = passages_of([text], how)
            assert row.spans == (tuple(spans) if len(spans) > 1 else ())
            raw = WordEncoder().encode([text[a:b] for a, b in spans])
            assert np.allclose(np.atleast_2d(row.vector), index.space.project(raw), atol=1e-5)
        if not options:
            check(index, {**{k: v for k, v in texts.items() if k != "1"}, **later}, how)


def test_an_interrupted_build_goes_on_and_other_passages_start_again(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("kexue.search.ingest.BATCH", 4)
    source = rows(tmp_path / "a.jsonl", {str(i): text for i, text in enumerate(TEXTS)})

    class Failing(WordEncoder):
        def encode(self, texts: list[str]) -> np.ndarray:
            if len(self.encoded) > 10:
                raise KeyboardInterrupt
            return super().encode(texts)

    def interrupt() -> None:
        with pytest.raises(KeyboardInterrupt):
            build_index(source, tmp_path / "x.kx", encoder=Failing(), id="id", passages=6)

    interrupt()
    report = build_index(source, tmp_path / "x.kx", encoder=WordEncoder(), id="id", passages=6)
    assert report.skipped > 0
    assert report.warnings == []
    interrupt_again = tmp_path / "x.kx"
    interrupt_again.unlink()
    interrupt()
    report = build_index(source, tmp_path / "x.kx", encoder=WordEncoder(), id="id", passages=7)
    assert report.skipped == 0
    assert "other passages" in report.warnings[0]
    with Index.open(tmp_path / "x.kx", encoder=WordEncoder()) as index:
        check(index, {str(i): text for i, text in enumerate(TEXTS)}, Splitting.parse(7))


def test_truncate_error_refuses_what_would_be_cut_and_writes_nothing(tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", {str(i): text for i, text in enumerate(TEXTS)})
    long = sum(n > LIMIT for n in LENGTHS)
    with pytest.raises(DataError, match=f"{long} texts are longer than the 12 tokens") as caught:
        build_index(source, tmp_path / "x.kx", encoder=WordEncoder(), passages="none", truncate="error")
    assert (Path(str(caught.value.path)).name, caught.value.line) == ("a.jsonl", 2)
    assert not (tmp_path / "x.kx").exists()
    build_index(source, tmp_path / "x.kx", encoder=WordEncoder(), passages="auto", truncate="error")
    with Index.create(tmp_path / "y.kx", WordEncoder(), passages="none") as index:
        with pytest.raises(DataError, match="longer than the 12 tokens"):
            add_files(index, source, truncate="error")
        assert len(index) == 0
        assert add_files(index, source).truncated == long
        with pytest.raises(NotSupported, match="BlindEncoder"):
            build_index(source, tmp_path / "z.kx", encoder=BlindEncoder(), truncate="error")


# What is measured on documents


def grouped(vectors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(p, n) cosines of each vector with the best passage of each document."""
    return np.maximum.reduceat(vectors.astype(np.float64) @ vectors.T, np.cumsum(sizes) - sizes, axis=1)


def offsets_by_hand(vectors: np.ndarray, sizes: np.ndarray, k: int = 50) -> np.ndarray:
    """r of each vector: the mean cosine with the k nearest other documents."""
    scores = grouped(vectors, sizes)
    scores[np.arange(len(vectors)), np.repeat(np.arange(len(sizes)), sizes)] = -np.inf
    return np.array([np.sort(row[np.isfinite(row)])[::-1][:k].mean() for row in scores])


def test_neighbour_scores_leave_out_the_passages_of_the_own_document() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 5, 90)
    vectors = unit(generator.standard_normal((int(sizes.sum()), DIM))).astype(np.float32)
    vectors[7] = vectors[60]  # duplicates, in different documents
    for k in (3, 50):
        measured = local_means(neighbour_scores(vectors, k, sizes=sizes))
        assert np.allclose(measured, offsets_by_hand(vectors, sizes, k), atol=1e-5)


@pytest.mark.parametrize("built", ["create", "build"])
def test_offsets_of_csls_are_those_of_passages_among_documents(tmp_path: Path, built: str) -> None:
    path = tmp_path / "x.kx"
    if built == "create":
        make(path, passages=6, dehub="csls").close()
    else:
        source = rows(tmp_path / "a.jsonl", {str(i): text for i, text in enumerate(TEXTS)})
        build_index(source, path, encoder=WordEncoder(), id="id", passages=6, dehub="csls")
    with Index.open(path, encoder=WordEncoder()) as index:
        index.add([text_of(900, 40), text_of(901, 2)], ids=["1", "z"])
        index.compact()
        stacked = stack_vectors([row for some in index.store.iterate() for row in some])
        vectors, offsets = stacked.vectors[:, :-1], stacked.vectors[:, -1]
        by_hand = offsets_by_hand(vectors, stacked.sizes)
        assert np.allclose(offsets, -by_hand / 2, atol=1e-5)
        asked = unit(WordEncoder().encode(QUERIES))
        corrected = np.maximum.reduceat(asked @ vectors.T - by_hand / 2, stacked.firsts, axis=1)
        ids = [row.id for some in index.store.iterate() for row in some]
        for row, hits in zip(corrected, index.search(QUERIES, 5, mode="dense"), strict=True):
            assert [hit.id for hit in hits] == [ids[at] for at in np.argsort(-row)[:5]]
            assert all(abs(hit.score) <= 1 for hit in hits)
        plain = index.search(QUERIES, 5, mode="dense", dehub="none")
        best = np.maximum.reduceat(asked @ vectors.T, stacked.firsts, axis=1)
        assert [hit.id for hit in plain[0]] == [ids[at] for at in np.argsort(-best[0])[:5]]


def test_csls_at_search_time_ranks_as_an_index_built_with_it(tmp_path: Path) -> None:
    with make(tmp_path / "a.kx", passages=6) as plain, make(tmp_path / "b.kx", passages=6, dehub="csls") as built:
        asked = plain.search(QUERIES, 5, mode="dense", dehub="csls", candidates=50)
        stored = built.search(QUERIES, 5, mode="dense")
        same = [len({hit.id for hit in a} & {hit.id for hit in b}) for a, b in zip(asked, stored, strict=True)]
        assert min(same) >= 4  # candidates are ordered by their best cosine first


@pytest.mark.parametrize("csls", [False, True])
def test_hubness_counts_documents(csls: bool) -> None:
    generator = np.random.default_rng(3)
    sizes = generator.integers(1, 6, 40)
    vectors = unit(generator.standard_normal((int(sizes.sum()), DIM))).astype(np.float32)
    queries = vectors
    if csls:
        vectors = np.column_stack([vectors, generator.uniform(-0.4, 0, len(vectors))]).astype(np.float32)
        queries = extend_queries(vectors[:, :-1], 1.0)
    counts = count_neighbours(queries, PassageVectors(vectors, sizes), 3, np.random.default_rng(0))
    owners, by_hand = np.repeat(np.arange(40), sizes), np.zeros(40, int)
    products = queries.astype(np.float64) @ vectors.T
    for document in range(40):
        near = [
            -np.inf if other == document else products[np.ix_(owners == document, owners == other)].max()
            for other in range(40)
        ]
        by_hand[np.argsort(-np.array(near))[:3]] += 1
    assert counts.tolist() == by_hand.tolist()


def test_hubness_of_an_index_has_a_count_for_each_document(tmp_path: Path) -> None:
    with make(tmp_path / "x.kx", passages=6) as index:
        counts, ids = index.k_occurrence(3)
        assert sorted(ids, key=int) == [str(i) for i in range(len(TEXTS))]
        assert counts.sum() == 3 * len(TEXTS)


def test_calibration_is_of_the_best_passage_of_a_random_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The percentile is the share of random pairs, of a passage and the best one of another document, below."""
    monkeypatch.setattr("kexue.search.calibration.LEAST", 2)
    with make(tmp_path / "x.kx", passages=6) as index:
        calibrator = index.calibrate(n=200_000)
        stacked = stack_vectors([row for some in index.store.iterate() for row in some])
        scores = grouped(stacked.vectors, stacked.sizes)
        owners = np.repeat(np.arange(len(TEXTS)), stacked.sizes)
        weights = np.repeat(1 / stacked.sizes, stacked.sizes)[:, None] * (owners[:, None] != np.arange(len(TEXTS)))
        for value in np.quantile(scores, [0.2, 0.5, 0.8, 0.95]):
            exact = 100 * (weights * (scores < value)).sum() / weights.sum()
            assert abs(float(calibrator.percentile(value)) - exact) < 0.5
        hits = index.search(QUERIES, 3, mode="dense")
        assert all(hit.percentile is not None for some in hits for hit in some)


def test_sample_and_vectors_have_one_row_for_each_document(tmp_path: Path) -> None:
    with make(tmp_path / "x.kx", passages=6) as index:
        documents, vectors = index.sample(100)
        assert [document.text for document in documents] == TEXTS
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        [row] = index.store.get(["4"], vectors=True)
        assert np.allclose(vectors[4], unit(row.vector.sum(axis=0)), atol=1e-5)  # type: ignore[union-attr]
        assert np.array_equal(index.vectors(["0"])[1][0], index.store.get(["0"], vectors=True)[0].vector)


def test_rerankers_and_explanations_read_the_passage(tmp_path: Path) -> None:
    read: list[str] = []

    class Reader:
        def rerank(self, query: str, documents: list[str]) -> Reranked:
            read.extend(documents)
            return Reranked(np.arange(len(documents), dtype=float), [None] * len(documents))

    with make(tmp_path / "x.kx", passages=6) as index:
        [hits] = index.search(QUERIES[:1], 12, rerank=Reader())
        assert len(hits) == 12
        assert sorted(read) == sorted(hit.text if hit.passage is None else hit.passage.text for hit in hits)
        assert all(len(text.split()) <= 6 for text in read)


def test_a_search_for_words_shows_the_passage_that_holds_most_of_them(tmp_path: Path) -> None:
    text = "one two three four five six. alpha beta gamma delta one two. alpha order AB-1234 three four five. beta six"
    with Index.create(tmp_path / "x.kx", WordEncoder(), passages=6) as index:
        index.add([text, "short alpha"], ids=["long", "short"])
        for query, words in (
            ("ab1234 alpha", "AB-1234"),
            ("gamma beta", "alpha beta gamma"),
            ("three", "one two three"),
        ):
            [hits] = index.search([query], 2, mode="lexical")
            [passage] = [hit.passage for hit in hits if hit.id == "long"]
            assert passage is not None
            assert words in passage.text
            assert all(hit.passage is None for hit in hits if hit.id == "short")


def test_merged_indexes_keep_their_passages(tmp_path: Path) -> None:
    from kexue.search import merge_indexes

    half = len(TEXTS) // 2
    for name, some, passages in (("a", slice(0, half), 6), ("b", slice(half, None), "8:3")):
        with Index.create(tmp_path / f"{name}.kx", WordEncoder(), passages=passages) as index:
            index.add(TEXTS[some], ids=range(len(TEXTS))[some])
    report = merge_indexes(tmp_path / "all.kx", [tmp_path / "a.kx", tmp_path / "b.kx"])
    assert any("other passages" in warning for warning in report.warnings)
    with Index.open(tmp_path / "all.kx", encoder=WordEncoder()) as index:
        for number, text in enumerate(TEXTS):
            [row] = index.store.get([str(number)], vectors=True)
            [spans] = passages_of([text], Splitting.parse(6 if number < half else "8:3"))
            assert row.spans == (tuple(spans) if len(spans) > 1 else ())


def test_a_copy_has_the_same_passages_and_milvus_says_no(tmp_path: Path, make_index: Callable[..., Index]) -> None:
    with make(tmp_path / "x.kx", passages=6):
        pass
    copy_index(tmp_path / "x.kx", tmp_path / "y.kx")
    with Index.open(tmp_path / "y.kx", encoder=WordEncoder()) as index:
        check(index, {str(i): text for i, text in enumerate(TEXTS)}, Splitting.parse(6))
        index.add([text_of(1, 50)], ids=["late"])
        assert len(index.store.get(["late"], vectors=True)[0].spans) > 5
    with pytest.raises(NotSupported, match="were split into passages"):
        copy_index(tmp_path / "x.kx", f"milvus://{tmp_path}/x.db#a")


def test_an_index_of_vectors_splits_nothing(tmp_path: Path) -> None:
    with Index.create(tmp_path / "x.kx", WordEncoder()) as index:
        vectors = WordEncoder().encode(TEXTS)
        assert index.add(TEXTS, vectors=vectors).added == len(TEXTS)
        assert index.store.count_passages() == (0, len(TEXTS))
        assert index.add(TEXTS, vectors=vectors).skipped == len(TEXTS)
        assert index.add(TEXTS).skipped == len(TEXTS), "unchanged texts are not encoded"
