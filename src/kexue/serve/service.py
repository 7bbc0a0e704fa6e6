"""Models and indexes of a server, by name, and the threads that search and write."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from kexue._text import parse_json
from kexue.errors import NotSupported
from kexue.extract.extractor import Extractor
from kexue.extract.folder import is_extractor
from kexue.extract.opening import open_extractor
from kexue.generative.diffusion.images import ImageDiffusion
from kexue.generative.run.folder import Run, open_run
from kexue.sampling.text import load_lm
from kexue.sampling.text.laws import LanguageModel
from kexue.sampling.text.ngram_files import is_ngrams
from kexue.sampling.text.opening import PACKAGED
from kexue.search import (
    CosineReranker,
    CrossEncoderReranker,
    Index,
    IndexReadOnlyError,
    TransportReranker,
)
from kexue.search.records import index_name
from kexue.serve.batching import Batcher, QueueFullError
from kexue.serve.errors import ApiError
from kexue.serve.metrics import Metrics
from kexue.serve.models import ServedModel
from kexue.serve.settings import Settings
from kexue.text import Encoder, find_model

T = TypeVar("T")
_LOG = logging.getLogger("kexue.serve")
_MAX_RESULTS = 32  # results of `compute_once` that are kept
_JUDGE = "kexue/roformer-sim-tiny-zh"
_THREADS = 4  # for searching and writing; each encoder has a thread for itself


@dataclass
class ServedIndex:
    """Open index and the model that encodes for it.

    Attributes:
        name: name for clients.
        index: the open index.
        model: its encoder.
        path: file or store address.
        writable: True where it can be changed.
        writing: lock that lets one request write at a time.
    """

    name: str
    index: Index
    model: ServedModel
    path: str
    writable: bool = True
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Service:
    """Loaded models, cross-encoders and indexes of a server; an asynchronous context manager.

    Args:
        settings: server settings.
        metrics: metrics of the server.

    Attributes:
        models: encoders by name.
        rerankers: cross-encoders by name.
        indexes: indexes by name.
        runs: trained diffusion models by name.
        extractors: extraction models by name.
        writers: language models by name.
        ready: True between loading and stopping.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.models: dict[str, ServedModel] = {}
        self.rerankers: dict[str, CrossEncoderReranker] = {}
        self.indexes: dict[str, ServedIndex] = {}
        self.runs: dict[str, Run] = {}
        self.extractors: dict[str, Extractor] = {}
        self.writers: dict[str, LanguageModel] = {}
        self.ready = False
        self._results: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._computing = asyncio.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kexue-serve")
        self._running = 0
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
        """Load all models and runs and open all indexes; ValueError where two have one name."""
        for given in self.settings.runs:
            self._add_run(os.fspath(given))
        for given in self.settings.models:
            name, equals, folder = str(given).partition("=")
            place = folder if equals else str(given)
            if is_cross_encoder(place):
                self.rerankers[name if equals else Path(place).name] = CrossEncoderReranker(
                    place, device=self.settings.device
                )
            else:
                self._add_model(
                    Encoder(place, device=self.settings.device, dtype=self.settings.dtype), name if equals else None
                )
        for path in self.settings.indexes:
            index, writable = self._open(path)
            name = index_name(str(path))
            if name in self.indexes:
                index.close()
                raise ValueError(f"two indexes are named {name!r}; rename one of the files.")
            try:
                model = self._find_encoder(index)
            except BaseException:
                index.close()
                raise
            self.indexes[name] = ServedIndex(name, index, model, str(path), writable)
            if model.whitening is None:
                model.whitening = index.space.whitening

    def _add_run(self, given: str) -> None:
        name, equals, place = given.partition("=")
        folder = Path(place if equals else given)
        name = name if equals else folder.resolve().name
        if any(name in models for models in (self.runs, self.extractors, self.writers)):
            raise ValueError(f"two runs are named {name!r}; write NAME=RUN to give one another name.")
        if str(folder) == PACKAGED or is_ngrams(folder):
            self.writers[name] = load_lm(PACKAGED if str(folder) == PACKAGED else f"ngram:{folder}")
            return
        if is_extractor(folder):
            self.extractors[name] = open_extractor(folder, device=self.settings.device)
            return
        run = open_run(folder, device=self.settings.device)
        if not isinstance(run.model, ImageDiffusion):
            raise NotSupported(
                f"{given} is a run of {run.name}; the server draws from diffusion and flow-matching.",
                remedy="Train one: kexue model train diffusion --data digits --out RUN",
            )
        self.runs[name] = run

    def _open(self, path: str | os.PathLike[str]) -> tuple[Index, bool]:
        """Open an index, read-only if its file cannot be written; return it and whether it can be written."""
        if self.settings.readonly:
            return Index.open(path, readonly=True), False
        try:
            return Index.open(path), True
        except IndexReadOnlyError as error:
            index = Index.open(path, readonly=True)
            _LOG.warning("%s It is served for reading.", error.message)
            return index, False

    def _find_encoder(self, index: Index) -> ServedModel:
        """Return the model of an index: a loaded one with the same vectors, else the index's own."""
        wanted = index.space.model
        for model in self.models.values():
            loaded = model.encoder
            same = (loaded.fingerprint, loaded.max_length, loaded.normalize)
            if same == (wanted.fingerprint, wanted.max_length, wanted.normalize):
                index.load_encoder(loaded)
                return model
        encoder = index.load_encoder(device=self.settings.device, dtype=self.settings.dtype)
        if not isinstance(encoder, Encoder):
            raise ValueError(
                f"{index!r} was built with an encoder of another kind; only indexes of kexue.text.Encoder can be served"
            )
        return self._add_model(encoder, None)

    def _add_model(self, encoder: Encoder, name: str | None) -> ServedModel:
        name = name or Path(encoder.model_id).name
        if name in self.models:
            raise ValueError(f"two models are named {name!r}; write NAME=FOLDER to give one another name.")
        batcher = Batcher(encoder, max_batch_tokens=self.settings.max_batch_tokens, max_queue=self.settings.max_queue)
        model = ServedModel(name, encoder, batcher, self.metrics, self.settings.max_input_tokens)
        self._connect_metrics(model)
        self.models[name] = model
        return model

    def _connect_metrics(self, model: ServedModel) -> None:
        metrics, name = self.metrics, model.name
        metrics.queue_size.labels(name).set_function(lambda: model.batcher.queue_size)

        def observe(size: int, tokens: int, queue_seconds: float, inference_seconds: float) -> None:
            metrics.batch_size.labels(name).observe(size)
            metrics.batch_tokens.labels(name).observe(tokens)
            metrics.queue_time.labels(name).observe(queue_seconds)
            metrics.inference_time.labels(name).observe(inference_seconds)

        model.batcher.observe = observe

    # Look-up by name

    def find_model(self, name: str | None) -> ServedModel:
        """Return the model of a name, the first one for None; ApiError 404 where there is none."""
        if name is None and self.models:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise ApiError(404, f"no model {name!r}; there are: {', '.join(self.models) or 'none'}.", param="model")
        return self.models[name]

    def find_index(self, name: str | None, *, to_write: bool = False) -> ServedIndex:
        """Return the index of a name, the first one for None.

        Raises:
            ApiError: 404 where there is none, 403 where it cannot be written although `to_write`.
        """
        if name is None and self.indexes:
            return next(iter(self.indexes.values()))
        if name not in self.indexes:
            raise ApiError(404, f"no index {name!r}; there are: {', '.join(self.indexes) or 'none'}.", param="index")
        if to_write and not self.indexes[name].writable:
            raise ApiError(403, f"The index {name!r} is served for reading only: its file cannot be written here.")
        return self.indexes[name]

    def find_run(self, name: str | None) -> Run:
        """Return the run of a name, the first one for None; ApiError (404) where there is none."""
        return _choose(self.runs, name, "run", "run", "RUN of kexue model train diffusion")

    def find_writer(self, name: str | None) -> LanguageModel:
        """Return the language model of a name, the first one for None; ApiError (404) where there is none."""
        return _choose(self.writers, name, "language model", "run", PACKAGED)

    @cached_property
    def judge(self) -> Encoder:
        """The packaged encoder, which tells whether sentences mean the same."""
        return Encoder(_JUDGE, device=self.settings.device)

    def find_extractor(self, name: str | None) -> Extractor:
        """Return the extraction model of a name, the first one for None; ApiError (404) where there is none."""
        return _choose(self.extractors, name, "extraction model", "model", "RUN of kexue extract train")

    def find_reranker(
        self, name: str, model: ServedModel | None
    ) -> TransportReranker | CosineReranker | CrossEncoderReranker:
        """Return a reranker: ``wrd``, ``wmd`` or ``cosine`` with the encoder of `model`, or a cross-encoder by name.

        ``"cross"`` is the first cross-encoder, unless another one has this name. ApiError 404 where there is none.
        """
        if model is not None and name in ("wrd", "wmd"):
            return TransportReranker(model.encoder, "wrd" if name == "wrd" else "wmd")
        if model is not None and name == "cosine":
            return CosineReranker(model.encoder)
        if name in self.rerankers:
            return self.rerankers[name]
        if name == "cross" and self.rerankers:
            return next(iter(self.rerankers.values()))
        there = ", ".join([*(() if model is None else ("wrd", "wmd", "cosine")), *self.rerankers]) or "none"
        raise ApiError(404, f"no reranker {name!r}; there are: {there}.", param="model")

    # Work in threads

    async def work(self, task: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Run a blocking call in a thread; QueueFullError (429) when `max_queue` calls wait already."""
        if self._running >= self.settings.max_queue:
            raise QueueFullError(1.0)
        self._running += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, lambda: task(*arguments, **options))
        finally:
            self._running -= 1

    async def compute_once(self, served: ServedIndex, key: tuple[Any, ...], task: Callable[[], T]) -> T:
        """Return the result of a slow computation on an index, kept until the index changes; one runs at a time."""
        entry = (served.name, *key)
        async with self._computing:
            state = (await self.work(served.index.store.metadata))["updated"]
            if entry not in self._results or self._results[entry][0] != state:
                self._results[entry] = state, await self.work(task)
            self._results.move_to_end(entry)
            if len(self._results) > _MAX_RESULTS:
                self._results.popitem(last=False)
            result: T = self._results[entry][1]
            return result


def _choose(models: Mapping[str, T], name: str | None, what: str, param: str, start: str) -> T:
    """Return the model of a name, the first one for None; ApiError (404), which says how a server gets one."""
    if name is None and models:
        return next(iter(models.values()))
    if name is None or name not in models:
        called = "" if name is None else f" {name!r}"
        known = ", ".join(models) or f"none; start the server with --run {start}"
        raise ApiError(404, f"no {what}{called}; there are: {known}.", param=param)
    return models[name]


def is_cross_encoder(place: str) -> bool:
    """Return whether a folder or hub id holds a cross-encoder (a sequence classifier)."""
    config = find_model(place) / "config.json"
    if not config.is_file():
        return False
    names = parse_json(config.read_bytes(), config, kind=dict).get("architectures") or []
    return any(str(name).endswith("ForSequenceClassification") for name in names)
