"""A student that starts as a part of its teacher."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kexue.errors import CheckpointError
from kexue.text import RoFormerSim, RoFormerSimConfig, SentenceConfig, train_sentences
from kexue.text.roformer_sim.characters import choose_characters, write_tokenizer
from kexue.text.tokenizer import TextTokenizer
from kexue.text.training.start import start_from_teacher


@pytest.fixture(scope="module")
def bert(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RoFormerSim, str]:
    """A BERT of 3 layers with large random weights, and its folder."""
    tokenizer = TextTokenizer(tokenizer_folder)
    config = RoFormerSimConfig(
        tokenizer.vocabulary_size, hidden_size=48, num_layers=3, position="learned", max_length=128
    )
    folder = tmp_path_factory.mktemp("models") / "bert"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = RoFormerSim(config, tokenizer).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model, str(folder)


@pytest.fixture
def small(tmp_path: Path) -> TextTokenizer:
    """Another vocabulary: more letters than the teacher's, in another order."""
    write_tokenizer(tmp_path, ["é", *choose_characters(["手机", "手机"])])
    return TextTokenizer(tmp_path)


def test_layers_and_norms_are_those_of_the_teacher(bert: tuple[RoFormerSim, str], small: TextTokenizer) -> None:
    teacher, folder = bert
    student = start_from_teacher(folder, small, num_layers=2)
    theirs, ours = teacher.state_dict(), student.state_dict()
    kept = [name for name in ours if "blocks" in name or name.startswith("transformer.norm")]
    assert {name.split(".")[2] for name in kept if "blocks" in name} == {"0", "1"}
    for name in kept:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_states_are_pooled_as_by_the_teacher(
    bert: tuple[RoFormerSim, str], small: TextTokenizer, pooling: str, tmp_path: Path
) -> None:
    teacher = bert[0]
    RoFormerSim(dataclasses.replace(teacher.config, pooling=pooling), teacher.tokenizer).save_pretrained(tmp_path / "t")
    assert start_from_teacher(str(tmp_path / "t"), small, num_layers=1).config.pooling == pooling


def test_tokens_start_as_the_teacher_reads_them(bert: tuple[RoFormerSim, str], small: TextTokenizer) -> None:
    teacher, folder = bert
    assert teacher.tokenizer is not None
    student = start_from_teacher(folder, small, num_layers=1)
    old, new = teacher.tokenizer.tokens, small.tokens
    table, own = teacher.transformer.tokens.weight, student.transformer.tokens.weight
    for token in ("手", "机", "a", "7", "[CLS]", "[SEP]"):
        torch.testing.assert_close(own[new.index(token)], table[old.index(token)])
    segments = teacher.state_dict()["transformer.segments.weight"][0]
    places = teacher.state_dict()["transformer.positions.table.weight"][2:34].mean(0)
    torch.testing.assert_close(student.state_dict()["transformer.segments.weight"], (segments + places).repeat(2, 1))


def test_a_start_needs_a_bert_with_as_many_layers(
    bert: tuple[RoFormerSim, str], teacher: Path, small: TextTokenizer
) -> None:
    for layers in (0, 4, 2.0, True, "2"):
        with pytest.raises(ValueError, match=f"whole number between 1 and the teacher's 3, got {layers!r}"):
            start_from_teacher(bert[1], small, num_layers=layers)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="model_type='roformer'"):
        start_from_teacher(str(teacher), small, num_layers=1)
    with pytest.raises(ValueError, match="needs a teacher"):
        SentenceConfig("pretrain", ["pairs.tsv"], "run", init="teacher")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, 'hidden_act="relu"'),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_size": None}, "cannot be loaded"),
        ({"num_attention_heads": 5}, "num_heads must divide hidden_size"),
        ({}, r"KeyError: 'embeddings\.position_embeddings\.weight'"),
    ],
)
def test_a_damaged_teacher_and_another_form_are_told(
    bert: tuple[RoFormerSim, str], small: TextTokenizer, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = shutil.copytree(bert[1], tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    if not changes:
        weights = load_file(folder / "model.safetensors")
        save_file({k: v for k, v in weights.items() if "position" not in k}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        start_from_teacher(str(folder), small, num_layers=1)


def test_a_run_starts_from_its_teacher(bert: tuple[RoFormerSim, str], pairs: Path, tmp_path: Path) -> None:
    config = SentenceConfig(
        "distill", [pairs], tmp_path / "run", init="teacher", teacher=bert[1], num_layers=1, steps=1, lr=1e-12,
        batch_size=4, vector_size=16,
    )  # fmt: skip
    train_sentences(config)
    student = RoFormerSim.from_pretrained(tmp_path / "run" / "model")
    assert student.encode(["手机"]).shape == (1, 16)
    weight = "transformer.blocks.0.up.weight"
    torch.testing.assert_close(student.state_dict()[weight], bert[0].state_dict()[weight])


def test_shorter_vectors_are_the_first_dimensions(
    make_model: Callable[..., RoFormerSim], pairs: Path, teacher: Path, tmp_path: Path
) -> None:
    model = make_model(32)
    model.save_pretrained(tmp_path / "model")
    config = SentenceConfig(
        "distill", [pairs], tmp_path / "run", init=tmp_path / "model", teacher=teacher, vector_size=5, batch_size=4,
        steps=1, lr=1e-12,
    )  # fmt: skip
    train_sentences(config)
    texts = ["怎么买手机", "雨伞坏了"]
    long = model.encode(texts)[:, :5]
    short = RoFormerSim.from_pretrained(tmp_path / "run" / "model").encode(texts)
    np.testing.assert_allclose(short, long / np.linalg.norm(long, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ValueError, match="vector_size must be at most 32"):
        train_sentences(
            SentenceConfig(
                "distill", [pairs], tmp_path / "two", init=tmp_path / "model", teacher=teacher, vector_size=33
            )
        )
