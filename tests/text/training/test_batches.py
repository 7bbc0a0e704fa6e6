"""Which examples stand in a batch, and what is drawn anew each epoch."""

import numpy as np
import pytest

from kexue.text.training.batches import (
    AlternatingBatches,
    DistinctBatches,
    Groups,
    LabelledRows,
    LengthBatches,
    PairRows,
    TextRows,
)
from kexue.text.training.corpus import ragged
from kexue.text.training.rows import RowMaker, encode_texts
from kexue.text.training.stages import find_families

GROUPS = [(0, 1), (2,), (3, 4, 5), (6, 7, 8, 9)]
TEXTS = ["天" * (i + 1) for i in range(10)]


@pytest.fixture
def maker(tokenizer):
    return RowMaker(encode_texts(tokenizer, TEXTS, 64), tokenizer)


@pytest.fixture
def groups():
    return Groups(*ragged(GROUPS))


def lengths_of(batch):
    """Tokens of the parts of each row: texts are told apart by their length."""
    first = (batch["mask"] & (batch["segment_ids"] == 0)).sum(1) - 2
    second = (batch["segment_ids"] == 1).sum(1) - 1
    return list(zip(first.tolist(), second.tolist(), strict=True))


def test_each_text_is_read_and_another_of_its_group_is_written(maker, groups):
    targets = np.arange(20.0).reshape(10, 2)
    rows = TextRows(maker, groups, targets, seed=0)
    seen: dict[int, set[int]] = {}
    for epoch in range(40):
        rows.set_epoch(epoch)
        batch = rows.__getitems__(range(10))
        assert rows.sizes.tolist() == batch["mask"].sum(1).tolist()
        np.testing.assert_array_equal(batch["targets"].numpy(), targets)
        for number, (first, second) in enumerate(lengths_of(batch)):
            assert first == number + 1
            seen.setdefault(number, set()).add(second - 1)
    for group in GROUPS:
        for number in group:
            assert seen[number] == ({-2} if len(group) == 1 else set(group) - {number})


def test_nothing_is_written_where_no_group_has_two_texts(maker):
    rows = TextRows(maker, Groups(*ragged([(0,), (1,)])), np.zeros((10, 2)), seed=0)
    assert not rows.__getitems__([0, 1])["segment_ids"].any()


def test_both_texts_of_a_pair_stand_in_one_batch_one_after_the_other(maker):
    groups = Groups(*ragged([(0, 1), (3, 4, 5)]))
    rows = PairRows(maker, groups, seed=0)
    drawn = set()
    for epoch in range(60):
        rows.set_epoch(epoch)
        batch = lengths_of(rows.__getitems__([1, 0]))
        assert len(batch) == 4
        for (a, b), (c, d) in (batch[:2], batch[2:]):
            assert (a, b) == (d, c)
        assert {one - 1 for one in batch[2]} == {0, 1}
        drawn.add(batch[0])
    assert drawn == {(a, b) for a in (4, 5, 6) for b in (4, 5, 6) if a != b}


def test_an_epoch_is_drawn_from_its_number_alone(maker, groups):
    first, second = (TextRows(maker, groups, np.zeros((10, 2)), seed=3) for _ in range(2))
    for epoch in (5, 2, 5):
        first.set_epoch(epoch)
    second.set_epoch(5)
    assert first.second.tolist() == second.second.tolist()
    second.set_epoch(6)
    assert first.second.tolist() != second.second.tolist()


class Sized:
    def __init__(self, sizes):
        self.sizes = np.asarray(sizes)

    def __len__(self):
        return len(self.sizes)


def test_batches_of_similar_lengths():
    sizes = np.random.default_rng(0).integers(3, 60, 1000)
    batches = LengthBatches(Sized(sizes), 10, seed=0)
    rows = list(batches)
    assert len(rows) == len(batches) == 100
    assert sorted(np.ravel(rows)) == list(range(1000))
    assert np.mean([np.ptp(sizes[batch]) for batch in rows]) < 5  # of 57 at random
    batches.set_epoch(1)
    assert list(batches) != rows
    batches.set_epoch(0)
    assert list(batches) == rows


def test_a_last_batch_that_is_not_full_is_left_out_unless_it_is_the_only_one():
    assert [len(batch) for batch in LengthBatches(Sized([5] * 25), 10, seed=0)] == [10, 10]
    assert [len(batch) for batch in LengthBatches(Sized([5] * 7), 10, seed=0)] == [7]


def test_no_two_related_groups_in_a_batch():
    generator = np.random.default_rng(0)
    families = generator.integers(0, 40, 300)
    batches = DistinctBatches(Sized(generator.integers(3, 30, 300)), families, 8, seed=0)
    used = set()
    for epoch in range(4):
        batches.set_epoch(epoch)
        rows = list(batches)
        assert len(rows) == len(batches)
        for batch in rows:
            assert len(batch) == len(set(families[batch])) == 8
        flat = [row for batch in rows for row in batch]
        assert len(flat) == len(set(flat)) > 220
        used.update(flat)
    assert len(used) > 290


def test_families_share_a_text_directly_or_through_others():
    groups = Groups(*ragged([(0, 1), (2, 3), (1, 4), (5, 6, 7), (4, 7), (8, 9)]))
    families = find_families(groups)
    related = families[:, None] == families
    chain = {0, 2, 3, 4}
    for i in range(6):
        for j in range(6):
            assert related[i, j] == (i == j or {i, j} <= chain)


def test_few_groups_make_one_small_batch():
    batches = DistinctBatches(Sized([4, 4, 4]), np.array([0, 1, 1]), 8, seed=0)
    assert len(batches) == 1
    [batch] = batches
    assert 0 in batch
    assert len(batch) == 2


def test_kinds_of_labels_take_turns(tokenizer, maker):
    kinds = np.array([0] * 8 + [1] * 3 + [2] * 2)
    rows = LabelledRows(maker, np.zeros((13, 2), dtype=np.int64), kinds.astype(float), kinds)
    samplers = [LengthBatches(rows, 2, 0, chosen=np.flatnonzero(kinds == kind)) for kind in range(3)]
    batches = AlternatingBatches(samplers)
    order = [set(kinds[batch]) for batch in batches]
    assert len(order) == len(batches) == 12
    assert order[0::3] == [{0}] * 4
    assert order[1::3] == [{1}] * 4
    assert order[2::3] == [{2}] * 4


def test_labelled_pairs_are_rows_of_one_text_each(maker):
    pairs = np.array([[0, 3], [2, 2]])
    rows = LabelledRows(maker, pairs, np.array([1.0, 0.5]), np.array([0, 1]))
    batch = rows.__getitems__([1, 0])
    assert [first for first, _ in lengths_of(batch)] == [3, 3, 1, 4]
    assert not batch["segment_ids"].any()
    assert (batch["labels"].tolist(), batch["tasks"].tolist()) == ([0.5, 1.0], [1, 0])
