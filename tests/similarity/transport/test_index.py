import numpy as np
import pytest

from kexue.similarity import TransportIndex, word_movers_distance, word_rotators_distance

DISTANCE = {"wrd": word_rotators_distance, "wmd": word_movers_distance}
KINDS = ["wrd", "wmd"]


def corpus(count, d=8, seed=0, spread=1.0, dtype=np.float64):
    """Sentences of words drawn from a few topics, so that some are near; one comes twice, one holds a zero vector."""
    generator = np.random.default_rng(seed)
    vocabulary = generator.normal(size=(60, d)) * generator.gamma(3, 1, size=(60, 1)) * spread + 0.3
    documents = []
    for i in range(count):
        words = generator.integers(20 * (i % 3), 20 * (i % 3) + 20, size=int(generator.integers(1, 9)))
        documents.append((vocabulary[words] + 0.1 * generator.normal(size=(len(words), d))).astype(dtype))
    documents[5] = documents[2].copy()
    documents[7] = np.concatenate([documents[7], np.zeros((1, d), dtype)])
    return documents


def brute(kind, documents, query, k):
    distances = np.array([DISTANCE[kind](query, document) for document in documents])
    order = np.argsort(distances, kind="stable")[:k]
    return order.tolist(), distances[order]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d", "dtype", "spread"), [(8, np.float64, 1.0), (96, np.float32, 1.0), (3, np.float32, 1e4)])
def test_equals_brute_force(kind, d, dtype, spread):
    documents = corpus(150, d, spread=spread, dtype=dtype)
    index = TransportIndex(kind).add(documents[:140])
    for query in documents[140:]:
        for k in (1, 10):
            ids, distances = brute(kind, documents[:140], query, k)
            for prune in (True, False):
                hits = index.search(query, k, prune=prune)
                assert hits.ids == ids
                assert hits.distances.tolist() == distances.tolist()  # the same computation: the same bits
                assert hits.stats.exact
                assert sum(hits.stats[:3]) == 140


SIZES = [1e-200, 1e-150, 1e-44, 1e-22, 1e-8, 1e8, 1e20, 1e40, 1e150, 1e200]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [6, 96])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("relative", [1.0, 1e-30, 1e30])  # of the query to the documents
def test_equals_brute_force_at_every_scale(kind, d, size, relative):
    documents = [document * size for document in corpus(60, d)]
    index = TransportIndex(kind).add(documents[:55])
    for query in documents[55:]:
        asked = query * relative
        hits = index.search(asked, 4)
        ids, distances = brute(kind, documents[:55], asked, 4)
        assert hits.stats.exact
        assert hits.distances.tolist() == distances.tolist()
        if kind == "wrd" or relative == 1:
            assert hits.ids == ids


@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_every_size_in_one_index(kind):
    documents = [document * 10.0 ** (40 * (i % 9) - 160) for i, document in enumerate(corpus(90))]
    documents += [np.vstack([document, document[:1] * 1e-44]) for document in corpus(20, seed=1)]  # a faint token
    index = TransportIndex(kind)
    for start in range(0, 110, 11):  # parts larger than what the table was fitted on
        index.add(documents[start : start + 11])
        index.search(documents[0], 1)
    for query in documents[::7]:
        hits = index.search(query, 5)
        ids, distances = brute(kind, documents, query, 5)
        assert hits.distances.tolist() == distances.tolist()
        assert hits.ids == ids


@pytest.mark.parametrize("kind", KINDS)
def test_the_usual_scales_prune_alike(kind):
    documents = corpus(200)
    solved = set()
    for size in (1.0, 2.0**70, 2.0**-70, 2.0**300):
        index = TransportIndex(kind).add([document * size for document in documents[:190]])
        solved.add(sum(index.search(query * size, 5).stats.n_exact for query in documents[190:]))
    assert max(solved) < 10 * 190 / 2
    assert max(solved) - min(solved) <= 0.05 * max(solved)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_vectors_change_nothing_but_the_work(kind):
    """Many coordinates, few of them long: the index cuts, and stays exact."""
    generator = np.random.default_rng(3)
    decay = np.where(np.arange(128) < 12, 3.0, 0.15)
    documents = [generator.normal(size=(int(generator.integers(2, 9)), 128)) * decay for _ in range(300)]
    index = TransportIndex(kind).add(documents[:290])
    solved = 0
    for query in documents[290:]:
        hits = index.search(query + 0.01, 5)
        assert index._table.is_truncated
        ids, distances = brute(kind, documents[:290], query + 0.01, 5)
        assert (hits.ids, hits.distances.tolist()) == (ids, distances.tolist())
        solved += hits.stats.n_exact
    assert solved < 10 * 290 / 2  # it does prune


@pytest.mark.parametrize("kind", KINDS)
def test_near_duplicates_in_float32(kind):
    """Distances that differ by less than the rounding of the float32 products still come in the right order."""
    generator = np.random.default_rng(0)
    base = generator.normal(size=(6, 100)) * 50
    documents = [(base + 1e-5 * i * generator.normal(size=base.shape)).astype(np.float64) for i in range(40)]
    index = TransportIndex(kind).add(documents)
    hits = index.search(base, 10)
    ids, distances = brute(kind, documents, base, 10)
    assert (hits.ids, hits.distances.tolist()) == (ids, distances.tolist())


