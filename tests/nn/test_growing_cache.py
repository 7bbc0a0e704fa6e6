"""The cache with room beside the one that is copied at every step."""

import pytest
import torch

from kexue.nn import Transformer, TransformerConfig
from kexue.nn.growing_cache import GrowingKeysValues


@torch.no_grad()
def test_steps_in_place_equal_steps_with_copies_also_after_rows_have_left():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(20, hidden_size=32, num_layers=2)).double().eval()
    prefix, rows = torch.randint(1, 20, (2, 5)), torch.tensor([0, 0, 1])
    start = model(prefix, cache=()).cache
    copied = tuple((keys[rows], values[rows]) for keys, values in start)
    growing = tuple(GrowingKeysValues(layer, 3, rows) for layer in start)
    for step in range(3):
        tokens = torch.randint(1, 20, (len(rows), 1))
        expected, ours = model(tokens, cache=copied), model(tokens, cache=growing)
        torch.testing.assert_close(ours.last_hidden_state, expected.last_hidden_state)
        assert ours.cache == growing
        copied = expected.cache
        if step == 0:
            rows = torch.tensor([2, 0])
            copied = tuple((keys[rows], values[rows]) for keys, values in copied)
            for layer in growing:
                layer.keep(rows)
    for ours, expected in zip(growing, copied, strict=True):
        torch.testing.assert_close((ours[0], ours[1]), expected)
    with pytest.raises(ValueError, match="room for 0 more tokens, got 1"):
        model(tokens, cache=growing)


def test_what_it_was_made_from_does_not_change():
    keys = torch.zeros(1, 1, 2, 4)
    growing = GrowingKeysValues((keys, keys), 1)
    other = GrowingKeysValues(growing, 1)
    growing.append(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4))
    assert other[0].shape[-2] == 2
    assert not keys.any()
    assert growing[1][0, 0, :, 0].tolist() == [0, 0, 1]
