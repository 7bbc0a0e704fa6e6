"""A smoke run that is continued becomes the run without a limit."""

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from toys import Classifier, loader, records, same

from kexue.train import TrainConfig, Trainer, load_checkpoint


@pytest.mark.parametrize("limit", [1, 2, 4, 6, 8, 11, 13])
@pytest.mark.parametrize("options", [
    {"eval_every": 4, "patience": 3},
    {"eval_every": 3, "save_every": 2, "patience": 20},
    {"eval_every": None, "epochs": 3, "steps": None, "patience": 20},
], ids=["patience", "saves", "epochs"])  # fmt: skip
def test_a_continued_smoke_run_is_the_run_without_a_limit(tmp_path, limit, options):
    """Evaluations, the best, patience, plateaus, schedules, logs, and where it ends."""

    def run(out, **more):
        torch.manual_seed(0)
        model = Classifier()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        schedulers = [ReduceLROnPlateau(optimizer, "max", patience=0, factor=0.5), StepLR(optimizer, 2, 0.9)]
        config = TrainConfig(
            out, **{"steps": 16, "device": "cpu", "log": ("jsonl",), "monitor": "score"} | options | more
        )
        scores = [0.1, 0.2, 0.2, 0.2, 0.2, 0.1]

        def evaluate(_):
            return {"score": scores[min(trainer.place.step // 3, 5)]}

        trainer = Trainer(model, optimizer, config, schedulers=schedulers)
        return trainer.fit(loader(16), evaluate=evaluate)

    whole = run(tmp_path / "whole")
    first = run(tmp_path / "cut", limit=limit)
    assert first.steps == min(limit, whole.steps)
    assert first.value is not None  # something was evaluated
    cut = run(tmp_path / "cut")
    assert (cut.steps, cut.best_step, cut.value) == (whole.steps, whole.best_step, whole.value)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    for name in ("last", "best"):
        one, other = (load_checkpoint(tmp_path / folder / name) for folder in ("cut", "whole"))
        assert one.place == other.place
        assert same(one.model, other.model)
        assert one.schedulers == other.schedulers