def test_ties_come_in_the_order_of_insertion():
    document = np.random.default_rng(0).normal(size=(4, 3))
    other = np.random.default_rng(1).normal(size=(4, 3))
    index = TransportIndex("wrd").add([other, document, other, document, document], ids=list("abcde"))
    hits = index.search(document, 4)
    assert hits.ids == ["b", "d", "e", "a"]
    assert index.search(document, 2).ids == ["b", "d"]


@pytest.mark.parametrize("kind", KINDS)
def test_documents_may_come_in_parts(kind):
    documents = corpus(120)
    parts = TransportIndex(kind)
    for start in (0, 1, 40, 50, 119):
        end = {0: 1, 1: 40, 40: 50, 50: 119, 119: 120}[start]
        parts.add(documents[start:end])
        parts.search(documents[0], 3)
    assert len(parts) == 120
    whole = TransportIndex(kind).add(iter(documents))
    for query in documents[::20]:
        a, b = parts.search(query, 7), whole.search(query, 7)
        assert (a.ids, a.distances.tolist()) == (b.ids, b.distances.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_empty_documents_are_infinitely_far(kind):
    documents = corpus(8)[:6]
    nothing = np.empty((0, 8)) if kind == "wmd" else np.zeros((3, 8))
    index = TransportIndex(kind).add([nothing, *documents, nothing], ids=list("abcdefgh"))
    hits = index.search(documents[0], 10)
    assert len(hits.ids) == 8
    assert hits.ids[-2:] == ["a", "h"]
    assert np.isinf(hits.distances[-2:]).all()
    assert np.isfinite(hits.distances[:-2]).all()
    assert sum(hits.stats[:3]) == 8
    assert index.search(documents[0], 7).ids[-1] == "a"
    lost = index.search(np.empty((0, 8)), 3)
    assert lost.ids == ["a", "b", "c"]
    assert np.isinf(lost.distances).all()


def test_small_indexes():
    empty = TransportIndex()
    assert empty.search(np.ones((1, 3))).ids == []
    assert len(empty.search(np.ones((1, 3))).distances) == 0
    one = TransportIndex().add([np.ones((2, 3))], ids=["only"])
    assert one.search([[2.0, 2.0, 2.0]], k=5).ids == ["only"]


@pytest.mark.parametrize("kind", KINDS)
def test_max_exact(kind):
    documents = corpus(150)
    index = TransportIndex(kind).add(documents)
    query = documents[0] + 0.5
    full = index.search(query, 10)
    some = index.search(query, 10, max_exact=12)
    assert some.stats.n_exact <= 12
    assert len(some.ids) == 10
    assert (some.distances >= full.distances).all()
    assert some.ids == full.ids or not some.stats.exact
    plenty = index.search(query, 10, max_exact=150)
    assert plenty.ids == full.ids
    assert plenty.stats.exact
    few = index.search(query, 10, max_exact=3)
    assert (len(few.ids), few.stats.exact, few.stats.n_exact) == (3, False, 3)
    assert index.search(query, 10, prune=False, max_exact=5).stats == (5, 0, 145, False)


def test_highs_serves_too():
    documents = corpus(40)
    hits = TransportIndex("wrd", solver="highs").add(documents).search(documents[3] + 0.2, 5)
    expected = TransportIndex("wrd").add(documents).search(documents[3] + 0.2, 5)
    assert hits.ids == expected.ids
    np.testing.assert_allclose(hits.distances, expected.distances, atol=1e-12)


def test_what_does_not_fit_is_named_and_nothing_is_added():
    index = TransportIndex("wmd").add([np.ones((2, 3))], ids=["a"])
    bad = np.ones((2, 3))
    bad[1, 2] = np.nan
    for documents, ids, message in (
        ([np.ones((1, 3)), bad], None, r"documents\[1\] holds nan"),
        ([np.ones((1, 4))], None, r"documents\[0\] must hold vectors of 3 dimensions"),
        ([np.ones((1, 3))], ["b", "c"], "each of the 1 documents, got 2"),
        ([np.ones((1, 3))], ["a"], "'a' comes twice"),
        ([np.ones((1, 3))] * 2, ["b", "b"], "'b' comes twice"),
    ):
        with pytest.raises(ValueError, match=message):
            index.add(documents, ids)
    assert len(index) == 1
    for k, x, message in (
        (0, np.ones((1, 3)), "k must be"),
        (True, np.ones((1, 3)), "k must be"),
        (3, np.ones((1, 2)), "3 dimensions"),
        (3, np.ones(3), "2-dimensional"),
    ):
        with pytest.raises(ValueError, match=message):
            index.search(x, k)
    with pytest.raises(ValueError, match="max_exact must be"):
        index.search(np.ones((1, 3)), max_exact=0)
    with pytest.raises(ValueError, match="kind must be one of"):
        TransportIndex("emd")
