"""The short forward pass of BERT against the one of transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kexue.text.bert import from_checkpoint, list_unsupported
from kexue.text.general import General
from kexue.text.tokenizer import TextTokenizer

IDS = torch.randint(5, 200, (4, 9), generator=torch.Generator().manual_seed(0))
KEEP = torch.arange(9) < torch.tensor([9, 5, 1, 8])[:, None]
TOLERANCE = 2e-6  # float32, two blocks; values are about 1 after a layer norm


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> dict[str, object]:
    return json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def weights(tiny_model: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny_model / "model.safetensors")


@torch.inference_mode()
@pytest.mark.parametrize("keep", [KEEP, torch.ones_like(KEEP)], ids=["padded", "full"])
def test_every_hidden_state_equals_transformers(
    tiny_model: Path, config: dict[str, object], weights: dict[str, torch.Tensor], keep: torch.Tensor
) -> None:
    ours, theirs = from_checkpoint(config, weights), General.from_folder(tiny_model)
    states, expected = ours(IDS, keep, True), theirs(IDS, keep, True)
    assert len(states) == len(expected) == 3
    for state, other in zip(states, expected, strict=True):
        torch.testing.assert_close(state[keep], other[keep], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(ours(IDS, keep)[-1], states[-1], rtol=0, atol=0)
    assert (ours.hidden_size, ours.max_positions) == (theirs.hidden_size, theirs.max_positions)
    for part, other in zip(ours.pooler or (), theirs.pooler or (), strict=True):
        assert torch.equal(part, other)


@torch.inference_mode()
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: "bert." + name,
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
    ],
    ids=["with a head", "older names"],
)
def test_other_published_names(
    config: dict[str, object], weights: dict[str, torch.Tensor], rename: Callable[[str], str]
) -> None:
    renamed = {rename(name): value for name, value in weights.items()}
    renamed["cls.predictions.bias"] = torch.zeros(3)
    states = [from_checkpoint(config, some)(IDS, KEEP)[-1] for some in (weights, renamed)]
    assert torch.equal(*states)


def test_another_arithmetic_is_a_copy(config: dict[str, object], weights: dict[str, torch.Tensor]) -> None:
    model = from_checkpoint(config, weights)
    assert model.to(torch.device("cpu"), torch.bfloat16).dtype == torch.bfloat16
    assert model.dtype == torch.float32


def test_missing_and_misshapen_weights_are_named(config: dict[str, object], weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(KeyError, match=r"encoder\.layer\.1\.attention\.self\.key\.weight"):
        from_checkpoint(config, {k: v for k, v in weights.items() if "1.attention.self.key" not in k})
    with pytest.raises(ValueError, match=r"word_embeddings\.weight of shape \(7, 32\), got"):
        from_checkpoint({**config, "vocab_size": 7}, weights)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "roberta"}, 'model_type="roberta"'),
        ({"hidden_act": "relu"}, 'hidden_act="relu"'),
        ({"position_embedding_type": "relative_key"}, 'position_embedding_type="relative_key"'),
        ({"model_type": "roformer", "rotary_value": True}, "rotary_value=true"),
        ({"model_type": "roformer", "embedding_size": 7}, "embedding_size=7"),
    ],
)
def test_what_is_not_computed_is_told(config: dict[str, object], change: dict[str, object], told: str) -> None:
    assert list_unsupported(config) == []
    assert list_unsupported({**config, "model_type": "roformer", "embedding_size": 32, "rotary_value": False}) == []
    assert list_unsupported({**config, **change}) == [told]


@pytest.mark.parametrize("change", [{}, {"do_lower_case": False}, {"strip_accents": False}, {"model_max_length": None}])
def test_the_tokenizer_equals_transformers(tiny_model: Path, tmp_path: Path, change: dict[str, object]) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    config = json.loads((tiny_model / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.update(change)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    ours, theirs = TextTokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ours.set_max_length(24)
    texts = ["The DOG, the émigré; 退货要多久?", "[SEP] is a [MASK]", "", "a" * 300, "x\u200by\ufffd\ttab\nline"]
    tokens = ours.encode(texts)
    got = [tokens.ids[a:b].tolist() for a, b in zip(tokens.starts, tokens.starts[1:], strict=False)]
    assert got == theirs(texts, truncation=True, max_length=24)["input_ids"]
    assert ours.model_max_length == theirs.model_max_length or min(ours.model_max_length, theirs.model_max_length) > 1e9


def test_a_bert_is_encoded_without_importing_transformers(tiny_model: Path) -> None:
    code = (
        "import sys; from kexue.text import Encoder; "
        f"print(Encoder({str(tiny_model)!r}).encode(['a dog']).shape, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "(1, 32) False"
