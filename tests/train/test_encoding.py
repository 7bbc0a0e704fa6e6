"""Values of every kind in a checkpoint come back to the bit."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kexue.train import load_checkpoint, save_checkpoint

TYPES = [
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.complex128,
]  # fmt: skip


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)])
def test_tensors_of_every_type_come_back_to_the_bit(tmp_path, dtype, shape):
    size = math.prod(shape) * dtype.itemsize
    data = torch.randint(0, 2 if dtype == torch.bool else 128, (size,), dtype=torch.uint8)
    tensor = data.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    save_checkpoint(tmp_path / "c", part={"a": tensor, "b": [tensor]})
    read = load_checkpoint(tmp_path / "c").part
    for got in (read["a"], read["b"][0]):
        assert (got.dtype, got.shape) == (dtype, shape)
        assert torch.equal(bits(got), bits(tensor))


VIEWS = {
    "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "negative": torch.tensor([1 + 2j]).conj().imag,
    "expanded": torch.ones(1, 3).expand(4, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "strided": torch.arange(9.0)[::2],
    "with a graph": torch.ones(2, requires_grad=True) * 2,
    "parameter": nn.Parameter(torch.ones(2)),
    "of inference": torch.inference_mode()(lambda: torch.ones(2))(),
}


@pytest.mark.parametrize("tensor", VIEWS.values(), ids=VIEWS)
def test_views_come_back_as_what_they_show(tmp_path, tensor):
    save_checkpoint(tmp_path / "c", part=[tensor])
    assert torch.equal(load_checkpoint(tmp_path / "c").part[0], tensor.detach().clone().resolve_conj())


ARRAYS = {
    "flipped": np.arange(6.0).reshape(2, 3)[::-1, ::-1], "0-d": np.array(3.5), "bool": np.array([True, False]),
    "big-endian": np.arange(3, dtype=">f4"), "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "unsigned": np.array([65535], np.uint16), "complex": np.array([1 + 2j, -1j]), "half": np.ones(2, np.float16),
    "read-only": np.broadcast_to(np.ones(1), (3,)), "empty": np.zeros((0, 2)),
}  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_come_back(tmp_path, array):
    save_checkpoint(tmp_path / "c", part={"x": array})
    got = load_checkpoint(tmp_path / "c").part["x"]
    assert isinstance(got, np.ndarray)
    assert (got.dtype, got.shape) == (array.dtype.newbyteorder("="), array.shape)
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize(
    "value", [1j, 2 - 3j, np.complex128(1 + 1j), complex(math.inf, -0.0), np.float32(0.1), -0.0, 2**80]
)
def test_numbers_come_back(tmp_path, value):
    save_checkpoint(tmp_path / "c", part=[value])
    got = load_checkpoint(tmp_path / "c").part[0]
    assert repr(complex(got)) == repr(complex(value))


REFUSED = {
    "meta": torch.ones(2, device="meta"), "sparse": torch.eye(2).to_sparse(), "objects": np.array([{}]),
    "strings": np.array(["a"]), "dates": np.array(["2026-01-01"], "M8[D]"), "long": np.ones(1, np.longdouble),
    "date": np.datetime64("2026-01-01"), "long number": np.longdouble(1), "bytes": b"a", "set": {1},
}  # fmt: skip


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_what_no_checkpoint_holds_is_refused_by_name(tmp_path, value):
    save_checkpoint(tmp_path / "c", part=1)
    with pytest.raises(TypeError, match=r"cannot save part\['x'\]\[0\]"):
        save_checkpoint(tmp_path / "c", part={"x": [value]})
    assert load_checkpoint(tmp_path / "c").part == 1


def test_tied_weights_stay_tied(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    model, other = tied(), tied()
    save_checkpoint(tmp_path / "c", model=model)
    load_checkpoint(tmp_path / "c").restore(model=other)
    assert other[1].weight is other[0].weight
    assert torch.equal(other[0].weight, model[0].weight)
