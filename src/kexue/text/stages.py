"""Files of a sentence-transformers folder apart from the transformer: its stages, their settings, the prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TYPES = "sentence_transformers.models."  # the prefix that every reader of such folders accepts


def write_json(folder: Path, files: Mapping[str, Any]) -> None:
    """Write JSON files, name -> content, into a folder."""
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def write_stages(
    folder: Path,
    kinds: Sequence[str],
    *,
    pooling: str,
    width: int,
    max_length: int,
    lower: bool = False,
    prompts: Mapping[str, str] | None = None,
) -> None:
    """Write what makes a folder with a transformer one of sentence-transformers.

    Args:
        folder: where the transformer lies, or will lie.
        kinds: stages after the pooling, ``"Dense"`` or ``"Normalize"``; the folder of a dense stage is
            ``"<its number>_Dense"``, the pooling being number 1, and gets its weights from the caller.
        pooling: ``"cls"`` or ``"mean"``.
        width: of a token's state.
        max_length: limit of tokens, special ones included.
        lower: turn text into lower case before the tokenizer.
        prompts: name -> text put before an input.
    """
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(("Pooling", *kinds), start=1))]
    for path in paths[1:]:
        (folder / path).mkdir()
    stages = [
        {"idx": i, "name": str(i), "path": path, "type": _TYPES + kind}
        for i, (path, kind) in enumerate(zip(paths, ("Transformer", "Pooling", *kinds), strict=True))
    ]
    files: dict[str, Any] = {
        "modules.json": stages,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": lower},
        "config_sentence_transformers.json": {
            "prompts": prompts or {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }
    write_json(folder, files)
