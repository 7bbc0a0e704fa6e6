"""Training and prediction: what is frozen, cached and kept, exact resuming, the order of predictions, the folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from contextlib import contextmanager, nullcontext

import pytest
import torch
from safetensors.torch import load_file
from tests.clue.conftest import CHINESE, blanks, names, questions, readings

from kexue.clue import Answer, ClueConfig, SpanExample, TextExample, get_task, list_tasks, predict_task
from kexue.clue.folder import build_model, open_run
from kexue.clue.model import choose_taps
from kexue.clue.run import build_optimizer, train_on
from kexue.errors import CheckpointError, DataError
from kexue.text.folder import load_transformer
from kexue.text.models import find_model
from kexue.text.trainable import open_trainable


def texts():
    """Texts of many lengths."""
    labels = get_task("tnews").info.labels
    return [
        TextExample(str(n), "今天天气很好，" * (1 + 5 * n % 7) + "股票" * (n % 2), None, labels[n % 2])
        for n in range(20)
    ]


EXAMPLES = {"tnews": texts, "c3": questions, "chid": blanks, "cmrc2018": readings, "cluener": names}
TUNES = ("full", "ladder", "linear")


def settings(task, encoder, out, **options):
    return ClueConfig(task, encoder, "unused", out, device="cpu", **{"batch_size": 2, "epochs": 2} | options)


def train(task, encoder, out, *, progress=None, **options):
    examples = EXAMPLES[task]()
    return train_on(
        settings(task, encoder, out, **options), examples, examples, get_task(task).metric, progress=progress
    )


def weights(out):
    return load_file(out / "model.safetensors")


# ---- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("task", EXAMPLES)
def test_padding_changes_no_score(task, tune, small_encoder):
    torch.manual_seed(0)
    setup = build_model(task, small_encoder, tune, None)
    rows = setup.encode(EXAMPLES[task]())
    shortest, longest = int(rows.sizes.argmin()), int(rows.sizes.argmax())
    setup.model.eval()
    with torch.no_grad():
        together = setup.model(rows.__getitems__([shortest, longest]))[0]
        alone = setup.model(rows[shortest])[0]
    if alone.dim() == 3:
        together = together[:, : alone.shape[1], : alone.shape[2]]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tune", ["ladder", "linear"])
@pytest.mark.parametrize("task", EXAMPLES)
def test_scores_from_cached_states_are_those_of_the_encoder(task, tune, small_encoder, tmp_path):
    torch.manual_seed(0)
    setup = build_model(task, small_encoder, tune, None)
    rows, model = setup.encode(EXAMPLES[task]()), setup.model.eval()
    numbers = list(range(len(rows)))[::-1][:5]
    with torch.no_grad():
        live = model(rows.__getitems__(numbers))
        rows.cache(model, tmp_path / "states")
        from_disk = rows.__getitems__(numbers)
        from_disk["token_ids"] = torch.zeros_like(from_disk["token_ids"])  # no longer read
        cached = model(from_disk)
    torch.testing.assert_close(cached, live, atol=1e-5, rtol=1e-4)


def test_a_linear_probe_is_a_linear_map_of_the_vectors_of_the_encoder(small_encoder):
    torch.manual_seed(0)
    setup = build_model("tnews", small_encoder, "linear", None)
    rows = setup.encode(texts())
    states = load_transformer(small_encoder)(rows[4]["token_ids"], rows[4]["mask"])[0]
    head = setup.model.head
    expected = (states[0].mean(dim=0) @ head.weight.T + head.bias).detach()
    with torch.no_grad():
        scores = setup.model.eval()(rows.__getitems__([4, 3]))[0]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tune", TUNES)
def test_what_is_frozen_stays_and_what_is_trained_moves(tune, small_encoder, tmp_path):
    encoder = open_trainable(small_encoder).state_dict()
    train("cluener", small_encoder, tmp_path, tune=tune, lr=1e-2)
    saved = weights(tmp_path)
    assert any("network." in name for name in saved) == (tune == "full")
    after = open_run(tmp_path, device="cpu").model.state_dict()
    ours = "encoder.backbone." if tune == "ladder" else "encoder."
    moved = {name for name, value in encoder.items() if not torch.equal(value, after[ours + name])}
    assert len(moved) == (len(encoder) if tune == "full" else 0)


def test_a_token_table_of_a_multilingual_encoder_is_not_trained(small_encoder, monkeypatch):
    monkeypatch.setattr("kexue.clue.model._LARGE_TABLE", 1000)
    model = build_model("tnews", small_encoder, "full", None).model
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == [
        "encoder.network.tokens.weight"
    ]
    assert "encoder.network.tokens.weight" not in model.trained_state()


def test_a_ladder_reads_the_last_layer_and_at_most_four():
    assert [choose_taps(layers) for layers in (1, 2, 6, 12, 24)] == [
        [0, 1], [0, 1, 2], [0, 2, 3, 4, 6], [0, 3, 6, 9, 12], [0, 6, 12, 18, 24],
    ]  # fmt: skip


def test_adafactor_has_no_factors_and_adamw_is_the_other_choice(small_encoder, tmp_path):
    model = build_model("tnews", small_encoder, "full", None).model
    adafactor = build_optimizer(model, settings("tnews", small_encoder, tmp_path))
    rows = build_model("tnews", small_encoder, "full", None).encode(texts())
    model.training_step(rows.__getitems__([0, 1])).loss.backward()
    adafactor.step()
    assert {"exp_avg_sq", "exp_avg"} <= set(adafactor.state[model.encoder.token_table])
    assert adafactor.param_groups[0]["lr"] == 5e-4
    assert adafactor.param_groups[0]["beta1"] == 0.9
    adamw = build_optimizer(model, settings("tnews", small_encoder, tmp_path, optimizer="adamw", tune="ladder"))
    assert isinstance(adamw, torch.optim.AdamW)
    tuned = build_optimizer(model, settings("tnews", small_encoder, tmp_path, optimizer="adamw"))
    assert [group["lr"] for group in tuned.param_groups] == pytest.approx([2e-5, 6e-4])
    assert adamw.param_groups[0]["lr"] == 1e-3


# ---- training --------------------------------------------------------------------------------------------------------


class _CrashError(Exception):
    pass


def crashing(steps):
    """Return phases whose training dies after this many steps."""

    def report(done, _total):
        if done == steps:
            raise _CrashError

    @contextmanager
    def phases(label):
        yield report if label == "training" else lambda done, total: None

    return phases


@pytest.mark.parametrize(("task", "tune"), [("tnews", "full"), ("cmrc2018", "ladder"), ("cluener", "linear")])
def test_a_training_that_died_continues_to_the_same_bits(task, tune, small_encoder, tmp_path):
    train(task, small_encoder, tmp_path / "whole", tune=tune, epochs=3)
    steps = json.loads((tmp_path / "whole/log.jsonl").read_text().splitlines()[-1])["step"]
    with pytest.raises(_CrashError):
        train(task, small_encoder, tmp_path / "cut", tune=tune, epochs=3, progress=crashing(steps - 1))
    assert not (tmp_path / "cut/model.safetensors").exists()
    result = train(task, small_encoder, tmp_path / "cut", tune=tune, epochs=3)
    assert result.steps == steps
    assert not (tmp_path / "cut/states").exists()
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


def test_a_training_that_a_signal_ended_has_no_weights_to_predict_with(small_encoder, tmp_path):
    def stop(_label):
        return nullcontext(lambda done, total: done == 3 and signal.raise_signal(signal.SIGINT))

    result = train("tnews", small_encoder, tmp_path, progress=stop)
    assert result.interrupted
    with pytest.raises(CheckpointError, match="its training has not ended"):
        open_run(tmp_path)
    assert not train("tnews", small_encoder, tmp_path).interrupted
    open_run(tmp_path)


def test_the_best_epoch_is_kept(small_encoder, tmp_path):
    result = train("tnews", small_encoder, tmp_path, epochs=6, lr=3e-2)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    values = {line["step"]: line["accuracy"] for line in log if line["kind"] == "eval"}
    assert result.metric == "accuracy"
    assert result.value == max(values.values()) == values[result.best_step]
    predictions = predict_from(tmp_path, texts())
    assert get_task("tnews").metric(predictions, texts())["accuracy"] == result.value


def predict_from(run, examples):
    setup = open_run(run, device="cpu")
    return setup.encode(examples).read_outputs(setup.model)


def test_every_unit_is_trained_in_each_epoch_also_a_last_small_batch(small_encoder, tmp_path):
    result = train("tnews", small_encoder, tmp_path, batch_size=8, epochs=2)  # 20 texts: 8, 8 and 4
    assert result.steps == 6
    result = train("c3", small_encoder, tmp_path / "c3", batch_size=1, epochs=1, max_length=64)  # 6, in steps of 4
    assert result.steps == 2


@pytest.mark.parametrize("task", EXAMPLES)
def test_predictions_have_the_order_of_the_examples(task, small_encoder, tmp_path):
    train(task, small_encoder, tmp_path, limit=2, lr=0.05)
    examples = EXAMPLES[task]()[::-1]
    size = 2 if task == "chid" else 1  # idioms are assigned within a group
    groups = [examples[n : n + size] for n in range(0, len(examples), size)]
    alone = [one for group in groups for one in predict_from(tmp_path, group)]
    assert predict_from(tmp_path, examples) == alone


def test_texts_that_are_cut_are_counted_and_told(small_encoder, tmp_path, caplog):
    train("c3", small_encoder, tmp_path, limit=1, max_length=48)
    facts = json.loads((tmp_path / "settings.json").read_text())["facts"]
    assert facts["train"] == {"examples": 6, "cut": 1, "lost": 0}
    assert "train: 1 of 6 examples are cut" in caplog.text


def test_a_text_of_many_windows_is_counted_once(small_encoder):
    setup = build_model("cmrc2018", small_encoder, "linear", 16)  # an unknown answer, a question that is cut
    rows = setup.encode([SpanExample("0", "北京是首都。" * 40, "哪里是中国的首都？", (Answer("上海", -1),))])
    assert len(rows) > 2
    assert rows.count() == {"examples": 1, "cut": 1, "lost": 1}


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "qqp"}, "task must be one of"),
        ({"tune": "lora"}, "tune must be one of full, ladder, linear, got 'lora'"),
        ({"optimizer": "sgd"}, "optimizer must be one of"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"lr": float("inf")}, "lr must be > 0 and finite, got inf"),
        ({"epochs": 0}, "epochs must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"max_length": 8}, "max_length must be"),
        ({"limit": 0}, "limit must be"),
    ],
)
def test_settings_out_of_range_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        ClueConfig(**{"task": "tnews", "model": "m", "data": "d", "out": "o", **options})


def test_a_row_longer_than_the_encoder_reads_is_refused(small_encoder):
    with pytest.raises(ValueError, match="max_length must be at most 512"):
        build_model("tnews", small_encoder, "full", 600)


def test_no_examples_are_an_error(small_encoder):
    with pytest.raises(DataError, match="no examples"):
        build_model("tnews", small_encoder, "full", None).encode([])


@pytest.mark.parametrize("task", EXAMPLES)
def test_an_example_without_an_answer_cannot_be_learned(task, small_encoder, tmp_path):
    field = {"tnews": "label", "cmrc2018": "answers", "cluener": "entities"}.get(task, "answer")
    examples = EXAMPLES[task]()
    examples[1] = dataclasses.replace(examples[1], **{field: None})
    with pytest.raises(DataError, match=f"example {examples[1].id!r} has no answer"):
        train_on(settings(task, small_encoder, tmp_path), examples, EXAMPLES[task](), get_task(task).metric)
    assert not list(tmp_path.iterdir())


def test_a_foreign_folder_is_no_run(small_encoder, tmp_path):
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        open_run(tmp_path)
    (tmp_path / "settings.json").write_text('{"stage": "pretrain"}')
    with pytest.raises(CheckpointError, match="not of a run of kexue clue"):
        open_run(tmp_path)


def test_a_run_of_another_task_or_other_settings_is_refused(small_encoder, tmp_path):
    train("tnews", small_encoder, tmp_path, limit=1)
    with pytest.raises(CheckpointError, match="a run of tnews, not of afqmc"):
        predict_task(tmp_path, "unused", task="afqmc")
    with pytest.raises(CheckpointError, match="seed was 0, is 1"):
        train("tnews", small_encoder, tmp_path, limit=1, seed=1)


def test_a_run_needs_its_own_encoder_and_whole_weights(small_encoder, tmp_path):
    shutil.copytree(small_encoder, tmp_path / "encoder")
    train("tnews", tmp_path / "encoder", tmp_path / "run", limit=1, tune="linear")
    (tmp_path / "run/model.safetensors").rename(tmp_path / "kept")
    with pytest.raises(CheckpointError, match="has not ended"):
        open_run(tmp_path / "run")
    (tmp_path / "run/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="does not fit"):
        open_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "encoder")
    shutil.copytree(find_model(CHINESE), tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="is not the encoder"):
        open_run(tmp_path / "run")


def test_all_tasks_have_a_framing():
    assert {get_task(info.name).framing.info.name for info in list_tasks()} == {info.name for info in list_tasks()}
