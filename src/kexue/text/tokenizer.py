"""Texts to token ids, with the fast tokenizer of a model folder, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._optional import import_optional
from kexue._text import parse_json
from kexue.errors import CheckpointError, MissingDependencyError
from kexue.text.hashes import file_sha256, json_sha256

_CHUNK = 1024  # texts tokenised at a time: the tokenizer's records take a hundred times the bytes of the ids
_CHARACTERS_PER_TOKEN = 32  # assumed at most; far above what any vocabulary needs for running text
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
_BERT_SETTINGS = {"tokenize_chinese_chars": True, "strip_accents": None, "do_lower_case": True}
_MARKS = ("bos_token", "cls_token", "eos_token", "sep_token")
_PART = 65_536  # characters of a long text whose tokens are located at a time
_MARGIN = 128  # tokens read past the limit: a word cut in two there cannot change the tokens before the limit


def list_texts(texts: Iterable[str], *, first: int = 0) -> list[str]:
    """Return the texts as a list; one plain string is a list of one. TypeError names the place of another type."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    for i, text in enumerate(texts, start=first):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] must be a string, got {type(text).__name__}: {text!r:.80}.")
    return texts


def cut_text(text: str, offsets: Sequence[tuple[int, int]], tokens: int) -> str:
    """Return a text up to the end of its first `tokens` tokens, whole where it has no more.

    Args:
        text: the text.
        offsets: start and end of each token in it, special tokens left out.
        tokens: tokens to keep, at least 1.
    """
    return text[: offsets[tokens - 1][1]] if len(offsets) > tokens else text


class Tokens(NamedTuple):
    """Token ids of n texts, one after the other.

    Attributes:
        ids: (total,) int32.
        starts: (n + 1,) int64; text i holds ``ids[starts[i]:starts[i + 1]]``, special tokens included.
        truncated: number of texts cut to the maximum length.
        unknown: share of unknown tokens, special tokens not counted.
    """

    ids: np.ndarray
    starts: np.ndarray
    truncated: int
    unknown: float

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, tokens of each text."""
        return np.diff(self.starts)

    def pad(self, rows: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (B, T) int64 and mask (B, T) bool of the texts `rows`, padded on the right to the longest."""
        starts, lengths = self.starts[rows], self.lengths[rows]
        columns = np.arange(lengths.max())
        mask = columns < lengths[:, None]
        places = np.where(mask, starts[:, None] + columns, 0)
        return np.where(mask, self.ids[places], pad_id).astype(np.int64), mask


