"""The arithmetic of sizes against files and engines that exist."""

from __future__ import annotations

import os

import numpy as np
import pytest

from kexue.search import plan_capacity
from kexue.search.capacity import BYTES_PER_TOKEN
from kexue.search.engine import InvertedEngine, build_engine


@pytest.mark.parametrize("dims", [64, 384])
def test_disk_is_that_of_an_index(make_index, tmp_path, dims) -> None:
    n, tokens = 3000, 20
    index = make_index("sized.kx", encoder=None)
    generator = np.random.default_rng(0)
    words = np.array([f"{i:x}".rjust(4, "x") for i in generator.permutation(5000)])
    weights = 1 / np.arange(10, 5010)
    texts = [" ".join(row) for row in words[generator.choice(5000, (n, tokens), p=weights / weights.sum())]]
    assert sum(map(len, texts)) / n == pytest.approx(BYTES_PER_TOKEN * tokens, rel=0.1)
    index.add(texts, ids=[str(i) for i in range(n)], vectors=generator.standard_normal((n, dims)))
    index.compact()
    size = index.store.size()
    index.close()
    assert size == sum(os.path.getsize(tmp_path / f"sized.kx{ending}") for ending in ("", "-snapshot", "-words"))
    assert plan_capacity(n, dims, tokens=tokens).disk_bytes == pytest.approx(size, rel=0.1)


def test_memory_of_an_inverted_file_is_that_of_its_snapshot(tmp_path) -> None:
    pytest.importorskip("faiss")
    n, dims = 20_000, 32
    vectors = np.random.default_rng(0).standard_normal((n, dims)).astype(np.float32)
    engine = build_engine([(np.arange(n), vectors)], lambda size: vectors[:size], n=n, dims=dims, approx="approx")
    engine.save(tmp_path / "engine")
    assert plan_capacity(n, dims, dtype="int8").index_bytes == pytest.approx(
        (tmp_path / "engine").stat().st_size, rel=0.1
    )


@pytest.mark.parametrize(("n", "dims"), [(1_000, 8), (5_000, 16), (40_000, 32)])
def test_plan_says_what_the_engine_builds(n: int, dims: int) -> None:
    faiss = pytest.importorskip("faiss")
    vectors = np.random.default_rng(1).standard_normal((n, dims)).astype(np.float32)
    engine = build_engine([(np.arange(n), vectors)], lambda size: vectors[:size], n=n, dims=dims, approx="approx")
    plan = plan_capacity(n, dims, dtype="int8")
    assert isinstance(engine, InvertedEngine)
    assert engine.cells == (plan.assumptions["cells"], plan.assumptions["probes"])
    lists = faiss.extract_index_ivf(engine._index)
    sizes = [lists.invlists.list_size(cell) for cell in range(lists.nlist)]
    assert sum(sizes) * lists.code_size == plan.vector_bytes
    stored = sum(sizes) * (lists.code_size + 8) + 4 * lists.nlist * dims
    assert stored + engine.keys.nbytes == plan.index_bytes
    exact = build_engine([(np.arange(n), vectors)], lambda size: vectors[:size], n=n, dims=dims, approx="exact")
    assert exact.matrix.nbytes + exact.keys.nbytes == plan_capacity(n, dims).index_bytes  # type: ignore[attr-defined]


def test_replicas_follow_the_rate_and_memory_the_size() -> None:
    one, many = (plan_capacity(10**6, 128, qps=qps) for qps in (1, 1000))
    assert one.replicas == 1
    assert many.replicas == int(np.ceil(1000 / many.assumptions["queries_per_second_per_replica"])) > 1
    assert plan_capacity(2 * 10**6, 128).vector_bytes == 2 * one.vector_bytes == 2 * 4 * 128 * 10**6
    assert plan_capacity(10**6, 128, dtype="int8").index_bytes < one.index_bytes / 3


@pytest.mark.parametrize("bad", [{"docs": 0}, {"dims": -1}, {"qps": 0}, {"tokens": 0}, {"dtype": "int4"}])
def test_bad_values_are_named(bad) -> None:
    given = {"docs": 10, "dims": 10, **bad}
    with pytest.raises(ValueError, match=next(iter(bad))):
        plan_capacity(given.pop("docs"), given.pop("dims"), **given)
