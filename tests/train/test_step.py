"""One step: what it logs, what it refuses, and batches of different sizes."""

import math

import numpy as np
import pytest
import torch
from toys import Line, records, rows, run_of, same

from kexue.optim import EMA, DecoupledWeightDecay, LayerAdaptation, Lookahead
from kexue.train import LossOutput


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null_in_the_log(tmp_path, value):
    pytest.importorskip("tensorboard")
    model = Line(precision=torch.tensor(value), other=value)
    run_of(tmp_path, model, log=("jsonl", "tensorboard")).fit(rows(), evaluate=lambda _: {"f1": value, "n": 3})
    assert all(record["precision"] is record["other"] is None for record in records(tmp_path) if "loss" in record)
    assert records(tmp_path)[-1]["f1"] is None
    assert records(tmp_path)[-1]["n"] == 3
    assert run_of(tmp_path, Line(precision=torch.tensor(value), other=value), steps=8).fit(rows()).steps == 8


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("values", [[math.nan, 0.3, 0.4], [0.3, math.nan, 0.3], [math.nan] * 3])
def test_an_evaluation_that_is_no_number_is_never_the_best(tmp_path, mode, values):
    rest = iter(values)
    result = run_of(tmp_path, steps=3, eval_every=1, monitor="x", mode=mode).fit(
        rows(), evaluate=lambda _: {"x": next(rest)}
    )
    real = [value for value in values if not math.isnan(value)]
    best = (max(real) if mode == "max" else min(real)) if real else None
    assert result.best_step == (values.index(best) + 1 if real else None)
    assert result.value == best or (not real and math.isnan(result.value))
    assert (tmp_path / "best").exists() == bool(real)


PARTS = {
    "float": (0.5, 0.5), "int": (2, 2.0), "bool": (True, 1.0), "numpy": (np.float64(0.25), 0.25),
    "numpy int": (np.int64(3), 3.0), "array": (np.array([1.0, 2.0]), 1.5), "0-d array": (np.array(4.0), 4.0),
    "tensor": (torch.tensor([1.0, 3.0]), 2.0), "whole": (torch.tensor(7), 7.0), "list": ([1.0, 2.0], 1.5),
    "double": (torch.tensor(0.5, dtype=torch.float64), 0.5), "half": (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
}  # fmt: skip


@pytest.mark.parametrize(("given", "logged"), PARTS.values(), ids=PARTS)
def test_numbers_of_any_make_are_logged(tmp_path, given, logged):
    result = run_of(tmp_path, Line(part=given), accumulate=2).fit(rows(), evaluate=lambda _: {"part": logged})
    assert result.steps == 6
    assert all(record["part"] == logged for record in records(tmp_path))


@pytest.mark.parametrize("bad", ["0.5", None, 1j, {"a": 1}, torch.tensor(1j)])
def test_what_is_no_number_at_all_is_refused_by_name(tmp_path, bad):
    with pytest.raises(TypeError, match="part 'accuracy' of training_step must be a real number"):
        run_of(tmp_path / "a", Line(accuracy=bad)).fit(rows())
    with pytest.raises(TypeError, match=r"evaluate must return numbers, got .* for 'f1'"):
        run_of(tmp_path / "b").fit(rows(), evaluate=lambda _: {"f1": bad})


@pytest.mark.parametrize("output", [torch.tensor(1.0), 0.5, None, LossOutput(0.5), LossOutput(torch.ones(3))])
def test_a_step_that_returns_something_else_is_refused(tmp_path, output):
    model = Line()
    model.training_step = lambda batch, **_: output
    with pytest.raises(TypeError, match="training_step must return a LossOutput"):
        run_of(tmp_path, model).fit(rows())


def test_a_loss_without_a_graph_is_refused(tmp_path):
    model = Line()
    model.training_step = lambda batch, **_: LossOutput(torch.tensor(1.0))
    with pytest.raises(ValueError, match="without a graph"):
        run_of(tmp_path, model).fit(rows())


def test_evaluate_must_return_numbers_by_name(tmp_path):
    with pytest.raises(TypeError, match=r"numbers by name, got 0\.5"):
        run_of(tmp_path).fit(rows(), evaluate=lambda _: 0.5)


def test_an_evaluation_that_fails_leaves_the_model_in_training(tmp_path):
    model = Line()

    def evaluate(tested):
        assert not tested.training
        raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        run_of(tmp_path, model).fit(rows(), evaluate=evaluate)
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize(("precision", "clip"), [("fp32", None), ("fp32", 0.01), ("fp16", None)])
def test_batches_count_by_their_tokens(tmp_path, precision, clip):
    """Micro-batches of 1, 5 and 2 rows are one batch of 8: the same gradient, norm, loss and weights."""

    class Counted(Line):
        def training_step(self, batch, **options):
            return LossOutput(
                super().training_step(batch, **options).loss, {"tokens": len(batch), "first": batch[0, 0]}
            )

    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
    ways = {"parts": ([*x[:8].split([1, 5, 2]), *x[8:].split([3, 4, 1])], 3), "whole": (list(x.split(8)), 1)}
    ends = {}
    for name, (batches, accumulate) in ways.items():
        options = {"weight": "tokens", "accumulate": accumulate, "clip": clip, "precision": precision, "steps": 4}
        torch.manual_seed(0)
        model = Counted()
        run_of(tmp_path / name, model, optimizer=torch.optim.SGD(model.parameters(), 8.0), **options).fit(batches)
        ends[name] = list(model.parameters()), records(tmp_path / name)
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    torch.testing.assert_close(*(end[0] for end in ends.values()), rtol=tolerance, atol=tolerance)
    for one, other in zip(*(end[1] for end in ends.values()), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
        assert "tokens" not in one
        assert clip is None or one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=tolerance)


@pytest.mark.parametrize(("parts", "message"), [
    ({}, "weight is 'tokens', training_step returned the parts none"), ({"tokens": -1}, "finite and >= 0, got -1"),
    ({"tokens": math.nan}, "finite"), ({"tokens": 0}, "of all losses of a step are 0"),
])  # fmt: skip
def test_weights_that_make_no_mean_are_refused(tmp_path, parts, message):
    with pytest.raises(ValueError, match=message):
        run_of(tmp_path, Line(**parts), weight="tokens").fit(rows())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_run_in_any_mode_trains(tmp_path, mode):
    run, other, data = run_of(tmp_path / "a", ema=0.9), run_of(tmp_path / "b", ema=0.9), rows()
    with mode():
        run.fit(data)
    other.fit(rows())
    assert same(run.model.state_dict(), other.model.state_dict())


@pytest.mark.parametrize("make", [
    lambda o: DecoupledWeightDecay(o, 0.1), LayerAdaptation, Lookahead, EMA, lambda o: EMA(Lookahead(o)),
])  # fmt: skip
def test_wrapped_optimizers_resume_exactly(tmp_path, make):
    def run(out, **options):
        torch.manual_seed(0)
        model = Line()
        return run_of(out, model, optimizer=make(torch.optim.Adam(model.parameters(), 0.05)), steps=9, **options)

    whole, cut = run(tmp_path / "a"), run(tmp_path / "b", limit=4)
    whole.fit(rows())
    cut.fit(rows())
    again = run(tmp_path / "b")
    again.fit(rows())
    assert same(again.model.state_dict(), whole.model.state_dict())
