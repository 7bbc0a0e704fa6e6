"""What a resumed run must share, and what its checkpoints hold: names, optimizers, frozen weights."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from toys import Line, rows, run_of, same

from kexue.errors import CheckpointError
from kexue.optim import Lookahead
from kexue.train import load_checkpoint, save_checkpoint


@pytest.mark.parametrize("evaluate", [None, lambda _: {"loss": 1.0}])
def test_a_plateau_that_nobody_watches_for_is_refused(tmp_path, evaluate):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = run_of(tmp_path, model, optimizer=optimizer, schedulers=[ReduceLROnPlateau(optimizer)])
    with pytest.raises(ValueError, match="ReduceLROnPlateau needs monitor"):
        run.fit(rows(), evaluate=evaluate)


def test_another_optimizer_or_schedule_is_refused(tmp_path):
    def run(kind, schedule, **options):
        model = Line()
        optimizer = kind(model.parameters())
        return run_of(tmp_path, model, optimizer=optimizer, schedulers=[schedule(optimizer, 5)], **options)

    run(torch.optim.Adamax, StepLR).fit(rows())
    with pytest.raises(CheckpointError, match=r"optimizers was \['Adamax'\], now \['RAdam'\]"):
        run(torch.optim.RAdam, StepLR).fit(rows())
    with pytest.raises(CheckpointError, match=r"optimizers was \['Adamax'\], now \['Adamax Lookahead'\]"):
        run(lambda params: Lookahead(torch.optim.Adamax(params)), StepLR).fit(rows())
    with pytest.raises(CheckpointError, match=r"schedulers was \['StepLR'\], now \['CosineAnnealingLR'\]"):
        run(torch.optim.Adamax, CosineAnnealingLR).fit(rows())
    saved = load_checkpoint(tmp_path / "last")
    with pytest.raises(CheckpointError, match=r"optimizers.*Adamax.*|the state is that of Adamax.* is SGD"):
        saved.restore(optimizers=[torch.optim.SGD(Line().parameters(), momentum=0.9)])


class Nest(Line):
    """A compiled module within a plain one."""

    def __init__(self, compiled):
        super().__init__()
        inner = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.first = torch.compile(inner, backend="eager") if compiled else inner

    def forward(self, x):
        return self.line(self.first(x))


WAYS = {
    "plain": lambda: Nest(False),
    "compiled": lambda: torch.compile(Nest(False), backend="eager"),
    "within": lambda: Nest(True),
    "both": lambda: torch.compile(Nest(True), backend="eager"),
}


@pytest.mark.parametrize("saved", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("loaded", WAYS.values(), ids=WAYS)
def test_names_in_checkpoints_are_plain_however_the_model_is_wrapped(tmp_path, saved, loaded):
    torch.manual_seed(3)
    model = saved()
    save_checkpoint(tmp_path / "c", model=model)
    read = load_checkpoint(tmp_path / "c")
    assert set(read.model) == {"line.weight", "line.bias", "first.0.weight", "first.0.bias"}
    other = loaded()
    read.restore(model=other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    out = tmp_path / "run"
    run_of(out, model, steps=2, ema=0.9).fit(rows())
    assert set(load_checkpoint(out / "last").model) == set(load_checkpoint(out / "last").ema) == set(read.model)
    assert run_of(out, loaded(), steps=4, ema=0.9).fit(rows()).steps == 4


def test_a_data_parallel_wrapper_within_leaves_no_trace(tmp_path):
    plain, wrapped = Nest(False), Nest(False)
    wrapped.first = nn.DataParallel(wrapped.first)
    save_checkpoint(tmp_path / "c", model=wrapped)
    load_checkpoint(tmp_path / "c").restore(model=plain)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True))


def test_a_part_that_is_called_module_keeps_its_name(tmp_path):
    model = nn.ModuleDict({"module": nn.Linear(1, 1)})
    save_checkpoint(tmp_path / "c", model=model)
    assert set(load_checkpoint(tmp_path / "c").model) == {"module.weight", "module.bias"}


def half_frozen():
    torch.manual_seed(4)
    model = Nest(False)
    model.first.requires_grad_(False)
    model.register_buffer("seen", torch.ones(1))
    return model


def test_checkpoints_may_hold_trained_weights_alone(tmp_path):
    def run(out, model=None, **options):
        model = model or half_frozen()
        trained = [p for p in model.parameters() if p.requires_grad]
        options = {"save_frozen": False, "ema": 0.9} | options
        return run_of(out, model, optimizer=torch.optim.Adam(trained), **options)

    whole = run(tmp_path / "whole", save_frozen=True)
    whole.fit(rows())
    run(tmp_path / "cut", limit=3).fit(rows())
    again = run(tmp_path / "cut")
    again.fit(rows())
    assert same(again.model.state_dict(), whole.model.state_dict())
    saved = load_checkpoint(tmp_path / "cut" / "last")
    assert set(saved.model) == set(saved.ema) == {"line.weight", "line.bias", "seen"}
    fresh = half_frozen()
    saved.restore(model=fresh)
    assert same(fresh.state_dict(), whole.model.state_dict())
    other = half_frozen()
    other.first[0].weight.data += 1
    with pytest.raises(CheckpointError, match="frozen was"):
        run(tmp_path / "cut", other, steps=9).fit(rows())
