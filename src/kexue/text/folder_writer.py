"""A packed model written as a plain sentence-transformers folder, with the same bytes on every machine.

The safetensors file is written tensor by tensor, so that the model never lies in memory as a whole.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from kexue.text.packed import PackedModel
from kexue.text.stages import write_json, write_stages

MAX_LENGTH = 512
_LAYER_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDING_NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


def write_model(model: PackedModel, folder: Path, *, prompts: dict[str, str]) -> None:
    """Write a packed model into an empty folder.

    Args:
        model: the model, a BERT with a unigram vocabulary; its vectors are means of unit length.
        folder: where its files go.
        prompts: name -> text put before an input.
    """
    bos, eos, pad, unk = (model.pieces[number] for number in (model.bos, model.eos, model.pad, model.unk))
    files: dict[str, Any] = {
        "config.json": _config(model),
        "tokenizer.json": _tokenizer(model),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MAX_LENGTH,
            "bos_token": bos,
            "cls_token": bos,
            "eos_token": eos,
            "sep_token": eos,
            "pad_token": pad,
            "unk_token": unk,
        },
    }
    write_stages(folder, ("Normalize",), pooling="mean", width=model.hidden, max_length=MAX_LENGTH, prompts=prompts)
    write_json(folder, files)
    _write_weights(model, folder / "model.safetensors")


def _config(model: PackedModel) -> dict[str, Any]:
    """Return the config.json."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": model.vocabulary,
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.inner,
        "max_position_embeddings": model.positions,
        "type_vocab_size": model.segments,
        "layer_norm_eps": float(f"{model.epsilon:.6g}"),  # float32 in the file
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "pad_token_id": model.pad,
    }


def _tokenizer(model: PackedModel) -> dict[str, Any]:
    """Return the tokenizer.json: NFKC as SentencePiece's nmt_nfkc has it, spaces as pieces, a unigram vocabulary."""
    kept, stand_in = "～", "\ufdd0"  # the one character that nmt_nfkc leaves and NFKC would replace; a noncharacter
    normalizers = [
        {"type": "Replace", "pattern": {"String": kept}, "content": stand_in},
        {"type": "Nmt"},
        {"type": "NFKC"},
        {"type": "Replace", "pattern": {"String": stand_in}, "content": kept},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos, eos = ({"SpecialToken": {"id": model.pieces[number], "type_id": 0}} for number in (model.bos, model.eos))
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": model.pieces[number], **flags}
            for number in sorted({model.bos, model.eos, model.pad, model.unk})
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": spaces,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first, eos],
            "pair": [bos, first, eos, eos, second, eos],
            "special_tokens": {
                model.pieces[number]: {
                    "id": model.pieces[number],
                    "ids": [number],
                    "tokens": [model.pieces[number]],
                }
                for number in (model.bos, model.eos)
            },
        },
        "decoder": spaces,
        "model": {
            "type": "Unigram",
            "unk_id": model.unk,
            "vocab": [list(pair) for pair in zip(model.pieces, model.scores.tolist(), strict=True)],
            "byte_fallback": False,
        },
    }


def _published_name(name: str) -> str:
    """Return the published name of a tensor of the packed file."""
    if name in _EMBEDDING_NAMES:
        return _EMBEDDING_NAMES[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{_LAYER_NAMES[part]}.{'weight' if kind == 'w' else 'bias'}"


def _write_weights(model: PackedModel, path: Path) -> None:
    """Write the weights as safetensors in float16: length of the header (u64), header in JSON, then the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in model.shapes().items():
        start, end = end, end + math.prod(shape) * 2
        header[_published_name(name)] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in model.shapes():
            for part in model.tensors[name].parts():
                file.write(part.astype("<f2").tobytes())
