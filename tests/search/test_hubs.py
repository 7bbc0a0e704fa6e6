"""Hubs taken out in the search path: the order of CSLS, the score of the cosine, on every way into an index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kexue.errors import NotSupported
from kexue.search import Index, build_index
from kexue.search.hubness import count_neighbours
from kexue.search.hubs import NEIGHBOURS, append_offsets, extend_queries, local_means, neighbour_scores
from kexue.search.sample import PassageVectors
from kexue.similarity import HubnessReducer, Whitening

N, DIM = 150, 12  # more than r looks at


@pytest.fixture
def vectors() -> np.ndarray:
    """Points around a common direction: cosines with hubs."""
    return (np.random.default_rng(0).standard_normal((N, DIM)) + 0.6).astype(np.float32)


@pytest.fixture
def queries() -> np.ndarray:
    return (np.random.default_rng(1).standard_normal((20, DIM)) + 0.6).astype(np.float32)


@pytest.fixture
def texts() -> list[str]:
    return [f"text {i}" for i in range(N)]


def names(hits: list) -> list[str]:
    return [hit.id for hit in hits]


def explicit(vectors: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CSLS scores and cosines of all pairs, in float64, from the formula."""
    unit, asked = (x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (vectors, queries))
    own = unit @ unit.T
    np.fill_diagonal(own, -np.inf)
    local = -np.sort(-own, axis=1)[:, :NEIGHBOURS]
    r = np.where(np.isfinite(local), local, 0).sum(axis=1) / np.isfinite(local).sum(axis=1)
    cosines = asked @ unit.T
    return 2 * cosines - r, cosines


def test_order_is_that_of_the_formula_and_scores_are_cosines(make_index, vectors, queries, texts) -> None:
    index = make_index(encoder=None, dehub="csls")
    index.add(texts, ids=map(str, range(N)), vectors=vectors)
    scores, cosines = explicit(vectors, queries)
    for row, hits in enumerate(index.search(queries, k=N)):
        order = np.argsort(-scores[row], kind="stable")
        assert names(hits) == [str(i) for i in order]
        np.testing.assert_allclose([hit.score for hit in hits], cosines[row, order], atol=1e-6)


def test_the_reducer_of_vectors_in_memory_agrees(make_index, vectors, queries, texts) -> None:
    index = make_index(encoder=None, dehub="csls")
    index.add(texts, ids=map(str, range(N)), vectors=vectors)
    reducer = HubnessReducer("csls", k=NEIGHBOURS).fit(vectors)
    products = reducer.augment_queries(queries) @ reducer.augment(vectors).T
    for hits, row in zip(index.search(queries, k=10), products, strict=True):
        assert names(hits) == [str(i) for i in np.argsort(-row)[:10]]


def test_none_is_the_plain_index_and_a_plain_index_corrects_its_candidates(make_index, vectors, queries, texts) -> None:
    plain, csls = make_index("a.kx", encoder=None), make_index("b.kx", encoder=None, dehub="csls")
    for index in (plain, csls):
        index.add(texts, ids=map(str, range(N)), vectors=vectors)
    expected = plain.search(queries, k=7)
    assert [names(hits) for hits in csls.search(queries, k=7, dehub="none")] == [names(hits) for hits in expected]
    # With all documents as candidates the correction at search time is that of the index.
    ours, late = csls.search(queries, k=7), plain.search(queries, k=7, dehub="csls", candidates=N)
    assert [names(hits) for hits in late] == [names(hits) for hits in ours] != [names(hits) for hits in expected]
    np.testing.assert_allclose([hit.score for hit in late[0]], [hit.score for hit in ours[0]], atol=1e-6)
    scores, _ = explicit(vectors, queries)  # each of them corrected by its 50 nearest, itself left out
    for row, hits in enumerate(plain.search(queries, k=N, dehub="csls")):
        assert names(hits) == [str(i) for i in np.argsort(-scores[row], kind="stable")]


def test_hubness_falls_and_is_counted_in_the_order_of_the_index(make_index, texts) -> None:
    vectors = np.random.default_rng(2).standard_normal((N, 40)) + 1.0
    plain, csls = make_index("a.kx", encoder=None), make_index("b.kx", encoder=None, dehub="csls")
    for index in (plain, csls):
        index.add(texts, ids=map(str, range(N)), vectors=vectors)
    assert csls.hubness(5).k_skewness < plain.hubness(5).k_skewness / 2
    counts, ids = csls.k_occurrence(5)
    answers = csls.search(vectors, k=6)
    found = [
        name for own, hits in zip(texts, answers, strict=True) for name in [h.id for h in hits if h.text != own][:5]
    ]
    assert {name: int(count) for name, count in zip(ids, counts, strict=True) if count} == {
        name: found.count(name) for name in set(found)
    }


