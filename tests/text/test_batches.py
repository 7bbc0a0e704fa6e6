"""Batches of texts of similar length."""

from __future__ import annotations

import numpy as np

from kexue.text.batches import split_by_tokens


def test_batches_stay_within_the_budget_and_cover_everything_once() -> None:
    lengths = np.random.default_rng(0).integers(3, 90, size=200)
    batches = list(split_by_tokens(lengths, 64))
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    for rows in batches:
        assert len(rows) * lengths[rows].max() <= 64 or len(rows) == 1
    padding = sum(len(rows) * lengths[rows].max() for rows in batches) / lengths.sum() - 1
    assert padding < 0.05  # sorted by length; 0.9 in the order given


def test_a_text_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    lengths = np.array([12, 80, 30, 5, 30, 7, 60])
    batches = list(split_by_tokens(lengths, 60))
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    assert [lengths[rows].tolist() for rows in batches] == [[80], [60], [30, 30], [12, 7, 5]]
