"""Weights of RoFormer-Sim under their published names, and back.

RoFormer's and BERT's checkpoints share their names, apart from a leading ``roformer.`` or ``bert.``; query, key and
value, three there, are one here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kexue.errors import CheckpointError

_ENDS = {  # ours -> published, without weight and bias
    "transformer.norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
    "head": "cls.predictions.transform.dense",
    "head_norm": "cls.predictions.transform.LayerNorm",
}
_TABLES = {
    "transformer.tokens.weight": "embeddings.word_embeddings.weight",
    "transformer.segments.weight": "embeddings.token_type_embeddings.weight",
    "transformer.positions.table.weight": "embeddings.position_embeddings.weight",
    "head_bias": "cls.predictions.bias",
}
_BLOCK = {
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}
_THREE = ("query", "key", "value")
_COPIES = (  # of other tensors, constants, or heads of other tasks
    "embeddings.position_ids", "encoder.embed_positions.weight", "cls.seq_relationship.weight",
    "cls.seq_relationship.bias",
)  # fmt: skip
_TIED = {  # name in some checkpoints -> the tensor it repeats
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def _names(state: Mapping[str, Tensor]) -> Iterator[tuple[str, list[str]]]:
    """Yield each of our names with the published names of its parts."""
    for name in state:
        if name in _TABLES:
            yield name, [_TABLES[name]]
            continue
        stem, _, kind = name.rpartition(".")
        if stem in _ENDS:
            yield name, [f"{_ENDS[stem]}.{kind}"]
            continue
        _, _, layer, part = stem.split(".")  # transformer.blocks.3.qkv
        parts = [f"attention.self.{one}" for one in _THREE] if part == "qkv" else [_BLOCK[part]]
        yield name, [f"encoder.layer.{layer}.{one}.{kind}" for one in parts]


def to_published(state: Mapping[str, Tensor], *, prefix: str = "roformer.") -> dict[str, Tensor]:
    """Return a state of `SentenceNetwork` under published names; those of the head carry no prefix."""
    published: dict[str, Tensor] = {}
    for ours, names in _names(state):
        for name, part in zip(names, state[ours].chunk(len(names)), strict=True):
            published[name if name.startswith("cls.") else prefix + name] = part.clone()
    return published


def from_published(weights: Mapping[str, Tensor], state: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Return a state with the names of `state`, in float32, from published weights.

    Args:
        weights: the checkpoint.
        state: what the network expects, for its names and shapes.
        where: the folder, for messages.

    Raises:
        CheckpointError: weights that are missing, superfluous, of another shape or not finite, and a head whose table
            is not that of the tokens; all are listed.
    """
    given = {plain_name(name): value for name, value in weights.items()}
    own: dict[str, Tensor] = {}
    used = {*_COPIES, *_TIED}
    missing, wrong, odd = [], [], []
    for ours, names in _names(state):
        used.update(names)
        shape = state[ours].chunk(len(names))[0].shape
        missing += [name for name in names if name not in given]
        parts = {name: given[name].float() for name in names if name in given}
        misfits = {name: part.shape for name, part in parts.items() if part.shape != shape}
        wrong += [f"{name} {tuple(got)} instead of {tuple(shape)}" for name, got in misfits.items()]
        odd += [name for name, part in parts.items() if not part.isfinite().all()]
        if len(parts) == len(names) and not misfits:
            own[ours] = torch.cat(list(parts.values()))
    extra = sorted(set(given) - used)
    untied = [f"{copy} is not {name}" for copy, name in _TIED.items()
              if copy in given and name in given and not torch.equal(given[copy], given[name])]  # fmt: skip
    faults = {
        "missing": missing,
        "not known": extra,
        "of another shape": wrong,
        "NaN or infinite": odd,
        "not tied": untied,
    }
    told = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
    if told:
        raise CheckpointError(
            f"{where}: the weights do not fit RoFormer-Sim. {told}.",
            remedy="Use a RoFormer-Sim or SimBERT checkpoint with its pooler and its language model head; "
            "kexue.text.Encoder reads those without.",
        )
    return own


def plain_name(name: str) -> str:
    """Return a published name without its prefix and in the spelling of today."""
    name = name.removeprefix("roformer.").removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
