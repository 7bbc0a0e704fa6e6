"""Folders of RoFormer-Sim: those of Hugging Face are read, those of sentence-transformers are read and written.

A folder that is written has four stages: the transformer, the state of [CLS] or the mean of all, the pooler as a dense
stage, scaling to length 1. So it is also an encoder for whoever reads such folders. The head that writes lies beside
the transformer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from kexue._files import refuse_foreign, remove_folder, replacing_folder
from kexue.errors import CheckpointError
from kexue.similarity.whitening.dense import write_dense
from kexue.text.bert import list_unsupported
from kexue.text.folder import DenseStage, load_dense, load_weights, read_config, read_model_folder
from kexue.text.roformer_sim.model import RoFormerSimConfig
from kexue.text.roformer_sim.weights import from_published, to_published
from kexue.text.row_weights import compress_rows
from kexue.text.stages import write_json, write_stages
from kexue.text.tokenizer import TextTokenizer

Dtype = Literal["float32", "float16", "int8"]
_POOLER = "pooler.dense."
_DENSE = "2_Dense"
_POOLINGS: dict[str, Literal["cls", "mean"]] = {"cls": "cls", "last-avg": "mean"}  # name in a folder -> ours
_EMPTY = "3_Normalize"  # which packages and repositories leave out
_NAMES = {  # of a folder that is written, without the empty one
    "1_Pooling", _DENSE, "config.json", "config_sentence_transformers.json", "model.safetensors",
    "modules.json", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
_EPSILON = 1e-12


def read_parts(folder: Path) -> tuple[RoFormerSimConfig, TextTokenizer]:
    """Return the shape and the tokenizer of a folder.

    The tokenizer's limit is the folder's, where that is the lower one.

    Raises:
        CheckpointError: a setting that RoFormer-Sim does not have, a tokenizer that cannot be read.
    """
    stack = read_model_folder(folder)
    config = read_shape(read_config(stack.transformer), stack.transformer)
    poolers = [stage.out_features for stage in stack.stages if isinstance(stage, DenseStage)]
    if len(poolers) == 1 and poolers[0] != config.hidden_size:
        config = replace(config, vector_size=poolers[0])
    if (folder / "modules.json").is_file() and stack.pooling in _POOLINGS:
        config = replace(config, pooling=_POOLINGS[stack.pooling])
    tokenizer = TextTokenizer(stack.transformer, lower=stack.lower)
    if stack.max_length is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, stack.max_length)
    return config, tokenizer


def read_weights(folder: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a folder's weights, in float32, under the names of `state`, that of a `SentenceNetwork`.

    Where the stages of sentence-transformers name no pooler, it is the identity, whatever lies beside the transformer.

    Raises:
        CheckpointError: weights that do not fit, as of `from_published`; stages that do not amount to a linear pooler;
            a default prompt.
    """
    stack = read_model_folder(folder)
    weights = load_weights(stack.transformer)
    if not (folder / "modules.json").is_file():
        return from_published(weights, state, where=str(folder))
    pooling = stack.pooling or stack.pooling_raw
    kinds = [f"Dense ({one.activation})" if isinstance(one, DenseStage) else "Normalize" for one in stack.stages]
    linear = ["Dense (identity)"]
    if pooling not in _POOLINGS or kinds not in ([], linear, ["Normalize"], [*linear, "Normalize"]):
        raise CheckpointError(
            f"{folder}: the stages after its transformer are {', '.join([pooling, *kinds])}, "
            "expected cls or mean, at most one Dense (identity), and Normalize.",
            remedy="Open it as kexue.text.Encoder, which reads all of them.",
        )
    if stack.default_prompt_name is not None:
        raise CheckpointError(
            f"{folder}: its prompt {stack.default_prompt_name!r} is put before each text, expected no default prompt.",
            remedy="Open it as kexue.text.Encoder, which does so.",
        )
    kernel, bias = torch.eye(len(state["pooler.weight"])), torch.zeros_like(state["pooler.bias"])
    for stage in stack.stages:
        if isinstance(stage, DenseStage):
            parts = load_dense(stage).state_dict()
            kernel, bias = parts["0.weight"], parts.get("0.bias", bias)
    weights = {name: value for name, value in weights.items() if _POOLER not in name}
    weights |= {f"{_POOLER}weight": kernel, f"{_POOLER}bias": bias}
    return from_published(weights, state, where=str(folder))


