"""The short forward pass of BERT and RoFormer against the one of transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kexue.text.bert import Bert, from_checkpoint, list_unsupported
from kexue.text.folder import load_transformer
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


@pytest.fixture(scope="module")
def roformer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoFormer as transformers writes it, with BERT's tokenizer."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("roformer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder)
    bert = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    shape = {name: bert[name] for name in (*names, "max_position_embeddings")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.RoFormerModel(transformers.RoFormerConfig(**shape, initializer_range=0.2))
        model.save_pretrained(folder)
    return folder


@torch.inference_mode()
@pytest.mark.parametrize("keep", [KEEP, torch.ones_like(KEEP)], ids=["padded", "full"])
@pytest.mark.parametrize("kind", ["bert", "roformer"])
def test_every_hidden_state_equals_transformers(
    tiny_model: Path, roformer: Path, kind: str, keep: torch.Tensor
) -> None:
    folder = {"bert": tiny_model, "roformer": roformer}[kind]
    ours, theirs = load_transformer(folder), General.from_folder(folder)
    assert isinstance(ours, Bert)
    states, expected = ours(IDS, keep, True), theirs(IDS, keep, True)
    assert len(states) == len(expected) == 3
    for state, other in zip(states, expected, strict=True):
        torch.testing.assert_close(state[keep], other[keep], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(ours(IDS, keep)[-1], states[-1], rtol=0, atol=0)
    assert (ours.hidden_size, ours.max_positions) == (theirs.hidden_size, theirs.max_positions)
    assert (ours.pooler is None) == (theirs.pooler is None) == (kind == "roformer")
    for part, other in zip(ours.pooler or (), theirs.pooler or (), strict=True):
        assert torch.equal(part, other)


@torch.inference_mode()
def test_a_rotary_model_in_bfloat16_keeps_its_angles_in_float32(roformer: Path) -> None:
    model = load_transformer(roformer)
    ids = IDS.repeat(1, 12)  # places up to 107, which bfloat16 would round
    keep = torch.ones_like(ids, dtype=torch.bool)
    exact, rounded = model(ids, keep)[-1], model.to(torch.device("cpu"), torch.bfloat16)(ids, keep)[-1]
    assert rounded.dtype == torch.bfloat16
    cosines = torch.cosine_similarity(exact.flatten(1), rounded.float().flatten(1))
    assert float(cosines.min()) > 0.999


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
@pytest.mark.parametrize("vocabulary", ["tokenizer.json", "vocab.txt"])
def test_the_tokenizer_equals_transformers(
    tiny_model: Path, tmp_path: Path, vocabulary: str, change: dict[str, object]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = (tiny_model / "tokenizer.json").read_text(encoding="utf-8")
    pieces = "".join(f"{piece}\n" for piece in json.loads(tokenizer)["model"]["vocab"])
    (tmp_path / vocabulary).write_text(tokenizer if vocabulary == "tokenizer.json" else pieces, encoding="utf-8")
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


@pytest.mark.parametrize("kind", ["bert", "roformer"])
def test_it_is_encoded_without_importing_transformers(tiny_model: Path, roformer: Path, kind: str) -> None:
    folder = {"bert": tiny_model, "roformer": roformer}[kind]
    code = (
        "import sys; from kexue.text import Encoder; "
        f"print(Encoder({str(folder)!r}).encode(['a dog']).shape, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "(1, 32) False"
