"""Texts to vectors by RoFormer-Sim: one text at a time is the oracle, whatever the batches."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kexue.similarity import Whitening
from kexue.text import Encoder, RoFormerSim, RoFormerSimConfig
from kexue.text.tokenizer import TextTokenizer

TEXTS = ["怎么退货", "退货的流程是什么，几天能到？", "", "天气", "今天天气很好", "iphone 12", "银行卡", "货" * 60]


def encode_alone(model: RoFormerSim, text: str) -> np.ndarray:
    """The formula, without padding and batches."""
    assert model.tokenizer is not None
    ids = torch.from_numpy(model.tokenizer.encode([text]).ids.astype(np.int64))
    with torch.no_grad():
        state = model.transformer(ids[None]).last_hidden_state[0, 0]
        vector = model.pooler.weight @ state + model.pooler.bias
    return (vector / vector.norm()).numpy()


@pytest.mark.parametrize("batch_tokens", [1, 30, 2048])
@pytest.mark.parametrize("position", ["rotary", "learned"])
def test_vectors_are_those_of_each_text_alone(
    make_model: Callable[..., RoFormerSim], position: str, batch_tokens: int
) -> None:
    model = make_model(position=position)
    vectors = model.encode(iter(TEXTS), batch_tokens=batch_tokens)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [encode_alone(model, text) for text in TEXTS], rtol=0, atol=2e-6)
    assert model.truncated_ == 1
    model.encode(TEXTS[:3])
    assert model.truncated_ == 0


def test_an_empty_text_is_cls_and_sep_and_no_texts_are_no_rows(model: RoFormerSim) -> None:
    assert model.tokenizer is not None
    assert model.tokenizer.encode([""]).ids.tolist() == [model.tokenizer.cls_id, model.tokenizer.sep_id]
    assert model.encode([]).shape == (0, 32)
    np.testing.assert_array_equal(model.encode(""), model.encode([""]))


def test_dropout_is_off_while_it_encodes_and_the_mode_is_kept(make_model: Callable[..., RoFormerSim]) -> None:
    model = make_model(dropout=0.5)
    expected = model.encode(TEXTS)
    model.train()
    np.testing.assert_array_equal(model.encode(TEXTS), expected)
    assert model.training
    assert model.transformer.training
    model.transformer.eval()
    model.encode(TEXTS)
    assert model.training
    assert not model.transformer.training  # each part has its own mode again
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_progress_counts_the_texts(model: RoFormerSim) -> None:
    told: list[tuple[int, int | None]] = []
    model.encode(TEXTS, batch_tokens=30, progress=lambda done, n: told.append((done, n)))
    assert [n for _, n in told] == [len(TEXTS)] * len(told)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1][0] == len(TEXTS)


def test_the_shorter_limit_of_network_and_tokenizer_cuts(tokenizer_folder: Path) -> None:
    tokenizer = TextTokenizer(tokenizer_folder)  # 512
    shape = {"vocab_size": tokenizer.vocabulary_size, "hidden_size": 8, "num_layers": 1, "num_heads": 2}
    for length, cut in ((10, 10), (1000, 512)):
        model = RoFormerSim(RoFormerSimConfig(**shape, max_length=length), tokenizer)
        model.encode(["货" * 2000])
        assert model.truncated_ == 1
        assert tokenizer.max_length == cut


def test_bad_input(model: RoFormerSim, tokenizer_folder: Path) -> None:
    with pytest.raises(TypeError, match=r"texts\[1\] must be a string, got int"):
        model.encode(["a", 1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        model.encode(["a"], batch_tokens=0)
    bare = RoFormerSim(RoFormerSimConfig(vocab_size=9, hidden_size=8, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="has no tokenizer"):
        bare.encode(["a"])
    with pytest.raises(ValueError, match=r"has \d+ tokens, the network 9"):
        RoFormerSim(bare.config, TextTokenizer(tokenizer_folder))
    with pytest.raises(ValueError, match="vector_size must be at least 1, or None for hidden_size, got 0"):
        dataclasses.replace(bare.config, vector_size=0)
    with pytest.raises(ValueError, match="max_length must be at least 3 tokens, got 2"):
        RoFormerSim(dataclasses.replace(model.config, max_length=2), TextTokenizer(tokenizer_folder))


def test_importing_the_name_loads_torch_only_when_it_is_used() -> None:
    code = "import sys, kexue.text.roformer_sim as r; print('torch' in sys.modules); print(r.RoFormerSim.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["False", "RoFormerSim"]


def test_a_whitening_in_the_pooler_equals_one_after_it(model: RoFormerSim) -> None:
    texts = [f"第{i}天{text}" for i in range(6) for text in TEXTS]
    raw = model.encode(texts, normalize=False)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), model.encode(texts), atol=1e-6)
    whitening = Whitening(7, beta=0.9, gamma=0.5).fit(raw)
    whitened = model.whiten(whitening)
    np.testing.assert_allclose(whitened.encode(texts, normalize=False), whitening.transform(raw), rtol=0, atol=1e-4)
    assert whitened.encode(texts).shape == (len(texts), 7)
    with pytest.raises(ValueError, match="7 dimensions, got 32"):
        model.whiten(Whitening(3).fit(whitened.encode(texts)))


def test_shorter_vectors_survive_a_folder(model: RoFormerSim, tmp_path: Path) -> None:
    short = model.whiten(Whitening(5, gamma=0.0).fit(model.encode(TEXTS, normalize=False)))
    short.save_pretrained(tmp_path / "short")
    expected = short.encode(TEXTS)
    np.testing.assert_allclose(RoFormerSim.from_pretrained(tmp_path / "short").encode(TEXTS), expected, atol=1e-6)
    encoder = Encoder(tmp_path / "short", dtype="float32")
    assert encoder.dim == 5
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_vector_is_that_of_the_first_text_alone(make_model: Callable[..., RoFormerSim], pooling: str) -> None:
    """Neither the text that is written after it nor padding changes it."""
    model = make_model(pooling=pooling)
    assert model.tokenizer is not None
    tokens = model.tokenizer.encode(["怎么退货", "今天天气很好"])
    first, second = (torch.from_numpy(part.astype(np.int64)) for part in np.split(tokens.ids, tokens.starts[1:-1]))
    row = torch.cat((first, second[1:], torch.full((3,), model.tokenizer.pad_id)))[None]
    place = torch.arange(row.shape[1])[None]
    written = (place >= len(first)) & (place < len(first) + len(second) - 1)
    with torch.no_grad():
        alone = model(first[None])
        both = model(row, written.long(), place < len(first) + len(second) - 1)
    torch.testing.assert_close(both.vectors, alone.vectors, rtol=0, atol=1e-6)
    state = alone.states[:, 0] if pooling == "cls" else alone.states.mean(1)
    torch.testing.assert_close(alone.vectors, state @ model.pooler.weight.T + model.pooler.bias, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="'cls' or 'mean', got 'max'"):
        RoFormerSimConfig(100, pooling="max")  # type: ignore[arg-type]
