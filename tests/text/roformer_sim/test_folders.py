"""Folders of RoFormer-Sim: published ones against transformers; written ones against every reader."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from kexue.errors import CheckpointError, DataError
from kexue.nn.attention import unilm_mask
from kexue.text import Encoder, RoFormerSim
from kexue.text.tokenizer import TextTokenizer

transformers = pytest.importorskip("transformers")

TEXTS = ["怎么退货", "退货的流程是什么，几天能到？", "", "今天天气很好", "iphone 12", "货" * 60]
IDS = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
KEEP = torch.arange(9) < torch.tensor([9, 6, 2])[:, None]
SEGMENTS = torch.tensor([[0] * 4 + [1] * 5, [0] * 3 + [1] * 6, [0] * 9])
UNILM = torch.where(unilm_mask(SEGMENTS, KEEP), 0.0, -1e9)[:, None]  # added to the scores
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def make_peer(kind: str, vocabulary: int, **changes: object) -> Any:
    """A masked language model of transformers with random weights; BERT's has a pooler."""
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 24,
        "initializer_range": 0.2,
        "attn_implementation": "eager",
        **changes,
    }
    config = getattr(transformers, f"{kind}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        name = {"RoFormer": "RoFormerForMaskedLM", "Bert": "BertForPreTraining"}[kind]
        peer = getattr(transformers, name)(config).eval()
        with torch.no_grad():  # biases and norms that matter
            for parameter in filter(lambda one: one.requires_grad, peer.parameters()):  # not the table of angles
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return peer


def run_peer(peer: Any, allowed: torch.Tensor | None, **rest: Any) -> Any:
    """Run a model of transformers; older versions want a mask of pairs as ones and zeros, without heads."""
    try:
        return peer(IDS, attention_mask=allowed, **rest)
    except ValueError:
        assert allowed is UNILM
        return peer(IDS, attention_mask=(allowed[:, 0] == 0).long(), **rest)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.fixture(params=["RoFormer", "Bert"])
def published(request: pytest.FixtureRequest, tmp_path: Path, tokenizer_folder: Path) -> tuple[Path, Any]:
    """A folder as published, with vocab.txt, and the model of transformers in it."""
    vocabulary = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    peer = make_peer(request.param, len(vocabulary))
    peer.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary), encoding="utf-8")
    if request.param == "RoFormer":  # its models in transformers have no pooler; RoFormer-Sim's checkpoints do
        generator = torch.Generator().manual_seed(1)
        extra = {
            "roformer.pooler.dense.weight": torch.randn(32, 32, generator=generator),
            "roformer.pooler.dense.bias": torch.randn(32, generator=generator),
        }
        change_weights(tmp_path, lambda weights: weights | extra)
    return tmp_path, peer


@torch.no_grad()
@pytest.mark.parametrize("mask", ["plain", "padded", "unilm"])
def test_a_published_folder_is_the_peer(published: tuple[Path, Any], mask: str) -> None:
    folder, peer = published
    model = RoFormerSim.from_pretrained(folder)
    segments, keep, allowed = {
        "plain": (None, None, None),
        "padded": (None, KEEP, KEEP.long()),
        "unilm": (SEGMENTS, KEEP, UNILM),
    }[mask]
    ours = model(IDS, segments, keep)
    theirs = run_peer(peer, allowed, token_type_ids=segments, output_hidden_states=True)
    used = torch.ones_like(KEEP) if keep is None else keep
    last = theirs.hidden_states[-1]
    assert_close(ours.states[used], last[used], **TOLERANCE)
    scores = theirs.logits if hasattr(theirs, "logits") else theirs.prediction_logits
    assert_close(model.score_tokens(ours.states)[used], scores[used], **TOLERANCE)
    weights = {name.partition(".")[2]: value for name, value in load_file(folder / "model.safetensors").items()}
    expected = last[:, 0] @ weights["pooler.dense.weight"].T + weights["pooler.dense.bias"]
    assert_close(ours.vectors, expected, **TOLERANCE)


def test_a_vocabulary_file_is_read_as_transformers_does(published: tuple[Path, Any], tokenizer_folder: Path) -> None:
    model = RoFormerSim.from_pretrained(published[0])
    theirs = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    assert model.tokenizer is not None
    for text in [*TEXTS, "Émile: 3.5 元? [SEP]", "\u3000 坏\u200b字"]:
        expected = theirs(text, truncation=True, max_length=24)["input_ids"]
        assert model.tokenizer.encode([text]).ids.tolist() == expected


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("roformer.").removeprefix("bert."),
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
    ],
    ids=["without prefix", "older names"],
)
def test_other_published_names(published: tuple[Path, Any], rename: Callable[[str], str]) -> None:
    folder = published[0]
    expected = RoFormerSim.from_pretrained(folder).encode(TEXTS)
    change_weights(folder, lambda weights: {rename(name): value for name, value in weights.items()})
    np.testing.assert_array_equal(RoFormerSim.from_pretrained(folder).encode(TEXTS), expected)


