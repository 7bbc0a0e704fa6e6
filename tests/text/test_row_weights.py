"""Weights in eight bits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kexue.errors import CheckpointError
from kexue.text.folder import load_weights
from kexue.text.row_weights import compress_rows, restore_rows

GENERATOR = torch.Generator().manual_seed(0)


def test_no_weight_is_wrong_by_more_than_half_a_step() -> None:
    weights = {
        "matrix": torch.randn(5, 40, generator=GENERATOR) * torch.tensor([1e-6, 1.0, 50.0, 0.3, 0.0])[:, None],
        "vector": torch.randn(7, generator=GENERATOR),
    }
    compressed = compress_rows(weights)
    assert compressed["matrix"].dtype == torch.int8
    again = restore_rows(compressed)
    assert set(again) == {"matrix", "vector"}
    assert torch.equal(again["vector"], weights["vector"])
    half = weights["matrix"].abs().amax(1, keepdim=True) / 254
    assert bool(((again["matrix"] - weights["matrix"]).abs() <= half * (1 + 1e-5)).all())
    assert bool((again["matrix"][4] == 0).all())
    assert torch.equal(again["matrix"].abs().amax(1), weights["matrix"].abs().amax(1))  # the largest is exact


def test_weights_without_integers_stay_as_they_are() -> None:
    weights = {"a": torch.ones(2, 3, dtype=torch.float16), "b": torch.zeros(4)}
    again = restore_rows(weights)
    assert again["a"] is weights["a"]
    assert again["b"] is weights["b"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"m": torch.ones(2, 3, dtype=torch.int8)}, "m is int8 without a scale for each row"),
        ({"m": torch.ones(2, 3, dtype=torch.int8), "m.row_scale": torch.ones(3)}, "m is int8 without a scale"),
        ({"m.row_scale": torch.ones(3)}, "m.row_scale has no matrix of int8"),
        ({"m": torch.ones(2, 3), "m.row_scale": torch.ones(2)}, "m.row_scale has no matrix of int8"),
    ],
)
def test_integers_of_other_formats_are_not_read_as_numbers(
    change: dict[str, torch.Tensor], words: str, tmp_path: Path
) -> None:
    save_file(change, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load_weights(tmp_path)