def write_folder(
    folder: str | os.PathLike[str],
    config: RoFormerSimConfig,
    state: Mapping[str, Tensor],
    tokenizer: TextTokenizer,
    dtype: Dtype = "float32",
) -> None:
    """Write a complete folder, or nothing; one that was written before is replaced.

    Args:
        folder: the folder to write.
        config: shape of the network.
        state: its weights.
        tokenizer: its tokenizer.
        dtype: of the weights in the file.

    Raises:
        ValueError: a dtype or a shape that the published format does not have; a weight that is not finite, or is not
            in this dtype.
        DataError: the folder holds files that are not of such a model.
    """
    if dtype not in ("float32", "float16", "int8"):
        raise ValueError(f"dtype must be 'float32', 'float16' or 'int8', got {dtype!r}.")
    model = "roformer" if config.position == "rotary" else "bert"
    if config.position not in ("rotary", "learned") or config.norm != "post" or not config.num_segments:
        raise ValueError(
            "only a model with rotary or learned positions, norm='post' and segments can be saved, got "
            f"position={config.position!r}, norm={config.norm!r}, num_segments={config.num_segments}."
        )
    host = {name: value.detach().to("cpu", torch.float32) for name, value in state.items()}
    published = {name: x for name, x in to_published(host, prefix=f"{model}.").items() if _POOLER not in name}
    if dtype == "float16":
        published = {name: value.half() for name, value in published.items()}
    odd = [name for part in (host, published) for name, value in part.items() if not value.isfinite().all()]
    if odd:
        raise ValueError(
            f"weights are NaN or infinite in {dtype}: {odd[0]}, {len(odd)} in all; train with a smaller lr, "
            "or save in float32."
        )
    limit = min(config.max_length, tokenizer.model_max_length)
    with replacing_folder(folder, foreign=_list_foreign) as temporary:
        tokenizer.save(temporary)
        write_stages(
            temporary, ("Dense", "Normalize"), pooling=config.pooling, width=config.hidden_size, max_length=limit
        )
        write_dense(host["pooler.weight"].T.numpy(), host["pooler.bias"].numpy(), temporary / _DENSE)
        write_json(temporary, {"config.json": _describe(config, model)})
        weights = compress_rows(published) if dtype == "int8" else published
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})


def remove_written(folder: str | os.PathLike[str]) -> None:
    """Delete a folder that `write_folder` has written, if it exists.

    Raises:
        DataError: it holds files that are not of such a model.
    """
    refuse_foreign(folder, _list_foreign)
    remove_folder(folder)


def _list_foreign(folder: Path) -> list[str]:
    """Return the names in a folder that `write_folder` has not written: all, unless it has written the folder."""
    names = set(os.listdir(folder)) - {_EMPTY}
    return sorted(names - _NAMES if names >= _NAMES else names)


def read_shape(config: Mapping[str, Any], folder: Path) -> RoFormerSimConfig:
    """Return the shape that a config.json states; CheckpointError where the network cannot have it."""
    faults = list_unsupported(config)
    if config.get("layer_norm_eps", _EPSILON) != _EPSILON:
        faults.append(f"layer_norm_eps={config['layer_norm_eps']}")
    if faults:
        raise CheckpointError(
            f"{folder / 'config.json'}: RoFormer-Sim does not compute {', '.join(faults)}.",
            remedy="Use a RoFormer, RoFormer-Sim or SimBERT folder; kexue.text.Encoder reads others.",
        )
    try:
        return RoFormerSimConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            intermediate_size=config["intermediate_size"],
            position="rotary" if config["model_type"] == "roformer" else "learned",
            dropout=config.get("hidden_dropout_prob", 0.1),
            num_segments=config.get("type_vocab_size", 2),
            max_length=config["max_position_embeddings"],
            pad_id=config.get("pad_token_id") or 0,
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{folder / 'config.json'}: {reason}.", remedy="Copy the whole folder.") from error


def _describe(config: RoFormerSimConfig, model: str) -> dict[str, Any]:
    """Return the config.json of a shape."""
    return {
        "architectures": ["RoFormerForMaskedLM" if model == "roformer" else "BertForMaskedLM"],
        "model_type": model,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size or 4 * config.hidden_size,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.num_segments,
        "layer_norm_eps": _EPSILON,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "pad_token_id": config.pad_id,
        "tie_word_embeddings": True,
        "dtype": "float32",  # of the arithmetic, whatever the dtype of the file
    }
