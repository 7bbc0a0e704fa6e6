"""What a server holds: encoders behind their batchers, cross-encoders, and open indexes, each under its name."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from kexue._text import parse_json
from kexue.search import (
    CosineReranker,
    CrossEncoderReranker,
    Index,
    IndexReadOnlyError,
    Reranker,
    TransportReranker,
)
from kexue.serve.batching import Batcher, Overloaded
from kexue.serve.errors import ApiError
from kexue.serve.metrics import Metrics
from kexue.serve.settings import Settings
from kexue.similarity import Whitening
from kexue.text import Encoder, find_model

T = TypeVar("T")
Vectors = np.ndarray[Any, np.dtype[np.float32]]
_LOG = logging.getLogger("kexue.serve")
_LOOKS = 32  # results of long looks at indexes that are kept
_THREADS = 4  # for searching and writing; encoding has a thread of its own a model


class Timing(NamedTuple):
    """Seconds a request spent: tokenising, waiting for a batch, in the model."""

    tokenize: float = 0.0
    queue: float = 0.0
    inference: float = 0.0


class Embedded(NamedTuple):
    """Vectors (n, dim) with the number of tokens read of each text; a warning where texts were cut."""

    vectors: Vectors
    tokens: list[int]
    timing: Timing
    warnings: list[str]


@dataclass
class Model:
    """An encoder and the batcher in front of it."""

    name: str
    encoder: Encoder
    batcher: Batcher
    metrics: Metrics
    max_input_tokens: int | None
    whitening: Whitening | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        """The encoder's, without the folder it was loaded from."""
        given = self.encoder.model_id
        return Path(given).name if Path(given).is_absolute() else given

    async def embed(
        self,
        inputs: Sequence[str] | Sequence[np.ndarray[Any, Any]],
        *,
        prompt: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        truncate: bool = True,
    ) -> Embedded:
        """Encode texts, or token ids with their special tokens, batched with whatever else is waiting."""
        start = time.perf_counter()
        sequences = await asyncio.to_thread(self._sequences, inputs, prompt, truncate)
        tokenized = time.perf_counter() - start
        found = await self.batcher.submit(sequences)
        counts = [len(ids) for ids in sequences]
        self.metrics.tokenize_time.labels(self.name).observe(tokenized)
        self.metrics.tokens.labels(self.name).inc(sum(counts))
        vectors = self._shaped(found.vectors, normalize, dimensions)
        timing = Timing(tokenized, found.queue_seconds, found.inference_seconds)
        return Embedded(
            vectors, counts, timing, cut_warnings(getattr(sequences, "truncated", 0), self.encoder.max_length)
        )

    def _sequences(self, inputs: Sequence[Any], prompt: str | None, truncate: bool) -> Sequence[np.ndarray[Any, Any]]:
        if not inputs or isinstance(inputs[0], np.ndarray):
            return inputs
        try:
            sequences = self.encoder.tokenize(list(inputs), prompt_name=prompt)
        except ValueError as error:
            raise ApiError(422 if prompt in (None, *self.encoder.prompts) else 400, str(error)) from None
        limit = self.max_input_tokens
        if not truncate and sequences.truncated:
            raise ApiError(413, f"An input has more than {self.encoder.max_length} tokens; allow truncate.")
        if limit is not None and (longest := max(map(len, sequences))) > limit:
            raise ApiError(413, f"An input has {longest} tokens or more, at most {limit} are allowed.")
        return sequences

    def _shaped(self, vectors: Vectors, normalize: bool | None, dimensions: int | None) -> Vectors:
        """Whitened or cut to `dimensions`, and brought to length 1 as the encoder would."""
        unit = self.encoder.normalize if normalize is None else normalize
        if unit or (self.encoder.normalize and self.whitening is not None and dimensions is not None):
            vectors = _unit(vectors)  # a whitening takes what it was fitted on
        if dimensions is None:
            return vectors
        if self.whitening is not None:
            rank = self.whitening.rank_
            if dimensions > rank:
                raise ApiError(400, f"dimensions must be at most {rank}, got {dimensions}.", param="dimensions")
            vectors = self.whitening.with_params(n_components=dimensions).transform(vectors).astype(np.float32)
        elif dimensions > vectors.shape[1]:
            most = vectors.shape[1]
            raise ApiError(400, f"dimensions must be at most {most}, got {dimensions}.", param="dimensions")
        else:
            vectors = vectors[:, :dimensions]
        return _unit(vectors) if unit else vectors


def cut_warnings(texts: int, most: int) -> list[str]:
    """What to say where `texts` were longer than the `most` tokens that are read."""
    if not texts:
        return []
    return [f"{texts} {'text was' if texts == 1 else 'texts were'} cut: at most {most} tokens are read."]


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit


