"""Vocabulary of characters: chosen from texts, written as the tokenizer files of a BERT.

Each Chinese character is a token; a run of letters or digits is read letter by letter.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any

from kexue._optional import import_optional

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def normalize(text: str) -> str:
    """Return a text as the tokenizer reads it: in lower case, without accents and control characters."""
    normalizers = import_optional("tokenizers", extra="text").normalizers
    normal: str = normalizers.BertNormalizer(lowercase=True).normalize_str(text)
    return normal


def choose_characters(texts: Iterable[str], *, at_least: int = 2) -> list[str]:
    """Return the characters that occur at least so often, the most frequent first, and all ASCII letters and digits."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalize(text))
    often = [one for one, count in counts.most_common() if count >= at_least and not one.isspace()]
    return list(dict.fromkeys([*often, *ascii_lowercase, *digits]))


def write_tokenizer(folder: Path, characters: Sequence[str], *, max_length: int = 512) -> int:
    """Write tokenizer.json and tokenizer_config.json into a folder; return the number of tokens."""
    inside = [f"##{one}" for one in (*ascii_lowercase, *digits)]
    pieces = [*SPECIAL, *characters, *inside]
    files: dict[str, Any] = {
        "tokenizer.json": _tokenizer({piece: i for i, piece in enumerate(pieces)}),
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "tokenize_chinese_chars": True,
            "strip_accents": None,
            "model_max_length": max_length,
            **{f"{name.strip('[]').lower()}_token": name for name in SPECIAL},
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(pieces)


def _tokenizer(vocabulary: dict[str, int]) -> dict[str, Any]:
    """Return the tokenizer.json of a BERT with this vocabulary."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))

    def mark(name: str, part: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": part}}

    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[name], "content": name, **flags} for name in SPECIAL],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [mark("[CLS]", 0), first, mark("[SEP]", 0)],
            "pair": [mark("[CLS]", 0), first, mark("[SEP]", 0), second, mark("[SEP]", 1)],
            "special_tokens": {
                name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
