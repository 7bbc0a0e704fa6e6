"""BERT's forward pass, without the seconds it takes to import a library of every model.

Most sentence encoders are BERTs (MiniLM, BGE, GTE, text2vec, SimBERT). For them this file stands in for the general
loader: a search from the command line starts in about half the time, and a single query costs a third less.

Source: Devlin et al. 2019, arXiv:1810.04805; its blocks are those of Vaswani et al. 2017, arXiv:1706.03762.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Affine = tuple[Tensor, Tensor]  # weight, bias


def is_bert(config: Mapping[str, Any]) -> bool:
    """Tell whether `config` (a config.json) is a BERT that `Bert` computes exactly."""
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder", False)
    )


class Bert:
    """Token ids to hidden states, for inference.

    One block, with h = heads x d and all products over the last axis:

        q, k, v = A x + a                                     one product for the three
        x <- LN(x + O softmax(q k^T / sqrt(d)) v + o)
        x <- LN(x + W2 gelu(W1 x + b1) + b2)

    Args:
        config: the folder's config.json, for which `is_bert` holds.
        tensors: weights under their published names, ``attention.self.qkv`` in place of query, key and value.
    """

    def __init__(self, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        self.config = config
        self.hidden_size: int = config["hidden_size"]
        self.max_positions: int | None = config["max_position_embeddings"]
        self._tensors = tensors
        self._heads: int = config["num_attention_heads"]
        self._eps: float = config.get("layer_norm_eps", 1e-12)
        self._norm = self._affine("embeddings.LayerNorm")
        names = (
            "attention.self.qkv",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        )
        layers = [f"encoder.layer.{i}." for i in range(config["num_hidden_layers"])]
        self._blocks = [[self._affine(layer + name) for name in names] for layer in layers]

    def _affine(self, name: str) -> Affine:
        return self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the forward pass."""
        return self._norm[0].dtype

    @property
    def pooler(self) -> Affine | None:
        """The pooler's linear map, where the checkpoint has one."""
        return self._affine("pooler.dense") if "pooler.dense.weight" in self._tensors else None

    def to(self, device: torch.device, dtype: torch.dtype) -> Bert:
        """Return a copy on another device or in another arithmetic; this one stays as it is."""
        return Bert(self.config, {name: tensor.to(device, dtype) for name, tensor in self._tensors.items()})

    def __call__(self, ids: Tensor, keep: Tensor, every: bool = False) -> tuple[Tensor, ...]:
        """Map ids (B, T) and keep (B, T), True = token, to states (B, T, h): all L + 1 of them, or the last alone."""
        t = ids.shape[1]
        place = self._tensors["embeddings.position_embeddings.weight"][:t]
        segment = self._tensors["embeddings.token_type_embeddings.weight"][0]
        x = functional.embedding(ids, self._tensors["embeddings.word_embeddings.weight"]) + (place + segment)
        x = self._layer_norm(x, self._norm)
        mask = None if bool(keep.all()) else keep[:, None, None, :].expand(-1, 1, t, -1)
        states = [x]
        for block in self._blocks:
            x = self._block(x, mask, block)
            states = [*states, x] if every else [x]
        return tuple(states)

    def _block(self, x: Tensor, mask: Tensor | None, weights: list[Affine]) -> Tensor:
        b, t, h = x.shape
        qkv, out, norm1, up, down, norm2 = weights
        q, k, v = (
            functional.linear(x, *qkv).view(b, t, 3, self._heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )  # (B, H, T, d)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, t, h)
        x = self._layer_norm(x + functional.linear(mixed, *out), norm1)
        return self._layer_norm(x + functional.linear(functional.gelu(functional.linear(x, *up)), *down), norm2)

    def _layer_norm(self, x: Tensor, norm: Affine) -> Tensor:
        return functional.layer_norm(x, (self.hidden_size,), *norm, self._eps)


def from_checkpoint(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Bert:
    """Build the model in float32 from weights under their published names, with or without a leading ``bert.``.

    Raises:
        KeyError: a weight is missing; its argument is the name. ValueError: a shape that does not fit the config.
    """
    prefix = "bert." if any(name.startswith("bert.") for name in weights) else ""
    tensors = {
        name.removeprefix(prefix).replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): value.float()
        for name, value in weights.items()
        if name.removeprefix(prefix).startswith(("embeddings.", "encoder.", "pooler."))
    }
    h, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings": (config["vocab_size"], h),
        "embeddings.position_embeddings": (config["max_position_embeddings"], h),
    }
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
