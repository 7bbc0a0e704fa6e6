"""Values of every make in a checkpoint, and towers of every make in GradCache."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kexue.losses import InfoNCELoss
from kexue.train import GradCache, LossOutput, load_checkpoint, save_checkpoint

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


# towers


class Words(nn.Module):
    """Takes a dict, a list of samples or a tensor."""

    def __init__(self, trained=True):
        super().__init__()
        self.line = nn.Linear(4, 3).requires_grad_(trained)

    def forward(self, x):
        if isinstance(x, dict):
            assert x.get("mask") is None
            assert x.get("mode", "mean") == "mean"
            x = x["x"]
        return self.line(x if isinstance(x, torch.Tensor) else torch.stack(x))


X, Y = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
FORMS = {
    "tensor": lambda x: x,
    "dict": lambda x: {"x": x},
    "dict with more": lambda x: {"x": x, "mask": None, "mode": "mean", "scale": 2, "zero": torch.tensor(1.0)},
    "list": list,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 6, 7, 100])
def test_towers_of_every_make_have_the_gradient_of_the_whole(form, frozen, chunk_size):
    torch.manual_seed(0)
    towers = [Words(trained=index not in frozen) for index in range(2)]
    scale = nn.Parameter(torch.tensor(1.5))

    def loss(a, b):
        return LossOutput(InfoNCELoss(0.3, symmetric=False)(a * scale, b), {"n": len(a), "norm": a.norm()})

    output = loss(*(tower(x) for tower, x in zip(towers, (X, Y), strict=True)))
    output.loss.backward()
    trained = [scale, *(p for tower in towers for p in tower.parameters())]
    wanted = [p.grad for p in trained]
    for p in trained:
        p.grad = None
    found = GradCache(towers, loss, chunk_size=chunk_size).step((form(X), form(Y)))
    torch.testing.assert_close(found.loss, output.loss.detach(), check_device=False)
    assert found.parts["n"] == 7
    for p, grad in zip(trained, wanted, strict=True):
        assert (p.grad is None) == (grad is None)
        if grad is not None:
            torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 2, 7])
def test_one_encoder_for_several_towers(chunk_size):
    tower, loss = Words(), InfoNCELoss(0.3)
    loss(tower(X), tower(Y)).backward()
    wanted = tower.line.weight.grad.clone()
    tower.zero_grad()
    GradCache(tower, loss, chunk_size=chunk_size).step((X, Y))
    torch.testing.assert_close(tower.line.weight.grad, wanted, rtol=1e-4, atol=1e-6)


def test_a_tower_that_the_loss_does_not_use_gets_no_gradient_and_no_second_pass():
    passes = []
    towers = [Words(), Words()]
    towers[1].register_forward_hook(lambda *_: passes.append(1))
    GradCache(towers, lambda a, b: a.square().mean(), chunk_size=7).step((X, Y))
    assert towers[0].line.weight.grad is not None
    assert towers[1].line.weight.grad is None
    assert passes == [1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_there_is_the_loss_alone(mode):
    tower, loss = Words(), InfoNCELoss(0.3)
    cache = GradCache(tower, loss, chunk_size=3)
    with mode():
        found = cache.step((X, Y)).loss
    assert tower.line.weight.grad is None
    torch.testing.assert_close(found.clone(), loss(tower(X), tower(Y)).detach())
    cache.step((X, Y))  # and the next one trains
    assert tower.line.weight.grad is not None


def test_an_encoder_that_returns_no_tensor_is_refused():
    with pytest.raises(TypeError, match="encode must return a tensor, got dict"):
        GradCache(lambda x: {"z": x}, lambda z: z.mean(), chunk_size=2).step(X)
