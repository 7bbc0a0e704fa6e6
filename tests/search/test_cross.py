"""The cross-encoder against sentence-transformers, against pairs scored alone, and against what must not matter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from kexue.errors import CheckpointError, ModelNotFoundError
from kexue.search.cross import CrossEncoderReranker
from kexue.search.rerank import Reranker

QUERY = "how long does a refund take?"
DOCUMENTS = [
    "the dog eats the apple",
    "refund in a day",
    "",
    "where do i find the money, and how long does the bank take to return it?",
    "退货要多久",
    "a cat",
    "the dog eats the apple",
    "the small house in the park by the water " * 30,  # far beyond 128 tokens
]
TOKENS = 128  # of the tiny tokenizer and its model
ORACLE = 1e-5  # float32 has 6e-8; two layers of width 32 stay far below
SAME = 1e-6

Make = Callable[..., Path]


@pytest.fixture
def make_folder(tiny_model: Path, tmp_path: Path) -> Make:
    """Write a random classifier with the tiny tokenizer: `outputs` wide, its bias raised by `raised`."""

    def make(outputs: int = 1, *, raised: float = 0.0, kind: str = "Bert", **config: object) -> Path:
        folder = tmp_path / f"{kind}-{outputs}-{raised}"
        folder.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_model / name, folder)
        options = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
        settings = getattr(transformers, f"{kind}Config")(**{**options, "num_labels": outputs, **config})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, f"{kind}ForSequenceClassification")(settings)
        if raised:
            with torch.no_grad():
                model.classifier.bias += raised
        model.save_pretrained(folder)
        return folder

    return make


def logits_alone(folder: Path, query: str, documents: list[str]) -> np.ndarray:
    """Each pair by itself, so without padding, from transformers; (n, outputs) in float64."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        rows = [
            model(
                **tokenizer([query], [text], truncation="only_second", max_length=TOKENS, return_tensors="pt")
            ).logits[0]
            for text in documents
        ]
    return torch.stack(rows).double().numpy()


def test_equals_sentence_transformers(make_folder: Make) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = make_folder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = sentence_transformers.CrossEncoder(str(folder), device="cpu")
        expected = peer.predict([(QUERY, text) for text in DOCUMENTS], show_progress_bar=False)
    assert np.ptp(expected) > 0.01
    reranker = CrossEncoderReranker(folder, device="cpu")
    assert isinstance(reranker, Reranker)
    scores, explanations = reranker.rerank(QUERY, DOCUMENTS)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=ORACLE)
    assert explanations == [None] * len(DOCUMENTS)


def test_one_output_is_the_sigmoid_and_two_are_the_softmax_of_label_1(make_folder: Make) -> None:
    one, two = make_folder(1), make_folder(2)
    z = logits_alone(one, QUERY, DOCUMENTS)[:, 0]
    scores = CrossEncoderReranker(one, device="cpu").rerank(QUERY, DOCUMENTS).scores
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-z)), rtol=0, atol=ORACLE)
    powers = np.exp(logits_alone(two, QUERY, DOCUMENTS))
    expected = powers[:, 1] / powers.sum(axis=1)
    assert abs(expected - 0.5).min() > 100 * ORACLE  # label 0 would be told apart
    scores = CrossEncoderReranker(two, device="cpu").rerank(QUERY, DOCUMENTS).scores
    np.testing.assert_allclose(scores, expected, rtol=0, atol=ORACLE)


def test_scores_near_one_stay_apart(make_folder: Make) -> None:
    texts = DOCUMENTS[:6]
    plain = CrossEncoderReranker(make_folder(), device="cpu").rerank(QUERY, texts).scores
    high = CrossEncoderReranker(make_folder(raised=25.0), device="cpu").rerank(QUERY, texts).scores
    assert (high > 1 - 1e-9).all()  # float32 would round all to 1
    assert (high < 1).all()
    assert np.argsort(high).tolist() == np.argsort(plain).tolist()
    low = CrossEncoderReranker(make_folder(raised=-1000.0), device="cpu").rerank(QUERY, texts).scores
    assert (low == 0).all()


