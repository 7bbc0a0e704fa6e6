"""BERT and RoFormer for inference: published weights mapped onto the blocks of `kexue.nn.transformer`.

Most sentence encoders are BERTs (MiniLM, BGE, GTE, text2vec, SimBERT). For them and for RoFormers, which rotate queries
and keys in place of a table of positions, this file replaces the transformers library, so that a search from the
command line starts in about half the time.

The blocks run on plain tensors by `run_block`, not as a `kexue.nn.Transformer`: module calls would leave 0.89 to 0.92
of the speed for a single short text, 0.97 to 1.0 for a full batch (MiniLM on a processor).

Source: Devlin et al. 2019, arXiv:1810.04805; its blocks are those of Vaswani et al. 2017, arXiv:1706.03762; RoFormer:
Su et al. 2021, arXiv:2104.09864.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kexue.nn.linear import affine
from kexue.nn.position import rotary_angles
from kexue.nn.transformer import BlockMaps, run_block

WeightBias = tuple[Tensor, Tensor]

_BLOCK_NAMES = {  # published name of each linear layer of a block, with query, key and value as one
    "qkv": "attention.self.qkv",
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}


_COMPUTED = {  # key of config.json -> the value that is computed, which is also the default
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "rotary_value": False,
}


def list_unsupported(config: Mapping[str, Any]) -> list[str]:
    """Return what `Bert` does not compute of a config.json, such as ``'hidden_act="relu"'``; nothing where it does."""
    kind, wanted = config.get("model_type"), {**_COMPUTED, "embedding_size": config.get("hidden_size")}
    faults = [] if kind in ("bert", "roformer") else [f"model_type={json.dumps(kind)}"]
    odd = [key for key, value in wanted.items() if config.get(key) not in (None, value)]
    return faults + [f"{key}={json.dumps(config[key])}" for key in odd]


class Bert:
    """Token ids to hidden states, for inference.

    Args:
        config: the folder's config.json, of which `list_unsupported` returns nothing.
        tensors: weights under their published names, ``attention.self.qkv`` in place of query, key and value.
    """

    def __init__(self, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        self.config = config
        self.hidden_size: int = config["hidden_size"]
        self.max_positions: int | None = config["max_position_embeddings"]
        self._tensors = tensors
        self._heads: int = config["num_attention_heads"]
        self._rotary = config["model_type"] == "roformer"
        self._norm = self._map("embeddings.LayerNorm")
        layers = [f"encoder.layer.{i}." for i in range(config["num_hidden_layers"])]
        self._blocks = [
            BlockMaps(**{ours: self._map(layer + name) for ours, name in _BLOCK_NAMES.items()}) for layer in layers
        ]

    def _map(self, name: str) -> Callable[[Tensor], Tensor]:
        """Return the affine map or layer normalisation with this name."""
        weight, bias = self._weight_bias(name)
        if name.endswith("LayerNorm"):
            eps = self.config.get("layer_norm_eps", 1e-12)
            return partial(functional.layer_norm, normalized_shape=weight.shape, weight=weight, bias=bias, eps=eps)
        return partial(affine, weight=weight, bias=bias)

    def _weight_bias(self, name: str) -> WeightBias:
        """Return weight and bias of the map with this name."""
        return self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the forward pass."""
        return self._tensors["embeddings.LayerNorm.weight"].dtype

    @property
    def pooler(self) -> WeightBias | None:
        """The pooler's linear map, where the checkpoint has one."""
        return self._weight_bias("pooler.dense") if "pooler.dense.weight" in self._tensors else None

    def to(self, device: torch.device, dtype: torch.dtype) -> Bert:
        """Return a copy on another device or in another arithmetic; this one stays as it is."""
        return Bert(self.config, {name: tensor.to(device, dtype) for name, tensor in self._tensors.items()})

    def __call__(self, ids: Tensor, keep: Tensor, every: bool = False) -> tuple[Tensor, ...]:
        """Map ids (B, T) and keep (B, T), True = token, to states (B, T, h): all L + 1 of them, or the last alone."""
        t = ids.shape[1]
        added, turn = self._tensors["embeddings.token_type_embeddings.weight"][0], None
        if self._rotary:
            places = torch.arange(t, device=ids.device)
            turn = rotary_angles(places, self.hidden_size // self._heads, dtype=self.dtype)
        else:
            added = self._tensors["embeddings.position_embeddings.weight"][:t] + added
        x = self._norm(functional.embedding(ids, self._tensors["embeddings.word_embeddings.weight"]) + added)
        mask = None if bool(keep.all()) else keep[:, None, None, :].expand(-1, 1, t, -1)
        states = [x]
        for maps in self._blocks:
            x, _ = run_block(x, maps, self._heads, mask, turn=turn)
            states = [*states, x] if every else [x]
        return tuple(states)


def from_checkpoint(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Bert:
    """Build the model in float32 from weights under their published names, with or without the model's name in front.

    Raises:
        KeyError: a weight is missing; its argument is the name. ValueError: a shape that does not fit the config.
    """
    prefix = f"{config['model_type']}."
    tensors = {
        name.removeprefix(prefix).replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): value.float()
        for name, value in weights.items()
        if name.removeprefix(prefix).startswith(("embeddings.", "encoder.", "pooler."))
    }
    h, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {"embeddings.word_embeddings": (config["vocab_size"], h)}
    if config["model_type"] == "bert":
        shapes["embeddings.position_embeddings"] = (config["max_position_embeddings"], h)
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        for part in ("weight", "bias"):
            three = [tensors.pop(f"{layer}attention.self.{name}.{part}") for name in ("query", "key", "value")]
            tensors[f"{layer}attention.self.qkv.{part}"] = torch.cat(three)
        shapes[f"{layer}attention.self.qkv"] = (3 * h, h)
        shapes[f"{layer}intermediate.dense"] = (inner, h)
        shapes[f"{layer}output.dense"] = (h, inner)
    for name, shape in shapes.items():
        if tuple(tensors[f"{name}.weight"].shape) != shape:
            raise ValueError(f"expected {name}.weight of shape {shape}, got {tuple(tensors[f'{name}.weight'].shape)}")
    return Bert(config, tensors)
