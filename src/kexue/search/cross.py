"""Reranking with a cross-encoder: a classifier of query and document together, from a Hugging Face folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kexue._optional import import_optional
from kexue.errors import CheckpointError, ModelNotFoundError
from kexue.search.rerank import Reranked
from kexue.text.batches import split_by_tokens
from kexue.text.folder import weight_files
from kexue.text.models import find_model, model_id_of
from kexue.text.tokenizer import cut_text, list_texts

_UNLIMITED = 1_000_000  # a tokenizer without a limit has a huge one
_NAME = 'Name the folder or hub id of a trained one, such as "cross-encoder/ms-marco-MiniLM-L6-v2".'
_CONVERT = (
    "Only safetensors weights are read. Convert once, where you trust the file: "
    "AutoModelForSequenceClassification.from_pretrained(FOLDER).save_pretrained(FOLDER)."
)


class CrossEncoderReranker:
    """Rerank with a transformer that reads query and document as one sequence.

    With one output z the score is sigmoid(z); with two it is the softmax probability of label 1, sigmoid(z_1 - z_0).
    The transformer runs in float32, the sigmoid in float64, so that scores stay below 1 up to z = 36. Any
    activation of the folder is ignored; z gives the order of the documents in both cases.

    Source: Nogueira & Cho 2019, arXiv:1901.04085.

    Args:
        folder: a folder with a sequence classifier, its tokenizer and safetensors weights, or a hub id (see
            `kexue.text.find_model`, which uses the network last and, offline, never).
        device: ``"auto"`` (`KEXUE_DEVICE`, else cuda, mps, cpu in this order), ``"cpu"``, ``"cuda"``, ``"cuda:0"``, ...

    Attributes:
        model_id: hub id, or the folder's absolute path.
        max_length: tokens of query and document together, special ones included: the limit of tokenizer and model, 512
            where the tokenizer has none. Only the document is cut.
        batch_tokens: tokens of one forward pass at most, padding included; a longer pair is a batch by itself.

    Raises:
        ModelNotFoundError: no such model.
        CheckpointError: weights as a pickle, or none; a classification head that is missing and would be random; not
            one or two outputs; a folder that cannot be loaded.
        ValueError: an unknown device.

    Example:
        >>> reranker = CrossEncoderReranker("cross-encoder/ms-marco-MiniLM-L6-v2")  # doctest: +SKIP
        >>> reranker.rerank("Who ate?", ["The dog ate.", "It rains."]).scores  # doctest: +SKIP

    Cost: one pass of the model over each pair, query included every time.
    """

    def __init__(self, folder: str | os.PathLike[str], *, device: str = "auto") -> None:
        import_optional("torch")
        from kexue._devices import choose_device, set_threads
        from kexue.text.general import General

        set_threads()
        self.device = choose_device(device)
        try:
            path = find_model(folder)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(error.message, tried=error.tried, remedy=_NAME) from None
        self.model_id = model_id_of(path)
        self._tokenizer, model = _load(path)
        self._model = model.to(self.device).eval()
        limit = self._tokenizer.model_max_length
        positions = General(model.base_model, has_pooler=False).max_positions
        limits = [
            limit if limit < _UNLIMITED else 512,
            *([positions] if positions is not None and positions > 0 else []),
        ]
        self.max_length: int = min(limits)
        self.batch_tokens = 2048 if self.device.type == "cpu" else 8192  # the same as in `kexue.text.Encoder`

    def rerank(self, query: str, documents: Sequence[str]) -> Reranked:
        """Return the scores of `documents`, in their order, each in [0, 1]; without explanations.

        Raises:
            ValueError: the query is blank, or so long that no token of a document fits beside it.
            TypeError: a document is not a string; its position is named.
        """
        if not query.strip():
            raise ValueError(f"the query must not be blank, got {query!r}.")
        documents = list_texts(documents)
        if not documents:
            return Reranked(np.empty(0), [])
        size = len(self._tokenizer(query, add_special_tokens=False, verbose=False)["input_ids"])
        room = self.max_length - self._tokenizer.num_special_tokens_to_add(pair=True) - 1
        if size > room:
            raise ValueError(
                f"the query has {size} tokens; beside a document {self.model_id} reads at most {room}. Shorten it."
            )
        pairs = self._tokenizer(
            [query] * len(documents), documents, truncation="only_second", max_length=self.max_length
        )
        lengths = np.array([len(ids) for ids in pairs["input_ids"]])
        margins = np.empty(len(documents))
        for rows in split_by_tokens(lengths, self.batch_tokens):
            margins[rows] = self._margins({key: [values[row] for row in rows] for key, values in pairs.items()})
        return Reranked(np.exp(-np.logaddexp(0, -margins)), [None] * len(documents))  # sigmoid, without overflow

    def cut(self, documents: Sequence[str], tokens: int) -> list[str]:
        """Return each document up to the end of its first `tokens` tokens."""
        documents = list_texts(documents)
        encoded = self._tokenizer(documents, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            cut_text(text, offsets, tokens) for text, offsets in zip(documents, encoded["offset_mapping"], strict=True)
        ]

    def count_tokens(self, query: str, documents: Sequence[str]) -> list[int]:
        """Return the number of tokens of each document with the query, special ones included, before cutting."""
        documents = list_texts(documents)
        return list(map(len, self._tokenizer([query] * len(documents), documents, verbose=False)["input_ids"]))

    def _margins(self, pairs: dict[str, list[list[int]]]) -> np.ndarray:
        """Return (B,) float64, the log odds of relevance."""
        torch = import_optional("torch")
        batch = self._tokenizer.pad(pairs, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            logits = self._model(**batch).logits
        outputs: np.ndarray = logits.numpy(force=True).astype(np.float64)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, 1] - outputs[:, 0]


def _load(folder: Path) -> tuple[Any, Any]:
    """Return tokenizer and classifier of a folder in float32, without network, pickle or code from the folder."""
    from kexue.text.general import quiet

    torch, transformers = import_optional("torch"), import_optional("transformers")
    try:
        weight_files(folder)
    except CheckpointError as error:
        raise CheckpointError(error.message, remedy=_CONVERT) from None
    local = {"local_files_only": True, "trust_remote_code": False}
    with quiet(transformers):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
            )
        except Exception as error:  # damaged files raise many types of errors
            raise CheckpointError(
                f"{folder} cannot be loaded as a cross-encoder: {type(error).__name__}: {error}", remedy=_NAME
            ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # the default tokenizer of transformers where there is none
        raise CheckpointError(f"{folder} has no tokenizer.", remedy="Copy the whole folder, with its tokenizer.json.")
    if info["missing_keys"]:
        raise CheckpointError(
            f"{folder} is not a cross-encoder: {', '.join(sorted(info['missing_keys']))} are not among its weights "
            "and would be random.",
            remedy=_NAME,
        )
    if model.config.num_labels not in (1, 2):
        raise CheckpointError(
            f"{folder} has {model.config.num_labels} outputs; a score is made of 1 or 2.", remedy=_NAME
        )
    return tokenizer, model
