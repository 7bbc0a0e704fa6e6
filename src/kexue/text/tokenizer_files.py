"""Tokenizer files of a model folder: opened without transformers where they are those of a BERT, and compared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kexue._optional import import_optional
from kexue._text import parse_json
from kexue.errors import CheckpointError, MissingDependencyError
from kexue.text.hashes import file_sha256, json_sha256
from kexue.text.stages import write_json
from kexue.text.wordpiece import bert_tokenizer

_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
_BERT_SETTINGS = {"tokenize_chinese_chars": True, "strip_accents": None, "do_lower_case": True}
_ROLES = ("pad", "unk", "cls", "sep", "mask")
_MARKS = tuple(f"{role}_token" for role in _ROLES)
_BERT_CLASSES = tuple(name + fast for name in ("BertTokenizer", "RoFormerTokenizer") for fast in ("", "Fast"))
_TWO_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff]{2}")
_NO_LIMIT = int(1e30)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens, None for one that the tokenizer does not have, and the limit of its folder.

    Attributes:
        pad, unk, cls, sep, mask: ids of [PAD], [UNK], [CLS], [SEP], [MASK], or of what stands for them.
        max_length: limit of tokens; a huge number where the folder states none.
    """

    pad: int | None
    unk: int | None
    cls: int | None
    sep: int | None
    mask: int | None
    max_length: int


_IGNORED_KEYS = (  # of tokenizer_config.json: they change no id
    "name_or_path", "_name_or_path", "tokenizer_file", "special_tokens_map_file", "cache_dir", "model_max_length",
    "max_length", "padding", "padding_side", "truncation", "truncation_side", "truncation_strategy", "stride",
    "pad_to_multiple_of", "pad_token_type_id", "clean_up_tokenization_spaces", "chat_template", "model_input_names",
    "tokenizer_class", "backend", "is_local", "local_files_only", "processor_class", "auto_map",
)  # fmt: skip


def tokenizer_identity(folder: Path) -> list[Any]:
    """Return JSON values that decide the ids of a folder's tokenizer: equal lists mean equal ids.

    The layout of the JSON files does not matter. Maximum length and padding belong to the encoder and are left out.
    """
    config = _read_config(folder)
    tokenizer = folder / "tokenizer.json"
    if _is_bert(folder, config):
        settings = [config.get(key, default) for key, default in _BERT_SETTINGS.items()]
        return [json_sha256(tokenizer, ("truncation", "padding", "normalizer", "version")), settings]
    rest = {key: value for key, value in config.items() if key not in _IGNORED_KEYS}
    parts: list[Any] = [json.dumps(rest, sort_keys=True)]
    parts += [json_sha256(folder / name) for name in ("special_tokens_map.json", "added_tokens.json")]
    if tokenizer.is_file():
        return [*parts, json_sha256(tokenizer, ("truncation", "padding", "version"))]
    names = [name for name in (*_VOCABULARIES, "merges.txt") if (folder / name).is_file()]
    return [*parts, [[name, file_sha256(folder / name)] for name in names]]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = parse_json(path.read_bytes(), path, kind=dict) if path.is_file() else {}
    return config


def _is_bert(folder: Path, config: Mapping[str, Any]) -> bool:
    return config.get("tokenizer_class") in _BERT_CLASSES and (folder / "tokenizer.json").is_file()


def load_tokenizer(folder: Path) -> tuple[Any, SpecialTokens]:
    """Return the folder's ``tokenizers.Tokenizer`` and its special tokens.

    Raises:
        CheckpointError: the folder holds no tokenizer, or none that can be loaded.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise CheckpointError(f"{folder} has no tokenizer.", remedy="Copy the whole folder, with its tokenizer.json.")
    try:
        config = _read_config(folder)
        if _is_bert(folder, config):
            return _load_bert((folder / "tokenizer.json").read_text(encoding="utf-8"), config)
        if _is_vocabulary(folder, config):
            return _load_bert(json.dumps(bert_tokenizer(_read_vocabulary(folder / "vocab.txt"))), config)
        return _load_plain(folder, config) if _is_plain(folder, config) else _load_any(folder)
    except (MissingDependencyError, CheckpointError):
        raise
    except Exception as error:  # damaged files raise many types of errors
        raise CheckpointError(
            f"{folder} has no tokenizer that can be loaded: {type(error).__name__}: {error}",
            remedy="Save it with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
        ) from error


def _is_vocabulary(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer is that of a BERT given by vocab.txt alone."""
    if any((folder / name).is_file() for name in ("tokenizer.json", "added_tokens.json")):
        return False
    model = folder / "config.json"
    kind = parse_json(model.read_bytes(), model, kind=dict).get("model_type") if model.is_file() else None
    named = config.get("tokenizer_class")
    bert = named in _BERT_CLASSES or (named is None and kind in ("bert", "roformer"))
    return bert and (folder / "vocab.txt").is_file()


