"""Token ids back to text, special tokens, and tokenizers that are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kexue.text.tokenizer import TextTokenizer

TEXTS = ["退货,3.5 apples", "", "The DOG, the émigré; 退货要多久?", "[SEP] is a [MASK]"]


def ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    return [int(one) for one in tokenizer.encode([text]).ids]


@pytest.fixture
def tokenizer(tiny_model: Path) -> TextTokenizer:
    tokenizer = TextTokenizer(tiny_model)
    tokenizer.set_max_length(64)
    return tokenizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("退货要多久?", "退货要多久?"),
        ("我 Dog 12.5 你", "我dog 12.5你"),
        ("the dog, the cat!", "the dog, the cat!"),
        ("5 - 3 dogs", "5-3 dogs"),
        ("12:30-13:30", "12:30-13:30"),
        ("", ""),
    ],
)
def test_ids_are_decoded_to_text_as_people_write_it(tokenizer: TextTokenizer, text: str, expected: str) -> None:
    assert tokenizer.decode(ids(tokenizer, text)) == expected


def test_the_special_tokens_have_ids(tokenizer: TextTokenizer, tiny_model: Path) -> None:
    vocabulary = json.loads((tiny_model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    found = [tokenizer.pad_id, tokenizer.unknown_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    assert found == [vocabulary[name] for name in names]
    assert ids(tokenizer, "") == [tokenizer.cls_id, tokenizer.sep_id]


@pytest.mark.parametrize("lower", [False, True])
def test_a_written_tokenizer_gives_the_same_ids(tiny_model: Path, tmp_path: Path, lower: bool) -> None:
    transformers = pytest.importorskip("transformers")
    first = TextTokenizer(tiny_model, lower=lower)
    first.set_max_length(6)  # which is not written: it belongs to the model
    first.save(tmp_path)
    second = TextTokenizer(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for tokenizer in (first, second):
        tokenizer.set_max_length(64)
    for text in TEXTS:
        assert ids(first, text) == ids(second, text) == peer(text)["input_ids"]
    special = ("pad_id", "unknown_id", "cls_id", "sep_id", "mask_id", "model_max_length")
    assert [getattr(first, name) for name in special] == [getattr(second, name) for name in special]
    assert peer.model_max_length == first.model_max_length == 128
