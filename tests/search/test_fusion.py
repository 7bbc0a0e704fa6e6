"""Fusion of two searches on one scale."""

from __future__ import annotations

import numpy as np
import pytest

from kexue.search.fusion import NEAREST, fuse


def example(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    words = generator.exponential(3, n).astype(np.float32) * (generator.random(n) < 0.5)
    return generator.normal(0.3, 0.1, n).astype(np.float32), words, (words / 20).clip(0, 1).astype(np.float32)


def test_the_formula() -> None:
    products, words, coverage = example()
    nearest = np.sort(products)[::-1]
    last = nearest[99]
    excess = np.mean(nearest[:100].astype(float) - last)
    expected = 0.4 * (products - last) / excess + 0.6 * coverage * np.sqrt(10 * words)
    assert np.allclose(fuse(products, words, coverage, nearest=nearest, weight=0.6), expected, atol=1e-5)


def test_a_weight_of_0_is_the_order_of_meaning_and_of_1_that_of_words() -> None:
    products, words, coverage = example()
    nearest = np.sort(products)[::-1]
    alone = fuse(products, words, coverage, nearest=nearest, weight=0.0)
    assert (np.argsort(-alone, kind="stable") == np.argsort(-products, kind="stable")).all()
    only = fuse(products, words, coverage, nearest=nearest, weight=1.0)
    assert (
        np.argsort(-only, kind="stable") == np.argsort(-coverage * np.sqrt(words.astype(float)), kind="stable")
    ).all()


@pytest.mark.parametrize(("scale", "shift"), [(0.1, 0.8), (3.0, -0.5)])
def test_the_unit_of_the_products_does_not_matter(scale: float, shift: float) -> None:
    products, words, coverage = example()
    nearest = np.sort(products)[::-1]
    first = fuse(products, words, coverage, nearest=nearest, weight=0.7)
    other = fuse(scale * products + shift, words, coverage, nearest=scale * nearest + shift, weight=0.7)
    assert np.allclose(first, other, atol=2e-4)


def test_the_scale_is_that_of_the_first_hundred_whatever_k() -> None:
    products, words, coverage = example()
    nearest = np.sort(products)[::-1]
    few = fuse(products, words, coverage, nearest=nearest[:NEAREST], weight=0.7)
    assert np.array_equal(few, fuse(products, words, coverage, nearest=nearest, weight=0.7))


def test_one_document_and_equal_ones_are_finite() -> None:
    for n in (1, 5):
        same = np.full(n, 0.5, np.float32)
        fused = fuse(same, same, same, nearest=same, weight=0.7)
        assert np.isfinite(fused).all()
        assert (fused == fused[0]).all()