def _read_vocabulary(path: Path) -> dict[str, int]:
    """Return token -> id of a vocab.txt, one token a line; CheckpointError where its tokens are Chinese words."""
    pieces = path.read_text(encoding="utf-8").split("\n")
    pieces = [piece.rstrip("\r") for piece in (pieces[:-1] if pieces[-1] == "" else pieces)]
    word = next((piece for piece in pieces if _TWO_HAN.search(piece)), None)
    if word is not None:
        raise CheckpointError(
            f"{path} is a vocabulary of Chinese words, such as {word}: texts must be cut into words by jieba first, "
            "which is not done here.",
            remedy="Use a model of characters (char), or put a tokenizer.json beside it.",
        )
    return {piece: number for number, piece in enumerate(pieces)}


def _load_bert(tokenizer: str, config: Mapping[str, Any]) -> tuple[Any, SpecialTokens]:
    """Open a tokenizer.json without transformers; tokenizer_config.json decides on normalising, as it does there."""
    tokenizers = import_optional("tokenizers", extra="text")
    backend = tokenizers.Tokenizer.from_str(tokenizer)
    chinese, accents, lower = (config.get(key, default) for key, default in _BERT_SETTINGS.items())
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=accents, lowercase=lower
    )
    special = {}
    for role in _ROLES:
        token = config.get(f"{role}_token") or f"[{role.upper()}]"
        special[role] = backend.token_to_id(token["content"] if isinstance(token, dict) else token)
    return backend, SpecialTokens(**special, max_length=int(config.get("model_max_length") or _NO_LIMIT))


def _is_plain(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether tokenizer.json decides the ids alone, so that transformers would add nothing to it."""
    return (
        config.get("tokenizer_class") == "PreTrainedTokenizerFast"
        and (folder / "tokenizer.json").is_file()
        and not any((folder / name).is_file() for name in ("special_tokens_map.json", "added_tokens.json"))
        and set(config) <= {"tokenizer_class", "model_max_length", "bos_token", "eos_token", *_MARKS}
    )


def _load_plain(folder: Path, config: Mapping[str, Any]) -> tuple[Any, SpecialTokens]:
    """Read tokenizer.json without transformers, which would take two seconds more."""
    tokenizers = import_optional("tokenizers", extra="text")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = {name: backend.token_to_id(token) for name, token in config.items() if name.endswith("_token")}
    if None in marks.values():  # transformers adds it
        return _load_any(folder)
    special = {role: marks.get(mark) for role, mark in zip(_ROLES, _MARKS, strict=True)}
    return backend, SpecialTokens(**special, max_length=int(config.get("model_max_length") or _NO_LIMIT))


def _load_any(folder: Path) -> tuple[Any, SpecialTokens]:
    transformers = import_optional("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    special = {role: getattr(loaded, f"{mark}_id") for role, mark in zip(_ROLES, _MARKS, strict=True)}
    return loaded.backend_tokenizer, SpecialTokens(**special, max_length=loaded.model_max_length)


def save_tokenizer(backend: Any, special: SpecialTokens, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into a folder; they hold all that decides the ids."""
    tokenizer = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if special.max_length < _NO_LIMIT:
        config["model_max_length"] = special.max_length
    for role, mark in zip(_ROLES, _MARKS, strict=True):
        if (number := getattr(special, role)) is not None:
            config[mark] = backend.id_to_token(number)
    write_json(folder, {"tokenizer.json": tokenizer, "tokenizer_config.json": config})
