"""Transformers other than plain BERT, through the transformers library."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kexue._optional import import_optional
from kexue.errors import CheckpointError
from kexue.text.bert import WeightBias


class General:
    """Transformer of any architecture that the transformers library knows.

    Args:
        model: what ``AutoModel`` returned.
        has_pooler: True where the checkpoint holds the pooler's weights; otherwise they are random.
    """

    def __init__(self, model: Any, has_pooler: bool) -> None:
        self.model = model
        self._has_pooler = has_pooler
        self.hidden_size: int = model.config.hidden_size
        self.max_positions: int | None = getattr(model.config, "max_position_embeddings", None)
        table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        if self.max_positions is not None and padding is not None:  # RoBERTa counts positions from padding + 1
            self.max_positions -= padding + 1

    @classmethod
    def from_folder(cls, folder: Path) -> General:
        """Load a folder without network, without code from the folder, and without output on the terminal.

        Raises:
            CheckpointError: it cannot be loaded, is an encoder-decoder, or lacks weights.
        """
        transformers = import_optional("transformers")
        with quiet(transformers):
            try:
                model, info = transformers.AutoModel.from_pretrained(
                    folder,
                    dtype=torch.float32,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                )
            except Exception as error:  # damaged files raise many types of errors
                raise CheckpointError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error
        if model.config.is_encoder_decoder:
            raise CheckpointError(f"{folder} is an encoder-decoder ({model.config.model_type}), not an encoder.")
        missing = set(info["missing_keys"])
        from_pooler = {key for key in missing if key.startswith("pooler.")}
        if missing - from_pooler:
            raise CheckpointError(f"{folder}: weights are missing: {', '.join(sorted(missing - from_pooler))}.")
        return cls(model.eval(), has_pooler=not from_pooler)

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the forward pass."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    @property
    def pooler(self) -> WeightBias | None:
        """Linear map of the pooler, weight and bias; None where the checkpoint has none."""
        pooler = getattr(self.model, "pooler", None)
        linear = getattr(pooler, "dense", pooler)
        if not self._has_pooler or not isinstance(linear, torch.nn.Linear):
            return None
        return linear.weight.detach(), linear.bias.detach()

    def to(self, device: torch.device, dtype: torch.dtype) -> General:
        """Return a copy on a device, in a dtype."""
        return General(copy.deepcopy(self.model).to(device, dtype), self._has_pooler)

    def __call__(self, ids: Tensor, keep: Tensor, every: bool = False) -> tuple[Tensor, ...]:
        """Map ids (B, T) and keep (B, T), True = token, to states (B, T, h): all L + 1 of them, or the last alone."""
        output = self.model(input_ids=ids, attention_mask=keep.long(), output_hidden_states=every)
        return tuple(output.hidden_states) if every else (output.last_hidden_state,)


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Switch off the progress bars and tables of the loader inside a ``with`` block."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
