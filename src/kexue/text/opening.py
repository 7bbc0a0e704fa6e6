"""The model of an encoder, opened when it is first needed; under ``"auto"`` the first texts choose it."""

from __future__ import annotations

import copy
import itertools
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kexue.text.choice import FOREIGN_SHARE, find_model_for, foreign_share, sample_texts
from kexue.text.loaded import LoadedModel
from kexue.text.models import find_model, named_default
from kexue.text.tokenizer import list_texts

_FIRST = 4096  # texts of a stream that decide on the model


class ChosenModel:
    """Model that is opened once: at once where it is named, else when the first texts have chosen it.

    Args:
        name: as `kexue.text.find_model` takes it; ``"auto"`` lets the texts choose, unless `KEXUE_MODEL` names one.
        open: opens a folder.

    Several threads may ask at once: one opens the model, and the others wait for it.
    """

    def __init__(self, name: str, open: Callable[[Path], LoadedModel]) -> None:
        self._open = open
        self._lock = threading.Lock()
        self._chosen = name != "auto" or named_default() is not None
        self._model = open(find_model(name)) if self._chosen else None

    def get(self) -> LoadedModel:
        """Return the opened model; before any text the one for English."""
        with self._lock:
            if self._model is None:
                self._model = self._open(find_model("auto"))
            return self._model

    def choose(self, texts: Sequence[str]) -> LoadedModel:
        """Return the model that the first texts have chosen, which are these where there were none before.

        Warns where the model for English was opened before there was a text, and these are not English.
        """
        if self._chosen or not len(texts):
            return self.get()
        with self._lock:
            if self._model is None:
                self._model = self._open(find_model_for(texts))
            elif not self._chosen and (share := foreign_share(sample_texts(texts))) > FOREIGN_SHARE:
                warnings.warn(
                    f"{share:.0%} of the words are not English, but {self._model.model_id} was opened before there was "
                    'a text, which says little about them. Name a model: Encoder("multilingual-e5-small").',
                    UserWarning,
                    stacklevel=3,
                )
            self._chosen = True
            return self._model

    def choose_by_stream(self, texts: Iterable[str]) -> Iterable[str]:
        """Choose by the first texts of a stream; returns the texts, none of which is lost."""
        if self._chosen:
            return texts
        if isinstance(texts, Sequence):
            self.choose([text for text in sample_texts(texts) if isinstance(text, str)])
            return texts
        stream = iter(texts)
        first = list_texts(itertools.islice(stream, _FIRST))
        self.choose(first)
        return itertools.chain(first, stream)

    def with_pooling(self, mode: str) -> ChosenModel:
        """Return the same weights with another pooling; this one is not changed."""
        other = copy.copy(self)
        other._lock = threading.Lock()
        other._model = self.get().with_pooling(mode)
        return other
