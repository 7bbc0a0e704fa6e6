"""A copy of an index is the index."""

from __future__ import annotations

import numpy as np
import pytest

from kexue.errors import IndexFormatError
from kexue.search import Index, IndexExistsError, copy_index
from kexue.similarity import Whitening

TEXTS = [f"{a} {b} {c}" for a in ("red", "green", "blue") for b in ("cat", "dog", "cow") for c in range(6)]


def filled(make_index):
    index = make_index("a.kx", whitening=Whitening.preset("pca", 6), dehub="csls")
    index.add(TEXTS, metadata=[{"n": i} for i in range(len(TEXTS))])
    index.delete(filter={"n": 3})
    index.calibrate(n=200)
    return index


def test_a_copy_gives_the_same_answers(make_index, tmp_path, encoder) -> None:
    filled(make_index)
    told = []
    assert copy_index(tmp_path / "a.kx", tmp_path / "b.kx", progress=lambda *x: told.append(x)) == len(TEXTS) - 1
    assert told[-1] == (len(TEXTS) - 1, len(TEXTS) - 1)
    with Index.open(tmp_path / "a.kx", encoder=encoder) as a, Index.open(tmp_path / "b.kx", encoder=encoder) as b:
        for query in ("red dog", "cow 3"):
            assert a.search(query, k=8) == b.search(query, k=8)
        ours, theirs = a.info(), b.info()
        assert (ours.whitening, ours.dehub, ours.calibration) == (theirs.whitening, theirs.dehub, theirs.calibration)
        b.add(["something new"])
        assert len(a) + 1 == len(b)


def test_to_milvus_and_back(make_index, tmp_path, encoder) -> None:
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    original = filled(make_index)
    there = f"milvus://{tmp_path}/lite.db#copied"
    assert copy_index(tmp_path / "a.kx", there) == len(TEXTS) - 1
    with Index.open(there, encoder=encoder) as remote:
        [ours], [theirs] = original.search("red dog", k=8), remote.search("red dog", k=8)
        assert [hit.id for hit in ours] == [hit.id for hit in theirs]
        np.testing.assert_allclose([hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-6)
    assert copy_index(there, tmp_path / "back.kx") == len(TEXTS) - 1
    with Index.open(tmp_path / "back.kx", encoder=encoder) as back:
        assert [hit.id for hit in back.search("red dog", k=8)[0]] == [hit.id for hit in ours]


def test_nothing_is_overwritten_unasked(make_index, tmp_path) -> None:
    filled(make_index)
    make_index("b.kx").add(["keep me"])
    for target in ("a.kx", "b.kx"):
        with pytest.raises(IndexExistsError):
            copy_index(tmp_path / "a.kx", tmp_path / target)
    with pytest.raises(IndexExistsError, match="itself"):
        copy_index(tmp_path / "a.kx", tmp_path / "a.kx", overwrite=True)
    with pytest.raises(IndexFormatError):
        copy_index(tmp_path / "nosuch.kx", tmp_path / "c.kx")
    assert not (tmp_path / "c.kx").exists()