def test_weights_that_do_not_fit_are_all_listed(published: tuple[Path, Any]) -> None:
    folder = published[0]

    def damage(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = {name: value for name, value in weights.items() if "layer.1.attention.self.key" not in name}
        kept["cls.predictions.bias"] = torch.zeros(3)
        kept = {name: value for name, value in kept.items() if "layer.0.attention.self.value.weight" not in name}
        value = {next(name for name in weights if "layer.0.attention.self.value.weight" in name): torch.zeros(32, 8)}
        return kept | value | {"strange.weight": torch.zeros(2)}

    change_weights(folder, damage)
    with pytest.raises(CheckpointError) as caught:
        RoFormerSim.from_pretrained(folder)
    for part in (
        r"missing: encoder.layer.1.attention.self.key.weight, encoder.layer.1.attention.self.key.bias",
        r"not known: strange.weight",
        r"encoder.layer.0.attention.self.value.weight (32, 8) instead of (32, 32)",
        r"cls.predictions.bias (3,)",
    ):
        assert part in str(caught.value)


def test_an_encoder_without_pooler_and_head_is_for_the_class_encoder(
    published: tuple[Path, Any], tokenizer_folder: Path
) -> None:
    folder = published[0]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder / name, folder)
    change_weights(
        folder, lambda weights: {k: v for k, v in weights.items() if not k.startswith("cls.") and "pooler" not in k}
    )
    with pytest.raises(CheckpointError) as caught:
        RoFormerSim.from_pretrained(folder)
    assert {"pooler.dense.weight", "cls.predictions.bias"} <= set(re.findall(r"[\w.]+\w", str(caught.value)))
    assert "kexue.text.Encoder" in str(caught.value.remedy)
    assert Encoder(folder).encode(TEXTS).shape == (len(TEXTS), 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary_value": True}, "rotary_value=true"),
        ({"embedding_size": 16}, "embedding_size=16"),
        ({"hidden_act": "relu", "is_decoder": True}, r'hidden_act="relu", is_decoder=true'),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05"),
        ({"model_type": "albert"}, 'model_type="albert"'),
        ({"num_attention_heads": 5}, "num_heads must divide hidden_size"),
        ({"vocab_size": "many"}, "config.json"),
        ({"num_hidden_layers": 2.0}, "cannot be loaded: TypeError"),
        ({"hidden_dropout_prob": 7}, r"config.json: dropout must be in \[0, 1\), got 7"),
        ({"max_position_embeddings": 2}, "max_length must be at least 3 tokens, got 2"),
        ({"type_vocab_size": 1}, r"config.json: num_segments must be 0, or at least 2 .* got 1"),
        ({"vocab_size": 30}, "tokenizer has [0-9]+ tokens, the network 30"),
    ],
)
def test_a_setting_that_is_not_computed_is_named(
    published: tuple[Path, Any], changes: dict[str, object], message: str
) -> None:
    change_config(published[0], **changes)
    with pytest.raises(CheckpointError, match=message):
        RoFormerSim.from_pretrained(published[0])


def test_a_vocabulary_of_words_needs_a_tokenizer_file(published: tuple[Path, Any], tokenizer_folder: Path) -> None:
    folder = published[0]
    path = folder / "vocab.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("怎\n", "怎么\n"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"vocabulary of Chinese words, such as 怎么: .* jieba"):
        RoFormerSim.from_pretrained(folder)
    config = json.loads((tokenizer_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "RoFormerTokenizer"}))
    shutil.copy(tokenizer_folder / "tokenizer.json", folder)
    assert RoFormerSim.from_pretrained(folder).encode(TEXTS).shape == (len(TEXTS), 32)


