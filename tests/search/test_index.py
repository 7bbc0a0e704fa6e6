"""The index through its public door: what goes in comes out, nearest first, and spaces are never mixed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kexue
from kexue.errors import DataError, IndexFormatError, ModelNotFoundError, SpaceMismatchError
from kexue.search import AddReport, Document, Index, IndexExistsError
from kexue.search.space import Space
from kexue.similarity import Whitening

pytest.importorskip("faiss")

TEXTS = ["how long does a refund take", "where is my order", "change my password", "pay by bank transfer"]
Make = Callable[..., Index]


def sentences(n: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    syllables = ["ka", "re", "mi", "to", "sun", "lo", "ban", "qui", "ve", "dor"]
    return [
        f"{i} " + " ".join("".join(generator.choice(syllables, 3)) for _ in range(generator.integers(2, 9)))
        for i in range(n)
    ]


def test_the_nearest_texts_are_those_of_brute_force(make_index: Make, encoder: Any, brute: Any) -> None:
    index, texts = make_index(encoder=encoder), sentences(300)
    index.add(texts[:200])
    index.add(texts[200:])
    queries = sentences(25, seed=1)
    scores = brute(encoder.encode(queries), encoder.encode(texts))
    for k in (1, 10, 300, 1000):
        for given in (queries, encoder.encode(queries), encoder.encode(queries).astype(np.float64)):
            for row, hits in zip(scores, index.search(given, k, mode="dense"), strict=True):
                found = [texts.index(hit.text) for hit in hits]
                assert len(found) == min(k, 300)
                # trigram counts tie often, and rounding may swap near ties: compare by score
                assert np.allclose(row[found], np.sort(row)[::-1][:k], atol=1e-6)
                assert np.allclose([hit.score for hit in hits], row[found], atol=1e-6)
    [[first]] = index.search(texts[7], 1)
    assert (first.text, first.percentile, first.probability, first.explanation) == (texts[7], None, None, None)
    assert first.score == pytest.approx(1, abs=1e-6)
    assert first.score <= 1


def test_equal_scores_come_in_order_of_entry(make_index: Make, encoder: Any) -> None:
    index = make_index(encoder=encoder)
    index.add(["same"] * 30, ids=[f"{i:02}" for i in range(30)])
    for queries in (["same"], ["same"] * 40):
        for hits in index.search(queries, 12):
            assert [hit.id for hit in hits] == [f"{i:02}" for i in range(12)]


def test_a_text_without_direction_scores_zero(make_index: Make) -> None:
    index = make_index(encoder=None)
    index.add(["none", "east"], vectors=np.array([[0, 0], [1, 0]]))
    [hits, nothing] = index.search(np.array([[2.0, 0], [0, 0]]))
    assert [(hit.text, hit.score) for hit in hits] == [("east", 1), ("none", 0)]
    assert [hit.score for hit in nothing] == [0, 0]


def test_add_is_upsert_and_encodes_only_what_is_new(make_index: Make, encoder: Any) -> None:
    index = make_index(encoder=encoder)
    assert index.add(TEXTS, ids=range(4), metadata=[{"n": i} for i in range(4)]) == AddReport(4, 0, 0)
    encoder.encoded.clear()
    changed = [TEXTS[0], "where is my parcel", TEXTS[2], TEXTS[3], "new"]
    metadata = [{"n": 0}, {"n": 1}, {"n": 99}, {"n": 3}, None]
    assert index.add(changed, ids=["0", "1", "2", "3", "4"], metadata=metadata) == AddReport(1, 2, 2)
    assert encoder.encoded == ["where is my parcel", "new"], "other metadata need no new vector"
    assert index.get(["2", "x", "1"]) == [
        Document("2", TEXTS[2], {"n": 99}),
        Document("1", "where is my parcel", {"n": 1}),
    ]
    assert len(index) == 5
    [[hit]] = index.search(TEXTS[2], 1)
    assert (hit.id, hit.metadata) == ("2", {"n": 99})


def test_without_ids_a_text_is_itself(make_index: Make) -> None:
    index = make_index()
    assert index.add(["a text", "b text", "a text"]) == AddReport(2, 0, 1)
    assert index.add(["b text", "c text"]) == AddReport(1, 0, 1)
    assert index.add("one text alone") == AddReport(1, 0, 0)
    assert index.add([]) == AddReport(0, 0, 0)


def test_given_vectors_are_compared_too(make_index: Make) -> None:
    index = make_index(encoder=None)
    assert index.add(["a", "b"], vectors=np.eye(2)) == AddReport(2, 0, 0)
    assert index.add(["a", "b"], vectors=np.array([[5.0, 0], [1, 0]])) == AddReport(0, 1, 1), "length says nothing"
    assert {hit.text: hit.score for hit in index.search(np.array([[1.0, 0]]))[0]} == {"a": 1, "b": 1}


def test_delete_and_compact(make_index: Make) -> None:
    index = make_index()
    index.add(TEXTS, ids=list("abcd"), metadata=[{"n": i} for i in range(4)])
    assert index.delete("a") == 1
    assert index.delete(["a", "b"]) == 1
    assert index.delete(filter={"n": {"ge": 3}}) == 1
    for wrong in ({}, {"ids": ["c"], "filter": {}}):
        with pytest.raises(ValueError, match="either ids or a filter"):
            index.delete(**wrong)
    assert [hit.id for hit in index.search(TEXTS[0])[0]] == ["c"]
    report = index.compact()
    assert report.bytes_after <= report.bytes_before
    assert [hit.id for hit in index.search(TEXTS[0])[0]] == ["c"]
    assert index.delete(filter={}) == 1
    assert index.search(TEXTS[0]) == [[]]


def test_filters_narrow_a_search(make_index: Make, encoder: Any) -> None:
    index, texts = make_index(encoder=encoder), sentences(100)
    index.add(texts, metadata=[{"n": i, "even": i % 2 == 0} for i in range(100)])
    whole = index.search(texts[3], 100)[0]
    for wanted, keep in (({"n": {"lt": 40}, "even": True}, lambda m: m["n"] < 40 and m["even"]), ({}, lambda m: True)):
        narrowed = index.search(texts[3], 100, filter=wanted)[0]
        assert [h.id for h in narrowed] == [h.id for h in whole if keep(h.metadata)]
        assert [h.score for h in narrowed] == pytest.approx([h.score for h in whole if keep(h.metadata)], abs=1e-6)
    index.add([texts[3]], metadata=[{"n": 3, "even": True}])  # a kept answer to a filter must not outlive a change
    assert texts[3] in {h.text for h in index.search(texts[3], 100, filter={"n": {"lt": 40}, "even": True})[0]}
    with pytest.raises(ValueError, match="legal are eq"):
        index.search(texts[3], filter={"n": {"around": 3}})
    with pytest.raises(ValueError, match="legal are eq"):
        make_index("empty.kx").search(np.zeros((1, 24)), filter={"n": {"around": 3}})


BAD_ADDS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "blank text": ({"texts": ["a", " \n"]}, DataError, "position 1 is empty"),
    "no text": ({"texts": ["a", None]}, TypeError, "NoneType at position 1"),
    "half surrogate": ({"texts": ["a\ud800"]}, DataError, "surrogate"),
    "double id": ({"texts": ["a", "b", "c"], "ids": ["x", "y", "x"]}, DataError, "'x' is at positions 0 and 2"),
    "blank id": ({"texts": ["a"], "ids": [""]}, DataError, "blank"),
    "float id": ({"texts": ["a"], "ids": [1.5]}, TypeError, "float at position 0"),
    "few ids": ({"texts": ["a", "b"], "ids": ["x"]}, ValueError, "2 texts came with 1 ids"),
    "few metadata": ({"texts": ["a", "b"], "metadata": [{}]}, ValueError, "2 texts came with 1 metadata"),
    "odd metadata": ({"texts": ["a"], "metadata": [{"x": {1, 2}}]}, DataError, "cannot be written as JSON"),
    "NaN metadata": ({"texts": ["a"], "metadata": [{"x": float("nan")}]}, DataError, "cannot be written as JSON"),
    "metadata list": ({"texts": ["a"], "metadata": [["x"]]}, TypeError, "dictionary"),
    "NaN": ({"texts": ["a", "b"], "vectors": [[0.0] * 24, [np.nan] * 24]}, ValueError, "row 1"),
    "too large": ({"texts": ["a"], "vectors": [[1e60] * 24]}, ValueError, "row 0"),
    "few vectors": ({"texts": ["a", "b"], "vectors": np.zeros((1, 24))}, ValueError, "2 texts came with 1 vectors"),
    "wrong dim": (
        {"texts": ["a"], "vectors": np.zeros((1, 5))},
        SpaceMismatchError,
        "5 dimensions, the index takes 24",
    ),
    "flat vector": ({"texts": ["a"], "vectors": np.zeros(24)}, ValueError, r"shape \(24,\)"),
}


@pytest.mark.parametrize("case", BAD_ADDS)
def test_a_bad_add_changes_nothing(make_index: Make, encoder: Any, case: str) -> None:
    index = make_index(encoder=encoder)
    index.add(["there"])
    encoder.encoded.clear()
    arguments, error, words = BAD_ADDS[case]
    with pytest.raises(error, match=words):
        index.add(**arguments)
    assert len(index) == 1
    assert encoder.encoded == [], "everything is checked before the first text is encoded"


@pytest.mark.parametrize(
    ("queries", "options", "words"),
    [
        ("a", {"k": 0}, "k must be"),
        ("a", {"k": 2.5}, "k must be"),
        ("a", {"candidates": 0}, "candidates"),
        (["a", " "], {}, "position 1 of the queries"),
        (np.full((1, 24), np.nan), {}, "row 0"),
        (np.zeros(24), {}, "shape"),
        (np.zeros((1, 7)), {}, "7 dimensions"),
    ],
)
def test_bad_queries(make_index: Make, queries: Any, options: dict[str, Any], words: str) -> None:
    index = make_index()
    index.add(["there"])
    with pytest.raises(ValueError, match=words):
        index.search(queries, **options)


def test_an_empty_index_answers_nothing_without_a_model(make_index: Make, encoder: Any) -> None:
    index = make_index(encoder=encoder)
    assert index.search(["a", "b"]) == [[], []]
    assert index.search(np.zeros((3, 24))) == [[], [], []]
    assert index.search([]) == []
    assert encoder.encoded == []
    info = index.info()
    assert (info.documents, info.dims, info.whitening, info.drift) == (0, None, None, None)


# The space


def test_reopening_with_another_encoder_says_what_the_index_holds(
    make_index: Make, encoder: Any, gram_encoder: Any, tmp_path: Path
) -> None:
    index = make_index(encoder=encoder)
    index.add(TEXTS)
    for other in (gram_encoder(seed=1), gram_encoder(dim=12)):
        with pytest.raises(SpaceMismatchError, match=r"grams \(24 dimensions") as caught:
            Index.open(tmp_path / "test.kx", encoder=other)
        assert caught.value.remedy
    with Index.open(tmp_path / "test.kx", encoder=gram_encoder()) as same:
        assert same.search(TEXTS[0], 1)[0][0].text == TEXTS[0]


def test_an_encoder_of_the_callers_must_be_given_again(make_index: Make, tmp_path: Path, encoder: Any) -> None:
    index = make_index(encoder=encoder)
    index.add(TEXTS)
    with Index.open(tmp_path / "test.kx") as opened:
        assert opened.search(encoder.encode(TEXTS[:1]), 1)[0][0].text == TEXTS[0], "vectors need no encoder"
        with pytest.raises(ModelNotFoundError, match=r"grams.*encoder="):
            opened.search("text")


def test_an_encoder_whose_vectors_change_is_caught(make_index: Make, encoder: Any) -> None:
    index = make_index(encoder=encoder)
    index.add(TEXTS)
    encoder.dim = 12
    with pytest.raises(SpaceMismatchError, match="12 dimensions, the index takes 24"):
        index.add(["another"])
    assert len(index) == 4


def test_an_encoder_that_loses_texts_is_caught(make_index: Make, encoder: Any) -> None:
    index = make_index(encoder=encoder)
    encoder.encode = lambda texts: np.zeros((1, 24), np.float32)
    with pytest.raises(ValueError, match="1 vectors of 4 texts"):
        index.add(TEXTS)


def test_a_reader_sees_a_space_that_was_settled_after_it_opened(make_index: Make, encoder: Any, tmp_path: Path) -> None:
    index = make_index(encoder=encoder, whitening=Whitening(5))
    with Index.open(tmp_path / "test.kx", readonly=True, encoder=encoder) as reader:
        assert reader.search(TEXTS[0]) == [[]]
        index.add(sentences(60))
        text = sentences(60)[33]
        assert reader.search(text, 1)[0][0].text == text
        assert reader.search(text, 1) == index.search(text, 1)


def test_a_space_that_is_replaced_under_a_reader_is_read_anew(make_index: Make, encoder: Any, tmp_path: Path) -> None:
    index, texts = make_index(encoder=encoder, whitening=Whitening(5)), sentences(60)
    index.add(texts)
    with Index.open(tmp_path / "test.kx", readonly=True, encoder=encoder) as reader:
        reader.search(texts[3])
        space = Space(reader.space.model, Whitening(5, gamma=0).fit(encoder.encode(texts)), token="another")
        rows = [row for batch in index.store.iterate() for row in batch]
        unit = space.project(encoder.encode([row.text for row in rows]))
        index.store.upsert([r._replace(vector=v) for r, v in zip(rows, unit, strict=True)], metadata=space.dump())
        assert [hits[0].score for hits in reader.search(texts, 1)] == pytest.approx([1] * 60, abs=1e-5)
        with pytest.raises(SpaceMismatchError, match=r"the space of .* was changed"):
            index.store.search(unit[:1], 1, expect={"space": "no"})


def test_very_long_and_very_short_vectors_keep_their_direction(make_index: Make) -> None:
    index = make_index(encoder=None)
    directions = np.array([[3.0, 4], [-4, 3], [1, 0]])
    index.add(["a", "b", "c"], vectors=directions * np.array([[1e25], [1e-25], [1]]))
    for scale in (1e30, 1.0, 1e-30):
        [hits] = index.search(directions[:1] * scale)
        assert [hit.text for hit in hits] == ["a", "c", "b"]
        assert [hit.score for hit in hits] == pytest.approx([1, 0.6, 0], abs=1e-6)


def test_whitening_is_applied_to_what_is_stored_and_asked(
    make_index: Make, encoder: Any, brute: Any, tmp_path: Path
) -> None:
    texts, queries = sentences(200), sentences(20, seed=3)
    raw = encoder.encode(texts)
    whitening = Whitening(12, beta=0.7, gamma=0.6).fit(raw)
    scores = brute(whitening.transform(encoder.encode(queries)), whitening.transform(raw))
    for name, given, options in (
        ("fitted.kx", whitening, {}),
        ("unfitted.kx", Whitening(12, beta=0.7, gamma=0.6), {}),
        ("vectors.kx", whitening, {"vectors": raw}),
    ):
        index = make_index(name, encoder=encoder, whitening=given)
        index.add(texts, **options)
        index.close()
        with Index.open(tmp_path / name, readonly=True, encoder=encoder) as opened:
            for row, hits in zip(scores, opened.search(queries, 200, mode="dense"), strict=True):
                # float32 whitening of counts up to 10
                assert np.allclose([h.score for h in hits], np.sort(row)[::-1], atol=1e-5)
                assert np.allclose([row[texts.index(h.text)] for h in hits], [h.score for h in hits], atol=1e-5)
            info = opened.info()
            assert info.whitening == {"beta": 0.7, "gamma": 0.6, "k": 12, "rank": whitening.rank_}
            assert (info.dims, info.model["dim"]) == (12, 24)


def test_the_callers_whitening_is_left_alone(make_index: Make) -> None:
    whitening = Whitening(4)
    make_index(whitening=whitening).add(sentences(50))
    assert not hasattr(whitening, "mean_")


def test_drift_is_the_shift_of_the_mean(make_index: Make, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    first, later = generator.standard_normal((300, 6)), generator.standard_normal((80, 6)) + 2.0
    index = make_index(encoder=None, whitening=Whitening(4))
    index.add([f"a{i}" for i in range(300)], vectors=first)
    assert index.info().drift is None, "what the whitening was fitted on does not drift"
    index.add([f"b{i}" for i in range(30)], vectors=later[:30])
    index.close()
    with Index.open(tmp_path / "test.kx") as index:
        index.add([f"c{i}" for i in range(50)], vectors=later[30:])
        shift = later.mean(0) - first.mean(0)
        expected = np.linalg.norm(shift) / np.sqrt(np.trace(np.cov(first.T, ddof=0)))
        assert index.info().drift == pytest.approx(expected, rel=1e-5)  # the vectors are kept in float32


def test_all_vectors_drift_from_a_whitening_that_came_fitted(make_index: Make) -> None:
    generator = np.random.default_rng(0)
    first, later = generator.standard_normal((300, 6)), generator.standard_normal((80, 6)) - 1.0
    index = make_index(encoder=None, whitening=Whitening(4).fit(first))
    index.add([f"a{i}" for i in range(80)], vectors=later)
    shift = later.mean(0) - first.mean(0)
    expected = np.linalg.norm(shift) / np.sqrt(np.trace(np.cov(first.T, ddof=0)))
    assert index.info().drift == pytest.approx(expected, rel=1e-5)  # the vectors are kept in float32


def test_vectors_given_beside_an_encoder_are_its_own(make_index: Make, encoder: Any) -> None:
    index = make_index(encoder=encoder)
    with pytest.raises(SpaceMismatchError, match="5 dimensions, the index takes 24"):
        index.add(["a"], vectors=np.ones((1, 5)))
    index.add(["a"], vectors=np.ones((1, 24)))
    assert index.info().model["fingerprint"] == encoder.fingerprint
    assert encoder.encoded == []


def test_two_first_writers_do_not_mix_their_whitenings(make_index: Make, tmp_path: Path, encoder: Any) -> None:
    one = make_index(encoder=encoder, whitening=Whitening(4))
    two = Index.open(tmp_path / "test.kx", encoder=encoder)
    assert two.space.token is None
    two_space = two.space
    one.add(sentences(50))
    two.store.metadata = lambda: {**one.store.metadata(), **two_space.dump(), "space": None}  # type: ignore[method-assign]
    two.encoder._space = None
    with pytest.raises(SpaceMismatchError, match=r"the space of .* was changed"):
        two.add(sentences(50, seed=9))
    del two.store.metadata
    assert two.add(sentences(50, seed=9)).added > 0, "and the next call sees the space that won"
    assert two.space.digest() == one.space.digest()
    two.close()


# Files


def test_info_tells_what_is_there(make_index: Make, tmp_path: Path) -> None:
    index = make_index(approx="exact")
    index.add(TEXTS)
    info = index.info()
    assert info.index == str(tmp_path / "test.kx")
    assert (info.documents, info.dims, info.approx, info.format_version) == (4, 24, "exact", 3)
    assert info.model["id"] == "grams"
    assert info.model["fingerprint"]
    assert info.created <= info.updated
    assert info.bytes > 4 * 24 * 4
    assert (info.calibration, info.hubness, info.dehub) == (None, None, None)


def test_create_refuses_what_is_there(make_index: Make, tmp_path: Path, encoder: Any) -> None:
    make_index(encoder=encoder).add(TEXTS)
    with pytest.raises(IndexExistsError, match="overwrite"):
        make_index()
    other = tmp_path / "letter.txt"
    other.write_text("dear")
    with pytest.raises(IndexFormatError):
        make_index("letter.txt", overwrite=True)
    assert other.read_text() == "dear"


@pytest.mark.parametrize(
    ("options", "error"),
    [({"approx": "fast"}, ValueError), ({"encoder": 5}, TypeError), ({"whitening": "pca"}, TypeError)],
)
def test_create_checks_its_arguments(tmp_path: Path, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Index.create(tmp_path / "x.kx", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_top_level_name_is_this_class() -> None:
    assert kexue.Index is Index


def test_threads_share_an_index(make_index: Make) -> None:
    index, texts = make_index(), sentences(200)
    index.add(texts[:100])
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(25):
                if number == 0:
                    index.add([texts[100 + i]])
                else:
                    assert len(index.search(texts[i], 5)[0]) == 5
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(index) == 125


def test_progress_counts_up_to_all(make_index: Make) -> None:
    calls: list[tuple[int, int | None]] = []
    make_index().add(sentences(1200), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(512, 1200), (1024, 1200), (1200, 1200)]


# The real encoder


def ids(answers: list[list[Any]]) -> list[list[str]]:
    return [[hit.id for hit in hits] for hits in answers]


def test_an_index_opens_its_own_encoder(tiny_model: Path, other_tiny_model: Path, tmp_path: Path) -> None:
    from kexue.text import Encoder

    path = tmp_path / "x.kx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with Index.create(path, str(tiny_model)) as index:
            index.add(TEXTS)
            expected = index.search(TEXTS, 4)
        with Index.open(path, readonly=True) as index:  # knows where the model was, and loads it now
            assert [[hit.id for hit in hits] for hits in index.search(TEXTS, 4)] == [
                [h.id for h in e] for e in expected
            ]
            assert index.info().model["pooling"] == "last-avg"
        with Index.open(path, encoder=tiny_model) as index:
            found = index.search(Encoder(tiny_model).encode(TEXTS), 1)
            assert [hits[0].text for hits in found] == TEXTS
        with pytest.raises(SpaceMismatchError):
            Index.open(path, encoder=Encoder(other_tiny_model))
        with pytest.raises(SpaceMismatchError):
            Index.open(path, encoder=Encoder(tiny_model, pooling="cls"))


def test_settings_of_the_encoder_are_kept(tiny_model: Path, tmp_path: Path) -> None:
    from kexue.text import Encoder

    path = tmp_path / "x.kx"
    encoder = Encoder(tiny_model, pooling="cls", normalize=False, max_length=8)
    with Index.create(path, encoder, whitening=Whitening(3), passages="none") as index:
        index.add(TEXTS)
    with Index.open(path) as index:
        again = index.load_encoder()
        assert (again.pooling, again.normalize, again.max_length) == ("cls", False, 8)  # type: ignore[attr-defined]
        found = index.search(encoder.encode(TEXTS), 1)
        assert [hits[0].text for hits in found] == TEXTS
        assert [hits[0].score for hits in found] == pytest.approx([1] * 4, abs=1e-4)  # bfloat16 batches may differ
    with pytest.raises(SpaceMismatchError, match="normalize"):  # lengths matter to a whitening
        Index.open(path, encoder=Encoder(tiny_model, pooling="cls"))


def test_query_and_document_prompts_of_the_model_are_used(tiny_model: Path, tmp_path: Path) -> None:
    from kexue.text import Encoder

    encoder = Encoder(tiny_model)
    assert encoder.prompts["query"]
    with Index.create(tmp_path / "x.kx", encoder) as index:
        index.add(TEXTS)
        queries = encoder.encode(TEXTS, prompt_name="query")
        assert np.allclose(index.encode_queries(TEXTS), queries, atol=1e-5)
        scores = queries @ encoder.encode(TEXTS, prompt_name="document").T
        assert [hits[0].score for hits in index.search(TEXTS, 1, mode="dense")] == pytest.approx(
            scores.max(1), abs=1e-5
        )