class TextTokenizer:
    """Fast tokenizer of a model folder.

    Args:
        folder: folder of the tokenizer's files.
        lower: turn text into lower case before the tokenizer's normaliser.

    Raises:
        CheckpointError: the folder holds no tokenizer, or none with a fast form.
    """

    def __init__(self, folder: Path, *, lower: bool = False) -> None:
        self._backend, special = _load(folder)
        if lower:
            normalizers = import_optional("tokenizers").normalizers
            own = self._backend.normalizer
            self._backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([own] if own else [])])
        self._backend.no_padding()
        self.model_max_length = special.max_length
        self.pad_id = special.pad_id or 0
        self.specials: int = self._backend.num_special_tokens_to_add(False)
        self.unknown_id = special.unknown_id

    def set_max_length(self, max_length: int) -> None:
        """Cut at `max_length` tokens, special ones included."""
        self.max_length = max_length
        self._backend.enable_truncation(max_length)
        self._characters = max(_CHARACTERS_PER_TOKEN * max_length, 4096)
        self._enough_overflow = 1 + ceil(_MARGIN / (max_length - self.specials))

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Return the ids of all texts. They are tokenised in chunks, so memory grows with the ids only.

        Raises:
            ValueError: a text is not valid Unicode, or has no token; its position is named.
        """
        lengths = np.empty(len(texts), dtype=np.int64)
        pieces: list[np.ndarray] = []
        truncated = 0
        for start, encodings in self._chunks(texts, self._backend.encode_batch_fast):
            ids = [encoding.ids for encoding in encodings]
            lengths[start : start + len(ids)] = sizes = np.fromiter(map(len, ids), np.int64, len(ids))
            pieces.append(np.fromiter(chain.from_iterable(ids), np.int32, int(sizes.sum())))
            truncated += sum(1 for encoding in encodings if encoding.overflowing)
        if not lengths.all():
            raise ValueError(f"texts[{int(lengths.argmin())}] has no token, and this tokenizer adds no special token.")
        flat = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)
        words = flat.size - self.specials * len(texts)
        unknown = 0 if self.unknown_id is None else int(np.count_nonzero(flat == self.unknown_id))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return Tokens(flat, starts, truncated, unknown / words if words > 0 else 0.0)

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        ids: dict[str, int] = self._backend.get_vocab()
        return 1 + max(ids.values())

    def check_ids(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return sequences of token ids as int32; ValueError names the first that is illegal.

        See `kexue.text.Encoder.check_ids`.
        """
        checked = [np.asarray(sequence) for sequence in sequences]
        for i, ids in enumerate(checked):
            if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
                raise ValueError(f"sequences[{i}] must be one row of token ids, got {ids.dtype} {ids.shape}.")
            if not 1 <= len(ids) <= self.max_length:
                raise ValueError(f"sequences[{i}] must have 1 to {self.max_length} tokens, got {len(ids)}.")
        everything = np.concatenate(checked) if checked else np.empty(0, dtype=np.int32)
        if np.any(everything < 0) or np.any(everything >= self.vocabulary_size):
            for i, ids in enumerate(checked):
                wrong = ids[(ids < 0) | (ids >= self.vocabulary_size)]
                if wrong.size:
                    most = self.vocabulary_size - 1
                    raise ValueError(f"sequences[{i}] holds the token id {wrong[0]}, expected 0 to {most}.")
        return [ids.astype(np.int32, copy=False) for ids in checked]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Any]:
        """Return the tokenizer's own records: ids, tokens, offsets, special_tokens_mask, overflowing."""
        return [record for _, records in self._chunks(texts, self._backend.encode_batch) for record in records]

    def read_offsets(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the characters (t, 2) of all tokens of each text, also beyond the maximum length.

        Special tokens are left out. A text of more than 65,536 characters is read in parts that end with a line or a
        word where there is one.
        """
        places = [(at, start, stop) for at, text in enumerate(texts) for start, stop in _parts(text)]
        try:
            records = self._backend.encode_batch([texts[at][start:stop] for at, start, stop in places])
        except TypeError:
            raise ValueError(_describe_invalid(texts, 0)) from None
        found: list[list[np.ndarray]] = [[] for _ in texts]
        for (at, start, _), record in zip(places, records, strict=True):
            for one in (record, *record.overflowing):
                offsets = np.array(one.offsets, np.int64).reshape(-1, 2)
                found[at].append(offsets[np.array(one.special_tokens_mask) == 0] + start)
        return [np.concatenate(parts) if parts else np.empty((0, 2), np.int64) for parts in found]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, also beyond the maximum length, without special ones."""
        records = self._backend.encode_batch_fast(list(texts))
        return [sum(len(one.ids) - self.specials for one in (record, *record.overflowing)) for record in records]

    def _chunks(self, texts: Sequence[str], encode_batch: Any) -> Iterator[tuple[int, list[Any]]]:
        """Yield chunks of records; of a long text only a beginning that fills the maximum length is tokenised."""
        limit = self._characters
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            try:
                encodings = encode_batch([text[:limit] for text in chunk])
            except TypeError:
                raise ValueError(_describe_invalid(chunk, start)) from None
            for i, text in enumerate(chunk):
                size = limit
                while size < len(text) and len(encodings[i].overflowing) < self._enough_overflow:
                    size *= 8
                    encodings[i] = encode_batch([text[:size]])[0]
            yield start, encodings


def _parts(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and stop of the parts of a text that are tokenised at a time."""
    start = 0
    while len(text) - start > _PART:
        stop = max(text.rfind(mark, start + _PART // 2, start + _PART) for mark in "\n ") + 1 or start + _PART
        yield start, stop
        start = stop
    yield start, len(text)


class _Special(NamedTuple):
    pad_id: int | None
    unknown_id: int | None
    max_length: int  # a huge number where the folder states none


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


def _is_bert(folder: Path, config: dict[str, Any]) -> bool:
    bert = config.get("tokenizer_class") in ("BertTokenizer", "BertTokenizerFast")
    return bert and (folder / "tokenizer.json").is_file()


def _load(folder: Path) -> tuple[Any, _Special]:
    """Return the folder's ``tokenizers.Tokenizer`` and its special tokens."""
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise CheckpointError(f"{folder} has no tokenizer.", remedy="Copy the whole folder, with its tokenizer.json.")
    try:
        config = _read_config(folder)
        if _is_bert(folder, config):
            return _load_bert(folder, config)
        return _load_plain(folder, config) if _is_plain(folder, config) else _load_any(folder)
    except MissingDependencyError:
        raise
    except Exception as error:  # damaged files raise many types of errors
        raise CheckpointError(
            f"{folder} has no tokenizer that can be loaded: {type(error).__name__}: {error}",
            remedy="Save it with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
        ) from error


def _load_bert(folder: Path, config: dict[str, Any]) -> tuple[Any, _Special]:
    """Read tokenizer.json without transformers; tokenizer_config.json decides on normalising, as it does there."""
    tokenizers = import_optional("tokenizers")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    chinese, accents, lower = (config.get(key, default) for key, default in _BERT_SETTINGS.items())
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=accents, lowercase=lower
    )

    def token_id(key: str, default: str) -> int | None:
        token = config.get(key) or default
        number: int | None = backend.token_to_id(token["content"] if isinstance(token, dict) else token)
        return number

    length = config.get("model_max_length")
    return backend, _Special(token_id("pad_token", "[PAD]"), token_id("unk_token", "[UNK]"), int(length or 1e30))


def _is_plain(folder: Path, config: dict[str, Any]) -> bool:
    """Return whether tokenizer.json decides the ids alone, so that transformers would add nothing to it."""
    return (
        config.get("tokenizer_class") == "PreTrainedTokenizerFast"
        and (folder / "tokenizer.json").is_file()
        and not any((folder / name).is_file() for name in ("special_tokens_map.json", "added_tokens.json"))
        and set(config) <= {"tokenizer_class", "model_max_length", "pad_token", "unk_token", *_MARKS}
    )


def _load_plain(folder: Path, config: dict[str, Any]) -> tuple[Any, _Special]:
    """Read tokenizer.json without transformers, which would take two seconds more."""
    tokenizers = import_optional("tokenizers", extra="text")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = {name: backend.token_to_id(token) for name, token in config.items() if name.endswith("_token")}
    if None in marks.values():  # transformers adds it
        return _load_any(folder)
    length = int(config.get("model_max_length") or 1e30)
    return backend, _Special(marks.get("pad_token"), marks.get("unk_token"), length)


def _load_any(folder: Path) -> tuple[Any, _Special]:
    transformers = import_optional("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return loaded.backend_tokenizer, _Special(loaded.pad_token_id, loaded.unk_token_id, loaded.model_max_length)


def _describe_invalid(chunk: Sequence[str], start: int) -> str:
    for i, text in enumerate(chunk, start=start):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return (
                f"texts[{i}] is no valid Unicode: {text[error.start]!r} at character {error.start} is half a "
                "surrogate pair. Decode the text again, with errors='replace' if necessary."
            )
    return f"one of texts[{start}:{start + len(chunk)}] cannot be tokenised."
