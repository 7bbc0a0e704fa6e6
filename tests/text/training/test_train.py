"""A training from files to a model folder: each stage, its selection, its interruption, and what it refuses."""

import dataclasses
import json
import logging
import os
import signal
import sys
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from kexue.errors import CheckpointError, DataError
from kexue.similarity import load_pairs
from kexue.similarity.evaluation import evaluate_pairs
from kexue.text import RoFormerSim, SentenceConfig, train_sentences
from kexue.text.training import train as module
from kexue.text.training.corpus import read_corpus
from kexue.train import load_checkpoint

PAIRS = [("怎么买手机", "手机如何购买"), ("怎么买电脑", "电脑如何购买")]  # two of those of `pairs`
SMALL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "batch_size": 8, "steps": 6, "eval_every": 2, "lr": 1e-3}
CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture
def settings(request, pairs, labelled, teacher, tmp_path):
    """Settings of a stage."""
    own = {
        "pretrain": {"data": [pairs]},
        "distill": {"data": [pairs], "teacher": teacher},
        "supervise": {"data": [labelled]},
    }
    return {"stage": request.param, "out": tmp_path / "run", **own[request.param], **SMALL, **CPU}


every_stage = pytest.mark.parametrize("settings", ["pretrain", "distill", "supervise"], indirect=True)
pretrain = pytest.mark.parametrize("settings", ["pretrain"], indirect=True)
supervise = pytest.mark.parametrize("settings", ["supervise"], indirect=True)


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def records(run, kind="train"):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@every_stage
def test_a_run_gives_a_model_that_opens(settings):
    result = train_sentences(SentenceConfig(**settings))
    assert (result.steps, result.metric, result.interrupted) == (6, "loss", False)
    model = RoFormerSim.from_pretrained(settings["out"] / "model")
    assert model.encode(["怎么退货"]).shape == (1, 16)
    names = {
        "pretrain": {"contrast", "writing"},
        "distill": {"similarities", "vectors", "writing"},
        "supervise": {"cosent"},
    }
    assert names[settings["stage"]] <= records(settings["out"])[0].keys()


@every_stage
def test_a_stopped_run_continues_with_the_same_bits(settings, tmp_path):
    torch.manual_seed(1)
    straight = train_sentences(SentenceConfig(**settings))
    torch.manual_seed(2)
    other = {**settings, "out": tmp_path / "other"}
    assert train_sentences(SentenceConfig(**other, limit=3)).steps == 3
    result = train_sentences(SentenceConfig(**other))
    assert (result.steps, result.value) == (straight.steps, straight.value)
    assert_equal(weights(settings["out"]), weights(other["out"]))
    losses = [[one["loss"] for one in records(run)] for run in (settings["out"], other["out"])]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


@pretrain
def test_a_signal_saves_and_the_same_call_continues(settings, tmp_path):
    train_sentences(SentenceConfig(**settings))

    @contextmanager
    def stop_at_three(_label):
        yield lambda done, _total: os.kill(os.getpid(), signal.SIGTERM) if done == 3 else None

    other = {**settings, "out": tmp_path / "other"}
    result = train_sentences(SentenceConfig(**other), progress=stop_at_three)
    assert (result.steps, result.interrupted) == (3, True)
    assert train_sentences(SentenceConfig(**other)).interrupted is False
    assert_equal(weights(settings["out"]), weights(other["out"]))


@every_stage
def test_the_step_of_the_best_validation_is_kept(settings, labelled, monkeypatch):
    scores = iter([10.0, 30.0, 20.0])

    def fake(model, pairs, *, bootstrap):
        assert not model.training
        return type("Evaluation", (), {"rows": [type("Row", (), {"spearman": next(scores)})]})

    monkeypatch.setattr(module, "evaluate_pairs", fake)
    result = train_sentences(SentenceConfig(**settings, validation=labelled, ema=0.5))
    assert (result.metric, result.value, result.best_step) == ("spearman", 30.0, 4)
    kept = load_checkpoint(settings["out"] / "best")["ema"]
    table = weights(settings["out"])["roformer.embeddings.word_embeddings.weight"]
    assert torch.equal(table, kept["network.transformer.tokens.weight"])


