"""The engine in memory against brute force: exact where it says so, and the same after a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kexue.search.engine import Engine, Position, build_engine, load_engine, read_position, wants_approximate
from kexue.search.products import largest_products, top_k

pytest.importorskip("faiss")


def unit(generator: np.random.Generator, n: int, dims: int) -> np.ndarray:
    vectors = generator.standard_normal((n, dims), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def build(keys: np.ndarray, vectors: np.ndarray, approx: str = "exact") -> Engine:
    def sample(size: int) -> np.ndarray:
        return vectors[np.random.default_rng(0).permutation(len(vectors))[:size]]

    blocks = [(keys[i : i + 100], vectors[i : i + 100]) for i in range(0, len(keys), 100)]
    return build_engine(blocks, sample, n=len(keys), dims=vectors.shape[1], approx=approx)


def best(queries: np.ndarray, keys: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), keys[order]


@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 8))
def test_top_k_is_a_stable_sort_cut_off(scores: list[list[int]], k: int) -> None:
    matrix = np.array(scores, np.float32)
    order = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
    best, columns = top_k(matrix, k)
    assert (columns == order).all()
    assert (best == np.take_along_axis(matrix, order, 1)).all()


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 12), st.lists(st.integers(0, 5), max_size=5))
def test_blocks_do_not_matter(seed: int, m: int, k: int, sizes: list[int]) -> None:
    generator = np.random.default_rng(seed)
    n = sum(sizes)
    # small whole numbers: products are exact, and tie
    vectors = generator.integers(-1, 2, (n, 3)).astype(np.float32)
    queries = generator.integers(-1, 2, (m, 3)).astype(np.float32)
    keys, edges = np.arange(10, 10 + n), np.cumsum([0, *sizes])
    blocks = [(keys[a:b], vectors[a:b]) for a, b in pairwise(edges)]
    scores, found = largest_products(queries, blocks, k)
    expected, wanted = best(queries, keys, vectors, k)
    assert (found == wanted).all()
    assert (scores == expected).all()


# One query and many take different paths.
@pytest.mark.parametrize("m", [1, 50])
@pytest.mark.parametrize("kept", [None, 0.05, 0.9])
def test_exact_search_is_brute_force(m: int, kept: float | None) -> None:
    generator = np.random.default_rng(m)
    vectors, queries = unit(generator, 700, 16), unit(generator, m, 16)
    keys = np.cumsum(generator.integers(1, 5, 700))
    engine = build(keys, vectors)
    gone = generator.choice(keys, 150, replace=False)
    engine.remove(np.append(gone, keys[-1] + 99))
    left = ~np.isin(keys, gone)
    keys, vectors = keys[left], vectors[left]
    allowed = None
    if kept is not None:
        some = np.sort(generator.choice(len(keys), int(kept * len(keys)), replace=False))
        keys, vectors = keys[some], vectors[some]
        allowed = keys
    scores, found = engine.search(queries, 7, allowed)
    expected, wanted = best(queries, keys, vectors, 7)
    assert (found == wanted).all()
    assert np.abs(scores - expected).max() < 1e-6  # 16 products in float32


def test_equal_scores_come_in_order_of_key() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    keys = np.arange(1, 16)
    for m in (1, 30):
        _, found = build(keys, vectors).search(np.tile(vectors[:1], (m, 1)), 5)
        assert (found == keys[:5]).all()


def test_inverted_file_finds_most_and_honours_filters() -> None:
    generator = np.random.default_rng(0)
    centres = unit(generator, 60, 24)
    vectors = centres[generator.integers(0, 60, 6000)] + 0.3 * unit(generator, 6000, 24)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys, queries = np.arange(1, 6001), vectors[:100]
    engine = build(keys, vectors, "approx")
    assert not engine.exact
    _, wanted = best(queries, keys, vectors, 10)
    _, found = engine.search(queries, 40)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, wanted, strict=True)])
    assert recall > 0.9  # 0.99 measured; far above the share of cells opened
    allowed = keys[::7]
    _, found = engine.search(queries, 40, allowed)
    assert np.isin(found[found >= 0], allowed).all()
    engine.remove(keys[:50])
    _, found = engine.search(queries, 40)
    assert not np.isin(found, keys[:50]).any()


def test_when_search_is_approximate() -> None:
    assert [wants_approximate(n, "auto") for n in (0, 199_999, 200_000)] == [False, False, True]
    assert [wants_approximate(n, "approx") for n in (0, 999, 1000)] == [False, False, True]
    assert not wants_approximate(10**9, "exact")


def test_cells_are_built_again_when_they_have_become_too_few() -> None:
    vectors = unit(np.random.default_rng(3), 2000, 8)
    engine = build(np.arange(2000), vectors, "approx")
    assert engine.suits(2000, "approx")
    assert engine.suits(3900, "approx")
    assert not engine.suits(8000, "approx")
    assert not engine.suits(999, "approx")
    exact = build(np.arange(2000), vectors, "auto")
    assert [exact.suits(n, "auto") for n in (10, 199_999, 200_000)] == [True, True, False]


def test_an_engine_can_be_emptied_saved_and_filled_again(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(4), 5, 8)
    engine = build(np.arange(5), vectors)
    engine.remove(np.arange(5))
    engine.save(tmp_path / "s")
    loaded = load_engine(tmp_path / "s")
    assert loaded is not None
    assert len(loaded.keys) == 0
    loaded.add(np.arange(7, 12), vectors)
    assert loaded.search(vectors[2:3], 1)[1].tolist() == [[9]]


@pytest.mark.parametrize("approx", ["exact", "approx"])
def test_a_snapshot_gives_the_same_answers(tmp_path: Path, approx: str) -> None:
    generator = np.random.default_rng(1)
    vectors, keys = unit(generator, 1500, 8), np.arange(3, 1503)
    engine = build(keys, vectors, approx)
    engine.position = Position("abc", 1502, 7)
    path = tmp_path / "s"
    engine.save(path)
    assert read_position(path) == Position("abc", 1502, 7)
    loaded = load_engine(path)
    assert loaded is not None
    assert (loaded.position, loaded.exact, loaded.dims) == (engine.position, engine.exact, engine.dims)
    for one in (engine, loaded):  # and goes on living in the same way
        one.remove(keys[:10])
        one.add(np.array([2000]), vectors[:1])
    for a, b in zip(engine.search(vectors[:50], 5), loaded.search(vectors[:50], 5), strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "text", "header", "none"])
def test_a_damaged_snapshot_is_no_snapshot(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "s"
    vectors = unit(np.random.default_rng(2), 50, 8)
    build(np.arange(1, 51), vectors).save(path)
    data = path.read_bytes()
    broken: dict[str, Callable[[], object]] = {
        "flip": lambda: path.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]),
        "cut": lambda: path.write_bytes(data[:-1]),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("not a snapshot"),
        "header": lambda: path.write_bytes(data[:30] + b"{}\n" + data[30:]),
        "none": path.unlink,
    }
    broken[harm]()
    assert load_engine(path) is None
