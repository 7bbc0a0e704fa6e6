"""The transformer of a folder as a module, against the transformers library and the reader for inference."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from kexue.errors import CheckpointError
from kexue.nn import Transformer
from kexue.text.folder import load_transformer
from kexue.text.models import find_model
from kexue.text.trainable import open_trainable

IDS = torch.tensor([[2, 7, 9, 11, 3], [2, 8, 3, 0, 0]])
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def save_bert(folder, **options):
    """Write a BERT of the transformers library with random weights, and return it."""
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = transformers.BertConfig(**sizes, intermediate_size=24, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.BertModel(shape).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({}, True),
        ({"hidden_act": "relu"}, False),
        ({"layer_norm_eps": 1e-5}, False),
        ({"type_vocab_size": 1}, False),
    ],
)
def test_states_are_those_of_the_transformers_library(options, ours, tmp_path):
    model = save_bert(tmp_path, **options)
    encoder = open_trainable(tmp_path)
    assert isinstance(encoder.network, Transformer) == ours
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK.long()).last_hidden_state
        torch.testing.assert_close(encoder(IDS, MASK)[MASK], expected[MASK], atol=1e-5, rtol=1e-4)
    assert (encoder.hidden_size, encoder.num_layers, encoder.max_positions) == (16, 2, 512)
    assert torch.equal(encoder.token_table, model.embeddings.word_embeddings.weight)


def test_the_shipped_model_in_eight_bits_is_that_of_the_reader():
    folder = find_model("kexue/roformer-sim-tiny-zh")
    encoder = open_trainable(folder)
    with torch.no_grad():
        [expected] = load_transformer(folder)(IDS, MASK)
        torch.testing.assert_close(encoder(IDS, MASK)[MASK], expected[MASK], atol=1e-5, rtol=1e-4)
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in encoder.parameters())


def test_every_weight_of_a_bert_gets_a_gradient(tmp_path):
    save_bert(tmp_path)
    encoder = open_trainable(tmp_path)
    encoder(IDS, MASK).square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in encoder.parameters())


def test_missing_weights_and_pickles_are_refused(tmp_path):
    save_bert(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: encoder\.layer\.1\.output\.dense\.bias"):
        open_trainable(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        open_trainable(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt"}))
    with pytest.raises(CheckpointError):
        open_trainable(tmp_path)