@pretrain
def test_validation_pairs_that_are_trained_on_are_told(settings, tmp_path, caplog):
    path = tmp_path / "valid.tsv"
    a, b = PAIRS[0]
    path.write_text(f"{b}\t{a}\t1\n{a}\t{PAIRS[1][1]}\t0\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        train_sentences(SentenceConfig(**settings, validation=path, limit=1))
    assert "1 of 2 validation pairs are in the training data" in caplog.text


@pretrain
def test_the_value_is_the_spearman_correlation_of_the_model_folder(settings, labelled):
    result = train_sentences(SentenceConfig(**settings, validation=labelled))
    model = RoFormerSim.from_pretrained(settings["out"] / "model")
    [row] = evaluate_pairs(model, load_pairs(labelled), bootstrap=0).rows
    assert result.value == pytest.approx(row.spearman, abs=1e-6)


def test_a_student_comes_near_its_teacher(pairs, teacher, tmp_path):
    config = SentenceConfig(
        "distill",
        [pairs],
        tmp_path / "run",
        teacher=teacher,
        noise=0.0,
        dropout=0.0,
        **{**SMALL, **CPU, "hidden_size": 32, "lr": 1e-2, "steps": 60},
    )
    train_sentences(config)
    first, last = records(tmp_path / "run")[0], records(tmp_path / "run")[-1]
    assert last["similarities"] < 0.6 * first["similarities"]
    assert last["writing"] < first["writing"]


@supervise
def test_the_head_is_trained_with_the_network(settings):
    config = SentenceConfig(**{**settings, "loss": "classify", "eval_every": 1, "vector_size": 12})
    train_sentences(dataclasses.replace(config, limit=1))
    name = "objective.head.head.linear.weight"
    before = load_checkpoint(settings["out"] / "last")["model"][name].clone()
    train_sentences(config)
    after = load_checkpoint(settings["out"] / "last")["model"][name]
    assert after.shape == (5, 3 * 12)
    assert (before - after).abs().max() > 1e-4


@pytest.mark.parametrize("loss", ["cosent", "classify", "mse", "hinge"])
def test_losses_on_kinds_of_labels_in_turn(loss, labelled, tmp_path):
    rows = [
        {"text_a": f"我有{i}", "text_b": f"你有{i}", "label": word}
        for i in "一二三四"
        for word in ("entailment", "neutral", "contradiction", "-")
    ]
    grades = [{"text_a": f"他有{i}", "text_b": f"她有{i}", "score": grade} for grade, i in enumerate("一二三四五")]
    config = SentenceConfig(
        "supervise", [labelled, rows, grades], tmp_path / "run", loss=loss, **{**SMALL, **CPU, "batch_size": 4}
    )
    train_sentences(config)
    names = {"cosent": "cosent", "classify": "classes", "mse": "mse", "hinge": "hinge"}
    assert all(names[loss] in one for one in records(tmp_path / "run"))


def test_a_model_to_start_from_keeps_its_weights_and_gets_the_dropout(teacher, pairs, tmp_path):
    config = SentenceConfig("pretrain", [pairs], tmp_path / "run", init=teacher, lr=1e-12, dropout=0.3, steps=1, **CPU)
    train_sentences(config)
    trained = RoFormerSim.from_pretrained(tmp_path / "run" / "model")
    assert trained.config.dropout == 0.3
    for (name, one), other in zip(
        RoFormerSim.from_pretrained(teacher).named_parameters(), trained.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=name)


def test_a_new_model_knows_the_characters_of_the_data_and_the_usual_ones(tmp_path):
    rows = [{"text": "彳亍彳亍"}, {"text": "彳亍①"}]
    config = SentenceConfig("distill", [rows], tmp_path, teacher="x", **SMALL)
    model = module._open_student(config, read_corpus(config.data).texts)
    assert model.tokenizer.encode(["彳亍怎么退货a1"]).unknown == 0
    assert model.tokenizer.encode(["龘"]).unknown == 1


@pretrain
def test_other_settings_or_data_are_refused_on_resume(settings):
    train_sentences(SentenceConfig(**settings, limit=2))
    with pytest.raises(CheckpointError, match=r"lr was 0\.001, is 0\.01") as caught:
        train_sentences(SentenceConfig(**{**settings, "lr": 0.01}))
    assert "resume=False" in caught.value.remedy
    rows = [{"texts": ["甲", "乙"]}, {"texts": ["丙", "丁"]}]
    with pytest.raises(CheckpointError, match="texts was"):
        train_sentences(SentenceConfig(**{**settings, "data": [rows]}))
    again = train_sentences(SentenceConfig(**{**settings, "lr": 0.01}, resume=False))
    assert again.steps == 6


@pretrain
def test_a_run_started_anew_and_killed_has_no_model_of_the_one_before(settings):
    class Killed(BaseException):
        pass

    @contextmanager
    def kill(_label):
        def report(_done, _total):
            raise Killed

        yield report

    train_sentences(SentenceConfig(**settings))
    with pytest.raises(Killed):
        train_sentences(SentenceConfig(**{**settings, "lr": 0.01}, resume=False), progress=kill)
    assert not (settings["out"] / "model").exists()
    train_sentences(SentenceConfig(**settings, resume=False, limit=2))
    assert train_sentences(SentenceConfig(**settings)).steps == 6  # a run that continues keeps its model until the end


@pretrain
def test_a_training_does_not_start_from_the_model_that_it_replaces(settings):
    train_sentences(SentenceConfig(**settings))
    model = settings["out"] / "model"
    for resume in (True, False):
        with pytest.raises(ValueError, match="would replace"):
            train_sentences(SentenceConfig(**settings, init=f"{model}/", resume=resume))
    assert model.exists()


@pretrain
def test_a_folder_of_other_files_is_refused_before_the_training(settings):
    (settings["out"] / "model").mkdir(parents=True)
    (settings["out"] / "model" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds notes\.txt, not written by kexue"):
        train_sentences(SentenceConfig(**settings))
    assert (settings["out"] / "model" / "notes.txt").exists()
    assert not (settings["out"] / "log.jsonl").exists()


@pretrain
def test_long_texts_and_unknown_characters_are_told(settings, tmp_path, teacher, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    rows = [{"texts": ["天" * 40, "龘龘龘龘龘龘"]}, {"texts": ["甲", "乙"]}]
    with caplog.at_level(logging.WARNING):
        train_sentences(SentenceConfig(**{**settings, "data": [rows], "init": teacher, "max_length": 20}, limit=1))
    assert "1 text longer than max_length=20 tokens" in caplog.text
    assert "23.1 % of the tokens are unknown" in caplog.text  # 6 of 18 + 6 + 1 + 1
    facts = json.loads((settings["out"] / "settings.json").read_text())["facts"]
    assert facts["cut"] == 1
    assert facts["words"] == "longest match"


def test_pairs_that_all_share_a_text_are_told(tmp_path, caplog):
    rows = [{"text_a": "甲", "text_b": other} for other in "乙丙丁戊己庚"]
    with caplog.at_level(logging.WARNING):
        train_sentences(SentenceConfig("pretrain", [rows], tmp_path, **{**SMALL, **CPU, "steps": 1}))
    assert "1 of 6 pairs or groups are in the batches of an epoch" in caplog.text


def test_numbered_inference_labels_are_told(tmp_path, caplog):
    rows = [{"text_a": f"甲{i}", "text_b": f"乙{i}", "label": i} for i in range(3)]
    with caplog.at_level(logging.WARNING):
        train_sentences(SentenceConfig("supervise", [rows], tmp_path, **{**SMALL, **CPU, "steps": 1}))
    assert "labels 0, 1 and 2 are read as grades; for inference use the words contradiction" in caplog.text


def test_a_named_set_is_validated_on_its_valid_split(tmp_path, monkeypatch, pairs):
    folder = tmp_path / "pairs_zh" / "toy"
    folder.mkdir(parents=True)
    (folder / "test.tsv").write_text("a\tb\t1\nc\td\t0\n")
    monkeypatch.setenv("KEXUE_DATA", str(tmp_path))
    config = SentenceConfig("pretrain", [pairs], tmp_path / "run", validation="toy", **SMALL)
    with pytest.raises(DataError, match="'toy' has no split 'valid'"):
        train_sentences(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": [[{"text": "甲"}, {"text": "乙"}]]}, "needs two or more pairs or groups of different texts"),
        ({"data": [[{"texts": ["甲", "甲"]}, {"texts": ["丙", "丁"]}]]}, "needs two or more pairs or groups"),
        ({"stage": "supervise"}, "needs a label for each pair, '怎么买手机' has none"),
        (
            {"stage": "supervise", "data": [[{"text_a": "甲", "text_b": "乙", "label": 1}] * 3]},
            "the labels are all alike",
        ),
    ],
)
def test_data_that_do_not_suit_the_stage(pairs, tmp_path, changes, message):
    config = SentenceConfig(**{"stage": "pretrain", "data": [pairs], "out": tmp_path / "run", **SMALL, **changes})
    with pytest.raises(DataError) as caught:
        train_sentences(config)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "finetune"}, "stage must be one of pretrain, distill, supervise, got 'finetune'"),
        ({"loss": "triplet"}, "loss must be one of cosent, classify, mse, hinge, got 'triplet'"),
        ({"batch_size": 7}, "batch_size must be an even number of rows, at least 2, since a pair has two rows, got 7"),
        ({"chunk_size": 0}, "chunk_size must be at least 1 row, got 0"),
        ({"lr": 0}, "lr must be > 0, got 0"),
        ({"noise": 2}, "noise is a share between 0 and 1, got 2"),
        ({"max_length": 3}, "max_length must be at least 4 tokens, got 3"),
        ({"data": "a.tsv"}, "data must be a list of one or more files or data sets, got 'a.tsv'; use [...]"),
        ({"data": []}, "data must be a list of one or more files or data sets, got []"),
        ({"teacher": "x"}, "a teacher belongs to the stage 'distill', got teacher='x' for the stage 'pretrain'"),
        ({"stage": "distill"}, "the stage 'distill' needs a teacher"),
    ],
)
def test_settings_outside_their_range(changes, message):
    with pytest.raises(ValueError, match=r"\w") as caught:
        SentenceConfig(**{"stage": "pretrain", "data": ["a.tsv"], "out": "run", **changes})
    assert message in str(caught.value)


def test_a_length_that_the_model_does_not_read(pairs, tmp_path):
    with pytest.raises(
        ValueError, match=r"max_length=300 is too long: .* 600 tokens, the model reads 512; use max_length=256"
    ):
        train_sentences(SentenceConfig("pretrain", [pairs], tmp_path / "run", max_length=300, **SMALL))
