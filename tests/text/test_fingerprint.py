"""A fingerprint follows every file that changes a vector, and none that does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from kexue.errors import CheckpointError, SpaceMismatchError
from kexue.search import Index
from kexue.text import Encoder

TEXT = "The Dog runs in the park and eats 3 apples, a café's 今天 best."


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed), encoding="utf-8")


def swap(vocabulary: dict[str, int]) -> None:
    vocabulary["the"], vocabulary["in"] = vocabulary["in"], vocabulary["the"]


CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "lower case": ("tokenizer_config.json", lambda c: c.update(do_lower_case=False)),
    "accents": ("tokenizer_config.json", lambda c: c.update(strip_accents=False)),
    "chinese": ("tokenizer_config.json", lambda c: c.update(tokenize_chinese_chars=False)),
    "vocabulary": ("tokenizer.json", lambda c: swap(c["model"]["vocab"])),
    "word pieces": ("tokenizer.json", lambda c: c["model"].update(continuing_subword_prefix="@@")),
    "length": ("sentence_bert_config.json", lambda c: c.update(max_seq_length=5)),
    "lower in front": ("sentence_bert_config.json", lambda c: c.update(do_lower_case=True)),
    "pooling": (
        "1_Pooling/config.json",
        lambda c: c.update({"pooling_mode_mean_tokens": 0, "pooling_mode_max_tokens": True}),
    ),
    "epsilon": ("config.json", lambda c: c.update(layer_norm_eps=1e-2)),
    "heads": ("config.json", lambda c: c.update(num_attention_heads=2)),
    "prompt": ("config_sentence_transformers.json", lambda c: c["prompts"].update(document="passage: ")),
    "default prompt": ("config_sentence_transformers.json", lambda c: c.update(default_prompt_name="query")),
}
SAME: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "order of keys": ("tokenizer_config.json", lambda c: dict(reversed(c.items()))),
    "stated default": ("tokenizer_config.json", lambda c: c.update(strip_accents=None)),
    "name": ("tokenizer_config.json", lambda c: c.update(name_or_path="elsewhere")),
    "saved truncation": ("tokenizer.json", lambda c: c.update(truncation=None, padding=None)),
    "version": ("config.json", lambda c: c.update(transformers_version="0.0", _name_or_path="elsewhere")),
}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_a_vector_changes_the_fingerprint(tiny_model: Path, folder: Path, what: str) -> None:
    name, change = CHANGES[what]
    edit(folder / name, change)
    assert Encoder(folder).fingerprint != Encoder(tiny_model).fingerprint


@pytest.mark.parametrize("what", SAME)
def test_what_changes_no_vector_does_not(tiny_model: Path, folder: Path, what: str) -> None:
    name, change = SAME[what]
    edit(folder / name, change)
    assert np.array_equal(Encoder(folder).encode(TEXT), Encoder(tiny_model).encode(TEXT))
    assert Encoder(folder).fingerprint == Encoder(tiny_model).fingerprint


def test_the_same_words_written_otherwise_are_the_same(tiny_model: Path, folder: Path) -> None:
    for path in folder.rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=7), encoding="utf-8")
    assert Encoder(folder).fingerprint == Encoder(tiny_model).fingerprint


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "modules.json"])
def test_a_byte_order_mark_changes_nothing(tiny_model: Path, folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert Encoder(folder).fingerprint == Encoder(tiny_model).fingerprint


@pytest.mark.parametrize("what", ["lower case", "vocabulary", "prompt"])
def test_an_index_refuses_its_own_model_with_another_tokenizer(folder: Path, tmp_path: Path, what: str) -> None:
    with Index.create(tmp_path / "x.kx", folder) as index:
        index.add(["a dog runs", "in the park"])
    edit(folder / CHANGES[what][0], CHANGES[what][1])
    with Index.open(tmp_path / "x.kx") as index, pytest.raises(SpaceMismatchError, match=r"fingerprint|prompts"):
        index.search("a dog")


def test_prompts_of_the_caller_are_kept_with_the_index(tiny_model: Path, tmp_path: Path) -> None:
    with Index.create(tmp_path / "x.kx", Encoder(tiny_model, prompts={"document": "passage: "})) as index:
        index.add(["a dog runs"])
    with Index.open(tmp_path / "x.kx") as index:
        index.add(["a dog runs"], ids=["again"])
        (one, other), *_ = index.search("dog")
        assert one.score == other.score
    with pytest.raises(SpaceMismatchError, match="prompts"):
        Index.open(tmp_path / "x.kx", encoder=Encoder(tiny_model))


@pytest.mark.parametrize("name", ["config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json"])
def test_json_nested_beyond_reading_is_an_error_that_names_the_file(folder: Path, name: str) -> None:
    (folder / name).write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(CheckpointError, match=name.partition(".")[0]):
        Encoder(folder)
