"""The reader of packed models: the numbers are those written, and a forged file is an error, never a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kexue.errors import CheckpointError
from kexue.text.packed import read_packed


def test_the_numbers_are_those_that_were_written(packed: Any, tmp_path: Path) -> None:
    model = read_packed(packed.write(tmp_path / "model.bin"))
    assert model.pieces == packed.pieces
    assert (model.bos, model.eos, model.pad, model.unk) == packed.special
    assert model.scores.tolist() == [0.0] * 4 + [-float(n) for n in range(1, len(packed.pieces) - 3)]
    assert list(model.shapes()) == sorted(packed.tensors, key=list(model.shapes()).index)
    for name, shape in model.shapes().items():
        numbers = np.concatenate(list(model.tensors[name].parts())).reshape(shape)
        np.testing.assert_array_equal(numbers, packed.tensors[name], err_msg=name)


def test_a_large_tensor_comes_in_parts(packed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kexue.text.packed._AT_ONCE", 3)
    model = read_packed(packed.write(tmp_path / "model.bin"))
    parts = list(model.tensors["emb.word"].parts())
    assert max(map(len, parts)) == 3 * 32
    np.testing.assert_array_equal(np.concatenate(parts), packed.tensors["emb.word"].ravel())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"magic": b"GGUF"}, "does not begin with E5S1"),
        ({"version": 2}, "expected version 1"),
        ({"block": 64}, "blocks of 32"),
        ({"sizes": (32, 2, 4, 64, 20, 40, -2)}, "sizes must be 1 to"),
        ({"sizes": (32, 2**31 - 1, 4, 64, 20, 40, 2)}, "sizes must be 1 to"),
        ({"sizes": (32, 2, 4, 64, 2**24, 40, 2)}, "expected a tensor emb.word"),
        ({"sizes": (32, 2**24, 4, 64, 20, 40, 2)}, "too few for 16,777,216 layers"),
        ({"sizes": (32, 2, 5, 64, 20, 40, 2)}, "5 heads do not divide"),
        ({"sizes": (32, 3, 4, 64, 20, 40, 2)}, r"expected a tensor l2\.q\.w"),
        ({"sizes": (32, 2, 4, 64, 4, 40, 2)}, "16 pieces .* do not fit a vocabulary of 4"),
        ({"epsilon": float("nan")}, "epsilon nan"),
        ({"special": (0, 2, 1, 99)}, "do not fit"),
        ({"special": (0, 2, 1, -1)}, "do not fit"),
        ({"pieces": ["a"] * 16}, "occurs twice"),
        ({"starts": [0] * 16 + [2**32 - 1]}, "not in order"),
        ({"starts": [5, *range(16)]}, "not in order|occurs twice"),
        ({"directory": {"emb.pos": (0, 1280, 2**63, 5120)}}, "truncated"),
        (
            {"directory": {"emb.pos": (0, 1280, 0, 2**40)}},
            "of kind 0 .* has 1,099,511,627,776 bytes",
        ),
        ({"directory": {"emb.pos": (7, 1280, 0, 5120)}}, "of kind 7"),
        ({"directory": {"emb.word": (1, 639, 0, 342)}}, "of kind 1 with 639 numbers"),
        ({"directory": {"emb.word": (1, 320, 0, 180)}}, r"expected a tensor emb\.word of \(20, 32\), got 320"),
    ],
)
def test_a_forged_number_is_refused(packed: Any, tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    for name, value in change.items():
        setattr(packed, name, value)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_packed(packed.write(tmp_path / "model.bin"))
    assert "Reinstall" in str(caught.value.remedy)


def test_a_file_cut_anywhere_is_refused(packed: Any, tmp_path: Path) -> None:
    whole = packed.write(tmp_path / "model.bin").read_bytes()
    cuts = np.unique(np.linspace(0, len(whole) - 1, 200).astype(int))
    for cut in cuts:
        (tmp_path / "cut.bin").write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            read_packed(tmp_path / "cut.bin")


def test_random_damage_of_the_header_never_crashes(packed: Any, tmp_path: Path) -> None:
    whole = packed.write(tmp_path / "model.bin").read_bytes()
    random = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(0, 600, 3):
            damaged[place] = random.integers(256)
        (tmp_path / "damaged.bin").write_bytes(damaged)
        try:
            model = read_packed(tmp_path / "damaged.bin")
        except CheckpointError:
            continue
        assert {name: tensor.numbers for name, tensor in model.tensors.items()}  # only contents have changed


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_packed(tmp_path / "none.bin")
