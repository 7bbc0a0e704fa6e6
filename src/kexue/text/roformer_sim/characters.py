"""Vocabulary of characters: chosen from texts, written as the tokenizer files of a BERT.

Each Chinese character is a token; a run of letters or digits is read letter by letter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_lowercase, digits, punctuation
from typing import Any

from kexue._optional import import_optional
from kexue.text.stages import write_json
from kexue.text.wordpiece import SPECIAL, bert_tokenizer


def normalize(text: str) -> str:
    """Return a text as the tokenizer reads it: in lower case, without accents and control characters."""
    normalizers = import_optional("tokenizers", extra="text").normalizers
    normal: str = normalizers.BertNormalizer(lowercase=True).normalize_str(text)
    return normal


def usual_characters() -> str:
    """Return the 3,755 usual Chinese characters, those of the first level of GB 2312."""
    rows = (bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    return b"".join(rows)[: 2 * 3755].decode("gb2312")


def choose_characters(texts: Iterable[str], *, at_least: int = 2) -> list[str]:
    """Return the characters that occur at least so often, the most frequent first, and after them the usual ones.

    Usual are the ASCII letters and digits and the Chinese characters of `usual_characters`.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalize(text))
    often = [one for one, count in counts.most_common() if count >= at_least and not one.isspace()]
    return list(dict.fromkeys([*often, *ascii_lowercase, *digits, *punctuation, *usual_characters()]))


def write_tokenizer(folder: Path, characters: Sequence[str], *, max_length: int = 512) -> int:
    """Write tokenizer.json and tokenizer_config.json into a folder; return the number of tokens."""
    inside = [f"##{one}" for one in (*ascii_lowercase, *digits)]
    pieces = [*SPECIAL, *characters, *inside]
    files: dict[str, Any] = {
        "tokenizer.json": bert_tokenizer({piece: i for i, piece in enumerate(pieces)}),
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "tokenize_chinese_chars": True,
            "strip_accents": None,
            "model_max_length": max_length,
            **{f"{name.strip('[]').lower()}_token": name for name in SPECIAL},
        },
    }
    write_json(folder, files)
    return len(pieces)
