"""State in, the same bits out; anything else is an error that says what is wrong."""

import errno
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, MultiStepLR, ReduceLROnPlateau, SequentialLR

from kexue.errors import CheckpointError, DiskFullError
from kexue.train import checkpoint as module, load_checkpoint, save_checkpoint


def same(a, b) -> bool:
    """Equal to the bit and of one type all the way down; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bytes_of(a) == bytes_of(b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


def bytes_of(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


tensors = st.builds(
    lambda shape, dtype, seed: (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(
        [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8]
    ),
    st.integers(0, 9),
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), tensors,
    st.builds(lambda n: np.arange(n, dtype=np.uint32), st.integers(0, 4)),
)  # fmt: skip
keys = st.one_of(st.text(max_size=4), st.integers(), st.sampled_from(["$tensor", "a", "a.b", "$dict"]))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


@given(tree=trees)
@settings(max_examples=150, deadline=None)
def test_any_nest_comes_back_to_the_bit(tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("nest") / "c"
    save_checkpoint(path, part={"tree": tree}, step=7)
    loaded = load_checkpoint(path)
    assert same(loaded.part, {"tree": tree})
    assert loaded["step"] == loaded.step == 7


def test_weights_are_a_safetensors_file_of_their_own(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight  # tied
    save_checkpoint(tmp_path / "c", model=model, ema=None)
    weights = load_file(tmp_path / "c" / "model.safetensors")
    assert same(weights, dict(sorted(model.state_dict().items()))) or set(weights) == set(model.state_dict())
    other = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    other.load_state_dict(weights)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert "ema" not in load_checkpoint(tmp_path / "c")


def test_optimizers_and_schedules_go_on_alike(tmp_path):
    def build():
        torch.manual_seed(3)
        model = nn.Linear(2, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        parts = [ConstantLR(optimizer, 0.5, 3), MultiStepLR(optimizer, [2, 2, 5])]
        return model, optimizer, SequentialLR(optimizer, parts, [4]), ReduceLROnPlateau(optimizer)

    def go(model, optimizer, schedule, plateau, steps):
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.ones(4, 2) * step).square().mean().backward()
            optimizer.step()
            schedule.step()
            plateau.step(step)
        return model.weight.detach().clone(), optimizer.param_groups[0]["lr"]

    whole = build()
    go(*whole, 5)
    model, optimizer, *schedules = whole
    save_checkpoint(tmp_path / "c", model=model, optimizers=[optimizer], schedulers=schedules)
    again = build()
    load_checkpoint(tmp_path / "c").restore(model=again[0], optimizers=[again[1]], schedulers=list(again[2:]))
    assert isinstance(again[2]._schedulers[1].milestones, Counter)
    (a, lr_a), (b, lr_b) = go(*whole, 6), go(*again, 6)
    assert torch.equal(a, b)
    assert lr_a == lr_b


def test_what_does_not_fit_is_named(tmp_path):
    save_checkpoint(
        tmp_path / "c", model=nn.Linear(3, 2), optimizers=[torch.optim.SGD(nn.Linear(3, 2).parameters(), 1)]
    )
    loaded = load_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"weight \(2, 3\) instead of \(5, 3\)"):
        loaded.restore(model=nn.Linear(3, 5))
    with pytest.raises(CheckpointError, match=r"missing: 0\.weight.*unexpected: weight, bias"):
        loaded.restore(model=nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(CheckpointError, match=r"optimizers\[0\] does not fit a SGD"):
        loaded.restore(optimizers=[torch.optim.SGD(nn.Linear(3, 2, bias=False).parameters(), 1)])
    with pytest.raises(CheckpointError, match=r"has the entries \[0\], restore got \[0, 1\]"):
        loaded.restore(optimizers=[1, 2])
    with pytest.raises(CheckpointError, match="no part 'ema', only model, optimizers"):
        loaded.restore(ema=nn.Linear(3, 2))
    with pytest.raises(AttributeError, match="no part 'ema'"):
        _ = loaded.ema


@pytest.mark.parametrize("name", ["model.safetensors", "rest.safetensors", "checkpoint.json"])
def test_one_flipped_byte_anywhere_is_found(tmp_path, name):
    save_checkpoint(tmp_path / "c", model=nn.Linear(3, 2), rest={"x": torch.arange(9), "lr": 0.25})
    file = tmp_path / "c" / name
    good = file.read_bytes()
    for place in range(0, len(good), 7):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "c")
    file.write_bytes(good[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "c")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"incomplete|not a checkpoint"):
        load_checkpoint(tmp_path / "c")


def test_foreign_and_newer_folders(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path)
    (tmp_path / "checkpoint.json").write_text('{"weights": 1}')
    with pytest.raises(CheckpointError, match="not written by kexue"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path / "c", step=1)
    manifest = json.loads((tmp_path / "c" / "checkpoint.json").read_text())
    manifest["body"]["version"] = 99
    (tmp_path / "c" / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="version 99"):
        load_checkpoint(tmp_path / "c")


def test_a_failure_leaves_the_old_one_and_no_rubbish(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c", step=1, model=nn.Linear(2, 2))

    def full(*_):
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", full)
        with pytest.raises(DiskFullError):
            save_checkpoint(tmp_path / "c", step=2, model=nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"cannot save part\['f'\]\[0\], a function"):
        save_checkpoint(tmp_path / "c", part={"f": [full]})
    assert load_checkpoint(tmp_path / "c").step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c", step=1)
    (tmp_path / ".c.kexue-00000000.tmp").mkdir()  # of a writer that was killed
    (tmp_path / "c").rename(tmp_path / ".c.kexue-old")
    assert load_checkpoint(tmp_path / "c").step == 1
    save_checkpoint(tmp_path / "c", step=2)
    assert load_checkpoint(tmp_path / "c").step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