@dataclass
class Served:
    """An open index and the model that encodes for it; writes take turns."""

    name: str
    index: Index
    model: Model
    path: str
    writable: bool = True
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Service:
    """Everything a server has loaded; an asynchronous context manager.

    Args:
        settings: what to load.
        metrics: told what happens.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.models: dict[str, Model] = {}
        self.rerankers: dict[str, CrossEncoderReranker] = {}
        self.indexes: dict[str, Served] = {}
        self.ready = False
        self._seen: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._looking = asyncio.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kexue-serve")
        self._working = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Service:
        try:
            await self.work(self._load)
            for model in self.models.values():
                await model.batcher.start()
                self._stack.push_async_callback(model.batcher.drain)
        except BaseException:
            await self.__aexit__()
            raise
        self.ready = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.ready = False
        await self._stack.aclose()
        self._threads.shutdown(wait=True)
        for served in self.indexes.values():
            served.index.close()

    def _load(self) -> None:
        for given in self.settings.models:
            name, equals, folder = str(given).partition("=")
            place = folder if equals else str(given)
            if is_cross_encoder(place):
                self.rerankers[name if equals else Path(place).name] = CrossEncoderReranker(
                    place, device=self.settings.device
                )
            else:
                self._model(
                    Encoder(place, device=self.settings.device, dtype=self.settings.dtype), name if equals else None
                )
        for path in self.settings.indexes:
            index, writable = self._open(path)
            name = Path(str(path).rpartition("#")[2]).stem
            if name in self.indexes:
                index.close()
                raise ValueError(f"two indexes are named {name!r}; rename one of the files")
            try:
                model = self._model_of(index)
            except BaseException:
                index.close()
                raise
            self.indexes[name] = Served(name, index, model, str(path), writable)
            if model.whitening is None:
                model.whitening = index.space.whitening

    def _open(self, path: str | os.PathLike[str]) -> tuple[Index, bool]:
        """An index, and whether it takes writes: one that cannot be written can still be read."""
        if self.settings.readonly:
            return Index.open(path, readonly=True), False
        try:
            return Index.open(path), True
        except IndexReadOnlyError as error:
            index = Index.open(path, readonly=True)
            _LOG.warning("%s It is served for reading.", error.message)
            return index, False

    def _model_of(self, index: Index) -> Model:
        """The model an index needs: one that is there when its vectors are the same, else the index's own."""
        wanted = index.space.model
        for model in self.models.values():
            encoder = model.encoder
            same = (encoder.fingerprint, encoder.max_length, encoder.normalize)
            if same == (wanted.fingerprint, wanted.max_length, wanted.normalize):
                index.load_encoder(encoder)
                return model
        own = index.load_encoder(device=self.settings.device, dtype=self.settings.dtype)
        if not isinstance(own, Encoder):
            raise ValueError(f"{index!r} has an encoder of its own kind; serve indexes of kexue.text.Encoder")
        return self._model(own, None)

    def _model(self, encoder: Encoder, name: str | None) -> Model:
        name = name or Path(encoder.model_id).name
        if name in self.models:
            raise ValueError(f"two models are named {name!r}; write NAME=FOLDER to tell them apart")
        batcher = Batcher(encoder, max_batch_tokens=self.settings.max_batch_tokens, max_queue=self.settings.max_queue)
        model = Model(name, encoder, batcher, self.metrics, self.settings.max_input_tokens)
        self._watch(model)
        self.models[name] = model
        return model

    def _watch(self, model: Model) -> None:
        metrics, name = self.metrics, model.name
        metrics.queue_size.labels(name).set_function(lambda: model.batcher.queue_size)

        def observe(size: int, tokens: int, queue_seconds: float, inference_seconds: float) -> None:
            metrics.batch_size.labels(name).observe(size)
            metrics.batch_tokens.labels(name).observe(tokens)
            metrics.queue_time.labels(name).observe(queue_seconds)
            metrics.inference_time.labels(name).observe(inference_seconds)

        model.batcher.observe = observe

    # Finding things by name

    def model(self, name: str | None) -> Model:
        """The model of this name; the first one when none is named."""
        if name is None and self.models:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise ApiError(404, f"no model {name!r}; there are: {', '.join(self.models) or 'none'}.", param="model")
        return self.models[name]

    def served(self, name: str | None, *, to_write: bool = False) -> Served:
        """The index of this name; the first one when none is named."""
        if name is None and self.indexes:
            return next(iter(self.indexes.values()))
        if name not in self.indexes:
            raise ApiError(404, f"no index {name!r}; there are: {', '.join(self.indexes) or 'none'}.", param="index")
        if to_write and not self.indexes[name].writable:
            raise ApiError(403, f"The index {name!r} is served for reading only: its file cannot be written here.")
        return self.indexes[name]

    def reranker(self, name: str | None, model: Model) -> Reranker:
        """``wrd``, ``wmd`` or ``cosine`` by the tokens or vectors of `model`, or a cross-encoder by its name."""
        if name in ("wrd", "wmd"):
            return TransportReranker(model.encoder, "wrd" if name == "wrd" else "wmd")
        if name == "cosine":
            return CosineReranker(model.encoder)
        if name in (None, "cross") and self.rerankers:
            return next(iter(self.rerankers.values()))
        if name is None:
            return TransportReranker(model.encoder)
        if name not in self.rerankers:
            there = ", ".join(["wrd", "wmd", "cosine", *self.rerankers])
            raise ApiError(404, f"no reranker {name!r}; there are: {there}.", param="model")
        return self.rerankers[name]

    # Work off the event loop

    async def work(self, task: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Run a blocking call in a thread; 429 when too many wait already."""
        if self._working >= self.settings.max_queue:
            raise Overloaded(1.0)
        self._working += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, lambda: task(*arguments, **options))
        finally:
            self._working -= 1

    async def cached(self, served: Served, key: tuple[Any, ...], task: Callable[[], T]) -> T:
        """The result of a long look at an index, kept until the index changes; one look at a time."""
        entry = (served.name, *key)
        async with self._looking:
            state = served.index.info().updated
            if entry not in self._seen or self._seen[entry][0] != state:
                self._seen[entry] = state, await self.work(task)
            self._seen.move_to_end(entry)
            if len(self._seen) > _LOOKS:
                self._seen.popitem(last=False)
            found: T = self._seen[entry][1]
            return found


def is_cross_encoder(place: str) -> bool:
    """Whether a folder or hub id holds a sequence classifier."""
    config = find_model(place) / "config.json"
    if not config.is_file():
        return False
    names = parse_json(config.read_bytes(), config, kind=dict).get("architectures") or []
    return any(str(name).endswith("ForSequenceClassification") for name in names)
