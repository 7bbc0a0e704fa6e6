"""Fusion of two searches on one scale."""

from __future__ import annotations

import numpy as np
import pytest

from kexue.search.fusion import NEAREST, fuse, trust_terms


def example(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    words = generator.exponential(3, n).astype(np.float32) * (generator.random(n) < 0.5)
    return generator.normal(0.3, 0.1, n).astype(np.float32), words, (words / 20).clip(0, 1).astype(np.float32)


def test_the_formula() -> None:
    products, words, coverage = example()
    nearest = np.sort(products)[::-1]
    last = nearest[99]
    excess = np.mean(nearest[:100].astype(float) - last)
    expected = 0.4 * np.log1p(np.exp((products - last) / excess)) + 0.6 * coverage * np.sqrt(10 * words)
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


def test_a_code_beats_every_meaning_when_its_document_is_far_from_the_query() -> None:
    products = np.array([0.9, *np.linspace(0.5, 0.3, 99), -1.0], np.float32)
    holds = (products == -1.0).astype(np.float32)
    fused = fuse(products, 9 * holds, holds, nearest=products[:100], weight=0.55)
    assert int(np.argmax(fused)) == 100
    assert int(np.argmax(fuse(products, 9 * holds, 0.1 * holds, nearest=products[:100], weight=0.55))) == 0


@pytest.mark.parametrize(
    ("known", "asked", "length", "expected"),
    [
        ([4, 0, 0], [4, 0, 0], 10**9, [1, 1, 1]),
        ([3, 1, 0], [4, 1, 0], 10**9, [2 / 3, 1, 1]),  # words with one unknown, and a code
        ([1, 0, 0], [2, 0, 0], 10**9, [0.5, 1, 1]),  # a name and one unknown word: too few to doubt it
        ([1, 0, 0], [7, 0, 0], 10**9, [0, 1, 1]),  # a sentence in another language
        ([2, 1, 2], [4, 4, 4], 10**9, [1 / 3, 0, 1]),  # half of the pairs is all that can be expected
        ([0, 2, 3], [6, 3, 8], 10**9, [0, 0.6, 0.6]),
        ([2, 0, 0], [4, 0, 0], 1000, [1, 1, 1]),  # so few words hold half of those of the language
        ([3, 1, 2], [8, 2, 8], 1000, [0.6, 1, 1]),
    ],
)
def test_terms_are_trusted_as_far_as_the_documents_hold_them(
    known: list[int], asked: list[int], length: int, expected: list[float]
) -> None:
    assert np.allclose(trust_terms(np.array(known), np.array(asked), length), expected, atol=1e-5)


def test_nothing_known_or_no_documents_give_no_trust() -> None:
    none = np.zeros(3, np.int64)
    for asked, length in ((none, 0), (none + 2, 0), (none + 2, 500)):
        assert trust_terms(none, asked, length).tolist() == [0, 0, 0]