# -- written folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("position", "pooling"), [("rotary", "cls"), ("rotary", "mean"), ("learned", "cls")])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_reader_gives_the_same_vectors(
    make_model: Callable[..., RoFormerSim], tmp_path: Path, position: str, pooling: str, dtype: Any
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = make_model(position=position, pooling=pooling)
    model.save_pretrained(tmp_path / "model", dtype=dtype)
    (tmp_path / "model/3_Normalize").rmdir()  # as packages and repositories do with an empty folder
    again = RoFormerSim.from_pretrained(tmp_path / "model")
    vectors = again.encode(TEXTS)
    assert not again.training
    assert again.truncated_ == 1
    np.testing.assert_allclose(vectors, model.encode(TEXTS), rtol=0, atol=0 if dtype == "float32" else 5e-3)
    assert {value.dtype for value in load_file(tmp_path / "model/model.safetensors").values()} == {
        getattr(torch, dtype)
    }
    encoder = Encoder(tmp_path / "model", dtype="float32")
    np.testing.assert_allclose(encoder.encode(TEXTS), vectors, rtol=0, atol=1e-6)
    assert encoder.truncated_ == 1
    peer = sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(peer.encode(TEXTS), vectors, rtol=0, atol=1e-5)
    with torch.no_grad():
        name = "RoFormerForMaskedLM" if position == "rotary" else "BertForMaskedLM"
        theirs = getattr(transformers, name).from_pretrained(tmp_path / "model").eval()
        scores = run_peer(theirs, UNILM, token_type_ids=SEGMENTS).logits
        ours = again.score_tokens(again(IDS, SEGMENTS, KEEP).states)
    assert_close(ours[KEEP], scores[KEEP], **TOLERANCE)


@pytest.mark.parametrize("position", ["rotary", "learned"])
def test_eight_bits_take_a_quarter_and_turn_no_vector(
    make_model: Callable[..., RoFormerSim], tmp_path: Path, position: str
) -> None:
    model = make_model(position=position)
    for name, dtype in (("whole", "float32"), ("short", "int8")):
        model.save_pretrained(tmp_path / name, dtype=dtype)  # type: ignore[arg-type]
    sizes = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "short")}
    assert sizes["short"] < 0.5 * sizes["whole"]  # headers and biases weigh in a small model
    again = RoFormerSim.from_pretrained(tmp_path / "short")
    vectors = again.encode(TEXTS)
    assert ((vectors * model.encode(TEXTS)).sum(1) > 0.999).all()
    np.testing.assert_allclose(Encoder(tmp_path / "short", dtype="float32").encode(TEXTS), vectors, rtol=0, atol=1e-6)
    again.save_pretrained(tmp_path / "again", dtype="int8")
    np.testing.assert_array_equal(RoFormerSim.from_pretrained(tmp_path / "again").encode(TEXTS), vectors)