def copies(generator: np.random.Generator, groups: list[int], dim: int) -> np.ndarray:
    """Unit vectors, each so many times, in any order."""
    rows = generator.standard_normal((len(groups), dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[generator.permutation(np.repeat(np.arange(len(groups)), groups))]


@pytest.mark.parametrize(
    ("groups", "dim", "k"), [([200], 16, 10), ([200], 2, 5), ([60, 60, 60], 8, 7), ([1] * 40 + [80], 5, 9)]
)
def test_equal_rows_count_alike_wherever_they_stand(groups: list[int], dim: int, k: int) -> None:
    """Over 200 lots the mean count of equal rows is one number: a place among them is worth nothing."""
    unit = copies(np.random.default_rng(4), groups, dim)
    local = local_means(neighbour_scores(unit))
    stored = append_offsets(unit, local)
    _, which = np.unique(stored, axis=0, return_inverse=True)
    assert len(np.unique(which)) == len(groups), "equal rows have one r, to the bit"
    generator = np.random.default_rng(5)
    queries, one = extend_queries(unit, 1.0), PassageVectors(stored, np.ones(len(unit), np.int64))
    counts = np.stack([count_neighbours(queries, one, k, generator) for _ in range(200)])
    assert (counts.sum(axis=1) == k * len(unit)).all()
    for group in range(len(groups)):
        mean = counts[:, which.ravel() == group].mean(axis=0)
        # Each count is a sum of lots with variance below k n / size: five standard errors of 200 draws.
        bound = 5 * np.sqrt(k * len(unit) / len(mean) / 200)
        assert np.abs(mean - mean.mean()).max() < bound
    if len(groups) == 1:
        assert np.abs(counts.mean(axis=0) - k).max() < 5 * np.sqrt(k / 200)


def test_equal_documents_have_one_r_however_they_come_in(make_index) -> None:
    unit = copies(np.random.default_rng(6), [30, 40, 50], 24)
    index = make_index(encoder=None, dehub="csls")
    index.add([f"first {i}" for i in range(60)], vectors=unit[:60])
    index.add([f"then {i}" for i in range(60)], vectors=unit[60:])
    for again in (False, True):
        if again:
            index.compact()
        stored = np.stack([row.vector for rows in index.store.iterate() for row in rows])
        for part in (stored[:60], stored[60:]) if not again else (stored,):
            assert len(np.unique(part, axis=0)) == 3


def test_neighbourhoods_of_documents_added_later(make_index, vectors, queries, texts) -> None:
    index = make_index(encoder=None, dehub="csls")
    index.add(texts[:100], ids=map(str, range(100)), vectors=vectors[:100])
    index.add(texts[100:], ids=map(str, range(100, N)), vectors=vectors[100:])
    stored = {row.id: row.vector for rows in index.store.iterate() for row in rows}
    _, cosines = explicit(vectors, vectors)
    np.fill_diagonal(cosines, -np.inf)
    last = -np.sort(-cosines[-1])[:NEIGHBOURS].mean() / -2  # sees everyone, also those it came with
    assert stored[str(N - 1)][-1] == pytest.approx(last, abs=1e-6)
    first = -np.sort(-cosines[0, :100])[:NEIGHBOURS].mean() / -2  # was measured before the others came
    assert stored["0"][-1] == pytest.approx(first, abs=1e-6)
    index.compact()
    scores, _ = explicit(vectors, queries)
    for row, hits in enumerate(index.search(queries, k=10)):
        assert names(hits) == [str(i) for i in np.argsort(-scores[row])[:10]]
    assert index.add(texts[:3], ids=["0", "1", "2"], vectors=vectors[:3]).skipped == 3


def test_a_replaced_document_is_no_neighbour_of_itself(make_index, texts) -> None:
    index = make_index(encoder=None, dehub="csls")
    index.add(["a", "b"], ids=["a", "b"], vectors=np.eye(2))
    index.add(["a again"], ids=["a"], vectors=np.array([[3.0, 4.0]]))
    [row] = index.store.get(["a"], vectors=True)
    np.testing.assert_allclose(row.vector, [0.6, 0.8, -0.4], atol=1e-6)


def test_single_document_and_empty_index(make_index) -> None:
    index = make_index(encoder=None, dehub="csls")
    assert index.search(np.ones((1, 2)), dehub="csls") == [[]]
    index.add(["only"], vectors=np.array([[0.0, 2.0]]))
    [[hit]] = index.search(np.array([[0.0, 1.0]]))
    assert hit.score == pytest.approx(1)
    index.compact()
    assert index.info().dehub == "csls"
    assert index.info().dims == 2


@pytest.mark.parametrize("whitening", [None, "fitted", "unfitted"])
@pytest.mark.parametrize("dehub", ["csls", "center"])
def test_a_build_from_files_equals_an_index_made_by_hand(tmp_path: Path, encoder, dehub, whitening) -> None:
    texts = [f"{a} {b} {c}" for a in ("red", "green", "blue") for b in ("cat", "dog", "cow") for c in range(9)]
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(texts))
    chosen = None if whitening is None else Whitening.preset("pca", 8)
    if whitening == "fitted":
        chosen = chosen.fit(encoder.encode(texts))
    report = build_index(source, tmp_path / "built.kx", encoder=encoder, whitening=chosen, dehub=dehub)
    assert report.documents == 81
    with (
        Index.open(tmp_path / "built.kx", encoder=encoder) as built,
        Index.create(tmp_path / "made.kx", encoder, whitening=chosen, dehub=dehub) as made,
    ):
        made.add(texts)
        assert built.info().dehub == made.info().dehub == dehub
        questions = ["red dog", "cow 7", "blue"]
        for ours, theirs in zip(built.search(questions), made.search(questions), strict=True):
            assert names(ours) == names(theirs)
            np.testing.assert_allclose([hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-5)
        percentile = built.calibrate(n=500).percentile([-1.0, 1.0])
        assert percentile[0] < percentile[1]
        assert built.search("red dog", k=1)[0][0].percentile > 80


def test_center_is_the_cosine_of_centred_vectors(make_index, vectors, queries, texts, brute) -> None:
    index = make_index(encoder=None, dehub="center")
    index.add(texts, ids=map(str, range(N)), vectors=vectors)
    mean = vectors.mean(axis=0, dtype=np.float64)
    expected = brute(queries - mean, vectors - mean)
    for row, hits in enumerate(index.search(queries, k=5)):
        assert names(hits) == [str(i) for i in np.argsort(-expected[row])[:5]]
        np.testing.assert_allclose([hit.score for hit in hits], -np.sort(-expected[row])[:5], atol=1e-5)
    with pytest.raises(NotSupported, match="centring is done when an index is built"):
        index.search(queries, dehub="none")


def test_filter_and_rerank_see_the_corrected_order(make_index, vectors, queries, texts) -> None:
    index = make_index(encoder=None, dehub="csls")
    index.add(texts, ids=map(str, range(N)), vectors=vectors, metadata=[{"odd": i % 2} for i in range(N)])
    scores, _ = explicit(vectors, queries)
    odd = np.arange(1, N, 2)
    for row, hits in enumerate(index.search(queries, k=5, filter={"odd": 1})):
        assert names(hits) == [str(i) for i in odd[np.argsort(-scores[row, odd])[:5]]]


def test_an_inverted_file_gives_nearly_the_same_neighbourhoods() -> None:
    pytest.importorskip("faiss")
    unit = np.random.default_rng(3).standard_normal((2000, 8)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    exact, approx = (local_means(neighbour_scores(unit, approx=way)) for way in ("exact", "approx"))
    np.testing.assert_allclose(approx, exact, atol=0.05)
    assert np.corrcoef(approx, exact)[0, 1] > 0.9


def test_bad_values_are_named(make_index, vectors, texts) -> None:
    with pytest.raises(ValueError, match="dehub must be 'csls', 'center' or None, got 'cls'"):
        make_index("a.kx", dehub="cls")
    with pytest.raises(ValueError, match=r"the whitening has beta=0\.5"):
        make_index("b.kx", dehub="center", whitening=Whitening(beta=0.5))
    index = make_index("c.kx", encoder=None)
    index.add(texts, vectors=vectors)
    with pytest.raises(ValueError, match="got 'cls'"):
        index.search(vectors[:1], dehub="cls")
    with pytest.raises(NotSupported, match="built with dehub=None"):
        index.search(vectors[:1], dehub="center")
