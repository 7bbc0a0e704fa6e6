"""Networks that read texts from left to right: those of Hugging Face folders, and RoFormer-Sim after a prompt.

Both give, for tokens that follow what is cached, the scores of the next token after each.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kexue._optional import import_optional
from kexue.errors import CheckpointError
from kexue.sampling.text.laws import Tokens
from kexue.text import RoFormerSim, find_model
from kexue.text.roformer_sim.generation import read_text

Cache = tuple[tuple[Tensor, Tensor], ...]  # keys and values (B, H, T, D) of each layer


class Reader(Protocol):
    """A network with its tokens.

    Attributes:
        before: tokens before each text, at least one.
        end: token that ends a text.
        writable: tokens of text, ascending.
    """

    before: Tokens
    end: int
    writable: list[int]

    def read(self, ids: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Return the log-probabilities (B, T, V) of the next token after each of ids (B, T), and the longer cache."""
        ...

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a text, without special ones."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        ...


class SimilarReader:
    """RoFormer-Sim as a language model: it writes what may follow a prompt, ``[CLS] prompt [SEP] text [SEP]``.

    Args:
        model: with its tokenizer.
        prompt: a sentence that the text shall resemble; "" is none.
    """

    def __init__(self, model: RoFormerSim, prompt: str) -> None:
        if model.tokenizer is None:
            raise ValueError("the RoFormerSim has no tokenizer; open it with RoFormerSim.from_pretrained")
        self._model, self._tokenizer = model.eval(), model.tokenizer
        if prompt.strip():
            ids, marks = read_text(self._tokenizer, prompt)
        else:
            marks = read_text(self._tokenizer, "。")[1]
            assert self._tokenizer.cls_id is not None
            ids = [self._tokenizer.cls_id, marks.end]
        never = {*marks.never, *marks.inside, marks.end}
        self.before, self.end = tuple(ids), marks.end
        self.writable = [i for i, token in enumerate(self._tokenizer.tokens) if token and i not in never]

    @torch.inference_mode()
    def read(self, ids: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Return log-probabilities and cache; the prompt is read at once, since its tokens see each other."""
        states = []
        if cache is None:
            prompt = len(self.before)
            out = self._model.transformer(ids[:, :prompt], cache=())
            states.append(out.last_hidden_state)
            ids, cache = ids[:, prompt:], out.cache
        if ids.shape[1]:
            assert cache is not None
            past, length = cache[0][0].shape[-2], ids.shape[1]
            places = torch.arange(past + length, device=ids.device)
            mask = places <= torch.arange(past, past + length, device=ids.device)[:, None]
            out = self._model.transformer(
                ids, mask=mask.expand(len(ids), -1, -1), segment_ids=torch.ones_like(ids), cache=cache
            )
            states.append(out.last_hidden_state)
        assert out.cache is not None
        return self._model.score_tokens(torch.cat(states, dim=1)).log_softmax(-1), out.cache

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a text."""
        return tuple(self._tokenizer.encode([text]).ids[1:-1].tolist())

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self._tokenizer.decode(tokens)


class FolderReader:
    """A causal language model of Hugging Face.

    Args:
        folder: with the model and its tokenizer; nothing is downloaded.
        prompt: text before each text that is scored; "" is none.
        device: of the network.

    Raises:
        CheckpointError: no such model, or a tokenizer without an end.
    """

    def __init__(self, folder: str | os.PathLike[str], prompt: str, device: torch.device) -> None:
        self._tokenizer, self._model = load_folder(folder, "AutoModelForCausalLM", device)
        end = self._tokenizer.eos_token_id
        begin = self._tokenizer.bos_token_id if self._tokenizer.bos_token_id is not None else end
        if end is None:
            raise CheckpointError(f"{folder}: its tokenizer has no eos_token, which ends a text.", remedy="Set one.")
        self.before, self.end = (begin, *self.encode(prompt)), end
        named = "cache" in inspect.signature(self._model.forward).parameters  # by newer versions of transformers
        self._cache = "cache" if named else "past_key_values"
        size = self._model.get_input_embeddings().num_embeddings
        self.writable = writable_tokens(self._tokenizer, size)

    @torch.inference_mode()
    def read(self, ids: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Return log-probabilities and cache."""
        check_ids(self._model, ids, cache[0][0].shape[-2] if cache else 0)
        past = import_optional("transformers").DynamicCache()
        for layer, (keys, values) in enumerate(cache or ()):
            past.update(keys, values, layer)
        out = self._model(input_ids=ids, use_cache=True, **{self._cache: past})  # extends `past` in place
        return out.logits.float().log_softmax(-1), tuple((one.keys, one.values) for one in past.layers)

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a text."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


def open_reader(model: str | os.PathLike[str] | RoFormerSim, prompt: str, device: torch.device) -> Reader:
    """Return the reader of a RoFormerSim, of a folder of one, or of a folder of a causal model of Hugging Face.

    Raises:
        ModelNotFoundError: no such folder. CheckpointError: a folder of neither kind.
    """
    if isinstance(model, RoFormerSim):
        return SimilarReader(model, prompt)
    folder = find_model(model)
    try:
        return SimilarReader(RoFormerSim.from_pretrained(folder).to(device), prompt)
    except CheckpointError:
        return FolderReader(folder, prompt, device)


def load_folder(folder: str | os.PathLike[str], kind: str, device: torch.device) -> tuple[Any, Any]:
    """Return the tokenizer and the model of a folder of Hugging Face, in evaluation mode.

    Raises:
        CheckpointError: it cannot be read as this kind of model.
    """
    transformers = import_optional("transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(Path(folder), local_files_only=True)
        model = getattr(transformers, kind).from_pretrained(Path(folder), local_files_only=True)
    except Exception as error:  # damaged folders raise many types of errors
        raise CheckpointError(
            f"{folder} cannot be read as {kind}: {type(error).__name__}: {str(error)[:200]}",
            remedy="Name a folder with config.json, safetensors weights and a tokenizer.",
        ) from error
    return tokenizer, model.eval().to(device)


def check_ids(model: Any, ids: Tensor, past: int = 0) -> None:
    """Raise a ValueError for ids (B, T) that a model has no vectors for, or no room for, after `past` others."""
    size, room = model.get_input_embeddings().num_embeddings, getattr(model.config, "max_position_embeddings", None)
    if not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise ValueError(f"tokens {int(ids.min())} to {int(ids.max())} are not of this model, which has {size}")
    if room is not None and past + ids.shape[1] > room:
        raise ValueError(
            f"the model reads at most {room} tokens, special ones and a prompt included, got {past + ids.shape[1]}; "
            "write shorter texts (max_length)"
        )


def writable_tokens(tokenizer: Any, size: int) -> list[int]:
    """Return the ids below `size` of tokens that are not special and begin a piece of text."""
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    return [i for i, name in enumerate(names) if name and i not in special and not name.startswith("##")]