def test_a_folder_is_replaced_only_if_it_was_written_before(model: RoFormerSim, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    (folder / "3_Normalize").rmdir()
    model.save_pretrained(folder, dtype="float16")
    assert load_file(folder / "model.safetensors")["cls.predictions.bias"].dtype == torch.float16
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt"):
        model.save_pretrained(folder)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config\.json"):
        model.save_pretrained(plain)
    assert (plain / "config.json").read_text() == "{}"


def test_what_the_format_does_not_have_is_not_written(make_model: Callable[..., RoFormerSim], tmp_path: Path) -> None:
    for changes in ({"position": "t5"}, {"norm": "pre"}, {"num_segments": 0}):
        with pytest.raises(ValueError, match="only a model with rotary or learned positions"):
            make_model(**changes).save_pretrained(tmp_path / "model")
    model = make_model()
    with pytest.raises(ValueError, match="dtype must be 'float32', 'float16' or 'int8', got 'int4'"):
        model.save_pretrained(tmp_path / "model", dtype="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no tokenizer"):
        RoFormerSim(model.config).save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_other_stages_are_refused(model: RoFormerSim, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model/1_Pooling/config.json"
    path.write_text('{"pooling_mode": "max"}')
    with pytest.raises(CheckpointError, match=r"are max, Dense \(identity\), Normalize, expected cls or mean"):
        RoFormerSim.from_pretrained(tmp_path / "model")
    path.write_text('{"pooling_mode": "cls"}')
    dense = tmp_path / "model/2_Dense/config.json"
    dense.write_text(
        json.dumps({"in_features": 32, "out_features": 32, "activation_function": "torch.nn.modules.activation.Tanh"})
    )
    with pytest.raises(CheckpointError, match=r"Dense \(tanh\)"):
        RoFormerSim.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    make_model: Callable[..., RoFormerSim], tmp_path: Path, value: float
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    change_weights(
        tmp_path / "model", lambda weights: weights | {"cls.predictions.bias": weights["cls.predictions.bias"] * value}
    )
    with pytest.raises(CheckpointError, match=r"NaN or infinite: cls\.predictions\.bias"):
        RoFormerSim.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.pooler.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"NaN or infinite in float32: pooler\.weight, 1 in all"):
        model.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_weight_beyond_float16_is_not_saved_as_infinity(
    make_model: Callable[..., RoFormerSim], tmp_path: Path
) -> None:
    model = make_model()
    with torch.no_grad():
        model.head_bias[3] = 70_000.0
    with pytest.raises(ValueError, match=r"infinite in float16: cls\.predictions\.bias"):
        model.save_pretrained(tmp_path / "model", dtype="float16")
    model.save_pretrained(tmp_path / "model")
    assert RoFormerSim.from_pretrained(tmp_path / "model").head_bias[3] == 70_000


def test_a_head_with_a_table_of_its_own_is_refused(published: tuple[Path, Any]) -> None:
    folder, peer = published
    table = peer.get_input_embeddings().weight.detach()
    change_weights(folder, lambda weights: weights | {"cls.predictions.decoder.weight": table.clone()})
    RoFormerSim.from_pretrained(folder)
    change_weights(folder, lambda weights: weights | {"cls.predictions.decoder.weight": table + 1})
    with pytest.raises(CheckpointError, match=r"not tied: cls\.predictions\.decoder\.weight is not embeddings\.word"):
        RoFormerSim.from_pretrained(folder)


@pytest.mark.parametrize("lower", ["tokenizer", "folder"])
def test_the_lowest_limit_cuts_for_every_reader(
    model: RoFormerSim, tokenizer_folder: Path, tmp_path: Path, lower: str
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    if lower == "tokenizer":
        tokenizer = TextTokenizer(tokenizer_folder)
        tokenizer.model_max_length = 10
        short = RoFormerSim(model.config, tokenizer).eval()
        short.load_state_dict(model.state_dict())
        short.save_pretrained(tmp_path / "model")
    else:
        model.save_pretrained(tmp_path / "model")
        settings = tmp_path / "model/sentence_bert_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_seq_length": 10}))
    again = RoFormerSim.from_pretrained(tmp_path / "model")
    vectors = again.encode(TEXTS)
    assert again.truncated_ == 2
    np.testing.assert_allclose(vectors[-1], again.encode("货" * 8)[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(Encoder(tmp_path / "model", dtype="float32").encode(TEXTS), vectors, rtol=0, atol=1e-6)
    peer = sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(peer.encode(TEXTS), vectors, rtol=0, atol=1e-5)
    again.save_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(RoFormerSim.from_pretrained(tmp_path / "again").encode(TEXTS), vectors)


def test_without_a_dense_stage_the_pooler_is_the_identity(model: RoFormerSim, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    stages = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([one for one in stages if "Dense" not in one["type"]]))
    expected = Encoder(folder, dtype="float32").encode(TEXTS)
    np.testing.assert_allclose(RoFormerSim.from_pretrained(folder).encode(TEXTS), expected, rtol=0, atol=1e-6)
    pooler = {f"roformer.pooler.dense.{name}": value for name, value in model.pooler.state_dict().items()}
    change_weights(folder, lambda weights: weights | pooler)
    np.testing.assert_allclose(RoFormerSim.from_pretrained(folder).encode(TEXTS), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", [{}, {"in_features": "a", "out_features": -3}, {"in_features": 32}])
def test_a_damaged_dense_stage_is_told_to_every_reader(
    model: RoFormerSim, tmp_path: Path, sizes: dict[str, object]
) -> None:
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model/2_Dense/config.json").write_text(json.dumps(sizes))
    for read in (RoFormerSim.from_pretrained, Encoder):
        with pytest.raises(CheckpointError, match="in_features and out_features must be whole numbers >= 1"):
            read(tmp_path / "model")


@pytest.mark.parametrize("limit", ["x", 0, 8.5])
def test_a_damaged_limit_is_told_to_every_reader(model: RoFormerSim, tmp_path: Path, limit: object) -> None:
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model/sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))
    for read in (RoFormerSim.from_pretrained, Encoder):
        with pytest.raises(CheckpointError, match=f"max_seq_length must be a whole number >= 1, got {limit!r}"):
            read(tmp_path / "model")


def test_a_default_prompt_is_for_the_class_encoder(model: RoFormerSim, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model/config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": {"query": "天气"}, "default_prompt_name": "query"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"its prompt 'query' is put before each text"):
        RoFormerSim.from_pretrained(tmp_path / "model")


def test_damaged_weights_are_told(model: RoFormerSim, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        RoFormerSim.from_pretrained(tmp_path / "model")