def test_neither_order_nor_batches_matter(make_folder: Make) -> None:
    reranker = CrossEncoderReranker(make_folder(), device="cpu")
    scores = reranker.rerank(QUERY, DOCUMENTS).scores
    order = np.random.default_rng(0).permutation(len(DOCUMENTS))
    mixed = reranker.rerank(QUERY, [DOCUMENTS[i] for i in order]).scores
    np.testing.assert_allclose(mixed, scores[order], rtol=0, atol=SAME)
    for budget in (1, 60, 100_000):
        reranker.batch_tokens = budget
        np.testing.assert_allclose(reranker.rerank(QUERY, DOCUMENTS).scores, scores, rtol=0, atol=SAME)
    assert reranker.rerank(QUERY, []).scores.shape == (0,)
    assert reranker.rerank(QUERY, []).explanations == []


def test_only_the_document_is_cut(make_folder: Make) -> None:
    reranker = CrossEncoderReranker(make_folder(), device="cpu")
    assert reranker.max_length == TOKENS
    query = "dog " * (TOKENS - 3 - 2)  # beside three special tokens, room for two more
    whole, two, one, other = reranker.rerank(query, ["cat red " * 50, "cat red", "cat", "cat blue"]).scores
    assert whole == pytest.approx(two, abs=SAME)
    assert abs(two - one) > 1e-4
    assert abs(two - other) > 1e-4
    assert reranker.rerank("dog " * (TOKENS - 4), ["cat red"]).scores.shape == (1,)
    with pytest.raises(ValueError, match=r"125 tokens.*at most 124"):
        reranker.rerank("dog " * (TOKENS - 3), ["cat"])


def test_a_silent_tokenizer_leaves_the_limit_to_the_model(make_folder: Make) -> None:
    silent = {"tokenizer_class": "BertTokenizer", "model_max_length": int(1e30)}
    positions = {"max_position_embeddings": 600}
    folders = [make_folder(), make_folder(2, **positions), make_folder(kind="Roberta", pad_token_id=0)]
    for folder, expected in zip(folders, [128, 512, 127], strict=True):  # RoBERTa counts from padding + 1
        (folder / "tokenizer_config.json").write_text(json.dumps(silent), encoding="utf-8")
        reranker = CrossEncoderReranker(folder, device="cpu")
        assert reranker.max_length == expected
        assert np.isfinite(reranker.rerank(QUERY, ["dog " * 1000]).scores).all()


@pytest.mark.parametrize("query", ["", " \n\t"])
@pytest.mark.parametrize("documents", [[], ["a cat"]])
def test_a_blank_query_is_refused(make_folder: Make, query: str, documents: list[str]) -> None:
    with pytest.raises(ValueError, match="must not be blank"):
        CrossEncoderReranker(make_folder(), device="cpu").rerank(query, documents)


def test_a_document_that_is_no_string_is_named(make_folder: Make) -> None:
    with pytest.raises(TypeError, match=r"texts\[1\]"):
        CrossEncoderReranker(make_folder(), device="cpu").rerank(QUERY, ["a cat", None])  # type: ignore[list-item]


def test_a_random_head_is_refused(tiny_model: Path) -> None:
    with pytest.raises(CheckpointError, match=r"classifier\.bias, classifier\.weight.*random.*cross-encoder/"):
        CrossEncoderReranker(tiny_model, device="cpu")


def test_three_outputs_are_refused(make_folder: Make) -> None:
    with pytest.raises(CheckpointError, match="3 outputs"):
        CrossEncoderReranker(make_folder(3), device="cpu")


def test_a_pickle_is_refused(make_folder: Make) -> None:
    folder = make_folder()
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pickle.*AutoModelForSequenceClassification"):
        CrossEncoderReranker(folder, device="cpu")


def test_folders_that_hold_no_model(make_folder: Make, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"config\.json.*cross-encoder/"):
        CrossEncoderReranker(tmp_path / "empty", device="cpu")
    with pytest.raises(ModelNotFoundError, match=r"offline.*cross-encoder/") as caught:
        CrossEncoderReranker("nobody/no-such-cross-encoder", device="cpu")
    assert len(caught.value.tried) == 3
    untold = make_folder()
    (untold / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        CrossEncoderReranker(untold, device="cpu")
    damaged = make_folder(2)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        CrossEncoderReranker(damaged, device="cpu")


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, kexue.search.cross; print(*{'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
