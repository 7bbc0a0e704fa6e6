"""One index from several: same documents, same hits, same refusals as building it from all files at once."""

import json

import numpy as np
import pytest

from kexue.errors import DataError, NotSupported, SpaceMismatchError
from kexue.search import Index, IndexBusyError, IndexExistsError, check_index, merge_indexes
from kexue.similarity import ScoreCalibrator, Whitening

TEXTS = [f"text {word} {n}" for n, word in enumerate(["dog", "cat", "ball", "park", "退货", "refund", "bank", "card"])]


@pytest.fixture
def make(tmp_path, gram_encoder):
    """Write an index of texts; ids are the first words with a number."""

    def make(name, texts, *, metadata=None, seed=0, ids=None, **options):
        path = str(tmp_path / f"{name}.kx")
        with Index.create(path, gram_encoder(seed=seed), **options) as index:
            index.add(texts, ids=ids, metadata=metadata)
        return path

    return make


def documents(path):
    with Index.open(path, readonly=True) as index:
        return {document.id: (document.text, document.metadata) for document in index.list(limit=1000)}


@pytest.mark.parametrize("dehub", [None, "csls"])
def test_merged_is_as_built_from_all(make, tmp_path, gram_encoder, dehub):
    a, b = make("a", TEXTS[:3], dehub=dehub), make("b", TEXTS[3:], dehub=dehub)
    whole = make("whole", TEXTS, dehub=dehub)
    report = merge_indexes(tmp_path / "all.kx", [a, b])
    assert (report.documents, report.same, report.replaced) == (8, 0, 0)
    assert report.sources == [{"index": a, "documents": 3}, {"index": b, "documents": 5}]
    assert documents(tmp_path / "all.kx") == documents(whole)
    assert check_index(tmp_path / "all.kx").ok
    encoder = gram_encoder()
    with Index.open(tmp_path / "all.kx", encoder=encoder) as merged, Index.open(whole, encoder=gram_encoder()) as other:
        for text in TEXTS:
            ours, theirs = merged.search(text, k=8)[0], other.search(text, k=8)[0]
            assert [hit.id for hit in ours] == [hit.id for hit in theirs]
            assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-6)
        assert encoder.encoded == TEXTS  # the queries alone: no document was encoded again
        merged.add(["one more text"])  # it can be written like any other
        assert len(merged) == 9


def test_the_same_whitening_is_kept_and_another_one_refused(make, tmp_path, gram_encoder):
    vectors = gram_encoder().encode(TEXTS)
    fitted = Whitening(n_components=5).fit(vectors)
    a, b = make("a", TEXTS[:4], whitening=fitted), make("b", TEXTS[4:], whitening=fitted)
    merge_indexes(tmp_path / "all.kx", [a, b])
    with Index.open(tmp_path / "all.kx", encoder=gram_encoder()) as index:
        assert index.space.digest() == Index.open(a, readonly=True).space.digest()
        _, unit = index.vectors([index.list()[0].id])
        assert unit.shape == (1, 5)
        drift = index.info().drift
    whole = make("whole", TEXTS, whitening=fitted)
    with Index.open(whole, readonly=True) as index:
        assert drift == pytest.approx(index.info().drift)
    other = make("other", TEXTS[4:], whitening=Whitening(n_components=5).fit(vectors[:6]))
    for wrong in (other, make("raw", TEXTS[4:]), make("seed", TEXTS[4:], seed=1), make("hub", TEXTS[4:], dehub="csls")):
        with pytest.raises(SpaceMismatchError) as caught:
            merge_indexes(tmp_path / "no.kx", [a, wrong])
        assert a in str(caught.value)
        assert wrong in str(caught.value)
        assert not (tmp_path / "no.kx").exists()


def test_ids_with_different_contents(make, tmp_path):
    a = make("a", ["old", "same", "mine"], ids=["x", "s", "m"], metadata=[{"n": 1}, {"n": 2}, {"n": 3}])
    b = make("b", ["new", "same", "yours"], ids=["x", "s", "y"], metadata=[{"n": 1}, {"n": 2}, {}])
    with pytest.raises(DataError, match=r"1 id has different contents: 'x' in .*a\.kx and .*b\.kx"):
        merge_indexes(tmp_path / "all.kx", [a, b])
    assert not list(tmp_path.glob("all*"))
    for prefer, text in (("first", "old"), ("last", "new")):
        report = merge_indexes(tmp_path / "all.kx", [a, b], prefer=prefer, overwrite=True)
        assert (report.documents, report.same, report.replaced) == (4, 1, 1)
        expected = {"x": (text, {"n": 1}), "s": ("same", {"n": 2}), "m": ("mine", {"n": 3}), "y": ("yours", {})}
        assert documents(tmp_path / "all.kx") == expected
        assert check_index(tmp_path / "all.kx").ok
    c = make("c", ["same"], ids=["s"], metadata=[{"n": 9}])  # the text is the same, the metadata are not
    with pytest.raises(DataError, match="'s'"):
        merge_indexes(tmp_path / "no.kx", [a, c])


def test_every_conflict_is_counted_and_some_are_named(make, tmp_path):
    ids = [f"i{n}" for n in range(12)]
    a, b = make("a", [f"a {n}" for n in ids], ids=ids), make("b", [f"b {n}" for n in ids], ids=ids)
    with pytest.raises(DataError, match=r"12 ids have different contents: 'i0' .*; and 7 more") as caught:
        merge_indexes(tmp_path / "all.kx", [a, b])
    assert "--prefer" in caught.value.remedy


