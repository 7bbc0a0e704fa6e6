"""Groups of near-duplicates against brute force in float64, a walk over its graph, and known copies."""

import numpy as np
import pytest

from kexue.search import Index, find_duplicates
from kexue.search.duplicates import choose_threshold


def components(linked):
    """Connected components of a boolean matrix, by walking; those of two or more, as sorted tuples."""
    left, found = set(range(len(linked))), set()
    while left:
        stack, seen = [left.pop()], set()
        while stack:
            at = stack.pop()
            seen.add(at)
            near = set(np.flatnonzero(linked[at]).tolist()) & left
            left -= near
            stack += near
        found.add(tuple(sorted(seen)))
    return {group for group in found if len(group) > 1}


def unit(vectors):
    return vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)


@pytest.fixture
def clouds():
    """Vectors (1300, 16): close groups of 2 to 40, chains, and single ones; more than one block."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(60, 16))
    sizes = random.integers(1, 40, 60)
    grouped = np.repeat(centres, sizes, axis=0) + random.normal(scale=0.08, size=(sizes.sum(), 16))
    vectors = np.concatenate([grouped, random.normal(size=(1300 - len(grouped), 16))])[:1300]
    return vectors[random.permutation(len(vectors))].astype(np.float32)


@pytest.fixture
def index_of(make_index):
    def index_of(vectors, name="v.kx", **options):
        index = make_index(name, encoder=None, **options)
        index.add([f"text {n}" for n in range(len(vectors))], ids=list(range(len(vectors))), vectors=vectors)
        return index

    return index_of


def rows_of(report):
    return [tuple(int(document.id) for document in group.documents) for group in report.groups]


@pytest.mark.parametrize("threshold", [0.7, 0.95, 0.99])
@pytest.mark.parametrize("dehub", [None, "csls"])
def test_groups_are_the_components_of_all_pairs(index_of, clouds, threshold, dehub):
    report = find_duplicates(index_of(clouds, dehub=dehub), threshold)
    cosines = unit(clouds) @ unit(clouds).T
    expected = components(cosines >= threshold - 1e-6)  # rounding of float32 is allowed for
    groups = rows_of(report)
    assert set(groups) == expected
    assert len(groups) == len(expected)
    assert groups == sorted(groups, key=lambda rows: (-len(rows), rows[0]))
    assert (report.documents, report.threshold, report.origin, report.exact) == (1300, threshold, "given", True)
    assert report.duplicates == sum(map(len, expected)) - len(expected)
    for rows, group in zip(groups, report.groups, strict=True):
        assert group.scores == pytest.approx(cosines[rows[0], list(rows)].tolist(), abs=1e-5)


def test_equal_texts_meet_a_threshold_of_one(index_of):
    random = np.random.default_rng(1)
    vectors = random.normal(size=(40, 7)).astype(np.float32)
    report = find_duplicates(index_of(np.concatenate([vectors, vectors * 3])), 1.0)
    assert rows_of(report) == [(n, n + 40) for n in range(40)]


def test_a_large_index_is_compared_with_its_nearest(index_of, clouds, monkeypatch):
    pytest.importorskip("faiss")
    index = index_of(clouds)
    expected = rows_of(find_duplicates(index, 0.97))
    monkeypatch.setattr("kexue.search.duplicates.EXACT", 1000)
    report = find_duplicates(index, 0.97)
    assert not report.exact
    assert report.documents == 1300
    pairs = {(rows[0], row) for rows in expected for row in rows[1:]}
    ours = {row: rows for rows in rows_of(report) for row in rows}
    joined = sum(b in ours.get(a, ()) for a, b in pairs)
    assert joined >= 0.95 * len(pairs)  # an approximate engine may miss some; it joins nothing that is not near
    linked = np.zeros((1300, 1300), bool)
    for rows in expected:
        linked[np.ix_(rows, rows)] = True
    assert all(linked[rows[0], row] for rows in rows_of(report) for row in rows[1:])


def test_the_threshold_follows_the_scale_of_the_scores(index_of, clouds):
    index = index_of(clouds)
    cosines = (unit(clouds) @ unit(clouds).T)[np.triu_indices(1300, 1)]
    report = find_duplicates(index)
    assert report.origin == "random pairs"
    assert report.threshold == pytest.approx(1 - 0.1 * (1 - np.quantile(cosines, 0.9)), abs=0.003)
    index.calibrate(n=5000, generator=3)
    calibrated = find_duplicates(index)
    assert calibrated.origin == "calibration"
    assert calibrated.threshold == choose_threshold(index.calibrator.null_)
    # all vectors moved towards one another: another scale of cosines, the same groups
    shifted = clouds / np.linalg.norm(clouds, axis=1, keepdims=True) + np.full(16, 1.0, np.float32)
    moved = find_duplicates(index_of(shifted, "moved.kx"))
    assert moved.threshold > report.threshold + 0.02
    assert choose_threshold(np.full(9, 0.5)) == pytest.approx(0.95)


def test_few_documents(index_of):
    assert find_duplicates(index_of(np.eye(1), "one.kx")).groups == []
    assert find_duplicates(index_of(np.eye(2), "two.kx")).groups == []
    same = find_duplicates(index_of(np.ones((2, 3)), "same.kx"))
    assert rows_of(same) == [(0, 1)]
    zero = find_duplicates(index_of(np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), "zero.kx"))
    assert zero.groups == []  # a vector without a direction is near nothing


def test_an_empty_index(make_index, gram_encoder):
    report = find_duplicates(make_index("empty.kx", encoder=gram_encoder()))
    assert (report.documents, report.groups, report.duplicates) == (0, [], 0)


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan")])
def test_a_threshold_that_is_refused(index_of, threshold):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        find_duplicates(index_of(np.eye(2)), threshold)


def test_progress_and_the_text_of_a_group(make_index):
    index = make_index("texts.kx")
    index.add(
        ["how long does a refund take", "how long does a refund take?", "the dog sleeps"], metadata=[{"n": 1}] * 3
    )
    seen = []
    report = find_duplicates(index, 0.8, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 3)]
    [group] = report.groups
    assert [(document.text, document.metadata) for document in group.documents] == [
        ("how long does a refund take", {"n": 1}),
        ("how long does a refund take?", {"n": 1}),
    ]
    with Index.open(index.encoder.path, readonly=True) as again:  # nothing was written
        assert len(again) == 3
