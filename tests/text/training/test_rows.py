"""Rows of tokens: what is read, what is written, where they end."""

import numpy as np
import pytest
import torch

from kexue.text import PairCollator
from kexue.text.training.rows import RowMaker, encode_texts
from kexue.text.training.words import split_longest

PAIRS = [("怎么退货", "如何申请退货呢"), ("a1 天气", "好")]


def ids_of(tokenizer, text):
    return tokenizer.encode([text]).ids.tolist()


def expected_row(tokenizer, first, second):
    a, b = ids_of(tokenizer, first), ids_of(tokenizer, second)[1:]
    return a + b, [0] * len(a) + [1] * len(b)


def test_a_pair_gives_two_rows_one_after_the_other(tokenizer):
    batch = PairCollator(tokenizer, p_noise=0)(PAIRS)
    wanted = [expected_row(tokenizer, *row) for a, b in PAIRS for row in ((a, b), (b, a))]
    assert batch["token_ids"].shape == batch["segment_ids"].shape == batch["mask"].shape
    for row, (ids, segments) in enumerate(wanted):
        size = len(ids)
        assert batch["token_ids"][row].tolist() == ids + [tokenizer.pad_id] * (batch["mask"].shape[1] - size)
        assert batch["segment_ids"][row, :size].tolist() == segments
        assert not batch["segment_ids"][row, size:].any()
        assert batch["mask"][row].sum() == size


def test_an_odd_number_of_pairs_is_never_split(tokenizer):
    assert len(PairCollator(tokenizer)(PAIRS * 3)["mask"]) == 12


def test_noise_is_on_the_words_of_the_first_part_only(tokenizer):
    words = frozenset({"退货", "怎么"})
    torch.manual_seed(0)
    collator = PairCollator(tokenizer, p_noise=1.0, splitter=lambda text: split_longest(text, words))
    clean = PairCollator(tokenizer, p_noise=0)(PAIRS[:1] * 500)
    noisy = collator(PAIRS[:1] * 500)
    changed = noisy["token_ids"] != clean["token_ids"]
    assert changed.any()
    assert not changed[clean["segment_ids"] == 1].any()
    special = torch.tensor([tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id])
    assert not changed[torch.isin(clean["token_ids"], special)].any()
    masked = noisy["token_ids"][::2, 1:5] == tokenizer.mask_id  # 怎么 退货
    assert (masked[:, 0] == masked[:, 1]).all()
    assert (masked[:, 2] == masked[:, 3]).all()
    assert not torch.equal(masked[:, 0], masked[:, 2])
    share = changed[::2].any(1).float().mean()
    assert share == pytest.approx(1 - 0.865**2, abs=0.07)


def test_the_share_of_rows_with_noise(tokenizer):
    torch.manual_seed(1)
    pair = ("天" * 30, "好")
    clean = PairCollator(tokenizer, p_noise=0)([pair] * 400)["token_ids"]
    noisy = PairCollator(tokenizer, p_noise=0.5)([pair] * 400)["token_ids"]
    share = (noisy != clean)[::2].any(1).float().mean()  # nearly every text of 30 words gets some
    assert share == pytest.approx(0.5 * (1 - 0.865**30), abs=0.08)


def test_noise_follows_the_global_generator(tokenizer):
    collator = PairCollator(tokenizer, p_noise=1.0)
    batches = []
    for _ in range(2):
        torch.manual_seed(3)
        batches.append(collator(PAIRS * 20)["token_ids"])
    assert torch.equal(*batches)


def test_long_texts_end_with_punctuation(tokenizer):
    text = "今天天气好,我们去公园。你去吗"
    collator = PairCollator(tokenizer, p_noise=0, max_length=14)  # 12 tokens and two special ones
    batch = collator([(text, "好")])
    assert batch["token_ids"][0, : batch["mask"][0].sum()].tolist() == expected_row(tokenizer, text[:12], "好")[0]
    assert collator.cut_ == 1
    shorter = PairCollator(tokenizer, p_noise=0, max_length=12)([(text, "好")])  # 10: up to the comma, 6
    assert shorter["token_ids"][0, : shorter["mask"][0].sum()].tolist() == expected_row(tokenizer, text[:6], "好")[0]


def test_a_text_without_punctuation_is_cut_at_the_limit(tokenizer):
    coded = encode_texts(tokenizer, ["天" * 40, "你,好" + "天" * 40, "天" * 8], max_length=10)
    assert coded.tokens.lengths.tolist() == [10, 10, 10]
    assert coded.cut == 2


def test_words_are_numbered_within_each_text(tokenizer):
    coded = encode_texts(tokenizer, ["怎么退货", "ab 好"], 64, lambda text: split_longest(text, frozenset({"退货"})))
    assert coded.words.tolist() == [-1, 0, 1, 2, 2, -1, -1, 0, 0, 2, -1]


def test_a_row_without_second_text(tokenizer):
    coded = encode_texts(tokenizer, ["怎么退货", "好"], 64)
    maker = RowMaker(coded, tokenizer)
    batch = maker.join(np.array([0, 1]), np.array([-1, 0]))
    assert batch["token_ids"][0, :6].tolist() == ids_of(tokenizer, "怎么退货")
    assert not batch["segment_ids"][0].any()
    assert maker.sizes(np.array([0, 1]), np.array([-1, 0])).tolist() == batch["mask"].sum(1).tolist()


def test_a_share_outside_its_range(tokenizer):
    with pytest.raises(ValueError, match="p_noise is a share between 0 and 1, got -1"):
        PairCollator(tokenizer, p_noise=-1)