def test_calibration_and_columns(make, tmp_path, gram_encoder):
    a, b = make("a", TEXTS[:4]), make("b", TEXTS[4:])
    with Index.open(a, encoder=gram_encoder()) as index:
        saved = tmp_path / "calibration"
        ScoreCalibrator().fit(np.linspace(-1, 1, 9)).save(saved)
        entries = {"calibration": saved.read_bytes(), "calibration_facts": "{}"}
        index.store.upsert([], metadata=entries)
        index.hubness(2)
    for path, fields in ((a, ["lang"]), (b, ["year", "lang"])):
        with Index.open(path) as index:
            columns = {"text": "q", "id": "n", "metadata": fields}
            index.store.upsert([], metadata={"columns": json.dumps(columns)})
    report = merge_indexes(tmp_path / "all.kx", [a, b])
    assert [("calibration" in warning, a in warning) for warning in report.warnings] == [(True, True)]
    with Index.open(tmp_path / "all.kx", readonly=True) as index:
        assert not {"calibration", "calibration_facts", "hubness"} & set(index.store.metadata())
        assert index.calibrator is None
        assert index.schema["metadata"] == ["lang", "year"]
    with Index.open(b) as index:
        index.store.upsert([], metadata={"columns": json.dumps({"text": "other", "id": "n", "metadata": []})})
    report = merge_indexes(tmp_path / "all.kx", [a, b], overwrite=True)
    assert any("--text" in warning for warning in report.warnings)
    with Index.open(tmp_path / "all.kx", readonly=True) as index:
        assert index.schema["text"] is None


def test_empty_indexes_and_vectors_of_no_named_encoder(tmp_path, make, gram_encoder):
    empty = str(tmp_path / "empty.kx")
    Index.create(empty, gram_encoder()).close()
    report = merge_indexes(tmp_path / "all.kx", [empty, make("a", TEXTS[:2])])
    assert (report.documents, report.warnings) == (2, [])
    assert merge_indexes(tmp_path / "none.kx", [empty, empty]).documents == 0
    for name, vectors in (("v", np.eye(2)), ("w", np.eye(3)), ("x", np.eye(2))):
        with Index.create(tmp_path / f"{name}.kx", None) as index:
            index.add([f"{name}{n}" for n in range(len(vectors))], vectors=vectors)
    with pytest.raises(SpaceMismatchError, match=r"v\.kx and .*w\.kx"):
        merge_indexes(tmp_path / "no.kx", [tmp_path / "v.kx", tmp_path / "w.kx"])
    [warning] = merge_indexes(tmp_path / "vx.kx", [tmp_path / "v.kx", tmp_path / "x.kx"]).warnings
    assert "does not record its encoder" in warning


def test_places_that_are_refused(make, tmp_path):
    a, b = make("a", TEXTS[:2]), make("b", TEXTS[2:])
    with pytest.raises(ValueError, match="two indexes or more, got 1"):
        merge_indexes(tmp_path / "all.kx", [a])
    with pytest.raises(ValueError, match="'first', 'last' or None, got 'newest'"):
        merge_indexes(tmp_path / "all.kx", [a, b], prefer="newest")
    with pytest.raises(IndexExistsError, match=r"b\.kx"):
        merge_indexes(b, [a, b], overwrite=True)
    with pytest.raises(IndexExistsError, match="exists already"):
        merge_indexes(make("c", TEXTS[:1]), [a, b])
    with pytest.raises(NotSupported, match="Milvus"):
        merge_indexes("milvus://127.0.0.1:1/all", [a, b])
    assert len(documents(b)) == 6


def test_what_an_interrupted_run_left_is_replaced(make, tmp_path, monkeypatch):
    a, b = make("a", TEXTS[:2]), make("b", TEXTS[2:])
    target = tmp_path / "all.kx"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_indexes(target, [a, b], progress=stop)
    assert not target.exists()
    seen = []
    assert merge_indexes(target, [a, b], progress=lambda done, total: seen.append((done, total))).documents == 8
    assert seen[-1] == (8, 8)
    assert target.exists()
    assert not [path.name for path in tmp_path.iterdir() if "partial" in path.name]


def test_a_merge_is_as_private_as_its_sources(make, tmp_path):
    a, b = make("a", TEXTS[:2]), make("b", TEXTS[2:])
    (tmp_path / "a.kx").chmod(0o600)
    merge_indexes(tmp_path / "all.kx", [a, b])
    assert (tmp_path / "all.kx").stat().st_mode & 0o777 == 0o600


def test_of_two_merges_at_once_the_loser_says_why(make, tmp_path):
    a, b = make("a", TEXTS[:2]), make("b", TEXTS[2:])
    target = tmp_path / "all.kx"
    others = []

    def meanwhile(done, total):
        if not others:
            others.append(None)
            others[0] = merge_indexes(target, [a, b])

    with pytest.raises((IndexBusyError, IndexExistsError), match=r"another process writes .*all\.kx|exists already"):
        merge_indexes(target, [a, b], progress=meanwhile)
    assert others[0].documents == len(documents(target)) == 8
    assert check_index(target).ok
