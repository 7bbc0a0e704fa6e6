"""Pooling against sums written out by hand, and against what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kexue.text import pool

MODES = ["cls", "last-avg", "first-last-avg", "max"]
RNG = np.random.default_rng(0)
STATES = [RNG.normal(size=(3, 5, 4)) for _ in range(4)]  # embedding output and three blocks
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=bool)


def by_hand(mode: str, row: int) -> np.ndarray:
    kept = [t for t in range(5) if MASK[row, t]]
    last, first = STATES[3][row], STATES[1][row]
    if mode == "cls":
        return last[0]
    if mode == "max":
        return np.array([max(last[t][j] for t in kept) for j in range(4)])
    mean = sum(last[t] for t in kept) / len(kept)
    return mean if mode == "last-avg" else (mean + sum(first[t] for t in kept) / len(kept)) / 2


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_the_sum_written_out(mode: str) -> None:
    expected = np.stack([by_hand(mode, row) for row in range(3)])
    np.testing.assert_allclose(pool(STATES, MASK, mode), expected, rtol=0, atol=1e-14)  # float64, five terms


@pytest.mark.parametrize("mode", MODES)
def test_padding_left_or_right_does_not_count(mode: str) -> None:
    junk = np.full((3, 2, 4), np.nan)  # what padding holds must not leak, not even through 0 * nan
    none = np.zeros((3, 2), dtype=bool)
    for order in (0, 1):
        states = [np.concatenate([junk, s][:: 1 if order else -1], axis=1) for s in STATES]
        mask = np.concatenate([none, MASK][:: 1 if order else -1], axis=1)
        np.testing.assert_allclose(pool(states, mask, mode), pool(STATES, MASK, mode), rtol=0, atol=1e-14)


def test_first_is_the_first_block_not_the_embedding_output() -> None:
    moved = [STATES[0] + 100, *STATES[1:]]
    np.testing.assert_array_equal(pool(moved, MASK, "first-last-avg"), pool(STATES, MASK, "first-last-avg"))
    middle = [*STATES[:2], STATES[2] + 100, STATES[3]]
    np.testing.assert_array_equal(pool(middle, MASK, "first-last-avg"), pool(STATES, MASK, "first-last-avg"))
    first = [STATES[0], STATES[1] + 1, *STATES[2:]]
    shift = pool(first, MASK, "first-last-avg") - pool(STATES, MASK, "first-last-avg")
    np.testing.assert_allclose(shift, 0.5, rtol=0, atol=1e-14)


def test_pooler_is_the_linear_map_without_tanh() -> None:
    linear = torch.nn.Linear(4, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(3 * torch.eye(4))  # outputs beyond [-1, 1], where tanh would show
    expected = 3 * STATES[3][:, 0] + linear.bias.detach().numpy()
    with torch.inference_mode():
        pooled = pool([torch.from_numpy(s) for s in STATES], torch.from_numpy(MASK), "pooler", pooler=linear)
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=0, atol=1e-14)
    assert np.abs(pooled.numpy()).max() > 1


def test_numpy_and_torch_agree_and_keep_their_kind() -> None:
    ours = pool(STATES, MASK, "mean")
    theirs = pool([torch.from_numpy(s) for s in STATES], torch.from_numpy(MASK), "last-avg")
    assert isinstance(ours, np.ndarray)
    assert isinstance(theirs, torch.Tensor)
    assert ours.dtype == np.float64
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_half_precision_is_averaged_in_float32() -> None:
    # 4096 ones and one 4096: in bfloat16 (8 bits of mantissa) a running sum would stand still at 256
    state = torch.ones(1, 4097, 1, dtype=torch.bfloat16)
    state[0, -1] = 4096.0
    pooled = pool([state], torch.ones(1, 4097, dtype=torch.bool), "mean")
    assert pooled.dtype == torch.bfloat16
    assert pooled.item() == pytest.approx(2.0, rel=2**-8)


def test_an_integer_mask_is_a_mask() -> None:
    np.testing.assert_array_equal(pool(STATES, MASK.astype(np.int64), "max"), pool(STATES, MASK, "max"))


@pytest.mark.parametrize(
    ("states", "mask", "mode", "words"),
    [
        (STATES, MASK, "middle", "unknown pooling 'middle'"),
        (STATES, MASK[:, :4], "mean", r"\(3, 5, 4\) and \(3, 4\)"),
        (STATES, MASK & False, "mean", "text 0 of the batch has no kept token"),
        (STATES[-1:], MASK, "first-last-avg", "output_hidden_states=True"),
        (STATES, MASK, "pooler", "pass pooler="),
    ],
)
def test_mistakes_are_named(states: list[np.ndarray], mask: np.ndarray, mode: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pool(states, mask, mode)
