"""What the overview says of how much it knows: the sample, the interval, the level of chance, the variance drawn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("fastapi")

from scipy.stats import beta
from starlette.testclient import TestClient

from kexue.search import Index
from kexue.serve import Settings, create_app, overview
from kexue.similarity import known_item


@pytest.fixture
def long_texts(tmp_path, encoder, texts):
    """An index of 104 texts that can be cut in halves."""
    with Index.create(tmp_path / "long.kx", encoder) as index:
        index.add([f"{a} and then {b}" for a, b in pairwise(texts)])
    with TestClient(create_app(Settings(indexes=[tmp_path / "long.kx"], api_keys={}))) as client:
        yield client


def test_the_map_is_the_plane_of_most_variance_and_says_how_much(client, indexes) -> None:
    with Index.open(indexes[0], readonly=True) as index:
        rows, vectors = index.sample(50)
        everything, others = index.vectors([f"t{n}" for n in range(5)])
    found = client.get("/v1/indexes/plain/map", params={"sample": 50}).json()
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    _, spread, directions = np.linalg.svd(centred)
    assert (found["sample"], found["documents"]) == (50, 105)
    assert found["explained"] == pytest.approx((spread[:2] ** 2).sum() / (spread**2).sum(), abs=1e-6)
    assert [point["id"] for point in found["points"]] == [row.id for row in rows]
    for side, axis in enumerate("xy"):
        expected = centred @ directions[side]
        drawn = np.array([point[axis] for point in found["points"]])
        sign = np.sign(drawn @ expected)
        np.testing.assert_allclose(drawn, sign * expected, atol=2e-4)
        # Others are placed in the same plane, whether they were drawn or not, in the order they are asked for.
        ids = [document.id for document in everything]
        placed = client.get("/v1/indexes/plain/map", params={"sample": 50, "id": ids}).json()
        assert [point["id"] for point in placed["points"]] == ids
        assert placed["sample"] == 50
        expected = (others - vectors.mean(axis=0, dtype=np.float64)) @ directions[side]
        np.testing.assert_allclose([point[axis] for point in placed["points"]], sign * expected, atol=2e-4)
    unknown = client.get("/v1/indexes/plain/map", params={"id": "nosuch"}).json()
    assert unknown["points"] == []


def test_vectors_are_of_length_1_without_the_offset_of_hubs(indexes) -> None:
    with Index.open(indexes[1], readonly=True) as index:  # built with csls
        rows, vectors = index.sample(1000)
        documents, same = index.vectors([row.id for row in rows[:7]])
        assert documents == rows[:7]
        np.testing.assert_array_equal(same, vectors[:7])
        np.testing.assert_allclose(np.linalg.norm(same, axis=1), 1, atol=1e-5)
        assert index.vectors(["nosuch"])[0] == []


def test_texts_of_a_list_of_many_are_shortened(tmp_path, encoder, texts) -> None:
    with Index.create(tmp_path / "long.kx", encoder) as index:
        index.add([f"{head} " + "A" * 20_000 for head in texts[:5]])
    with TestClient(create_app(Settings(indexes=[tmp_path / "long.kx"], api_keys={}))) as client:
        for point in client.get("/v1/indexes/long/map").json()["points"]:
            assert len(point["text"]) < 400
            assert point["text"].endswith(" characters)")
        assert len(client.get("/v1/hubness", params={"k": 2}).text) < 5000
        hit = client.post("/v1/search", json={"query": "dog"}).json()["results"][0]
        assert len(hit["document"]["text"]) > 20_000  # an answer is whole


def test_quality_comes_with_its_interval_and_the_level_of_chance(long_texts) -> None:
    found = long_texts.get("/v1/indexes/long/whitening").json()
    n = found["texts"]
    assert (n, found["sample"], found["documents"]) == (104, 104, 104)
    for row in found["rows"]:
        assert 0 <= row["low"] < row["score"] < row["high"] <= 1
        found_ones = row["score"] * n  # as many ones among n: no numbers in [0, 1] of this mean vary more
        assert beta.cdf(row["low"], max(found_ones, 1), n - found_ones + 1) == pytest.approx(0.025, rel=1e-6)
        assert beta.sf(row["high"], found_ones + 1, n - found_ones) == pytest.approx(0.025, rel=1e-6)
    ranks = np.concatenate([np.random.default_rng(seed).permutation(n) + 1 for seed in range(500)])
    assert found["chance"] == pytest.approx(known_item(ranks, k=10)["mrr"], rel=1e-9)  # each rank 500 times


def test_no_signal_is_told_from_signal(tmp_path, encoder, texts) -> None:
    """Halves that have nothing to do with each other do not beat chance; halves that share words do."""
    random = np.random.default_rng(3)
    words = [text.split()[k] for text in texts for k in (1, 2, 3)]
    draw = lambda: " ".join(random.choice(words, 6))  # noqa: E731
    with Index.create(tmp_path / "noise.kx", encoder) as index:
        index.add([f"{draw()} {draw()}" for _ in range(60)])
    with TestClient(create_app(Settings(indexes=[tmp_path / "noise.kx"], api_keys={}))) as client:
        found = client.get("/v1/indexes/noise/whitening").json()
    assert found["rows"][0]["low"] <= found["chance"]
    assert found["decided"] is False


def test_settings_are_told_apart_only_where_the_same_texts_differ_beyond_doubt() -> None:
    random = np.random.default_rng(0)
    reached = 0
    for _ in range(200):  # forty settings of one quality: the best and the worst of them differ by chance
        common = random.random(300)
        reached += overview.tells_apart([np.clip(common + random.normal(0, 0.1, 300), 0, 1) for _ in range(40)])
    assert reached <= 20
    worse = [common, np.clip(common - 0.1, 0, 1)]
    assert overview.tells_apart(worse)
    assert not overview.tells_apart([common, common])


def test_too_few_texts_are_counted(client) -> None:
    found = client.get("/v1/indexes/plain/whitening").json()
    assert (found["rows"], found["texts"], found["documents"]) == ([], 0, 105)


def test_samples_are_called_samples(client, monkeypatch) -> None:
    assert client.get("/v1/hubness", params={"k": 3}).json()["documents"] == 105
    monkeypatch.setattr("kexue.search.sample.SAMPLE", 40)
    part = client.get("/v1/hubness", params={"k": 4}).json()
    assert (part["n"], part["documents"]) == (40, 105)
    assert part["warnings"] == ["measured on 40 of 105 documents, drawn at random."]
    monkeypatch.setattr(overview, "_SAMPLE", 30)
    found = client.get("/v1/indexes/small/whitening").json()
    assert found["sample"] == 30
    assert found["warnings"] == ["measured on 30 of 105 documents, drawn at random."]
    assert "warnings" not in client.get("/v1/indexes/small/map").json()
